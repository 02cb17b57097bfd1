"""Converts an MDA sequence of useq to the settings of an acquisition.

A sequence can visit its axes in orders that no array has. What cannot be stored as one
array per position, with each frame at its index, is refused.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

import numpy as np

from scratchwriter.dimensions import Channel, Dimension, Plate, Position

if TYPE_CHECKING:
    import useq

UnitTuple: TypeAlias = tuple[float, str]
_MOST_COORDS = 65536  # of times; more would make the manifest slow to read


class AcquisitionSettingsDict(TypedDict):
    """The part of `AcquisitionSettings` that a sequence determines."""

    dimensions: list[Dimension]
    plate: Plate | None


def useq_to_acquisition_settings(
    seq: useq.MDASequence,
    image_width: int,
    image_height: int,
    *,
    units: Mapping[str, UnitTuple | None] | None = None,
    pixel_size_um: float | None = None,
    chunk_shapes: Mapping[str, int] | None = None,
    shard_shapes: Mapping[str, int] | None = None,
) -> AcquisitionSettingsDict:
    """Return the settings that an MDA sequence determines.

    Positions and the points of a grid become one position dimension. Only what is visited
    counts: a plan whose axis is not in `axis_order` is none.

    Times and heights that are evenly spaced have a scale, which is negative downwards;
    others are listed in `coords`, up to 65,536 of them. Heights of a relative plan are
    relative to the position. Random points without a seed have no coordinates, because
    useq draws others each time that it is asked.

    Parameters
    ----------
    seq : useq.MDASequence
        The sequence.
    image_width, image_height : int
        Size of a frame, in pixels.
    units : mapping of str to (float, str) or None, optional
        Scale and unit of dimensions by name: "t", "c" or "z".
    pixel_size_um : float, optional
        Scale of "y" and "x", in micrometers.
    chunk_shapes, shard_shapes : mapping of str to int, optional
        Chunk sizes in pixels and shard sizes in chunks, by name; kept for an export.

    Returns
    -------
    dict
        "dimensions" and "plate", for `AcquisitionSettings(**...)`. A time plan without
        an end makes an unbounded dimension.

    Raises
    ------
    ValueError
        If `seq` is not an MDA sequence.
    NotImplementedError
        If the frames do not come in the order of an array: channels that leave out times
        or z-stacks, positions with a sequence of their own that is more than a grid, grids
        apart from the positions in `axis_order`, grids that differ between positions while
        other axes are visited within them, random points whose number is not known before
        they are drawn, or an endless time plan within another axis.
    """
    _need_sequence(seq)
    if pixel_size_um is not None and not 0 < pixel_size_um < math.inf:
        if pixel_size_um != 0:  # 0 is how Micro-Manager says that it is not known
            warnings.warn(
                f"pixel_size_um={pixel_size_um} is not a pixel size and is left out.",
                stacklevel=2,
            )
        pixel_size_um = None
    visits = _visits(seq)
    dims = [_dimension(seq, visits, name, (units or {}).get(name)) for name in visits.names]
    dims += [
        Dimension(name=name, count=n, type="space", unit="micrometer", scale=pixel_size_um)
        for name, n in (("y", image_height), ("x", image_width))
    ]
    sizes = {"chunk_size": chunk_shapes or {}, "shard_size_chunks": shard_shapes or {}}
    for dim in dims:
        for field, by_name in sizes.items():
            if dim.type != "position" and dim.name in by_name:
                setattr(dim, field, by_name[dim.name])
    return {"dimensions": dims, "plate": _plate(seq, visits)}


def dims_from_useq(
    seq: useq.MDASequence,
    image_width: int,
    image_height: int,
    *,
    units: Mapping[str, UnitTuple | None] | None = None,
    pixel_size_um: float | None = None,
    chunk_shapes: Mapping[str, int] | None = None,
    shard_shapes: Mapping[str, int] | None = None,
) -> list[Dimension]:
    """Return the dimensions only; deprecated, for `useq_to_acquisition_settings`."""
    warnings.warn(
        "dims_from_useq is deprecated: take 'dimensions' of useq_to_acquisition_settings.",
        DeprecationWarning,
        stacklevel=2,
    )
    return useq_to_acquisition_settings(
        seq,
        image_width,
        image_height,
        units=units,
        pixel_size_um=pixel_size_um,
        chunk_shapes=chunk_shapes,
        shard_shapes=shard_shapes,
    )["dimensions"]


class EventNumbers:
    """Finds the number of the frame that an event of a sequence stands for.

    Parameters
    ----------
    seq : useq.MDASequence
        A sequence that `useq_to_acquisition_settings` takes.
    """

    def __init__(self, seq: useq.MDASequence) -> None:
        self._visits = _visits(seq)

    def __call__(self, index: Mapping[str, int]) -> int:
        """Return the number of an event, in acquisition order, by its index.

        Raises
        ------
        ValueError
            If it is not an event of this sequence.
        """
        return self._visits.number(index)


def why_misplaced(seq: useq.MDASequence, dims: Sequence[Any]) -> str | None:
    """Return why an array of other dimensions has frames of a sequence at wrong places.

    Parameters
    ----------
    seq : useq.MDASequence
        The sequence.
    dims : sequence of dimensions
        With `name`, `count` and `coords`, those of a frame last; as ome-writers makes them.

    Returns
    -------
    str or None
        None if each frame is at the index of its event.
    """
    try:
        visited = _visits(seq).counts
    except NotImplementedError as error:
        return str(error)
    given = {dim.name: dim.count for dim in dims[:-2]}
    # Where an axis of one element is makes no difference.
    if [at for at in given.items() if at[1] != 1] == [
        at for at in visited.items() if at[1] != 1
    ]:
        return None
    return f"Its dimensions are {given}, and the frames come as {visited}."


def wrong_coordinates(seq: useq.MDASequence, dims: Sequence[Any]) -> str | None:
    """Return which position of other dimensions is not where the stage goes.

    Parameters
    ----------
    seq : useq.MDASequence
        A sequence for which `why_misplaced` is None.
    dims : sequence of dimensions
        With `name` and `coords`, as ome-writers makes them.

    Returns
    -------
    str or None
        None if each is there, or has no coordinates.
    """
    theirs = next((dim.coords for dim in dims if dim.name == "p"), None) or ()
    ours = _positions(seq, _visits(seq)) if theirs else ()
    for number, (given, right) in enumerate(zip(theirs, ours, strict=False)):
        for axis in ("x_coord", "y_coord"):
            found, expected = getattr(given, axis, None), getattr(right, axis)
            if found is not None and (
                expected is None or not math.isclose(found, expected, abs_tol=1e-6)
            ):
                where = "not known before" if expected is None else f"{expected:g}"
                return f"Its position {number} has {axis}={found:g}, which is {where}."
    return None


# ------------------------------------------------------------ what is visited, and when


@dataclass(frozen=True)
class _Place:
    """Where frames are taken: indices of useq, a stage position, a point of a grid."""

    p: int | None
    g: int | None
    stage: Any  # useq.Position; None: a grid around no position
    point: Any  # of a grid, or None


class _Visits:
    """In which order a sequence visits its frames.

    Positions and the points of grids are one axis, "p". `counts` has the length of each
    axis by its name, the fastest last; None is endless.
    """

    def __init__(self, counts: dict[str, int | None], places: list[_Place]) -> None:
        self.counts, self.places = counts, places
        self._places = {(at.p, at.g): i for i, at in enumerate(places)}

    @property
    def names(self) -> list[str]:
        return list(self.counts)

    def number(self, index: Mapping[str, int]) -> int:
        """Return the number of the frame with an index of useq.

        Raises
        ------
        ValueError
            If the sequence does not visit it.
        """
        number, left = 0, dict(index)
        for name, count in self.counts.items():
            if name == "p":
                i = self._places.get((left.pop("p", None), left.pop("g", None)))
            else:
                i = left.pop(name, None)
            if i is None or i < 0 or (count is not None and i >= count):
                raise self._is_no_event(index)
            number = number * (count or 0) + i
        if left:
            raise self._is_no_event(index)
        return number

    def _is_no_event(self, index: Mapping[str, int]) -> ValueError:
        return ValueError(
            f"The index {dict(index)} is not of this sequence, which visits {self.counts}"
        )


def _visits(seq: useq.MDASequence) -> _Visits:
    """Return how a sequence visits its frames, if an array has them in that order."""
    found = {axis: _count(seq, axis) for axis in map(str, seq.axis_order)}
    found = {axis: count for axis, count in found.items() if count != 0}
    _need_all_frames(seq, found)
    order = list(found)
    at = [i for i, axis in enumerate(order) if axis in "pg"]
    if at and any(found[axis] != 1 for axis in order[at[0] + 1 : at[-1]]):
        raise NotImplementedError(
            f"axis_order {''.join(order)!r} has other axes between positions (p) and grid "
            "(g), which are one dimension here: put them side by side."
        )
    places = _places(seq, order)
    counts = {"p" if axis in "pg" else axis: count for axis, count in found.items()}
    counts |= {"p": len(places)} if places else {}
    if None in list(counts.values())[1:]:
        raise NotImplementedError(
            "A time plan without an end can only be the outermost axis: put 't' first in "
            "axis_order."
        )
    visits = _Visits(counts, places)
    if any(at.stage is not None and at.stage.sequence is not None for at in places):
        _need_order_of_array(seq, visits)
    return visits


def _count(seq: useq.MDASequence, axis: str) -> int | None:
    """Return how long an axis is: 0 without a plan, None without an end."""
    if axis == "t":
        return _num_times(seq.time_plan) if seq.time_plan else 0
    if axis == "c":
        return len(seq.channels)
    if axis == "p":
        return len(seq.stage_positions)
    if axis == "g":
        return len(_points(seq.grid_plan))
    return 0 if seq.z_plan is None else sum(1 for _ in seq.z_plan)


def _num_times(plan: Any) -> int | None:
    if _is_endless(plan):
        return None
    if hasattr(plan, "phases"):
        # num_timepoints() of phases is one too few or too many: the first of all times is
        # there in any case, and the first one of each phase is the last one before it.
        return 1 + sum(max(int(phase.loops) - 1, 0) for phase in plan.phases)
    return int(plan.loops)


def _is_endless(plan: Any) -> bool:
    if hasattr(plan, "phases"):
        return any(map(_is_endless, plan.phases))
    # With a duration, useq computes `loops` and would divide by an interval of zero.
    return "loops" not in type(plan).model_fields and (
        plan.duration is None or not plan.interval
    )


def _places(seq: useq.MDASequence, order: Sequence[str]) -> list[_Place]:
    """Return where frames are taken, in the order of the visits."""
    grid = _points(seq.grid_plan) if "g" in order else []
    if "p" not in order:
        return [_Place(None, g, None, point) for g, point in enumerate(grid)]
    places = [
        _Place(p, None if point is None else g, stage, point)
        for p, stage in enumerate(_stages(seq))
        for g, point in enumerate(_own_grid(stage) or grid or [None])
    ]
    if "g" in order and order.index("g") < order.index("p"):
        places.sort(key=lambda at: at.g or 0)
    return places


def _stages(seq: useq.MDASequence) -> list[Any]:
    """Return the positions; those of a plate with their place in the grid of a well."""
    stages: Any = seq.stage_positions
    if not _is_plate(seq):
        return list(stages)
    plan = stages.well_points_plan
    # Random points are drawn once for a plate, and the positions have them already.
    points = itertools.cycle([_Drawn()] if _is_drawn_again(plan) else plan)
    return [
        stage.model_copy(
            update={
                "name": None,
                "z": None,
                "grid_row": point.grid_row,
                "grid_col": point.grid_col,
            }
        )
        for stage, point in zip(stages, points, strict=False)
    ]


def _own_grid(stage: Any) -> list[Any]:
    return _points(stage.sequence and stage.sequence.grid_plan)


def _points(plan: Any) -> list[Any]:
    """Return the points of a grid, in their order.

    A random plan without a seed draws others each time: these have no place.
    """
    if plan is None:
        return []
    if not _is_drawn_again(plan):
        return list(plan)
    if not plan.allow_overlap and None not in (plan.fov_width, plan.fov_height):
        raise NotImplementedError(
            "How many random points without an overlap there are is known when they are "
            "drawn, and useq draws others each time: give the plan a random_seed."
        )
    return [_Drawn()] * plan.num_points


@dataclass(frozen=True)
class _Drawn:
    """A point that is drawn when it is visited, as useq's points look."""

    x: None = None
    y: None = None
    grid_row: None = None
    grid_col: None = None
    is_relative: bool = True


