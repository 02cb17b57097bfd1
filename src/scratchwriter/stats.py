"""What a stream measures about itself while it runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

DiskIO: TypeAlias = Literal["memory", "page_cache", "direct"]

_BUCKET_BITS = 5  # as in _core.pxd
NUM_BUCKETS = 37 << _BUCKET_BITS
# What is measured of files that are staged; in append_times.bin, too.
DISK_FIELDS = (
    *("camera_nbytes_per_s", "disk_nbytes_per_s", "staged_nbytes", "max_staged_nbytes"),
    *("waited_frames", "waited_ns"),
)


_SOME = 16  # of what may wait for the disk


@dataclass(frozen=True, slots=True)
class DiskStats:
    """How well a disk keeps up, if files are staged and written directly.

    Rates are those of the last seconds.

    Attributes
    ----------
    camera_nbytes_per_s : float
        How fast frames come.
    disk_nbytes_per_s : float
        How fast the disk takes them, while it writes; NaN before it has written.
    staged_nbytes : int
        Bytes of frames that wait for the disk.
    max_staged_nbytes : int
        The most bytes that may wait; beyond that `append` waits.
    seconds_left : float
        Seconds until that many wait, at these rates; infinite if the disk keeps up.
    waited_frames : int
        How many frames have waited.
    waited_s : float
        How long they have waited, in total.
    """

    camera_nbytes_per_s: float
    disk_nbytes_per_s: float
    staged_nbytes: int
    max_staged_nbytes: int
    seconds_left: float
    waited_frames: int
    waited_s: float

    def at_end(self) -> DiskStats:
        """Return the same of a dataset that is closed: nothing waits, or will."""
        return replace(self, staged_nbytes=0, seconds_left=float("inf"))


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
    disk_io : {'memory', 'page_cache', 'direct'}
        Where frames go now: to memory, through the page cache, or staged and directly.
    why_not_direct : str
        In words, why files are not written directly; empty if they are.
    disk : DiskStats or None
        How the disk does; None unless files are written directly.
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
    disk_io: DiskIO
    why_not_direct: str
    disk: DiskStats | None


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


def make_disk_stats(measured: Mapping[str, int]) -> DiskStats:
    """Make `DiskStats` from the `DISK_FIELDS` that were measured."""
    camera, disk = measured["camera_nbytes_per_s"], measured["disk_nbytes_per_s"]
    staged, most = measured["staged_nbytes"], measured["max_staged_nbytes"]
    seconds_left = float("inf")
    # Of a disk that has taken nothing yet nobody knows; but not for long.
    is_known = disk > 0 or staged > most // _SOME
    if camera > disk and is_known:
        seconds_left = max(most - staged, 0) / (camera - disk)
    return DiskStats(
        camera_nbytes_per_s=float(camera),
        disk_nbytes_per_s=float(disk) if disk > 0 else float("nan"),
        staged_nbytes=staged,
        max_staged_nbytes=most,
        seconds_left=seconds_left,
        waited_frames=measured["waited_frames"],
        waited_s=measured["waited_ns"] / 1e9,
    )


def make_stats(
    measured: Mapping[str, Any], frames: int, frame_nbytes: int, **files: Any
) -> StreamStats:
    """Make `StreamStats` from what a `FrameWriter` measured, and the state of the files."""
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
        **files,
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
