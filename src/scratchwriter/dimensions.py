"""The dimensions of an acquisition, with channels, positions, plates and units."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_extra_types.color import Color

DimensionType: TypeAlias = Literal["space", "time", "channel", "position", "other"]
NonEmptyStr: TypeAlias = Annotated[str, Field(min_length=1)]


class StrictModel(BaseModel):
    """Base of all settings: unknown fields are refused, assignments are validated.

    Where a field takes more than what it holds, a list for a tuple, say, the class declares
    an `__init__` for type checkers only: they know nothing of validators.
    """

    model_config = ConfigDict(
        validate_default=True,
        validate_assignment=True,
        extra="forbid",
        defer_build=True,  # until the first use, so that importing is quick
    )


# --------------------------------------------------------------------- units

# OME-NGFF name -> OME-XML abbreviation, from the two specifications
# (https://ngff.openmicroscopy.org/0.5/#axes-md and OME-2016-06 UnitsLength/UnitsTime).
_LENGTH_UNITS = {
    "angstrom": "Å",
    "attometer": "am",
    "centimeter": "cm",
    "decimeter": "dm",
    "exameter": "Em",
    "femtometer": "fm",
    "foot": "ft",
    "gigameter": "Gm",
    "hectometer": "hm",
    "inch": "in",
    "kilometer": "km",
    "megameter": "Mm",
    "meter": "m",
    "micrometer": "µm",
    "mile": "mi",
    "millimeter": "mm",
    "nanometer": "nm",
    "parsec": "pc",
    "petameter": "Pm",
    "picometer": "pm",
    "terameter": "Tm",
    "yard": "yd",
    "yoctometer": "ym",
    "yottameter": "Ym",
    "zeptometer": "zm",
    "zettameter": "Zm",
}
_TIME_UNITS = {
    "attosecond": "as",
    "centisecond": "cs",
    "day": "d",
    "decisecond": "ds",
    "exasecond": "Es",
    "femtosecond": "fs",
    "gigasecond": "Gs",
    "hectosecond": "hs",
    "hour": "h",
    "kilosecond": "ks",
    "megasecond": "Ms",
    "microsecond": "µs",
    "millisecond": "ms",
    "minute": "min",
    "nanosecond": "ns",
    "petasecond": "Ps",
    "picosecond": "ps",
    "second": "s",
    "terasecond": "Ts",
    "yoctosecond": "ys",
    "yottasecond": "Ys",
    "zeptosecond": "zs",
    "zettasecond": "Zs",
}
# Spellings that people use besides the two standards.
_LENGTH_ALIASES = {
    "um": "micrometer",
    "u": "micrometer",
    "micron": "micrometer",
    "A": "angstrom",
}
_TIME_ALIASES = {
    "us": "microsecond",
    "usec": "microsecond",
    "µsec": "microsecond",
    "msec": "millisecond",
    "sec": "second",
}


def _spellings(units: dict[str, str], aliases: dict[str, str]) -> dict[str, str]:
    names = {name: name for name in units}
    abbreviations = {short: name for name, short in units.items()}
    return names | abbreviations | aliases


_NGFF_NAMES: dict[str, dict[str, str]] = {
    "space": _spellings(_LENGTH_UNITS, _LENGTH_ALIASES),
    "time": _spellings(_TIME_UNITS, _TIME_ALIASES),
}


def _unit_key(unit: str) -> str:
    # One- and two-letter abbreviations are case sensitive (mm and Mm), names are not.
    return unit.lower() if len(unit) > 2 else unit


def _type_of_unit(unit: Any) -> DimensionType | None:
    if isinstance(unit, str):
        if _unit_key(unit) in _NGFF_NAMES["space"]:
            return "space"
        if _unit_key(unit) in _NGFF_NAMES["time"]:
            return "time"
    return None


def _ngff_unit(unit: Any, dim_type: str | None) -> Any:
    """Return the OME-NGFF name of a length or time unit; other units as they are."""
    if not isinstance(unit, str) or dim_type not in _NGFF_NAMES:
        return unit
    names = _NGFF_NAMES[dim_type]
    if (key := _unit_key(unit)) not in names:
        raise ValueError(
            f"{unit!r} is not a unit of {dim_type}. A dimension of "
            f"type={dim_type!r} takes one of: {', '.join(names)}."
        )
    return names[key]


# ---------------------------------------------------- channels, positions, plates


class Channel(StrictModel):
    """A channel of an acquisition; a plain string is taken as its name.

    Attributes
    ----------
    name : str
        Name as shown to people; unique within its dimension.
    excitation_wavelength_nm, emission_wavelength_nm : int or None
        Wavelengths in nanometers, positive.
    fluorophore : str or None
        Name of the fluorophore.
    color : pydantic_extra_types.color.Color or None
        Display colour: a name, a hex string, or an RGB(A) tuple of 0-255.
    """

    name: NonEmptyStr
    excitation_wavelength_nm: PositiveInt | None = None
    emission_wavelength_nm: PositiveInt | None = None
    fluorophore: str | None = None
    color: Color | None = None

    if TYPE_CHECKING:  # what it takes, for type checkers; see `StrictModel`

        def __init__(
            self,
            *,
            name: str,
            excitation_wavelength_nm: int | None = None,
            emission_wavelength_nm: int | None = None,
            fluorophore: str | None = None,
            color: Color | str | tuple[float, ...] | None = None,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class Position(StrictModel):
    """A stage position (one field of view); a plain string is taken as its name.

    Attributes
    ----------
    name : str
        Unique among the positions of the same well and grid cell.
    plate_row, plate_column : str or None
        Well of the position; both or neither.
    grid_row, grid_column : int or None
        Cell of the position in a grid; both or neither.
    x_coord, y_coord, z_coord : float or None
        Stage coordinates, in the units of the spatial dimensions.
    """

    name: NonEmptyStr
    plate_row: str | None = None
    plate_column: str | None = None
    grid_row: int | None = None
    grid_column: int | None = None
    x_coord: float | None = None
    y_coord: float | None = None
    z_coord: float | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rows_come_with_columns(self) -> Self:
        for kind in ("plate", "grid"):
            row, column = getattr(self, f"{kind}_row"), getattr(self, f"{kind}_column")
            if (row is None) != (column is None):
                raise ValueError(
                    f"{kind}_row={row!r} and {kind}_column={column!r}: give both, "
                    "or neither."
                )
        return self


def _check_channels(channels: list[Channel]) -> list[Channel]:
    names = Counter(channel.name for channel in channels)
    if repeated := [name for name, n in names.items() if n > 1]:
        raise ValueError(f"Channel names must be unique, got repeatedly: {repeated}.")
    return channels


def _check_positions(positions: list[Position]) -> list[Position]:
    seen = Counter(
        (p.plate_row, p.plate_column, p.grid_row, p.grid_column, p.name) for p in positions
    )
    for (plate_row, plate_column, grid_row, grid_column, name), n in seen.items():
        if n > 1:
            where = []
            if plate_row is not None:
                where.append(f"well {plate_row}{plate_column}")
            if grid_row is not None:
                where.append(f"grid cell ({grid_row}, {grid_column})")
            place = " and ".join(where) or "positions without a well or a grid cell"
            raise ValueError(
                f"Position names must be unique within {place}, got {name!r} {n} times."
            )
    return positions


_DEFER = ConfigDict(defer_build=True)
_COUNT = TypeAdapter(PositiveInt, config=_DEFER)
_CHANNELS = TypeAdapter(
    Annotated[list[Channel], AfterValidator(_check_channels)], config=_DEFER
)
_POSITIONS = TypeAdapter(
    Annotated[list[Position], AfterValidator(_check_positions)], config=_DEFER
)

# rows x columns of the multi-well plates sold (ANSI/SLAS 4-2004)
_STANDARD_PLATES = {
    6: (2, 3),
    12: (3, 4),
    24: (4, 6),
    48: (6, 8),
    96: (8, 12),
    384: (16, 24),
    1536: (32, 48),
}


class Plate(StrictModel):
    """A multi-well plate: the names of all its rows and columns.

    Attributes
    ----------
    row_names, column_names : list of str
        Names of all rows and columns, including those that are not acquired.
    name : str or None
        Name of the plate.
    """

    row_names: list[str]
    column_names: list[str]
    name: str | None = None

    if TYPE_CHECKING:  # what it takes, for type checkers; see `StrictModel`

        def __init__(
            self,
            *,
            row_names: list[str] | tuple[str, ...],
            column_names: list[str] | tuple[str, ...],
            name: str | None = None,
        ) -> None: ...

    @classmethod
    def from_standard_wells(cls, num_wells_or_shape: int | tuple[int, int]) -> Self:
        """Make a plate from its number of wells or its shape.

        Rows are named A ... Z, AA, BB ..., columns 1, 2, 3 ...

        Parameters
        ----------
        num_wells_or_shape : int or (int, int)
            6, 12, 24, 48, 96, 384 or 1536 wells, or (rows, columns).

        Raises
        ------
        ValueError
            If no plate has that many wells, or the shape is not two positive integers.
        """
        if isinstance(num_wells_or_shape, tuple):
            shape = num_wells_or_shape
            if len(shape) != 2 or any(int(n) <= 0 for n in shape):
                raise ValueError(
                    f"A plate's shape is (rows, columns), both positive; got {shape!r}."
                )
        else:
            if num_wells_or_shape not in _STANDARD_PLATES:
                raise ValueError(
                    f"No standard plate has {num_wells_or_shape!r} wells; choose from "
                    f"{list(_STANDARD_PLATES)} or give (rows, columns)."
                )
            shape = _STANDARD_PLATES[num_wells_or_shape]
        rows, columns = shape
        return cls(
            row_names=[chr(ord("A") + i % 26) * (i // 26 + 1) for i in range(rows)],
            column_names=[str(i + 1) for i in range(columns)],
        )


# ------------------------------------------------------------------ dimensions


class Dimension(StrictModel):
    """One axis of an acquisition.

    Attributes
    ----------
    name : str
        Unique among the dimensions of an acquisition.
    count : int or None
        Number of elements; None is an unbounded axis (only the first may be). Taken from
        `coords` if it is not given.
    type : {'space', 'time', 'channel', 'position', 'other'} or None
        Inferred from `Channel` or `Position` objects in `coords`, else from `unit`.
    coords : list of str, float, Channel or Position, or None
        A label per element. Without them, positions are named "0", "1", ...
    chunk_size, shard_size_chunks : int or None
        Layout hints for chunked formats; kept, without effect here.
    unit : str or None
        OME-NGFF name ("micrometer") or OME-XML abbreviation ("um", "ms"); kept as
        the OME-NGFF name on axes of space and time, and as it is on others.
    scale, translation : float or None
        Size of one element, and offset of the first, in `unit`.

    Raises
    ------
    pydantic.ValidationError
        (a ValueError) If the fields are wrong or contradict each other.
    NotImplementedError
        If a position dimension has neither `count` nor a position in `coords`.
    """

    name: NonEmptyStr
    count: PositiveInt | None = None
    type: DimensionType | None = None
    coords: list[str | float | Channel | Position] | None = None
    chunk_size: PositiveInt | None = None
    shard_size_chunks: PositiveInt | None = None
    unit: str | None = None
    scale: float | None = None
    translation: float | None = None

    if TYPE_CHECKING:  # what it takes, for type checkers; see `StrictModel`

        def __init__(
            self,
            *,
            name: str,
            count: int | None = None,
            type: DimensionType | None = None,  # noqa: A002
            coords: Iterable[str | float | Channel | Position] | None = None,
            chunk_size: int | None = None,
            shard_size_chunks: int | None = None,
            unit: str | None = None,
            scale: float | None = None,
            translation: float | None = None,
        ) -> None: ...

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        """Infer the type, the count and the coords from each other, and check them."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        coords, count, unit = data.get("coords"), data.get("count"), data.get("unit")
        if coords is not None:
            if isinstance(coords, str | bytes):
                # Each of its letters would be an element.
                raise ValueError(f"coords must be a list: use [{coords!r}].")
            if not isinstance(coords, Iterable):
                raise ValueError(f"coords must be a list, got {coords!r}.")
            coords = list(coords)
        dim_type = data.get("type")
        if dim_type is None:
            dim_type = _inferred_type(coords, unit)

        if dim_type == "position" and not coords:
            if coords is not None or count is None:
                raise NotImplementedError(
                    "A position dimension needs at least one position: give `coords` "
                    "or a `count`. It cannot be unbounded."
                )
            with contextlib.suppress(ValidationError):  # the field's own error says more
                count = data["count"] = _COUNT.validate_python(count)
                coords = [Position(name=str(i)) for i in range(count)]
        if coords is not None:
            if count is None:
                data["count"] = len(coords)
            elif count != len(coords):
                raise ValueError(
                    f"coords has {len(coords)} elements, count is {count!r}: make them "
                    "equal, or leave out count."
                )
            data["coords"] = _typed_coords(coords, dim_type)
        if unit is not None:
            data["unit"] = _ngff_unit(unit, dim_type)
        if dim_type is not None:
            data["type"] = dim_type
        return data


