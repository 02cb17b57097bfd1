import copy
import inspect
import json
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

import scratchwriter
from reference import PROPERTIES

ome_writers = pytest.importorskip("ome_writers")

LIBRARIES = [ome_writers, scratchwriter]
OWN_FORMAT_FIELDS = {"spill_dir", "casting"}
MODELS = ["AcquisitionSettings", "Dimension", "Channel", "Position", "Plate"]


def plain(value):
    """Models as their dumps, so that those of two libraries compare."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def outcome(call, library):
    """What a call gives (a dump, or the type of an exception), and what it warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = plain(call(library))
        except Exception as error:
            return type(error), []
    return result, sorted({w.category.__name__ for w in warned})


def make(library, spec):
    return library.AcquisitionSettings(**copy.deepcopy(spec))


# ------------------------------------------------------------------ names and defaults


OURS = {
    *("DatasetError", "ExportCancelledError", "ScratchDataset", "ScratchStream"),
    *("StreamView", "get_include", "open_scratch"),
}
OTHER_FORMATS = {"OmeTiffFormat", "OmeZarrFormat"}


@pytest.mark.parametrize("name", sorted({*scratchwriter.__all__} - OURS))
def test_public_names_are_those_of_ome_writers(name):
    assert hasattr(ome_writers, name)


@pytest.mark.parametrize("name", sorted({*ome_writers.__all__} - OTHER_FORMATS))
def test_every_public_name_of_ome_writers_but_of_other_formats_is_here(name):
    assert name in scratchwriter.__all__
    assert getattr(scratchwriter, name) is not None


@pytest.mark.parametrize("model", MODELS)
def test_fields_are_those_of_ome_writers(model):
    theirs, ours = (getattr(library, model).model_fields for library in LIBRARIES)
    assert list(ours) == list(theirs)
    for name, field in theirs.items():
        assert ours[name].is_required() == field.is_required()
        if name != "format":
            assert ours[name].get_default() == field.get_default()


def test_fields_of_the_format_are_those_of_ome_writers_and_some_more():
    theirs, ours = (dict(library.ScratchFormat()) for library in LIBRARIES)
    assert ours == theirs | {
        "spill_dir": None,
        "populate": "ahead",
        "casting": "safe",
        "durability": "process",
        "sync_interval_s": 1.0,
        "disk_io": "auto",
        "max_staging_bytes": None,
        "timestamps": False,
        "keep_last": None,
    }


@pytest.mark.parametrize("model", [*MODELS, "ScratchFormat", "StandardAxis"])
def test_methods_and_properties_are_those_of_ome_writers(model):
    theirs, ours = (
        {name for name in dir(getattr(library, model)) if not name.startswith("_")}
        for library in LIBRARIES
    )
    assert ours - OWN_FORMAT_FIELDS == theirs


@pytest.mark.parametrize(
    "name",
    [
        "dims_from_standard_axes",
        "dims_from_useq",
        "useq_to_acquisition_settings",
        "AcquisitionSettings.validate_stream_ready",
        "Plate.from_standard_wells",
        "ScratchFormat.get_output_path",
        "StandardAxis.to_dimension",
        "OMEStream.on",
        "OMEStream.skip",
        "OMEStream.view",
        "OMEStream.close",
        "OMEStream.get_metadata",
        "OMEStream.update_metadata",
        "OMEStream.set_global_metadata",
    ],
)
def test_arguments_are_those_of_ome_writers(name):
    signatures = []
    for library in LIBRARIES:
        function = library
        for part in name.split("."):
            function = getattr(function, part)
        parameters = inspect.signature(function).parameters.values()
        signatures.append([(p.name, p.kind, p.default) for p in parameters])
    assert signatures[0] == signatures[1]


def test_create_stream_takes_the_arguments_of_ome_writers_and_one_more():
    theirs, ours = (
        inspect.signature(library.create_stream).parameters for library in LIBRARIES
    )
    assert list(ours) == [*theirs, "on_populate"]
    assert ours["on_populate"].kind is inspect.Parameter.KEYWORD_ONLY
    assert ours["on_populate"].default is None


