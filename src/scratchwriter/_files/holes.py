"""Finds frames that count as written and that nobody has stored.

A copy that is made file by file while the dataset is recorded has them: the array's file is
copied first, and the number of frames later. Where the array's file was not written yet,
the copy has a hole, or zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import array_name
from scratchwriter._files.skips import BEFORE_ALL
from scratchwriter._files.source import Source
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import descriptor_of_regular, holes, read_pieces
from scratchwriter.plan import FramePlan, Skips, skip_of

_MOST_HOLES = 10_000  # of a file that are looked at
_CHUNK_FRAMES = 1 << 20  # looked at together
_MOST_READ_NBYTES = 64 << 20  # of all files
_PAGE_NBYTES = 4096  # read first, in which most frames have something


class _Missing(NamedTuple):
    """Frames that came and are not in a file: how many, the first, and the last."""

    frames: int
    first: int
    last: int


def frames_in_holes(source: Source) -> Iterator[str]:
    """Yield, a line for each file, which frames are nothing but a hole in it.

    Only frames that came, and are in the files of the arrays. A part of a frame that is a
    hole does not count: some programs do not store zeros. Nothing is read.

    Raises
    ------
    DatasetError
        If a file is damaged.
    """
    if not source.counts_frames:
        return
    cursor = source.frames_in_files
    skips = source.frames.skips(BEFORE_ALL, cursor)
    for position in range(source.plan.num_positions):
        missing = list(_in_holes(source, position, cursor, skips))
        if missing:
            count = sum(part.frames for part in missing)
            first, last = min(m.first for m in missing), max(m.last for m in missing)
            yield (
                f"{source.path / array_name(position)}: it has holes where {count} frames "
                f"should be, {first} to {last}: they read as zeros. It was copied while it "
                "was recorded, not by `scratchwriter copy`; or these frames are zeros, and "
                "the file system or a program that copied it did not store them"
            )


def zeros_at_end(source: Source) -> Iterator[str]:
    """Yield, a line for each file, that its newest frames are nothing but zeros.

    That is what a copy has that does not keep holes. A camera may give such frames, too, so
    it is no fault. Mostly a few bytes are read, and no more than `_MOST_READ_NBYTES`.

    Raises
    ------
    DatasetError
        If a file is damaged.
    """
    if not source.counts_frames:
        return
    left_nbytes, cursor = _MOST_READ_NBYTES, source.frames_in_files
    skips = source.frames.skips(BEFORE_ALL, cursor)
    for position in range(source.plan.num_positions):
        path = source.path / array_name(position)
        count, first, last = 0, 0, 0
        with faults_of(path), descriptor_of_regular(path) as file:
            for frame in _newest_first(source.plan, position, cursor, skips):
                start = _start_of(source.plan, frame)
                stop = start + source.plan.frame_nbytes
                if left_nbytes <= 0 or not _is_zero(file, start, stop):
                    break
                left_nbytes -= source.plan.frame_nbytes
                count, first, last = count + 1, frame, max(last, frame)
        if count:
            more = " or more" if left_nbytes <= 0 else ""
            yield (
                f"{path}: its newest {count}{more} frames, {first} to {last}, are zeros. A "
                "copy that was made while it was recorded, not by `scratchwriter copy`, "
                "lacks frames in this way"
            )


def _newest_first(
    plan: FramePlan, position: int, cursor: int, skips: Skips
) -> Iterator[int]:
    """Yield the frames of a position that came and are kept, from the newest on."""
    oldest = plan.first_step(position, cursor) * plan.step_frames
    left = plan.filled_nbytes(position, cursor) // plan.frame_nbytes
    while left > 0:
        frame = _nth_of(plan, position, left - 1)
        if frame < oldest:
            return
        skip = skip_of(frame, skips)
        if skip is None:
            yield frame
            left -= 1
        else:
            left = plan.filled_nbytes(position, skip.start) // plan.frame_nbytes


def _nth_of(plan: FramePlan, position: int, n: int) -> int:
    """Return the number of the n-th frame of a position, from 0 on."""
    visit, within = divmod(n, plan.visit_frames)
    return (visit * plan.num_positions + position) * plan.visit_frames + within


def _start_of(plan: FramePlan, frame: int) -> int:
    """Return where a frame is in its position's file."""
    steps = zip(plan.indices(frame), plan.strides_nbytes, strict=True)
    start = sum(i * stride for i, stride in steps)
    return start % (plan.ring_steps * plan.step_nbytes) if plan.ring_steps else start