def _inferred_type(coords: list[Any] | None, unit: Any) -> DimensionType | None:
    from_unit = _type_of_unit(unit)
    from_coords: DimensionType | None = None
    if coords and any(isinstance(c, Channel) for c in coords):
        from_coords = "channel"
    elif coords and any(isinstance(c, Position) for c in coords):
        from_coords = "position"
    if from_coords and from_unit and from_coords != from_unit:
        raise ValueError(
            f"coords imply type={from_coords!r}, unit={unit!r} implies "
            f"type={from_unit!r}: give `type`, or leave out one of them."
        )
    return from_coords or from_unit


def _typed_coords(coords: list[Any], dim_type: str | None) -> list[Any]:
    for cls, cls_type in ((Channel, "channel"), (Position, "position")):
        if any(isinstance(c, cls) for c in coords):
            if not all(isinstance(c, str | cls) for c in coords):
                raise ValueError(
                    f"coords with {cls.__name__} objects may hold only these and "
                    f"strings, got {sorted({type(c).__name__ for c in coords})}."
                )
            if dim_type not in (None, cls_type):
                raise ValueError(
                    f"{cls.__name__} objects in coords need type={cls_type!r}, "
                    f"got type={dim_type!r}."
                )
    if dim_type == "channel":
        return _CHANNELS.validate_python(coords)
    if dim_type == "position":
        return _POSITIONS.validate_python(coords)
    return coords


