"""The format and the settings of an acquisition, checked."""

from __future__ import annotations

import math
import os
import re
import threading
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    PositiveInt,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

from scratchwriter.dimensions import (
    Dimension,
    Plate,
    Position,
    StrictModel,
    check_dimensions,
)

Casting: TypeAlias = Literal["safe", "same_kind", "unsafe"]
Compression: TypeAlias = Literal["blosc-zstd", "blosc-lz4", "zstd", "lzw", "none"]

PIXEL_KINDS = "biufc"  # numpy's letters: bool, integers, float, complex
# Serialization context that keeps every field of ScratchFormat (see _hide_extensions).
EVERY_FIELD = {"every_field": True}
# Validation context for settings whose warnings were given before.
WITHOUT_WARNINGS = {"without_warnings": True}

# ScratchFormat fields that ome-writers lacks
_OWN_FIELDS = (
    "spill_dir",
    "populate",
    "casting",
    "durability",
    "sync_interval_s",
    "disk_io",
    "max_staging_bytes",
    "timestamps",
    "keep_last",
)
_FOREIGN_FORMATS = {
    "ome-tiff": "OME-TIFF",
    "tiff": "OME-TIFF",
    "tifffile": "OME-TIFF",
    "ome-zarr": "OME-Zarr",
    "zarr": "OME-Zarr",
    "tensorstore": "OME-Zarr",
    "acquire-zarr": "OME-Zarr",
    "zarrs-python": "OME-Zarr",
    "zarr-python": "OME-Zarr",
}
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_FOREIGN_SUFFIXES = {".tif": "OME-TIFF", ".tiff": "OME-TIFF", ".zarr": "OME-Zarr"}


def _path_text(value: Any) -> str:
    """Return a path as text, as `open` would understand it."""
    if not isinstance(value, str | bytes | os.PathLike):
        raise ValueError(f"{value!r} is not a path: give a str, bytes or path object.")
    text = os.fsdecode(value)
    if _URL.match(text):
        raise ValueError(
            f"{text!r} is a URL, and frames are stored in files that are mapped into "
            "memory: give a folder on a local disk. Copy or export the dataset to where it "
            "is to go (dataset.export), also while it is recorded."
        )
    return text


def _root_path_text(value: Any) -> str:
    return "" if value is None else _path_text(value)


def _spill_dir_text(value: Any) -> str | None:
    return None if value is None else _path_text(value)


