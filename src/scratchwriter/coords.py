"""The coordinates of frames: the names of the indices of an acquisition."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from scratchwriter.dimensions import Channel, Position
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings

Names = Sequence[str | float | int]


@dataclass(frozen=True, slots=True)
class CoordUpdate:
    """What a frame, or several skipped ones, added to an acquisition.

    Attributes
    ----------
    max_coords : mapping of str to sequence
        Per dimension the coordinates that have been reached: names of channels and
        positions, or the dimension's `coords`; else a range of indices. With
        `ScratchFormat.keep_last` those that are kept.
    current_indices : mapping of str to int
        Per dimension the index of the frame (of the last one that was skipped); 0 along the
        frame's own axes.
    frame_number : int
        Its number, in acquisition order.
    is_high_water_mark : bool
        Whether it is the first frame with one of its coordinates.
    """

    max_coords: Mapping[str, Names]
    current_indices: Mapping[str, int]
    frame_number: int
    is_high_water_mark: bool

    def __hash__(self) -> int:
        return hash(self.frame_number)

    def __reduce__(self) -> tuple[object, ...]:
        # Mapping proxies cannot be pickled.
        fields = dict(self.max_coords), dict(self.current_indices)
        return _make_update, (*fields, self.frame_number, self.is_high_water_mark)


def _make_update(
    max_coords: dict[str, Names],
    current_indices: dict[str, int],
    frame_number: int,
    is_high_water_mark: bool,
) -> CoordUpdate:
    reached, indices = MappingProxyType(max_coords), MappingProxyType(current_indices)
    return CoordUpdate(reached, indices, frame_number, is_high_water_mark)


class CoordSystem:
    """Names of the dimensions of an acquisition, and of the elements along each.

    Attributes
    ----------
    dims : tuple of str
        Names of all dimensions in acquisition order, the frame's included.
    scales : dict of str to float
        Size of an element along the dimensions that have one, in their unit.
    """

    def __init__(self, settings: AcquisitionSettings, plan: FramePlan) -> None:
        self.dims = tuple(dim.name for dim in settings.dimensions)
        self.scales = {d.name: d.scale for d in settings.dimensions if d.scale}
        self._plan = plan
        self._names = [
            None if dim.coords is None else tuple(map(_name, dim.coords))
            for dim in settings.dimensions
        ]
        self._last: tuple[tuple[int, ...], Mapping[str, Names]] | None = None

    def names(self, extents: Sequence[int], first_step: int = 0) -> dict[str, Names]:
        """Return the coordinates of the first elements of each dimension.

        Parameters
        ----------
        extents : sequence of int
            How many elements, per dimension but the frame's.
        first_step : int
            Index of the first element along an unbounded axis.
        """
        extents = (*extents, *self._plan.frame_shape)
        starts = [first_step] + [0] * (len(extents) - 1)
        return {
            dim: range(start, start + extent) if names is None else names[:extent]
            for dim, names, start, extent in zip(
                self.dims, self._names, starts, extents, strict=True
            )
        }

    def next_mark(self, first: int, stop: int) -> int | None:
        """Return the first of these frames that has a new coordinate, if one has."""
        extents = self._plan.extents
        before = extents(first)
        if extents(stop) == before:
            return None
        # Extents only grow, so a bisection finds it.
        frames = range(first, stop)
        return first + bisect_left(frames, True, key=lambda i: extents(i + 1) != before)

    def update(self, frame: int, is_high_water_mark: bool) -> CoordUpdate:
        """Return what a frame added when it was the newest."""
        plan = self._plan
        extents = plan.extents(frame + 1)
        last = self._last  # another listener's thread may replace it
        if last is None or last[0] != extents:
            first_step = newest_steps(plan, extents).start
            kept = (extents[0] - first_step, *extents[1:]) if first_step else extents
            last = self._last = extents, MappingProxyType(self.names(kept, first_step))
        indices = (*plan.indices(frame), 0, 0)
        return CoordUpdate(
            max_coords=last[1],
            current_indices=MappingProxyType(dict(zip(self.dims, indices, strict=True))),
            frame_number=frame,
            is_high_water_mark=is_high_water_mark,
        )


def _name(coord: str | float | Channel | Position) -> str | float:
    return coord.name if isinstance(coord, Channel | Position) else coord


def newest_steps(plan: FramePlan, extents: Sequence[int]) -> range:
    """Return which steps of the unbounded axis are kept; an empty range without one."""
    if not plan.is_unbounded:
        return range(0)
    steps = extents[0]
    return range(steps - min(steps, plan.keep_steps or steps), steps)