def check_dimensions(
    dims: tuple[Dimension, ...], *, warns: bool = True
) -> tuple[Dimension, ...]:
    """Check that dimensions make an acquisition; untyped frame axes become spatial."""
    if not dims:
        return dims  # to be set later
    names = Counter(dim.name for dim in dims)
    if repeated := [name for name, n in names.items() if n > 1]:
        raise ValueError(f"Dimension names must be unique, got repeatedly: {repeated}.")
    n_positions = sum(dim.type == "position" for dim in dims)
    if n_positions > 1:
        raise ValueError("Only one position dimension is allowed.")
    n_array_dims = len(dims) - n_positions
    if not 2 <= n_array_dims <= 5:
        raise ValueError(
            "An acquisition has 2 to 5 dimensions besides positions (at least the "
            f"frame's two, usually y and x); got {n_array_dims}."
        )
    if unbounded := [dim.name for dim in dims[1:] if dim.count is None]:
        raise ValueError(
            "Only the first dimension may be unbounded (count=None), got: "
            f"{', '.join(unbounded)}."
        )
    height, width = _frame_dimension(dims[-2], warns), _frame_dimension(dims[-1], warns)
    return (*dims[:-2], height, width)


def _frame_dimension(dim: Dimension, warns: bool) -> Dimension:
    if dim.type == "space":
        return dim
    if dim.type is not None:
        raise ValueError(
            "The last two dimensions are the frame's and must be of type='space', got "
            f"{dim.name!r} of type={dim.type!r}."
        )
    if warns and dim.name.lower() not in {"x", "y"}:
        warnings.warn(
            f"Dimension {dim.name!r} is one of the last two, the frame's: it is taken "
            "as type='space'. Give it that type to silence this warning.",
            stacklevel=5,
        )
    given = {field: getattr(dim, field) for field in dim.model_fields_set}
    return Dimension.model_validate(given | {"type": "space"})  # checks its unit, too