def test_append_takes_the_arguments_of_ome_writers_and_what_came_with_the_frame():
    theirs, ours = (
        inspect.signature(library.OMEStream.append).parameters for library in LIBRARIES
    )
    assert list(ours) == [*theirs, "timestamp_ns", "frame_id"]
    for name in ("timestamp_ns", "frame_id"):
        assert ours[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert ours[name].default is None


@pytest.mark.parametrize("argument", ["coords", "positions"])
@pytest.mark.parametrize("name", ["p", "field"])
def test_a_position_dimension_by_its_old_name_is_one_of_ome_writers(argument, name):
    dumps = []
    for library in LIBRARIES:
        places = ["A", library.Position(name="B", x_coord=1)]
        with pytest.warns(DeprecationWarning, match="PositionDimension is deprecated"):
            dim = library.PositionDimension(name=name, **{argument: places})
        assert isinstance(dim, library.Dimension)
        dumps.append(dim.model_dump())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ValueError, match="position"):
                library.PositionDimension(type="time", count=3)
    assert dumps[0] == dumps[1]


def test_standard_axes_are_those_of_ome_writers():
    theirs, ours = (
        [
            (a.name, a.value, str(a), a.dimension_type(), a.unit())
            for a in library.StandardAxis
        ]
        for library in LIBRARIES
    )
    assert ours == theirs


# ------------------------------------------------------------------ a table of calls


def frame(lib):
    return [lib.Dimension(name="y", count=4), lib.Dimension(name="x", count=5)]


def well(lib, name, row="A", column="1", **fields):
    return lib.Position(name=name, plate_row=row, plate_column=column, **fields)


def dimension(**fields):
    return lambda lib: lib.Dimension(**{"name": "a"} | fields)


def channels(*coords, **fields):
    return lambda lib: lib.Dimension(
        name="c",
        coords=[c if isinstance(c, str) else lib.Channel(**c) for c in coords],
        **fields,
    )


def positions(*coords, **fields):
    return lambda lib: lib.Dimension(
        name="p",
        coords=[c if isinstance(c, str) else lib.Position(**c) for c in coords],
        **fields,
    )


def acquisition(*dims, **fields):
    """Settings of dimensions given as dicts before the frame's y and x."""
    fields.setdefault("format", "scratch")
    return lambda lib: lib.AcquisitionSettings(
        dimensions=[*(lib.Dimension(**d) for d in dims), *frame(lib)], **fields
    )


def of_dims(*dims):
    return lambda lib: lib.AcquisitionSettings(
        dimensions=[lib.Dimension(**d) for d in dims], format="scratch"
    )


def plate(*wells, **fields):
    def call(lib):
        coords = [well(lib, f"f{i}", *rc) for i, rc in enumerate(wells)]
        return lib.AcquisitionSettings(
            dimensions=[lib.Dimension(name="p", coords=coords), *frame(lib)],
            plate=lib.Plate.from_standard_wells(6),
            **fields,
        )

    return call


def axes(*args):
    return lambda lib: lib.dims_from_standard_axes(*args)


def changed(call, **fields):
    """What a call gives, with other fields assigned."""

    def assign(lib):
        model = call(lib)
        for name, value in fields.items():
            setattr(model, name, value(lib) if callable(value) else value)
        return model

    return assign


T, C, P = (
    {"name": "t", "count": 3},
    {"name": "c", "count": 2},
    {"name": "p", "type": "position"},
)
Y, X = {"name": "y", "count": 4}, {"name": "x", "count": 5}
WELL = {"plate_row": "A", "plate_column": "1"}
CELL = {"grid_row": 0, "grid_column": 1}