def _is_drawn_again(plan: Any) -> bool:
    return getattr(plan, "random_seed", 0) is None


def _is_plate(seq: useq.MDASequence) -> bool:
    return hasattr(seq.stage_positions, "selected_well_positions")


# ------------------------------------------------------------------- what can be stored


def _need_sequence(seq: object) -> None:
    import useq

    if not isinstance(seq, useq.MDASequence):
        raise ValueError(f"seq must be a useq.MDASequence, got {type(seq).__name__}.")


def _need_all_frames(seq: useq.MDASequence, counts: Mapping[str, int | None]) -> None:
    """Check that no channel, and no position, leaves out what others have."""
    every = [channel.acquire_every for channel in seq.channels]
    if counts.get("t", 1) != 1 and "c" in counts and max(every) > 1:
        raise NotImplementedError(
            "A channel with acquire_every > 1 leaves out times that other channels have: "
            "record it in a sequence of its own."
        )
    has_stack = [channel.do_stack for channel in seq.channels]
    if counts.get("z", 1) != 1 and "c" in counts and not all(has_stack):
        raise NotImplementedError(
            "A channel with do_stack=False has no z-stack, but an array has one for all "
            "channels: record it in a sequence of its own."
        )
    if "p" not in counts:
        return
    if _is_plate(seq):
        if "g" in counts:
            raise NotImplementedError(
                "A WellPlatePlan cannot be used together with a grid_plan: put the grid "
                "into its well_points_plan."
            )
        return
    subs = [pos.sequence for pos in seq.stage_positions if pos.sequence is not None]
    if any(
        sub.time_plan or sub.channels or sub.z_plan or sub.stage_positions for sub in subs
    ):
        raise NotImplementedError(
            "A position's own sequence may have a grid_plan only: times, channels and "
            "z-stacks must be those of all positions."
        )


