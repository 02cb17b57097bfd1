"""Converts an MDA sequence of useq to the settings of an acquisition.

A sequence can visit its axes in orders that no array has. What cannot be stored as one
array per position, with each frame at its index, is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict

from scratchwriter.dimensions import Channel, Dimension, Plate, Position

if TYPE_CHECKING:
    import useq

UnitTuple: TypeAlias = tuple[float, str]


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

    Positions and the points of a grid become one position dimension.

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
        apart from the positions in `axis_order`, or grids that differ between positions
        while other axes are visited within them.
    """
    _need_sequence(seq)
    _need_regular(seq)
    if pixel_size_um is not None and pixel_size_um < 0:
        warnings.warn(
            f"pixel_size_um={pixel_size_um} is not a pixel size and is left out.",
            stacklevel=2,
        )
        pixel_size_um = None
    dims: list[Dimension] = []
    positions = [position for _, _, position in _positions(seq)]
    for axis in map(str, seq.axis_order):
        if axis in "pg":
            if positions and all(dim.type != "position" for dim in dims):
                dims.append(Dimension(name="p", type="position", coords=positions))
        elif (found := _dimension(seq, axis)) is not None:
            scale, unit = (units or {}).get(axis) or (found["scale"], found["unit"])
            dims.append(Dimension(**(found | {"scale": scale, "unit": unit})))
    if positions and all(dim.type != "position" for dim in dims):
        dims.insert(0, Dimension(name="p", type="position", coords=positions))
    dims += [
        Dimension(name=name, count=n, type="space", unit="micrometer", scale=pixel_size_um)
        for name, n in (("y", image_height), ("x", image_width))
    ]
    sizes = {"chunk_size": chunk_shapes or {}, "shard_size_chunks": shard_shapes or {}}
    for dim in dims:
        for field, by_name in sizes.items():
            if dim.type != "position" and dim.name in by_name:
                setattr(dim, field, by_name[dim.name])
    return {"dimensions": dims, "plate": _plate(seq)}


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
        self._positions = {(p, g): i for i, (p, g, _) in enumerate(_positions(seq))}
        self._counts: list[tuple[str, int]] = []  # per axis; an endless one is first
        for axis in map(str, seq.axis_order):
            name = "p" if axis in "pg" else axis
            count = len(self._positions) if name == "p" else _count(seq, axis)
            if count != 0 and name not in dict(self._counts):
                self._counts.append((name, count or 0))
        if self._positions and "p" not in dict(self._counts):
            self._counts.insert(0, ("p", len(self._positions)))

    def __call__(self, index: Mapping[str, int]) -> int:
        """Return the number of an event, in acquisition order, by its index.

        Raises
        ------
        KeyError
            If it is not an event of this sequence.
        """
        number = 0
        for name, count in self._counts:
            if name == "p":
                i = self._positions[index.get("p"), index.get("g")]
            else:
                i = index[name]
            number = number * count + i
        return number


# ------------------------------------------------------------------- what can be stored


def _need_sequence(seq: object) -> None:
    import useq

    if not isinstance(seq, useq.MDASequence):
        raise ValueError(f"seq must be a useq.MDASequence, got {type(seq).__name__}.")


def _need_regular(seq: useq.MDASequence) -> None:
    """Check that the frames come in the order of an array."""
    channels = seq.channels
    if any(channel.acquire_every > 1 for channel in channels):
        raise NotImplementedError(
            "A channel with acquire_every > 1 leaves out times that other channels have: "
            "record it in a sequence of its own."
        )
    if seq.z_plan and any(not channel.do_stack for channel in channels):
        raise NotImplementedError(
            "A channel with do_stack=False has no z-stack, but an array has one for all "
            "channels: record it in a sequence of its own."
        )
    if _is_plate(seq):
        if seq.grid_plan:
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
    order = [str(axis) for axis in seq.axis_order]
    visited = [axis for axis in order if _is_visited(seq, axis)]
    has_own_grid = any(sub.grid_plan for sub in subs)
    if {"p", "g"} <= set(visited) and abs(visited.index("p") - visited.index("g")) != 1:
        raise NotImplementedError(
            f"axis_order {''.join(order)!r} has other axes between positions (p) and grid "
            "(g), which are one dimension here: put them side by side."
        )
    if not has_own_grid or "p" not in visited:
        return
    # useq visits such a grid innermost, within channels and z-stacks.
    inside = visited[visited.index("p") + 1 :]
    within = [axis for axis in inside if axis != "g" and _count(seq, axis) != 1]
    if within or visited.index("p") > min(map(visited.index, {"p", "g"} & set(visited))):
        raise NotImplementedError(
            f"Positions have grids of their own, which are visited within "
            f"{', '.join(within) or 'the grid of all'}: no array has its frames in this "
            "order. Put 'p' last in axis_order, or give a grid_plan for all positions."
        )


def _is_visited(seq: useq.MDASequence, axis: str) -> bool:
    if axis == "p":
        return bool(seq.stage_positions)
    return (axis == "g" and bool(seq.grid_plan)) or _count(seq, axis) != 0


def _count(seq: useq.MDASequence, axis: str) -> int | None:
    """Return how long an axis of times, channels or z is; 0: it is not visited."""
    if axis == "t" and seq.time_plan:
        # Counted, because num_timepoints() of phases is one too few or too many.
        return None if _is_endless(seq.time_plan) else sum(1 for _ in seq.time_plan)
    if axis == "c":
        return len(seq.channels)
    if axis == "z" and seq.z_plan:
        return len(list(seq.z_plan))
    return 0