VALID = {
    "a name": dimension(),
    "all numbers": dimension(
        count=3, chunk_size=2, shard_size_chunks=4, scale=0.5, translation=-1
    ),
    "a count as a string": dimension(count="3"),
    "a count as a whole float": dimension(count=3.0),
    "a count that is a bool": dimension(count=True, coords=["a"]),
    "a huge count": dimension(count=2**73),
    "a numpy count": dimension(count=np.int64(3)),
    "a numpy count of positions": dimension(count=np.int64(3), type="position"),
    "a bool count of positions": dimension(count=True, type="position"),
    "counted positions": dimension(count=3, type="position"),
    "no coords on channels": dimension(count=3, type="channel"),
    "strings": dimension(coords=["a", "a"]),
    "numbers": dimension(coords=[1, 2.5]),
    "strings and numbers": dimension(coords=["1", 2.5]),
    "bools as coords": dimension(coords=[True, False]),
    "an array as coords": dimension(coords=np.array([0.5, 1.5])),
    "a dict as coords": dimension(coords={"a": 1, "b": 2}),
    "named dicts of no type": dimension(coords=[{"name": "a"}]),
    "dicts of a position of no type": dimension(coords=[{"name": "a"} | WELL]),
    "dicts of channels": dimension(coords=[{"name": "a", "color": "red"}], type="channel"),
    "dicts of positions": dimension(coords=[{"name": "a"} | CELL], type="position"),
    "channels": channels({"name": "a", "color": "#f00"}, {"name": "b"}),
    "channels and strings": channels("a", {"name": "b"}),
    "typed channels with a length": channels({"name": "a"}, type="channel", unit="um"),
    "channels with an unknown unit": channels({"name": "a"}, unit="foo"),
    "positions": positions({"name": "a", "x_coord": 1}, {"name": "b"} | CELL),
    "positions and strings": positions("a", {"name": "b"} | WELL),
    "one name in two wells": positions({"name": "a"} | WELL, {"name": "a"}),
    "one name in two cells": positions(
        {"name": "a"} | WELL | CELL, {"name": "a"} | WELL, {"name": "a"} | CELL
    ),
    "an untyped unknown unit": dimension(unit="foo"),
    "an empty unit": dimension(unit=""),
    "a length on another type": dimension(unit="um", type="other"),
    "a time on channels": dimension(unit="ms", type="channel"),
    "a channel from its name": lambda lib: lib.Channel.model_validate("DAPI"),
    "a position from its name": lambda lib: lib.Position.model_validate("A1"),
    "a whole float as a wavelength": lambda lib: lib.Channel(
        name="a", emission_wavelength_nm=5.0
    ),
    "a color as a tuple": lambda lib: lib.Channel(name="a", color=(1, 2, 3, 0.5)),
    "a plate": lambda lib: lib.Plate(row_names=["A"], column_names=["1", "2"], name="n"),
    "a plate without wells": lambda lib: lib.Plate(row_names=[], column_names=[]),
    "a plate past Z": lambda lib: lib.Plate.from_standard_wells((60, 3)),
    "an axis": lambda lib: lib.StandardAxis.Z.to_dimension(count=3, scale=0.5),
    "sizes": axes({"t": None, "p": 2, "c": 3, "z": 4, "y": 5, "x": 6}),
    "labels": axes({"p": ["a", "b"], "c": ("a",), "z": [0.5, 1], "y": [1.5], "x": None}),
    "chunks and shards": axes(
        {"t": 9, "p": 2, "y": 8, "x": 8}, {"t": 3, "p": 1, "y": 4}, {"x": 2}
    ),
    "no axes": axes({}),
    "no settings": lambda lib: lib.AcquisitionSettings(),
    "no dimensions": lambda lib: lib.AcquisitionSettings(
        dimensions=[], dtype="", storage_order=["q"]
    ),
    "a plate before the dimensions": lambda lib: lib.AcquisitionSettings(
        plate=lib.Plate.from_standard_wells(96)
    ),
    "a frame": acquisition(),
    "a frame in capitals": of_dims({"name": "Y", "count": 4}, {"name": "X", "count": 5}),
    "a frame of x and y": of_dims(X, Y),
    "a frame with other names": of_dims(
        {"name": "r", "count": 4}, {"name": "c", "count": 5}
    ),
    "a frame with units": of_dims(Y | {"unit": "um"}, X | {"unit": "NANOMETER"}),
    "a frame with an open end": of_dims({"name": "y"}, X),
    "an open end": acquisition({"name": "t"}, C),
    "positions of an open end": acquisition({"name": "t"}, P | {"count": 2}),
    "five dimensions and positions": acquisition(
        T, P | {"count": 2}, C, {"name": "z", "count": 1}
    ),
    "an order": acquisition(T, C, storage_order=["c", "t", "x", "y"]),
    "an order as a tuple": acquisition(T, C, storage_order=("c", "t", "y", "x")),
    "an order with positions": acquisition(
        T, P | {"count": 2}, C, storage_order=["c", "p", "t", "y", "x"]
    ),
    "the acquisition order": acquisition(C, T, storage_order="acquisition"),
    "a path": acquisition(root_path=Path("a") / "b"),
    "memory": acquisition(format="Memory"),
    "auto": acquisition(format="auto"),
    "a dict as the format": acquisition(
        format={"name": "scratch", "max_memory_bytes": 1e9}
    ),
    "an object as the format": lambda lib: lib.AcquisitionSettings(
        format=lib.ScratchFormat(spill_to_disk=False, suffix=".a", max_memory_bytes=-1)
    ),
    "scratch in a folder that looks like another": acquisition(
        root_path="a.ome.zarr", format="scratch"
    ),
    "a type as the dtype": acquisition(dtype=np.uint16),
    "a byte-swapped dtype": acquisition(dtype=">u2"),
    "None as the dtype": acquisition(dtype=None),
    "an object dtype": acquisition(dtype=object),
    "a compression": acquisition(compression="lzw"),
    "wells": plate(("A", "1"), ("B", "3")),
    "wells outside of the plate": plate(("A", "1"), ("Z", "1")),
    "another count": changed(dimension(count=3), count=4),
    "another unit": changed(dimension(), unit="um"),
    "another type": changed(dimension(count=2), type="position"),
    "other dimensions": changed(acquisition(T), dimensions=frame),
    "another order": changed(acquisition(T, C), storage_order=["c", "t", "y", "x"]),
    "another dtype": changed(acquisition(), dtype="u1"),
    "another format": changed(acquisition(), format={"name": "scratch", "suffix": "a"}),
}