def _need_order_of_array(seq: useq.MDASequence, visits: _Visits) -> None:
    """Check the events themselves: a sequence of a position has rules of its own.

    Of times, channels and planes two each are enough to see in which order they come.
    """
    import useq

    counts = {
        name: count if name == "p" or count == 1 else 2
        for name, count in visits.counts.items()
    }
    shorter: dict[str, Any] = {"channels": seq.channels[:2]}
    if "t" in counts:
        times = {"interval": 0, "loops": counts["t"]}
        shorter["time_plan"] = useq.TIntervalLoops.model_validate(times)
    if "z" in counts:
        shorter["z_plan"] = useq.ZRelativePositions(relative=[0.0, 1.0][: counts["z"]])
    number = _Visits(counts, visits.places).number
    events = seq.model_copy(update=shorter)
    try:
        numbers = [number(e.index) for e in events if e.action.type == "acquire_image"]
    except ValueError:
        numbers = []
    if numbers != list(range(math.prod(n or 0 for n in counts.values()))):
        inside = "".join(name for name in visits.counts if name != "p")
        raise NotImplementedError(
            "Positions have sequences of their own, and useq visits their frames in an "
            f"order that no array has, or leaves out some (their grids are within {inside} "
            "here, where they are last of all). Put 'p' last in axis_order, give a "
            "grid_plan for all positions, or leave out a sequence that has no plan."
        )


