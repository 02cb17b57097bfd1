"""What a disk takes, measured by recording to it, and for which cameras that is enough."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scratchwriter._files.folders import remove_spill_folder
from scratchwriter._showing.disk_texts import disk_rate_text
from scratchwriter._writing import policy
from scratchwriter.dimensions import dims_from_standard_axes
from scratchwriter.errors import size_text
from scratchwriter.plan import make_plan
from scratchwriter.settings import AcquisitionSettings, ScratchFormat
from scratchwriter.stream import ScratchStream, create_stream

_FRAME_SHAPE = (512, 512)
_FRAME_NBYTES = 2 * math.prod(_FRAME_SHAPE)
_SECONDS, _MOST_NBYTES = 5, 8 << 30  # by default
# Little, so that it is full soon: from then on, frames come as fast as the disk takes them.
_STAGING_NBYTES = 256 << 20
_LEAST_NBYTES = 2 * _STAGING_NBYTES  # to be measured, and much of it behind that
_LOOK_S = 0.05
_HEAD_ROOM = 0.2  # of the slowest second
_BURST = 2  # times what the disk takes for ever
_LONG_S = 60  # after which an SSD has filled a cache of its own
CAMERAS = ((64, 64), (512, 512), (1024, 1024), (2048, 2048), (2304, 2304))


@dataclass(frozen=True, slots=True)
class Sample:
    """What has been recorded at one moment.

    Attributes
    ----------
    time_s : float
        By any clock.
    in_files_nbytes : int
        What the disk has taken.
    waited_frames : int
        How many frames have waited for the disk.
    """

    time_s: float
    in_files_nbytes: int
    waited_frames: int


@dataclass(frozen=True, slots=True)
class DiskRate:
    """What a disk takes.

    Attributes
    ----------
    nbytes_per_s : tuple of float
        One second after the other; of a short measurement, parts of about a second.
    measured_s : float
        How long that was.
    is_least : bool
        Whether the disk kept up with this program all the time, and may take more.
    most_staged_nbytes : int
        What may wait for the disk on this machine, by default.
    """

    nbytes_per_s: tuple[float, ...]
    measured_s: float
    is_least: bool
    most_staged_nbytes: int

    @property
    def median_nbytes_per_s(self) -> float:
        """The rate of the second in the middle."""
        return float(np.median(self.nbytes_per_s))

    @property
    def slowest_nbytes_per_s(self) -> float:
        """The rate of the slowest second."""
        return min(self.nbytes_per_s)

    @property
    def camera_nbytes_per_s(self) -> float:
        """What a camera may give at any time: less than the slowest second."""
        return (1 - _HEAD_ROOM) * self.slowest_nbytes_per_s

    @property
    def burst_nbytes_per_s(self) -> float:
        """What a camera may give for a while."""
        return _BURST * self.camera_nbytes_per_s

    @property
    def burst_s(self) -> float:
        """How long that may last before `append` waits."""
        grows_nbytes_per_s = self.burst_nbytes_per_s - self.slowest_nbytes_per_s
        return self.most_staged_nbytes / grows_nbytes_per_s

    def frames_per_s(self, shape: tuple[int, int]) -> float:
        """Return how often a camera of 16 bit may give frames of a shape."""
        return self.camera_nbytes_per_s / (2 * math.prod(shape))


def measure_disk(
    folder: Path,
    seconds: float | None = None,
    on_sample: Callable[[float, int], object] = lambda *_: None,
) -> DiskRate:
    """Record into a temporary folder as fast as it goes, and remove it.

    The frames are noise, which no disk can compress. Half of the free space is used at
    the most.

    Parameters
    ----------
    folder : pathlib.Path
        On the disk.
    seconds : float, optional
        How long; by default a few seconds, and no more than 8 GiB.
    on_sample : callable(elapsed_s, nbytes), optional
        Called now and then with how long it has taken, and what the disk has taken.

    Raises
    ------
    OSError
        If the folder does not exist, cannot be written to, takes no direct writes, or has
        too little room.
    """
    settings = _settings(folder)
    most_nbytes = _room_nbytes(folder, settings)
    if seconds is None:
        seconds, most_nbytes = _SECONDS, min(most_nbytes, _MOST_NBYTES)
    samples: list[Sample] = []
    most_staged_nbytes = policy.most_staged_nbytes(ScratchFormat())
    with _temporary_stream(settings) as stream:
        for sample in _record(stream, seconds, most_nbytes):
            samples.append(sample)
            on_sample(sample.time_s - samples[0].time_s, sample.in_files_nbytes)
    return make_disk_rate(samples, most_staged_nbytes)


def make_disk_rate(samples: Sequence[Sample], most_staged_nbytes: int) -> DiskRate:
    """Return the rates between samples, from the moment on that frames had to wait.

    Before that the disk was not the limit. If they never had to, or only at the end, these
    are the rates of all of it: the disk may take more.
    """
    waited = [sample for sample in samples if sample.waited_frames]
    is_least = len(waited) < 2
    found = list(samples) if is_least else waited
    times_s = np.array([sample.time_s for sample in found])
    nbytes = np.array([sample.in_files_nbytes for sample in found])
    measured_s = float(times_s[-1] - times_s[0])
    stops_s = np.linspace(times_s[0], times_s[-1], max(round(measured_s), 1) + 1)
    rates = np.diff(np.interp(stops_s, times_s, nbytes)) / np.diff(stops_s)
    rates = np.maximum(rates, 1)  # of a disk that took nothing: times stay finite
    return DiskRate(tuple(rates.tolist()), measured_s, is_least, most_staged_nbytes)


def _settings(folder: Path) -> AcquisitionSettings:
    """Return those of a recording in a temporary folder, as if memory were full.

    If this process is killed, `scratchwriter clean` and the next measurement remove it.
    """
    height, width = _FRAME_SHAPE
    return AcquisitionSettings(
        dimensions=dims_from_standard_axes({"t": None, "y": height, "x": width}),
        dtype="uint16",
        format=ScratchFormat(
            max_memory_bytes=1,
            spill_dir=str(folder),
            disk_io="direct",
            max_staging_bytes=_STAGING_NBYTES,
        ),
    )


def _room_nbytes(folder: Path, settings: AcquisitionSettings) -> int:
    """Return how many bytes may be recorded in a folder, or raise OSError."""
    if not folder.is_dir():
        raise OSError(errno.ENOTDIR, "The folder does not exist", str(folder))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, "The folder cannot be written to", str(folder))
    _, why_not = policy.stage(folder, make_plan(settings), settings.format)
    if why_not:
        raise OSError(
            errno.EOPNOTSUPP,
            f"Files there are not written directly: {why_not}. Recordings go through the "
            "page cache, of which this measures nothing",
            str(folder),
        )
    free_nbytes = shutil.disk_usage(folder).free
    if free_nbytes // 2 < _LEAST_NBYTES:
        raise OSError(
            errno.ENOSPC,
            f"This writes at least {size_text(_LEAST_NBYTES)}, at most half of the free "
            f"space: {size_text(free_nbytes)} are free. Free some space",
            str(folder),
        )
    return free_nbytes // 2


@contextmanager
def _temporary_stream(settings: AcquisitionSettings) -> Iterator[ScratchStream]:
    with warnings.catch_warnings():
        # That it is temporary, and that the disk is slower than memory, is meant to be.
        warnings.filterwarnings("ignore", "The arrays need", UserWarning)
        warnings.filterwarnings("ignore", "The disk of", UserWarning)
        stream = create_stream(settings)
        try:
            with stream:
                yield stream
        finally:
            if stream.path is not None:
                remove_spill_folder(stream.path)


def _record(stream: ScratchStream, seconds: float, most_nbytes: int) -> Iterator[Sample]:
    """Append as fast as it goes; yield samples, the first and the last moment included."""
    most_frames = most_nbytes // _FRAME_NBYTES
    start_s = looked_s = time.monotonic()
    yield Sample(start_s, 0, 0)
    for frame in cycle(_noise()):
        stream.append(frame)
        now_s = time.monotonic()
        is_over = now_s - start_s >= seconds or stream.frames_written >= most_frames
        if is_over or now_s - looked_s >= _LOOK_S:
            yield _look(stream, now_s)
            looked_s = now_s
        if is_over:
            return


def _noise() -> npt.NDArray[np.uint16]:
    return np.random.default_rng().integers(0, 1 << 16, (16, *_FRAME_SHAPE), np.uint16)


def _look(stream: ScratchStream, now_s: float) -> Sample:
    stats = stream.stats()
    if stats.disk is None:
        return Sample(now_s, 0, 0)
    in_files_nbytes = max(stats.nbytes - stats.disk.staged_nbytes, 0)
    return Sample(now_s, in_files_nbytes, stats.disk.waited_frames)


# ------------------------------------------------------------------------- what is shown


def disk_lines(folder: Path, rate: DiskRate) -> Iterator[str]:
    """Yield the lines about a disk, for people."""
    median, slowest, camera, burst = (
        disk_rate_text(nbytes_per_s)
        for nbytes_per_s in (
            rate.median_nbytes_per_s,
            rate.slowest_nbytes_per_s,
            rate.camera_nbytes_per_s,
            rate.burst_nbytes_per_s,
        )
    )
    takes = f"at least {median}" if rate.is_least else median
    if len(rate.nbytes_per_s) > 1:
        takes += f", {slowest} in the slowest second"
    burst_s, staged = _two_digits(rate.burst_s), size_text(rate.most_staged_nbytes)
    yield f"disk       {folder}"
    yield f"measured   for {rate.measured_s:.1f} s, by recording to it"
    yield f"it takes   {takes}"
    yield f"cameras    up to {camera}, with a head-room of {100 * _HEAD_ROOM:.0f} percent"
    yield f"bursts     up to {burst} for {burst_s} s: {staged} may wait for it"
    yield ""
    yield "camera, 16 bit   frames/s"
    for height, width in CAMERAS:
        frames_per_s = _two_digits(rate.frames_per_s((height, width)))
        yield f"{f'{width} x {height}':<14}{frames_per_s:>11}"
    if rate.measured_s < _LONG_S:
        yield ""
        yield f"Many SSDs are slower after a minute: --seconds {2 * _LONG_S} measures that."


def disk_facts(folder: Path, rate: DiskRate) -> dict[str, Any]:
    """Return the facts about a disk, for programs."""
    return {
        "path": str(folder),
        "measured_s": rate.measured_s,
        "nbytes_per_s": rate.median_nbytes_per_s,
        "slowest_nbytes_per_s": rate.slowest_nbytes_per_s,
        "each_second_nbytes_per_s": list(rate.nbytes_per_s),
        "is_least": rate.is_least,
        "camera_nbytes_per_s": rate.camera_nbytes_per_s,
        "burst_nbytes_per_s": rate.burst_nbytes_per_s,
        "burst_s": rate.burst_s,
        "most_staged_nbytes": rate.most_staged_nbytes,
        "cameras": [
            {
                "width": width,
                "height": height,
                "dtype": "uint16",
                "frames_per_s": rate.frames_per_s((height, width)),
            }
            for height, width in CAMERAS
        ],
    }


def _two_digits(number: float) -> str:
    """Return a number with its first two digits; the others are not known well enough."""
    digits = 1 - math.floor(math.log10(number))
    rounded = math.floor(number * 10.0**digits) / 10.0**digits
    return f"{rounded:,.{max(digits, 0)}f}"