INVALID = {
    "no name": (ValidationError, lambda lib: lib.Dimension()),
    "an empty name": (ValidationError, dimension(name="")),
    "a count of zero": (ValidationError, dimension(count=0)),
    "a count of zero positions": (ValidationError, dimension(count=0, type="position")),
    "a negative count of positions": (
        ValidationError,
        dimension(count=-1, type="position"),
    ),
    "a broken count": (ValidationError, dimension(count=2.5)),
    "a chunk of nothing": (ValidationError, dimension(chunk_size=0)),
    "an unknown type": (ValidationError, dimension(type="spatial")),
    "an unknown field": (ValidationError, dimension(size=3)),
    "positions without an end": (NotImplementedError, dimension(type="position")),
    "no positions": (NotImplementedError, dimension(type="position", coords=[])),
    "none of two positions": (
        NotImplementedError,
        dimension(type="position", coords=[], count=2),
    ),
    "no coords": (ValidationError, dimension(coords=[])),
    "no coords and a count": (ValidationError, dimension(coords=[], count=1)),
    "too few coords": (ValidationError, dimension(coords=["a"], count=2)),
    "a count of coords as a string": (ValidationError, dimension(coords=["a"], count="1")),
    "a number as coords": (ValidationError, dimension(coords=5)),
    "None among coords": (ValidationError, dimension(coords=[None])),
    "numbers as channels": (ValidationError, dimension(coords=[1.0], type="channel")),
    "nameless positions": (ValidationError, dimension(coords=[""], type="position")),
    "a time on space": (ValidationError, dimension(unit="ms", type="space")),
    "a length on time": (ValidationError, dimension(unit="um", type="time")),
    "an unknown length": (ValidationError, dimension(unit="px", type="space")),
    "no length": (ValidationError, dimension(unit="", type="space")),
    "a length in the wrong case": (ValidationError, dimension(unit="UM", type="space")),
    "channels with a length": (ValidationError, channels({"name": "a"}, unit="um")),
    "positions with a time": (ValidationError, positions({"name": "a"}, unit="ms")),
    "channels in space": (ValidationError, channels({"name": "a"}, type="space")),
    "positions as channels": (ValidationError, positions({"name": "a"}, type="channel")),
    "channels and positions": (
        ValidationError,
        lambda lib: lib.Dimension(
            name="a", coords=[lib.Channel(name="a"), lib.Position(name="b")]
        ),
    ),
    "channels and numbers": (
        ValidationError,
        lambda lib: lib.Dimension(name="a", coords=[lib.Channel(name="a"), 1.0]),
    ),
    "positions and dicts": (
        ValidationError,
        lambda lib: lib.Dimension(name="a", coords=[lib.Position(name="a"), {"name": "b"}]),
    ),
    "one channel twice": (ValidationError, channels({"name": "a"}, "a")),
    "one position twice": (ValidationError, positions("a", {"name": "a", "x_coord": 1})),
    "one position twice in a well": (
        ValidationError,
        positions(*[{"name": "a"} | WELL] * 2),
    ),
    "one position twice in a cell": (
        ValidationError,
        positions(*[{"name": "a"} | CELL] * 2),
    ),
    "a channel without a name": (ValidationError, lambda lib: lib.Channel()),
    "a number as a channel": (ValidationError, lambda lib: lib.Channel.model_validate(3)),
    "an unknown color": (
        ValidationError,
        lambda lib: lib.Channel(name="a", color="no such"),
    ),
    "a dark laser": (
        ValidationError,
        lambda lib: lib.Channel(name="a", excitation_wavelength_nm=0),
    ),
    "a row without a column": (
        ValidationError,
        lambda lib: lib.Position(name="a", plate_row="A"),
    ),
    "a cell without a row": (
        ValidationError,
        lambda lib: lib.Position(name="a", grid_column=1),
    ),
    "a row that is a number": (
        ValidationError,
        lambda lib: lib.Position(name="a", plate_row=1, plate_column="1"),
    ),
    "a plate of another size": (ValueError, lambda lib: lib.Plate.from_standard_wells(7)),
    "a flat plate": (ValueError, lambda lib: lib.Plate.from_standard_wells((0, 3))),
    "a deep plate": (ValueError, lambda lib: lib.Plate.from_standard_wells((1, 2, 3))),
    "letters as rows": (
        ValidationError,
        lambda lib: lib.Plate(row_names="A", column_names=["1"]),
    ),
    "an unknown axis": (ValueError, axes({"q": 3})),
    "an axis of no size": (ValidationError, axes({"y": 0})),
    "an axis of a float size": (ValidationError, axes({"y": 2.0})),
    "a position axis without an end": (NotImplementedError, axes({"p": None})),
    "a position axis without positions": (NotImplementedError, axes({"p": []})),
    "None as dimensions": (
        ValidationError,
        lambda lib: lib.AcquisitionSettings(dimensions=None),
    ),
    "one dimension": (ValidationError, of_dims(Y)),
    "one dimension and positions": (ValidationError, of_dims(P | {"count": 2}, Y)),
    "six dimensions": (
        ValidationError,
        acquisition(*({"name": n, "count": 1} for n in "abcd")),
    ),
    "two position dimensions": (
        ValidationError,
        acquisition(P | {"count": 2}, P | {"count": 2, "name": "q"}),
    ),
    "one dimension twice": (ValidationError, acquisition(T, T)),
    "an open end that is not the first": (ValidationError, acquisition(T, {"name": "c"})),
    "an open end after positions": (
        ValidationError,
        acquisition(P | {"count": 2}, {"name": "t"}),
    ),
    "a frame with an open last axis": (ValidationError, of_dims(Y, {"name": "x"})),
    "a frame of time": (ValidationError, of_dims(Y, X | {"unit": "ms"})),
    "a frame of something else": (ValidationError, of_dims(Y | {"type": "other"}, X)),
    "a frame of positions": (ValidationError, of_dims(Y, X, P | {"count": 2})),
    "a frame with an unknown unit": (ValidationError, of_dims(Y | {"unit": "px"}, X)),
    "a frame with an empty unit": (ValidationError, of_dims(Y, X | {"unit": ""})),
    "an unknown order": (ValidationError, acquisition(storage_order="reversed")),
    "an empty order": (ValidationError, acquisition(T, storage_order=[])),
    "an order that lacks a dimension": (
        ValidationError,
        acquisition(T, C, storage_order=list("tyx")),
    ),
    "an order that lacks positions": (
        ValidationError,
        acquisition(T, P | {"count": 2}, storage_order=list("tyx")),
    ),
    "an order with another dimension": (
        ValidationError,
        acquisition(T, storage_order=list("qyx")),
    ),
    "an order that breaks frames": (
        ValidationError,
        acquisition(T, storage_order=list("ytx")),
    ),
    "an unknown dtype": (ValidationError, acquisition(dtype="uint17")),
    "a number as the dtype": (ValidationError, acquisition(dtype=16)),
    "an unknown compression": (ValidationError, acquisition(compression="gzip")),
    "an unknown format": (ValidationError, acquisition(format="n5")),
    "None as the format": (ValidationError, acquisition(format=None)),
    "an unknown name of a format": (ValidationError, acquisition(format={"name": "n5"})),
    "another backend": (
        ValidationError,
        acquisition(format={"name": "scratch", "backend": "auto"}),
    ),
    "a limit in words": (
        ValidationError,
        lambda lib: lib.ScratchFormat(max_memory_bytes="4 GiB"),
    ),
    "a backend beside the format": (ValidationError, acquisition(backend="scratch")),
    "an unknown setting": (ValidationError, acquisition(shape=(4, 5))),
    "a plate without positions": (
        ValidationError,
        acquisition(plate={"row_names": ["A"], "column_names": ["1"]}),
    ),
    "positions without wells on a plate": (
        ValidationError,
        acquisition(P | {"count": 2}, plate={"row_names": ["A"], "column_names": ["1"]}),
    ),
    "a wrong count later": (ValidationError, changed(dimension(count=3), count=0)),
    "a count of other coords later": (
        ValidationError,
        changed(dimension(coords=["a"]), count=2),
    ),
    "a wrong type later": (ValidationError, changed(dimension(unit="foo"), type="space")),
    "half a well later": (
        ValidationError,
        changed(lambda lib: lib.Position(name="a"), plate_row="A"),
    ),
    "other dimensions than the order's later": (
        ValidationError,
        changed(acquisition(T, storage_order=list("tyx")), dimensions=frame),
    ),
    "a wrong dtype later": (ValidationError, changed(acquisition(), dtype="uint17")),
    "not ready without dimensions": (
        ValueError,
        lambda lib: lib.AcquisitionSettings(dtype="u1").validate_stream_ready(),
    ),
    "not ready without a dtype": (
        ValueError,
        lambda lib: acquisition()(lib).validate_stream_ready(),
    ),
}