# -------------------------------------------------------------------------- dimensions


def _dimension(
    seq: useq.MDASequence, visits: _Visits, name: str, unit: UnitTuple | None
) -> Dimension:
    count = visits.counts[name]
    if name == "p":
        return Dimension(name="p", type="position", coords=_positions(seq, visits))
    if name == "c":
        scale, unit_name = unit or (1.0, None)
        return Dimension(
            name="c", type="channel", coords=_channels(seq), scale=scale, unit=unit_name
        )
    fields: dict[str, Any]
    if name == "t":
        fields = {"name": "t", "type": "time", "unit": "second"} | _times(seq, count)
    else:
        heights: Any = seq.z_plan
        fields = {"name": "z", "type": "space", "unit": "micrometer"}
        fields |= _spacing(list(heights), getattr(heights, "step", None))
    if unit is not None:
        fields = {k: v for k, v in fields.items() if k not in ("coords", "translation")}
        fields |= {"scale": unit[0], "unit": unit[1]}
    return Dimension(count=count, **fields)


def _channels(seq: useq.MDASequence) -> list[Channel]:
    """Return the channels; equal ones of two groups, say, are numbered."""
    names: list[str] = []
    for number, channel in enumerate(seq.channels):
        name = channel.config
        while name in names:
            name += f"_{number}"
        names.append(name)
    return [Channel(name=name) for name in names]


def _times(seq: useq.MDASequence, count: int | None) -> dict[str, Any]:
    """Return when frames are due, in seconds: evenly, or as a list."""
    plan: Any = seq.time_plan
    phases = plan.phases if hasattr(plan, "phases") else [plan]
    # One time has no interval, and useq would divide by zero.
    intervals = {
        phase.interval.total_seconds()
        for phase in phases
        if _is_endless(phase) or phase.loops > 1 or "interval" in type(phase).model_fields
    }
    if len(intervals) <= 1:
        return {"scale": next(iter(intervals), None) or None}
    if count is not None and count > _MOST_COORDS:
        warnings.warn(
            f"{count:,} times that are not evenly spaced are too many for a manifest and "
            "are left out: give append(timestamp_ns=...), which is stored with each frame.",
            stacklevel=4,
        )
        return {}
    return {} if count is None else _spacing(list(plan), None)