def _is_endless(plan: Any) -> bool:
    if hasattr(plan, "phases"):
        return any(map(_is_endless, plan.phases))
    # With a duration, useq computes `loops` and would divide by an interval of zero.
    return "loops" not in type(plan).model_fields and (
        plan.duration is None or not plan.interval
    )


# -------------------------------------------------------------------------- dimensions


def _dimension(seq: useq.MDASequence, axis: str) -> dict[str, Any] | None:
    """Return the fields of the dimension of times, channels or z, if it is visited."""
    count = _count(seq, axis)
    if count == 0:
        return None
    if axis == "t":
        plan: Any = seq.time_plan
        first = plan.phases[0] if hasattr(plan, "phases") else plan
        interval_s = first.interval.total_seconds()
        return _fields("t", "time", "second", interval_s) | {"count": count}
    if axis == "c":
        names = [Channel(name=channel.config) for channel in seq.channels]
        return _fields("c", "channel", None, 1.0) | {"coords": names}
    step = getattr(seq.z_plan, "step", None)
    scale = 1.0 if step is None else float(step)
    return _fields("z", "space", "micrometer", scale) | {"count": count}


def _fields(name: str, kind: str, unit: str | None, scale: float) -> dict[str, Any]:
    return {"name": name, "type": kind, "unit": unit, "scale": scale}


# --------------------------------------------------------------------------- positions


def _positions(
    seq: useq.MDASequence,
) -> Iterator[tuple[int | None, int | None, Position]]:
    """Yield the positions as they are visited, each with its index of "p" and of "g"."""
    if _is_plate(seq):
        for p, position in enumerate(_wells(seq.stage_positions)):
            yield p, None, position
        return
    order = [str(axis) for axis in seq.axis_order]
    stage = list(seq.stage_positions)
    grid = list(seq.grid_plan or ()) if "g" in order else []
    if not stage:
        z = 0.0 if seq.grid_plan is not None and seq.grid_plan.is_relative else None
        for g, point in enumerate(grid):
            yield None, g, _at_point(f"{g:04d}", 0, 0, z, point)
    elif "p" not in order:  # positions are not visited: the grid is around the first
        for g, point in enumerate(grid):
            yield None, g, _at(stage[0], "0", g, point)
    else:
        several = len(stage) > 1
        places = [
            (p, g, point)
            for p, pos in enumerate(stage)
            for g, point in enumerate(_own_grid(pos) or grid or [None])
        ]
        if grid and order.index("g") < order.index("p"):
            places.sort(key=lambda place: place[1])
        for p, g, point in places:
            suffix = f"_p{p:04d}" if several and point is not None else ""
            at = _at(stage[p], str(p), g, point, suffix)
            yield p, None if point is None else g, at


def _own_grid(pos: Any) -> list[Any]:
    return list((pos.sequence and pos.sequence.grid_plan) or ())


def _at(pos: Any, number: str, g: int, point: Any, suffix: str = "") -> Position:
    """Return a stage position, at a point of a grid if there is one."""
    name, well = pos.name or number, {}
    if pos.plate_row is not None and pos.plate_col is not None:
        well = _well(pos.plate_row, pos.plate_col)
    elif (pos.plate_row, pos.plate_col) != (None, None):
        warnings.warn(
            f"Position {name!r} has one of plate_row={pos.plate_row} and "
            f"plate_col={pos.plate_col} only: it is taken to be on no plate.",
            stacklevel=2,
        )
    if point is None:
        grid = {"grid_row": pos.grid_row, "grid_column": pos.grid_col}
        return Position(
            name=name, x_coord=pos.x, y_coord=pos.y, z_coord=pos.z, **grid, **well
        )
    if point.grid_row is None:  # only the name distinguishes the points
        name = f"{name}{suffix}_g{g:04d}"
    return _at_point(name, pos.x, pos.y, pos.z, point, **well)


def _at_point(
    name: str, x: float | None, y: float | None, z: float | None, point: Any, **well: str
) -> Position:
    is_relative = point.is_relative
    return Position(
        name=name,
        x_coord=(x or 0) + point.x if is_relative else point.x,
        y_coord=(y or 0) + point.y if is_relative else point.y,
        z_coord=z,
        grid_row=point.grid_row,
        grid_column=point.grid_col,
        **well,
    )


def _is_plate(seq: useq.MDASequence) -> bool:
    return hasattr(seq.stage_positions, "selected_well_positions")


def _wells(plan: Any) -> Iterator[Position]:
    """Yield the positions in the wells of a plate, named by their number in the well."""
    points = list(plan.well_points_plan)
    wells = zip(plan.selected_well_indices, plan.selected_well_positions, strict=True)
    for (row, column), center in wells:
        for i, point in enumerate(points):
            well = _well(row, column)
            yield _at_point(f"fov{i}", center.x, center.y, None, point, **well)


def _well(row: int, column: int) -> dict[str, str]:
    return {"plate_row": _letters(row), "plate_column": str(int(column) + 1)}


def _plate(seq: useq.MDASequence) -> Plate | None:
    """Return the plate, or one that is large enough for the wells of the positions."""
    stage: Any = seq.stage_positions
    if _is_plate(seq):
        name, rows, columns = stage.plate.name, stage.plate.rows, stage.plate.columns
    else:
        wells = [(pos.plate_row, pos.plate_col) for pos in stage]
        wells = [well for well in wells if None not in well]
        if not wells:
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