@pytest.mark.parametrize("call", VALID.values(), ids=VALID)
def test_valid_calls_give_equal_models(call):
    theirs, ours = (outcome(call, library) for library in LIBRARIES)
    assert not isinstance(theirs[0], type)
    assert ours == theirs


@pytest.mark.parametrize(("error", "call"), INVALID.values(), ids=INVALID)
def test_invalid_calls_raise_the_same_exception(error, call):
    theirs, ours = (outcome(call, library) for library in LIBRARIES)
    assert theirs == (error, [])
    assert ours == theirs


@pytest.mark.parametrize("name", PROPERTIES)
def test_derived_properties_without_dimensions_raise_the_same_exception(name):
    theirs, ours = (
        outcome(lambda lib: getattr(lib.AcquisitionSettings(), name), library)
        for library in LIBRARIES
    )
    assert ours == theirs == (ValueError, [])


# ------------------------------------------------------------------ random settings

SHORT = st.integers(1, 3)


@st.composite
def index_dims(draw):
    """Dimensions before the frame's, as dicts; the first may be unbounded."""
    dims = []
    for name in draw(st.lists(st.sampled_from("tcza"), max_size=3, unique=True)):
        dim = {"name": name, "count": draw(SHORT)}
        kind = draw(st.sampled_from([None, "time", "channel", "space", "other"]))
        dim["type"] = kind
        if draw(st.booleans()):
            dim["coords"] = [f"{name}{i}" for i in range(dim["count"])]
        unit = draw(st.sampled_from([None, "um", "ms", "foo"]))
        if (kind, unit) not in [("time", "um"), ("space", "ms")] and (
            kind not in ("time", "space") or unit != "foo"
        ):
            dim["unit"] = unit
        dims.append(dim)
    if draw(st.booleans()):
        dim = {"name": "p", "type": "position", "count": draw(SHORT)}
        if draw(st.booleans()):
            dim["coords"] = [
                {
                    "name": "f",
                    "plate_row": "AB"[i % 2],
                    "plate_column": str(i),
                    "x_coord": i,
                }
                for i in range(dim.pop("count"))
            ]
        dims.insert(draw(st.integers(0, len(dims))), dim)
    return dims


