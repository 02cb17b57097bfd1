"""FramePlan: where every frame of an acquisition goes. Pure arithmetic, no I/O.

Frames come in acquisition order, so the number of frames that have come (the cursor)
determines everything: which slot is next, and how far each position's array reaches. All
sizes are exact Python integers.
"""

from __future__ import annotations

import math
import mmap
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import numpy.typing as npt

from scratchwriter.settings import AcquisitionSettings

_CHUNK_FRAMES = 1 << 20  # processed at a time


@dataclass(frozen=True, slots=True)
class FramePlan:
    """Counts, strides and sizes of an acquisition.

    Attributes
    ----------
    dtype : numpy.dtype
        dtype of the pixels, native byte order.
    frame_shape : (int, int)
        Shape of a frame.
    counts : tuple of int or None
        Count per non-frame axis in acquisition order; None for the unbounded one.
    strides_nbytes : tuple of int
        Step in a position's file per non-frame axis; 0 for the position axis.
    position_axis : int or None
        Which of those axes is the positions'.
    num_positions : int
        Number of arrays.
    file_axes : tuple of int
        Which of those axes are the leading axes of a file, outermost first.
    file_dims : tuple of str
        Names of all axes of a file, the frame's included.
    storage_axes : tuple of int
        Axes of a file in the order of the arrays that users get (for `transpose`).
    keep_steps : int or None
        How many of the newest steps along the unbounded axis are kept; None: all.
    ring_steps : int
        How many steps a ring holds before the oldest is overwritten; 0: not a ring.
    """

    dtype: np.dtype[np.generic]
    frame_shape: tuple[int, int]
    counts: tuple[int | None, ...]
    strides_nbytes: tuple[int, ...]
    position_axis: int | None
    num_positions: int
    file_axes: tuple[int, ...]
    file_dims: tuple[str, ...]
    storage_axes: tuple[int, ...]
    keep_steps: int | None = None
    ring_steps: int = 0

    @property
    def frame_nbytes(self) -> int:
        """Bytes of a frame."""
        return math.prod(self.frame_shape) * self.dtype.itemsize

    @property
    def is_unbounded(self) -> bool:
        """Whether the first axis is unbounded."""
        return bool(self.counts) and self.counts[0] is None

    @property
    def num_frames(self) -> int | None:
        """Frames of all positions together, None if unbounded."""
        return None if self.is_unbounded else self.step_frames

    @property
    def ring_frames(self) -> int:
        """Frames of all positions that a ring holds; 0 if nothing is overwritten."""
        return self.ring_steps * self.step_frames

    @property
    def is_in_order(self) -> bool:
        """Whether each file's slots come in the order of its bytes."""
        return list(self.file_axes) == sorted(self.file_axes)

    @property
    def step_frames(self) -> int:
        """Frames, of all positions, per step of the unbounded axis (all, if bounded)."""
        return math.prod(count or 1 for count in self.counts)

    @property
    def step_nbytes(self) -> int:
        """Bytes of a position per step of the unbounded axis (all, if bounded)."""
        return self.step_frames // self.num_positions * self.frame_nbytes

    @property
    def total_nbytes(self) -> int:
        """Bytes of all positions; if unbounded, of the first step, or of the ring."""
        return self.num_positions * self.step_nbytes * max(self.ring_steps, 1)

    def steps(self, position: int, cursor: int) -> int:
        """Return how far the outermost file axis of a position has come, in steps.

        A step is the whole array if the plan is bounded. Before its first frame an
        array already has one step (of zeros), so that it can be shown and mapped.
        """
        if not self.is_unbounded:
            return 1
        full_steps, rest = divmod(cursor, self.step_frames)
        if rest > position * self.visit_frames:
            full_steps += 1
        return max(full_steps, 1)

    def first_step(self, position: int, cursor: int) -> int:
        """Return the first step of a position that is kept."""
        steps = self.steps(position, cursor)
        return steps - min(steps, self.keep_steps or steps)

    def start_nbytes(self, position: int, cursor: int) -> int:
        """Return the offset of that step in a position's file."""
        if self.ring_steps == 0:
            return 0
        return self.first_step(position, cursor) % self.ring_steps * self.step_nbytes

    def indices(self, frame: int) -> tuple[int, ...]:
        """Return the index of a frame along each axis but the frame's own."""
        indices = []
        for count in reversed(self.counts):
            frame, index = divmod(frame, count) if count is not None else (0, frame)
            indices.append(index)
        return tuple(reversed(indices))

    def extents(self, cursor: int) -> tuple[int, ...]:
        """Return how far `cursor` frames reach along each of those axes."""
        extents = []
        frames = 1  # per element of the axis
        for count in reversed(self.counts):
            reached = -(-cursor // frames)
            extents.append(reached if count is None else min(reached, count))
            frames *= count or 1
        return tuple(reversed(extents))

    def most_frames(self, position: int, steps: int) -> int:
        """Return the largest cursor for which a position has at most that many steps."""
        if not self.is_unbounded:
            return self.step_frames if steps else 0
        return steps * self.step_frames + position * self.visit_frames

    def file_shape(self, position: int, cursor: int) -> tuple[int, ...]:
        """Return the shape of a position's file after `cursor` frames."""
        steps = self.steps(position, cursor) - self.first_step(position, cursor)
        counts = (self.counts[axis] for axis in self.file_axes)
        return (*(steps if n is None else n for n in counts), *self.frame_shape)

    def file_nbytes(self, position: int, cursor: int) -> int:
        """Return the size of a position's file after `cursor` frames."""
        return (self.ring_steps or self.steps(position, cursor)) * self.step_nbytes

    @property
    def visit_frames(self) -> int:
        """Frames that a position gets in a row."""
        if self.position_axis is None:
            return self.step_frames
        return math.prod(count or 1 for count in self.counts[self.position_axis + 1 :])

    def frame_number(self, position: int, index: Sequence[int]) -> int:
        """Return which frame, in acquisition order, has an index in a position's file.

        Raises
        ------
        IndexError
            If no slot has that index.
        """
        slot = [position] * len(self.counts)
        if len(index) != len(self.file_axes) or not 0 <= position < self.num_positions:
            raise IndexError(f"no slot {tuple(index)} in position {position}")
        for axis, i in zip(self.file_axes, index, strict=True):
            slot[axis] = i
        for i, count in zip(slot, self.counts, strict=True):
            if i < 0 or (count is not None and i >= count):
                raise IndexError(f"no slot {tuple(index)} in position {position}")
        return self.number(slot)

    def number(self, indices: Sequence[int]) -> int:
        """Return the number of the frame with these indices: the inverse of `indices`."""
        number = 0
        for i, count in zip(indices, self.counts, strict=True):
            number = number * (count or 1) + i
        return number

    def filled_nbytes(self, position: int, cursor: int) -> int:
        """Return how many bytes of a position's file `cursor` frames fill, in order."""
        round_frames = self.visit_frames * self.num_positions
        rest = cursor % round_frames - position * self.visit_frames
        frames = cursor // round_frames * self.visit_frames
        return (frames + min(max(rest, 0), self.visit_frames)) * self.frame_nbytes

    def written(
        self, position: int, cursor: int, skipped: Sequence[range]
    ) -> npt.NDArray[np.bool_]:
        """Return which frames of a position were written.

        Returns
        -------
        numpy.ndarray of bool
            One per frame, in the shape of the file without the frame's axes.
        """
        written = np.zeros(self.file_shape(position, cursor)[:-2], np.bool_)
        starts = [0, *(r.stop for r in skipped)]
        stops = [*(r.start for r in skipped), cursor]
        first_step = self.first_step(position, cursor)
        for start, stop in zip(starts, stops, strict=True):
            for _, index in self.slots(position, start, stop, first_step):
                written[index] = True
        return written

    def slots(
        self, position: int, start: int, stop: int, first_step: int = 0
    ) -> Iterator[tuple[npt.NDArray[np.int64], tuple[npt.NDArray[np.int64], ...]]]:
        """Yield which frames of a range are in a position's file, and where in it.

        In pieces: the numbers of frames, and their indices along each axis of the file but
        the frame's, counted from the first step that is kept.
        """
        start = max(start, first_step * self.step_frames)
        for first in range(start, stop, _CHUNK_FRAMES):
            frames = rest = np.arange(first, min(first + _CHUNK_FRAMES, stop))
            slot = []
            for count in reversed(self.counts):
                if count is None:
                    index = rest - first_step
                else:
                    rest, index = divmod(rest, count)
                slot.append(index)
            slot.reverse()
            if self.position_axis is not None:
                here = slot[self.position_axis] == position
                frames, slot = frames[here], [index[here] for index in slot]
            yield frames, tuple(slot[axis] for axis in self.file_axes)


class Skips(Sequence[range]):
    """Ranges of frames that were skipped, in order, in 16 bytes each.

    Parameters
    ----------
    pairs : numpy.ndarray of int64, shape (n, 2)
        The first frame of each range, and the one after its last.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: npt.ArrayLike = ()) -> None:
        self._pairs = np.asarray(pairs, np.int64).reshape(-1, 2)

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, i: int) -> range: ...
    @overload
    def __getitem__(self, i: slice) -> Skips: ...
    def __getitem__(self, i: int | slice) -> range | Skips:
        if isinstance(i, slice):
            return Skips(self._pairs[i])
        start, stop = self._pairs[i].tolist()
        return range(start, stop)

    def between(self, first: int, stop: int) -> Skips:
        """Return the ranges that have a frame from `first` to before `stop`."""
        starts, stops = self._pairs.T
        return Skips(self._pairs[(stops > first) & (starts < stop)])

    def others(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges from `first` to before `stop` that were not skipped."""
        at = int(np.searchsorted(self._pairs[:, 1], first, "right"))
        while first < stop and at < len(self._pairs):
            low, high = self._pairs[at].tolist()
            if first < low:
                yield first, min(low, stop)
            first, at = max(first, high), at + 1
        if first < stop:
            yield first, stop

    def contain(self, frames: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of these frames were skipped."""
        if len(self._pairs) == 0:
            return np.zeros(len(frames), np.bool_)
        at = np.searchsorted(self._pairs[:, 0], frames, "right") - 1
        is_before: npt.NDArray[np.bool_] = frames < self._pairs[at, 1]
        return is_before & (at >= 0)

    def num_between(self, first: int, stop: int) -> int:
        """Return how many frames from `first` to before `stop` were skipped."""
        starts, stops = np.clip(self._pairs, first, stop).T
        return int((stops - starts).sum())


def skip_of(frame: int, skips: Sequence[range]) -> range | None:
    """Return the skip that contains a frame, if any; the skips are in order."""
    at = bisect_right(skips, frame, key=lambda skip: skip.start) - 1
    return skips[at] if at >= 0 and frame in skips[at] else None


def make_plan(settings: AcquisitionSettings) -> FramePlan:
    """Derive the plan of an acquisition from its settings.

    The unbounded axis is put outermost in the files whatever the storage order, so
    that a file grows at its end only.
    """
    dims = settings.dimensions[:-2]
    height, width = (dim.count or 0 for dim in settings.frame_dimensions)
    dtype = np.dtype(settings.dtype)

    axis_of = {dim.name: axis for axis, dim in enumerate(dims)}
    storage_names = [dim.name for dim in settings.storage_index_dimensions]
    unbounded = [name for name in storage_names if dims[axis_of[name]].count is None]
    file_names = unbounded + [n for n in storage_names if n not in unbounded]

    strides_nbytes = [0] * len(dims)
    stride_nbytes = height * width * dtype.itemsize
    for name in reversed(file_names):
        strides_nbytes[axis_of[name]] = stride_nbytes
        stride_nbytes *= dims[axis_of[name]].count or 1

    frame_names = [dim.name for dim in settings.frame_dimensions]
    file_dims = (*file_names, *frame_names)
    return FramePlan(
        dtype=dtype,
        frame_shape=(height, width),
        counts=tuple(dim.count for dim in dims),
        strides_nbytes=tuple(strides_nbytes),
        position_axis=settings.position_dimension_index,
        num_positions=len(settings.positions),
        file_axes=tuple(axis_of[name] for name in file_names),
        file_dims=file_dims,
        storage_axes=tuple(file_dims.index(n) for n in (*storage_names, *frame_names)),
        keep_steps=settings.format.keep_last,
        ring_steps=_ring_steps(
            settings.format.keep_last,
            stride_nbytes,
            is_frame=stride_nbytes == height * width * dtype.itemsize,
        ),
    )


def least_ring_steps(keep_steps: int, *, is_frame: bool) -> int:
    """Return how many steps a ring has at least; the pages of a machine may need more."""
    return keep_steps + (2 if is_frame else 3)


def _ring_steps(keep_steps: int | None, step_nbytes: int, *, is_frame: bool) -> int:
    """Return how many steps a ring has: those that are kept, and those being written.

    Their number fills whole pages, so that the ring can be a mirrored mapping. With several
    frames per step it has one more step, because each frame also clears its place in the
    next step.
    """
    if keep_steps is None:
        return 0
    steps = least_ring_steps(keep_steps, is_frame=is_frame)
    unit = mmap.ALLOCATIONGRANULARITY // math.gcd(mmap.ALLOCATIONGRANULARITY, step_nbytes)
    return -(-steps // unit) * unit