def _is_zero(file: Descriptor, start: int, stop: int) -> bool:
    for first, stop_of_part in ((start, min(start + _PAGE_NBYTES, stop)), (start, stop)):
        pieces = read_pieces(file, first, stop_of_part)
        if any(data.count(0) < len(data) for _, data in pieces):
            return False
    return True


def _in_holes(
    source: Source, position: int, cursor: int, skips: Skips
) -> Iterator[_Missing]:
    """Yield which frames of a position are holes in its file."""
    plan, path = source.plan, source.path / array_name(position)
    is_in_order = plan.is_in_order and not plan.ring_steps
    size = plan.filled_nbytes if is_in_order else plan.file_nbytes
    find = _missing_in_order if is_in_order else _missing_anywhere
    with faults_of(path), descriptor_of_regular(path) as file:
        for start, stop in islice(holes(file, size(position, cursor)), _MOST_HOLES):
            first, end = -(-start // plan.frame_nbytes), stop // plan.frame_nbytes
            if first < end:
                yield from find(plan, position, first, end, cursor, skips)


def _missing_in_order(
    plan: FramePlan, position: int, first: int, end: int, cursor: int, skips: Skips
) -> Iterator[_Missing]:
    """Yield which frames of a range of slots came, where they come in the order of bytes.

    Without a look at each of them: there may be any number.
    """
    begin, last = (_nth_of(plan, position, n) for n in (first, end - 1))
    for low, high in skips.others(begin, last + 1):
        start = plan.filled_nbytes(position, low) // plan.frame_nbytes
        stop = plan.filled_nbytes(position, high) // plan.frame_nbytes
        if start < stop:  # not only frames of other positions
            ends = (_nth_of(plan, position, n) for n in (start, stop - 1))
            yield _Missing(stop - start, *ends)


def _missing_anywhere(
    plan: FramePlan, position: int, first: int, end: int, cursor: int, skips: Skips
) -> Iterator[_Missing]:
    """Yield which frames of a range of slots came, in any order."""
    for at in range(first, end, _CHUNK_FRAMES):
        slots = np.arange(at, min(at + _CHUNK_FRAMES, end))
        frames = _frames_at(plan, position, slots, cursor)
        frames = frames[(frames >= 0) & (frames < cursor)]
        frames = frames[~skips.contain(frames)]
        if frames.size:
            yield _Missing(len(frames), int(frames.min()), int(frames.max()))


def _frames_at(
    plan: FramePlan, position: int, slots: npt.NDArray[np.int64], cursor: int
) -> npt.NDArray[np.int64]:
    """Return which frames are in slots of a position's file; -1: one that is not kept."""
    index, rest = {}, slots
    for axis in reversed(plan.file_axes):
        count = plan.counts[axis]
        rest, index[axis] = (rest, rest) if count is None else np.divmod(rest, count)
    is_kept = np.ones(len(slots), np.bool_)
    if plan.ring_steps:
        newest = plan.steps(position, cursor) - 1
        steps = newest - (newest - rest) % plan.ring_steps
        index[plan.file_axes[0]] = steps
        is_kept = steps >= plan.first_step(position, cursor)
    frames = np.zeros(len(slots), np.int64)
    for axis, count in enumerate(plan.counts):
        frames = frames * (count or 1) + index.get(axis, np.int64(position))
    return np.where(is_kept, frames, -1)