@st.composite
def specs(draw, *, bounded=False):
    """Arguments of AcquisitionSettings that are valid, as plain data."""
    dims = draw(index_dims())
    if dims and "coords" not in dims[0] and dims[0]["type"] != "position":
        dims[0]["count"] = draw(SHORT if bounded else st.none() | SHORT)
    frame_names = draw(st.sampled_from([("y", "x"), ("x", "y"), ("Y", "X"), ("v", "u")]))
    for name in frame_names:
        dim = {"name": name, "count": draw(st.integers(1, 5))}
        if name in "uv":
            dim["type"] = "space"
        dim["unit"] = draw(st.sampled_from([None, "um", "nm"]))
        dims.append(dim)
    names = [dim["name"] for dim in dims]
    order = st.tuples(st.permutations(names[:-2]), st.permutations(names[-2:]))
    spec = {
        "dimensions": dims,
        "dtype": draw(st.sampled_from(["uint8", ">u2", "f4", "bool", "complex64"])),
        "format": draw(
            st.sampled_from(
                ["scratch", "memory", {"name": "scratch", "max_memory_bytes": 10**8}]
            )
        ),
        "storage_order": draw(
            st.sampled_from(["ome", "acquisition"]) | order.map(lambda o: [*o[0], *o[1]])
        ),
    }
    if bounded:
        return spec
    if draw(st.booleans()):
        spec["root_path"] = "some/where"
        spec["overwrite"] = draw(st.booleans())
    elif draw(st.booleans()):
        spec["format"] = "auto"
    return spec