class ScratchFormat(StrictModel):
    """The scratch format: plain arrays, in memory or in memory-mapped files.

    Attributes
    ----------
    name, backend : 'scratch'
        Always this value; it identifies the format in a dump.
    max_memory_bytes : int
        How many bytes the arrays of all positions together may take in memory.
    suffix : str
        Kept for `ome-writers`; without effect.
    spill_to_disk : bool
        Past the limit, spill into a temporary folder (True) or raise MemoryError.
    spill_dir : str or None
        Where that temporary folder is made; by default `TMPDIR`, else a folder on a disk.
    populate : {'ahead', 'all'}
        When memory is made ready: ahead of the frames, while they come; or all of it in
        `create_stream`, for machines whose memory is slow at its first use. 'all' is for
        bounded acquisitions in memory; elsewhere it does the same as 'ahead'.
    casting : {'safe', 'same_kind', 'unsafe'}
        Which conversions of a frame's dtype `append` accepts, as in `numpy.can_cast`.
    durability : {'process', 'system'}
        What files survive: the death of the process, or also a power cut, except for what
        came in the last `sync_interval_s`. `ScratchStream.flush` does that at any time.
    timestamps : bool
        Whether to keep the time at which each frame was appended, of this machine's
        monotonic clock, for frames that come without a time of their own.
    keep_last : int, optional
        Of an unbounded acquisition, how many of the newest steps along its first dimension
        are kept, for an endless preview: memory, or disk, does not grow.
    sync_interval_s : float
        How often files are synced to the device with durability 'system', in seconds.
    disk_io : {'auto', 'direct', 'page_cache'}
        How frames get to the disk: through the page cache, so that files are exact for
        every program at any moment; or staged and written directly, which takes far less
        processor time. 'auto' writes datasets of more than 256 MiB directly, where that is
        possible.
    max_staging_bytes : int, optional
        How many bytes may wait for the disk before `append` does; by default half of the
        memory that the machine has available.
    """

    name: Literal["scratch"] = "scratch"
    backend: Literal["scratch"] = "scratch"
    max_memory_bytes: int = 4 * 1024**3
    suffix: str = ""
    spill_to_disk: bool = True
    spill_dir: Annotated[str | None, BeforeValidator(_spill_dir_text)] = None
    populate: Literal["ahead", "all"] = "ahead"
    casting: Casting = "safe"
    durability: Literal["process", "system"] = "process"
    timestamps: bool = False
    keep_last: PositiveInt | None = None
    sync_interval_s: Annotated[float, Field(gt=0, le=threading.TIMEOUT_MAX)] = 1.0
    disk_io: Literal["auto", "direct", "page_cache"] = "auto"
    max_staging_bytes: PositiveInt | None = None

    if TYPE_CHECKING:  # what it takes, for type checkers; see `StrictModel`

        def __init__(
            self,
            *,
            name: Literal["scratch"] = "scratch",
            backend: Literal["scratch"] = "scratch",
            max_memory_bytes: int = ...,
            suffix: str = "",
            spill_to_disk: bool = True,
            spill_dir: str | bytes | os.PathLike[str] | None = None,
            populate: Literal["ahead", "all"] = "ahead",
            casting: Casting = "safe",
            durability: Literal["process", "system"] = "process",
            timestamps: bool = False,
            keep_last: int | None = None,
            sync_interval_s: float = 1.0,
            disk_io: Literal["auto", "direct", "page_cache"] = "auto",
            max_staging_bytes: int | None = None,
        ) -> None: ...

    def get_output_path(self, root_path: str, *, num_positions: int = 1) -> str:
        """Return the folder of the dataset: `root_path` as it is."""
        return root_path

    def model_post_init(self, _: Any) -> None:
        """Count the name as set, because it identifies the format in every dump."""
        self.model_fields_set.add("name")

    @model_serializer(mode="wrap")
    def _hide_extensions(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        # ome-writers refuses fields that it does not know, so the fields that only this
        # library has are left out of a dump while they have their defaults.
        data: dict[str, Any] = handler(self)
        if not (isinstance(info.context, dict) and info.context.get("every_field")):
            for field in _OWN_FIELDS:
                if data.get(field) == type(self).model_fields[field].default:
                    data.pop(field, None)
        return data


def _parse_format(value: Any) -> Any:
    if isinstance(value, ScratchFormat):
        return value
    if isinstance(value, BaseModel):  # a format of ome-writers
        value = value.model_dump()
    name = value.get("name") if isinstance(value, dict) else value
    if isinstance(name, str) and name.lower() in _FOREIGN_FORMATS:
        raise ValueError(_foreign_format(_FOREIGN_FORMATS[name.lower()]))
    if isinstance(value, str):
        if value.lower() in ("scratch", "memory", "auto"):
            return ScratchFormat()
        raise ValueError(
            f"Unknown format {value!r}: this library writes 'scratch' (or 'memory')."
        )
    return value


def _foreign_format(name: str) -> str:
    return (
        f"scratchwriter writes the scratch format (format='scratch'), not {name}. "
        "Use ome-writers (pip install ome-writers) to write OME-TIFF or OME-Zarr."
    )


def _parse_dtype(value: Any) -> str:
    if isinstance(value, str) and not value:
        return ""
    try:
        name: str = np.dtype(value).name
    except Exception as error:
        raise ValueError(f"{value!r} is not a numpy dtype: {error}") from error
    return name


def _holds_pixels(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in PIXEL_KINDS
    except TypeError:  # names of string and record dtypes, as "str160", are not dtypes
        return False


def _check_dimensions(
    dims: tuple[Dimension, ...], info: ValidationInfo
) -> tuple[Dimension, ...]:
    return check_dimensions(dims, warns=info.context != WITHOUT_WARNINGS)


def _check_storage_order(order: str | list[str], dims: tuple[Dimension, ...]) -> None:
    if isinstance(order, str) or not dims:
        return
    names = [dim.name for dim in dims]
    if sorted(order) != sorted(names):
        raise ValueError(
            f"storage_order must name every dimension once: {names}, got {order}."
        )
    if set(order[-2:]) != set(names[-2:]):
        raise ValueError(
            f"storage_order must leave the frame's dimensions {names[-2:]} last, "
            f"got {order}."
        )


class AcquisitionSettings(StrictModel):
    """Everything about an acquisition; pass it to `create_stream`.

    Dimensions and dtype may be left out at first and set later.

    Attributes
    ----------
    root_path : str
        Folder of the dataset, made with its parents. Empty, or None: in memory, no files.
        A path object or bytes are kept as a str.
    dimensions : tuple of Dimension
        In acquisition order, the fastest last; the last two are the frame's.
        2 to 5 of them, and at most one position dimension in addition.
    dtype : str
        numpy dtype of the pixels: bool, integer, float or complex.
    format : ScratchFormat
        Or "scratch", "memory", "auto", or a dict of its fields.
    compression : str or None
        Kept for an export; without effect here.
    storage_order : {'acquisition', 'ome'} or list of str
        Order of the axes of the arrays. A list names all dimensions and may permute
        all but the frame's; the two words keep the acquisition order.
    plate : Plate or None
        Needs a position dimension whose positions have a row and a column each.
    overwrite : bool
        Replace an existing scratch dataset at `root_path`.
    """

    root_path: Annotated[str, BeforeValidator(_root_path_text)] = ""
    dimensions: Annotated[tuple[Dimension, ...], AfterValidator(_check_dimensions)] = ()
    dtype: Annotated[str, BeforeValidator(_parse_dtype)] = ""
    format: Annotated[ScratchFormat, BeforeValidator(_parse_format)] = Field(
        default_factory=ScratchFormat
    )
    compression: Compression | None = None
    storage_order: Literal["acquisition", "ome"] | list[str] = "ome"
    plate: Plate | None = None
    overwrite: bool = False

    if TYPE_CHECKING:  # what it takes, for type checkers; see `StrictModel`

        def __init__(
            self,
            *,
            root_path: str | bytes | os.PathLike[str] | None = "",
            dimensions: Iterable[Dimension | Mapping[str, Any]] = (),
            dtype: npt.DTypeLike = "",
            format: ScratchFormat | str | Mapping[str, Any] = ...,  # noqa: A002
            compression: Compression | None = None,
            storage_order: Literal["acquisition", "ome"]
            | list[str]
            | tuple[str, ...] = "ome",
            plate: Plate | Mapping[str, Any] | None = None,
            overwrite: bool = False,
        ) -> None: ...

    @property
    def output_path(self) -> str:
        """Folder of the dataset, as given in `root_path`."""
        self._need_dimensions("output_path")
        return self.format.get_output_path(
            self.root_path, num_positions=len(self.positions)
        )

    @property
    def shape(self) -> tuple[int | None, ...]:
        """Count of each dimension, None for the unbounded one."""
        return tuple(dim.count for dim in self._need_dimensions("shape"))

    @property
    def is_unbounded(self) -> bool:
        """Whether the first dimension is unbounded."""
        return self._need_dimensions("is_unbounded")[0].count is None

    @property
    def num_frames(self) -> int | None:
        """Number of frames of all positions, None if unbounded."""
        counts = [dim.count for dim in self._need_dimensions("num_frames")[:-2]]
        if None in counts:
            return None
        return math.prod(count for count in counts if count is not None)

    @property
    def positions(self) -> tuple[Position, ...]:
        """Positions in acquisition order; one named "0" without such a dimension."""
        axis = self.position_dimension_index
        coords = None if axis is None else self.dimensions[axis].coords
        positions = tuple(c for c in coords or () if isinstance(c, Position))
        return positions or (Position(name="0"),)

    @property
    def position_dimension_index(self) -> int | None:
        """Index of the position dimension in `dimensions`, None without one."""
        dims = self._need_dimensions("position_dimension_index")
        for axis, dim in enumerate(dims[:-2]):
            if dim.type == "position":
                return axis
        return None

    @property
    def frame_dimensions(self) -> tuple[Dimension, ...]:
        """The last two dimensions, those of a frame."""
        return self._need_dimensions("frame_dimensions")[-2:]

    @property
    def index_dimensions(self) -> tuple[Dimension, ...]:
        """All dimensions besides those of a frame and of positions."""
        dims = self._need_dimensions("index_dimensions")
        return tuple(dim for dim in dims[:-2] if dim.type != "position")

    @property
    def array_dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions of each position's array, in acquisition order."""
        dims = self._need_dimensions("array_dimensions")
        return tuple(dim for dim in dims if dim.type != "position")

    @property
    def storage_index_dimensions(self) -> tuple[Dimension, ...]:
        """`index_dimensions` in storage order."""
        dims = self.index_dimensions
        if isinstance(self.storage_order, str):
            return dims
        return tuple(sorted(dims, key=lambda d: self.storage_order.index(d.name)))

    @property
    def storage_index_permutation(self) -> tuple[int, ...] | None:
        """Index into `index_dimensions` per storage axis; None for the same order."""
        acquired = [dim.name for dim in self.index_dimensions]
        stored = [dim.name for dim in self.storage_index_dimensions]
        if acquired == stored:
            return None
        return tuple(acquired.index(name) for name in stored)

    @property
    def array_storage_dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions of each position's array, in storage order."""
        return self.storage_index_dimensions + self.frame_dimensions

    def validate_stream_ready(self) -> Literal[True]:
        """Check that a stream can be made from these settings.

        Raises
        ------
        ValueError
            If the dimensions or the dtype are missing or contradict each other, a
            frame has no fixed size, or the dtype does not hold pixels.
        """
        if not self.dimensions:
            raise ValueError("settings.dimensions is empty: set it to make a stream.")
        if not self.dtype:
            raise ValueError("settings.dtype is empty: set it to make a stream.")
        for dim in self.frame_dimensions:
            if dim.count is None:
                raise ValueError(
                    f"Frame dimension {dim.name!r} has no count: a frame needs a size."
                )
        # Dimensions can be changed one by one, which does not check them together.
        check_dimensions(
            tuple(Dimension.model_validate(dict(dim)) for dim in self.dimensions)
        )
        _check_storage_order(self.storage_order, self.dimensions)
        if self.format.keep_last is not None and self.dimensions[0].count is not None:
            raise ValueError(
                f"keep_last={self.format.keep_last} is for an endless acquisition: make "
                "the first dimension unbounded (count=None), or leave it out."
            )
        if not _holds_pixels(self.dtype):
            raise ValueError(
                f"dtype {self.dtype!r} does not hold pixels: use a bool, integer, "
                "float or complex dtype."
            )
        return True

    def _need_dimensions(self, name: str) -> tuple[Dimension, ...]:
        if not self.dimensions:
            raise ValueError(f"{name} needs settings.dimensions, which is empty.")
        return self.dimensions

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_formats(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if "backend" in data:
                raise ValueError(
                    "`backend` is not a field of AcquisitionSettings: it belongs in "
                    "`format`."
                )
            if str(data.get("format", "auto")).lower() == "auto":
                # Without a separator at the end.
                folder = Path(_root_path_text(data.get("root_path"))).name.lower()
                for suffix, name in _FOREIGN_SUFFIXES.items():
                    if folder.endswith(suffix):
                        raise ValueError(_foreign_format(name))
        return data

    @model_validator(mode="after")
    def _order_names_the_dimensions(self) -> AcquisitionSettings:
        _check_storage_order(self.storage_order, self.dimensions)
        return self

    @model_validator(mode="after")
    def _check_plate(self, info: ValidationInfo) -> AcquisitionSettings:
        if self.plate is None or not self.dimensions:
            return self
        if self.position_dimension_index is None:
            raise ValueError("A plate needs a position dimension in `dimensions`.")
        no_well = [p.name for p in self.positions if p.plate_row is None]
        if no_well:
            raise ValueError(
                "With a plate every position needs plate_row and plate_column; "
                f"missing for {no_well}."
            )
        rows, columns = self.plate.row_names, self.plate.column_names
        outside = [
            p.name
            for p in self.positions
            if p.plate_row not in rows or p.plate_column not in columns
        ]
        if outside and info.context != WITHOUT_WARNINGS:
            warnings.warn(
                f"Positions {outside} are in wells that the plate does not have; "
                "the plate's metadata may leave them out.",
                stacklevel=3,
            )
        return self
