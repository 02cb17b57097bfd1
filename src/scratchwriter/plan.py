"""FramePlan: where every frame of an acquisition goes. Pure arithmetic, no I/O.

Frames come in acquisition order, so the number of frames that have come (the cursor)
says everything: which slot is next, and how far each position's array reaches.
All sizes are exact Python integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scratchwriter.settings import AcquisitionSettings

_CHUNK_FRAMES = 1 << 20  # looked at together


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
        """Bytes of all positions; with an unbounded axis, of its first step."""
        return self.num_positions * self.step_nbytes

    def steps(self, position: int, cursor: int) -> int:
        """Return how far the outermost file axis of a position reaches in steps.

        A step is the whole array if the plan is bounded. Before its first frame an
        array has one step already (of zeros), so that it can be shown and mapped.
        """
        if not self.is_unbounded:
            return 1
        full_steps, rest = divmod(cursor, self.step_frames)
        if rest > position * self.visit_frames:
            full_steps += 1
        return max(full_steps, 1)

    def most_frames(self, position: int, steps: int) -> int:
        """Return the largest cursor for which a position reaches no further than that."""
        if not self.is_unbounded:
            return self.step_frames if steps else 0
        return steps * self.step_frames + position * self.visit_frames

    def file_shape(self, position: int, cursor: int) -> tuple[int, ...]:
        """Return the shape of a position's file after `cursor` frames."""
        steps = self.steps(position, cursor)
        counts = (self.counts[axis] for axis in self.file_axes)
        return (*(steps if n is None else n for n in counts), *self.frame_shape)

    def file_nbytes(self, position: int, cursor: int) -> int:
        """Return the size of a position's file after `cursor` frames."""
        return self.steps(position, cursor) * self.step_nbytes

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
            If there is no such slot.
        """
        slot = [position] * len(self.counts)
        if len(index) != len(self.file_axes) or not 0 <= position < self.num_positions:
            raise IndexError(f"no slot {tuple(index)} in position {position}")
        for axis, i in zip(self.file_axes, index, strict=True):
            slot[axis] = i
        number = 0
        for i, count in zip(slot, self.counts, strict=True):
            if i < 0 or (count is not None and i >= count):
                raise IndexError(f"no slot {tuple(index)} in position {position}")
            number = number * (count or 1) + i
        return number

    def written(
        self, position: int, cursor: int, skipped: Sequence[range]
    ) -> npt.NDArray[np.bool_]:
        """Tell which frames of a position were written.

        Returns
        -------
        numpy.ndarray of bool
            One per frame, in the shape of the file without the frame's axes.
        """
        written = np.zeros(self.file_shape(position, cursor)[:-2], np.bool_)
        starts = [0, *(r.stop for r in skipped)]
        stops = [*(r.start for r in skipped), cursor]
        for start, stop in zip(starts, stops, strict=True):
            for first in range(start, stop, _CHUNK_FRAMES):
                rest = np.arange(first, min(first + _CHUNK_FRAMES, stop))
                slot = []
                for count in reversed(self.counts):
                    rest, index = (rest, rest) if count is None else divmod(rest, count)
                    slot.append(index)
                slot.reverse()
                if self.position_axis is not None:
                    here = slot[self.position_axis] == position
                    slot = [index[here] for index in slot]
                written[tuple(slot[axis] for axis in self.file_axes)] = True
        return written


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
    )