@st.composite
def doubtful_specs(draw):
    """Arguments of AcquisitionSettings, most of them wrong somewhere."""
    spec = draw(specs())
    dims = spec["dimensions"]
    for _ in range(draw(st.integers(1, 2))):
        dim = draw(st.sampled_from(dims))
        field, value = draw(
            st.sampled_from(
                [
                    ("count", None),
                    ("count", 0),
                    ("count", 2),
                    ("name", "t"),
                    ("name", "p"),
                    ("type", "position"),
                    ("type", "space"),
                    ("type", "other"),
                    ("type", None),
                    ("unit", "s"),
                    ("unit", "px"),
                    ("coords", ["a", "b"]),
                    ("coords", ["a", "a"]),
                    ("coords", None),
                ]
            )
        )
        dim[field] = value
    if draw(st.booleans()):
        spec["storage_order"] = [
            dim["name"] for dim in dims[draw(st.integers(0, 1)) :] if dim["name"]
        ]
    if draw(st.booleans()):
        spec["plate"] = {"row_names": ["A"], "column_names": ["0", "1"]}
    return spec


@settings(max_examples=100)
@given(specs())
def test_random_settings_have_equal_fields_and_derived_properties(spec):
    theirs, ours = (make(library, spec) for library in LIBRARIES)
    assert ours.model_dump() == theirs.model_dump()
    assert ours.model_dump(mode="json") == theirs.model_dump(mode="json")
    for name in PROPERTIES:
        assert plain(getattr(ours, name)) == plain(getattr(theirs, name)), name


@settings(max_examples=200)
@given(doubtful_specs())
def test_doubtful_settings_are_judged_the_same(spec):
    theirs, ours = (outcome(lambda lib: make(lib, spec), library) for library in LIBRARIES)
    assert ours == theirs


@settings(max_examples=50)
@given(specs())
def test_dumps_load_in_the_other_library(spec):
    for one, other in [LIBRARIES, LIBRARIES[::-1]]:
        dumped, wanted = make(one, spec), make(other, spec)
        load = other.AcquisitionSettings
        for loaded in (
            load(**dumped.model_dump()),
            load.model_validate(dumped.model_dump(mode="json")),
            load.model_validate_json(dumped.model_dump_json()),
        ):
            assert loaded == wanted
            assert one.AcquisitionSettings(**loaded.model_dump()) == dumped


@settings(max_examples=50)
@given(specs())
def test_what_was_set_in_ome_writers_loads_here(spec):
    theirs, ours = (make(library, spec) for library in LIBRARIES)
    dump = theirs.model_dump(mode="json", exclude_unset=True)
    assert scratchwriter.AcquisitionSettings(**dump) == ours


# ------------------------------------------------------------------ the same program


def stream_program(library, spec, seed):
    """Append frames and skip some; return the closed stream."""
    random = np.random.default_rng(seed)
    s = make(library, spec)
    dtype = np.dtype(s.dtype)
    shape = tuple(d.count for d in s.frame_dimensions)
    left = int(random.integers((s.num_frames or 20) + 1))
    with library.create_stream(s) as stream:
        while left:
            if random.random() < 0.2:
                n = int(random.integers(1, left + 1))
                stream.skip(frames=n)
                left -= n
            else:
                frame = random.integers(0, 200, shape).astype(dtype)
                metadata = {"left": left, "exposure_time": 0.1} if left % 2 else None
                stream.append(frame, frame_metadata=metadata)
                left -= 1
        stream.set_global_metadata("mine", {"seed": seed})
    return stream


def arrays(stream):
    if isinstance(stream, scratchwriter.OMEStream):
        return [np.asarray(array) for array in stream.arrays]
    return [np.asarray(array[...]) for array in stream._backend.get_arrays()]


def assert_equal_arrays(theirs, ours):
    assert len(theirs) == len(ours)
    for a, b in zip(theirs, ours, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert a.tobytes() == b.tobytes()


@settings(max_examples=50)
@given(spec=specs(), seed=st.integers(0, 1000))
def test_a_program_in_memory_gives_equal_arrays(spec, seed):
    spec |= {"root_path": ""}
    theirs, ours = (stream_program(library, spec, seed) for library in LIBRARIES)
    assert_equal_arrays(arrays(theirs), arrays(ours))


@settings(max_examples=50)
@given(spec=specs(bounded=True), seed=st.integers(0, 1000))
def test_a_program_on_disk_gives_equal_arrays_and_files(spec, seed):
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = (Path(folder, library.__name__) for library in LIBRARIES)
        streams = [
            stream_program(library, spec | {"root_path": str(path)}, seed)
            for library, path in zip(LIBRARIES, (theirs, ours), strict=True)
        ]
        assert_equal_arrays(*map(arrays, streams))
        del streams

        data = sorted(path.name for path in theirs.glob("*.dat"))
        assert sorted(path.name for path in ours.glob("*.dat")) == data
        for name in data:
            assert (ours / name).read_bytes() == (theirs / name).read_bytes()

        lines = [
            (path / "frame_metadata.jsonl").read_text().splitlines()
            for path in (theirs, ours)
        ]
        assert [json.loads(line) for line in lines[1]] == [
            json.loads(line) for line in lines[0]
        ]

        manifests = [
            json.loads((path / "manifest.json").read_text()) for path in (theirs, ours)
        ]
        for key in ("position_shapes", "dtype", "global_metadata"):
            assert manifests[1][key] == manifests[0][key]
        fields = scratchwriter.AcquisitionSettings.model_fields
        loaded = [
            scratchwriter.AcquisitionSettings(
                **{name: m[name] for name in fields if name in m}
                | {"root_path": "anywhere"}
            )
            for m in manifests
        ]
        assert loaded[1] == loaded[0]


@pytest.mark.parametrize(
    ("error", "last"),
    [
        (IndexError, lambda stream: stream.append(np.zeros((4, 5), "u1"))),
        (IndexError, lambda stream: stream.skip()),
        (IndexError, lambda stream: stream.skip(frames=2)),
        (ValueError, lambda stream: stream.skip(frames=0)),
        (ValueError, lambda stream: stream.skip(frames=-1)),
        (ValueError, lambda stream: stream.set_global_metadata("", {})),
        (ValueError, lambda stream: stream.set_global_metadata("ome", {})),
        (ValueError, lambda stream: stream.set_global_metadata("ome_writers", {})),
    ],
)
@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_a_program_that_goes_wrong_gets_the_same_exception(library, error, last):
    s = acquisition(T, dtype="u1")(library)
    with library.create_stream(s) as stream:
        stream.skip(frames=3)
        with pytest.raises(error) as caught:
            last(stream)
    assert caught.type is error


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.__name__)
def test_a_folder_that_exists_gets_the_same_exception(library, tmp_path):
    s = acquisition(dtype="u1", root_path=tmp_path)(library)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        library.create_stream(s)