class PositionDimension(Dimension):
    """A position dimension, with its coords as `positions`; deprecated, use `Dimension`."""

    name: NonEmptyStr = "p"
    type: Literal["position"] = "position"

    def __init__(self, **data: Any) -> None:
        warnings.warn(
            "PositionDimension is deprecated: use Dimension(name='p', type='position').",
            DeprecationWarning,
            stacklevel=2,
        )
        super().__init__(**{"name": "p", "type": "position"} | data)

    @model_validator(mode="before")
    @classmethod
    def _take_positions(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "positions" not in data:
            return data
        others = {name: value for name, value in data.items() if name != "positions"}
        positions = data["positions"]
        return others if positions is None else others | {"coords": positions}


class StandardAxis(str, Enum):
    """Axis names with a known type and unit: x, y, z, c, t and p."""

    X = "x"
    Y = "y"
    Z = "z"
    CHANNEL = "c"
    TIME = "t"
    POSITION = "p"

    def dimension_type(self) -> DimensionType:
        """Return the dimension type of the axis."""
        types: dict[StandardAxis, DimensionType] = {
            StandardAxis.TIME: "time",
            StandardAxis.CHANNEL: "channel",
            StandardAxis.POSITION: "position",
        }
        return types.get(self, "space")

    def unit(self) -> str | None:
        """Return the unit of the axis: micrometer, second, or None."""
        return {"space": "micrometer", "time": "second"}.get(self.dimension_type())

    def to_dimension(
        self,
        *,
        count: int | None = None,
        coords: Sequence[str | float | Channel | Position] | None = None,
        chunk_size: int | None = None,
        shard_size_chunks: int | None = None,
        scale: float | None = None,
    ) -> Dimension:
        """Return a `Dimension` with the name, type and unit of this axis."""
        return Dimension(
            name=self.value,
            count=count,
            type=self.dimension_type(),
            coords=coords,
            chunk_size=chunk_size,
            shard_size_chunks=shard_size_chunks,
            unit=self.unit(),
            scale=scale,
        )


def dims_from_standard_axes(
    sizes: Mapping[str, int | Sequence[str | float | Channel | Position] | None],
    chunk_shapes: Mapping[str | StandardAxis, int] | None = None,
    shard_shapes: Mapping[str | StandardAxis, int] | None = None,
) -> list[Dimension]:
    """Make dimensions from the names of standard axes and their sizes.

    Parameters
    ----------
    sizes : mapping of {'x', 'y', 'z', 'c', 't', 'p'} to int, sequence or None
        In acquisition order, the fastest last. An int is a count, a sequence the
        labels of the elements (channels, positions, heights), None an unbounded axis.
    chunk_shapes, shard_shapes : mapping of axis to int, optional
        Layout hints. Chunks default to whole frames.

    Returns
    -------
    list of Dimension

    Raises
    ------
    ValueError
        If a name is not one of a standard axis, or a size is a str.

    Examples
    --------
    >>> dims = dims_from_standard_axes({"t": 10, "c": ["DAPI"], "y": 512, "x": 512})
    >>> [dim.name for dim in dims]
    ['t', 'c', 'y', 'x']
    """
    known = [axis.value for axis in StandardAxis]
    if unknown := [name for name in sizes if name not in known]:
        raise ValueError(f"Standard axes are {known}, got {unknown}.")
    chunks = {StandardAxis(k): v for k, v in (chunk_shapes or {}).items()}
    shards = {StandardAxis(k): v for k, v in (shard_shapes or {}).items()}
    dims = []
    for name, size in sizes.items():
        axis = StandardAxis(name)
        count = _as_count(size)
        chunk = chunks.get(axis)
        if chunk is None and axis is not StandardAxis.POSITION:
            whole = axis in (StandardAxis.X, StandardAxis.Y) and count is not None
            chunk = count if whole else 1
        dims.append(
            axis.to_dimension(
                count=count,
                coords=None if count is not None else size,  # type: ignore[arg-type]
                chunk_size=chunk,
                shard_size_chunks=shards.get(axis),
            )
        )
    return dims


def _as_count(size: Any) -> int | None:
    try:
        return operator.index(size)
    except TypeError:
        return None