def _spacing(places: list[float], step: float | None) -> dict[str, Any]:
    """Return scale and translation of places that are evenly spaced, else coords."""
    first = places[0]
    if len(places) == 1:
        return {"scale": step or None, "translation": first or None}
    steps = np.diff(places)
    mean = float(np.mean(steps))
    if mean and np.allclose(steps, mean, rtol=1e-6, atol=0):
        even = step and math.copysign(step, mean)
        is_step = even and math.isclose(even, mean, rel_tol=1e-6)
        return {"scale": even if is_step else mean, "translation": first or None}
    return {"coords": [float(place) for place in places]}


# --------------------------------------------------------------------------- positions


def _positions(seq: useq.MDASequence, visits: _Visits) -> list[Position]:
    """Return the positions, each with a name that no other has in its well and grid cell.

    A position without a name is named by its number in its well ("fov0"), or by its number
    in the sequence.
    """
    several = len(seq.stage_positions) > 1
    # The stage's height counts where none of an absolute plan does.
    is_relative = "z" not in visits.counts or bool(seq.z_plan and seq.z_plan.is_relative)
    in_wells: Counter[tuple[str, ...]] = Counter()
    seen: set[tuple[Any, ...]] = set()
    positions: list[Position] = []
    for at in visits.places:
        point, stage = at.point, at.stage
        well = {} if stage is None else _well_of(stage)
        key = tuple(well.values())
        if stage is None:
            name = f"{at.g:04d}"
        else:
            name = stage.name or (f"fov{in_wells[key]}" if well else str(at.p))
            if point is not None and point.grid_row is None and (stage.name or not well):
                # Only the name distinguishes the points.
                name += f"_p{at.p:04d}_g{at.g:04d}" if several else f"_g{at.g:04d}"
        in_wells[key] += 1
        cell = stage if point is None else point
        where = (*key, cell.grid_row, cell.grid_col)
        while (*where, name) in seen:
            name += f"_{len(positions)}"
        seen.add((*where, name))
        x, y, z = _coords(stage, point)
        positions.append(
            Position(
                name=name,
                x_coord=x,
                y_coord=y,
                z_coord=z if is_relative else None,
                grid_row=cell.grid_row,
                grid_column=cell.grid_col,
                **well,
            )
        )
    return positions


def _coords(stage: Any, point: Any) -> tuple[float | None, float | None, float | None]:
    """Return where the stage is at a position, at a point of a grid, or both."""
    if point is None:
        return stage.x, stage.y, stage.z
    if point.x is None:
        return None, None, None if stage is None else stage.z
    if stage is None:
        return point.x, point.y, 0.0 if point.is_relative else None
    if point.is_relative:
        return (stage.x or 0) + point.x, (stage.y or 0) + point.y, stage.z
    return point.x, point.y, stage.z


def _well_of(stage: Any) -> dict[str, str]:
    row, column = stage.plate_row, stage.plate_col
    if row is not None and column is not None:
        return {"plate_row": _letters(row), "plate_column": str(int(column) + 1)}
    if (row, column) != (None, None):
        warnings.warn(
            f"Position {stage.name!r} has one of plate_row={row} and plate_col={column} "
            "only: it is taken to be on no plate.",
            stacklevel=2,
        )
    return {}


def _plate(seq: useq.MDASequence, visits: _Visits) -> Plate | None:
    """Return the plate, or one that is large enough for the wells of the positions."""
    stages = [at.stage for at in visits.places if at.stage is not None]
    if not stages:
        return None
    plan: Any = seq.stage_positions
    if _is_plate(seq):
        name, rows, columns = plan.plate.name, plan.plate.rows, plan.plate.columns
    else:
        wells = [(pos.plate_row, pos.plate_col) for pos in stages]
        wells = [well for well in wells if None not in well]
        if not wells:
            return None
        if len(wells) < len(stages):
            warnings.warn(
                "Only some of the positions are in wells: their plate is left out.",
                stacklevel=2,
            )
            return None
        name, (rows, columns) = None, (max(n) + 1 for n in zip(*wells, strict=True))
    return Plate(
        name=name,
        row_names=[_letters(row) for row in range(rows)],
        column_names=[str(column + 1) for column in range(columns)],
    )


def _letters(row: int) -> str:
    """Return the name of a plate's row: A, B, ..., Z, AA, ..."""
    letters = ""
    row = int(row) + 1
    while row:
        row, rest = divmod(row - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters
