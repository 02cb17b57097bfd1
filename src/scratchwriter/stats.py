"""What a stream measures about itself while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_BUCKET_BITS = 5  # as in _core.pxd
NUM_BUCKETS = 37 << _BUCKET_BITS


@dataclass(frozen=True, slots=True)
class StreamStats:
    """How a stream is doing, by the counters of its core.

    Append times are from calling `append` until it returns, in a histogram of fixed size
    whose buckets are 3 % wide (as in HdrHistogram, http://hdrhistogram.org). Every append
    is timed if a frame has 64 KiB or more; of smaller frames one in 16, and the maximum is
    that of the sample.

    Attributes
    ----------
    frames : int
        Frames appended and skipped.
    nbytes : int
        Bytes of the frames appended.
    elapsed_s : float
        From the first append to the last one that was timed.
    frames_per_s : float
        Rate over that time; NaN without a timed append.
    timed_appends : int
        How many appends were timed.
    append_p50_us, append_p99_us, append_p999_us, append_p9999_us : float
        Percentiles of their times (50, 99, 99.9, 99.99) in microseconds; NaN before the
        first append.
    append_max_us : float
        The longest time.
    dropped : int
        Frame numbers that are missing between those that came with the frames.
    populated_ahead_nbytes : int
        Bytes ahead of the frames that can be stored to without a page fault. If it falls
        to 0, frames come faster than the machine makes memory ready.
    allocated_ahead_nbytes : int
        Bytes ahead of the frames that have memory granted, or blocks on the disk.
    unwritten_nbytes : int
        Bytes in files that may not have been written to the disk yet; 0 in memory.
    """

    frames: int
    nbytes: int
    elapsed_s: float
    frames_per_s: float
    timed_appends: int
    append_p50_us: float
    append_p99_us: float
    append_p999_us: float
    append_p9999_us: float
    append_max_us: float
    dropped: int
    populated_ahead_nbytes: int
    allocated_ahead_nbytes: int
    unwritten_nbytes: int


@dataclass(frozen=True, slots=True)
class AppendTimes:
    """How long the appends of a dataset took, as its writer recorded: see `StreamStats`.

    Attributes
    ----------
    timed_appends : int
        How many appends were timed.
    elapsed_s : float
        From the first append to the last one that was timed.
    p50_us, p99_us, p999_us, p9999_us : float
        Percentiles of their times (50, 99, 99.9, 99.99) in microseconds; NaN if none was
        timed.
    max_us : float
        The longest time.
    counts : numpy.ndarray of int64
        How many appends are in each bucket.
    stops_us : numpy.ndarray of float64
        Where each bucket ends, in microseconds.
    """

    timed_appends: int
    elapsed_s: float
    p50_us: float
    p99_us: float
    p999_us: float
    p9999_us: float
    max_us: float
    counts: npt.NDArray[np.int64]
    stops_us: npt.NDArray[np.float64]


def make_append_times(
    counts: npt.NDArray[np.int64], longest_append_ns: int, elapsed_ns: int
) -> AppendTimes:
    """Make `AppendTimes` from what a `FrameWriter` measured."""
    longest_us = longest_append_ns / 1e3
    p50, p99, p999, p9999 = (
        min(percentile_us(counts, q), longest_us) for q in (50, 99, 99.9, 99.99)
    )
    return AppendTimes(
        timed_appends=int(counts.sum()),
        elapsed_s=elapsed_ns / 1e9,
        p50_us=p50,
        p99_us=p99,
        p999_us=p999,
        p9999_us=p9999,
        max_us=longest_us,
        counts=counts,
        stops_us=np.array([bucket_stop_ns(i) for i in range(len(counts))]) / 1e3,
    )


def make_stats(
    measured: Mapping[str, Any], frames: int, frame_nbytes: int, **nbytes: int
) -> StreamStats:
    """Make `StreamStats` from what a `FrameWriter` measured, and numbers of bytes."""
    times = make_append_times(
        measured["append_counts"],
        measured["longest_append_ns"],
        measured["last_append_ns"] - measured["first_append_ns"],
    )
    elapsed_s, appended = times.elapsed_s, measured["num_appended"]
    return StreamStats(
        frames=frames,
        nbytes=appended * frame_nbytes,
        elapsed_s=elapsed_s,
        frames_per_s=appended / elapsed_s if elapsed_s > 0 else float("nan"),
        timed_appends=times.timed_appends,
        append_p50_us=times.p50_us,
        append_p99_us=times.p99_us,
        append_p999_us=times.p999_us,
        append_p9999_us=times.p9999_us,
        append_max_us=times.max_us,
        dropped=measured["num_dropped"],
        **nbytes,
    )


def percentile_us(counts: npt.NDArray[np.int64], q: float) -> float:
    """Return the upper end of the bucket that holds a percentile, in microseconds."""
    ranks = np.cumsum(counts)
    if ranks[-1] == 0:
        return float("nan")
    wanted = max(int(np.ceil(ranks[-1] * q / 100)), 1)
    return bucket_stop_ns(int(np.searchsorted(ranks, wanted))) / 1e3


def bucket_stop_ns(bucket: int) -> int:
    """Return the first time, in nanoseconds, that is too long for a bucket."""
    shift = max((bucket >> _BUCKET_BITS) - 1, 0)
    return (bucket - (shift << _BUCKET_BITS) + 1) << shift
