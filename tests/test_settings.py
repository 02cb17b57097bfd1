import copy
import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from reference import PROPERTIES
from scratchwriter import (
    AcquisitionSettings,
    Channel,
    Dimension,
    Plate,
    Position,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
)

Y, X = Dimension(name="y", count=4), Dimension(name="x", count=5)


class AnyPath:
    """A path of some other library."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return self._path


T, C, Z = (Dimension(name=n, count=i) for n, i in [("t", 3), ("c", 2), ("z", 6)])
P = Dimension(name="p", type="position", count=2)
TWO_WELLS = [
    Position(name="a", plate_row="A", plate_column="1"),
    Position(name="a", plate_row="B", plate_column="3"),
]
WELLS = Dimension(name="p", coords=TWO_WELLS)
SIX_WELLS = Plate.from_standard_wells(6)


def dim(name, count=1, kind=None, **fields):
    return Dimension(name=name, count=count, type=kind, **fields)


def names(dims):
    return [d.name for d in dims]


# ------------------------------------------------------------------ defaults


def test_settings_may_be_left_open_at_first():
    assert AcquisitionSettings().model_dump() == {
        "root_path": "",
        "dimensions": (),
        "dtype": "",
        "format": ScratchFormat().model_dump(),
        "compression": None,
        "storage_order": "ome",
        "plate": None,
        "overwrite": False,
    }


def test_the_scratch_format_has_these_defaults():
    assert dict(ScratchFormat()) == {
        "name": "scratch",
        "backend": "scratch",
        "max_memory_bytes": 4 * 1024**3,
        "suffix": "",
        "spill_to_disk": True,
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


@pytest.mark.parametrize("name", PROPERTIES)
def test_derived_properties_need_dimensions(name):
    with pytest.raises(ValueError, match=r"settings\.dimensions"):
        getattr(AcquisitionSettings(), name)


@pytest.mark.parametrize(
    "wrong",
    [
        {"compression": "gzip"},
        {"overwrite": "maybe"},
        {"storage_order": "reversed"},
        {"storage_order": None},
        {"storage_order": [1, 2]},
        {"plate": "96"},
        {"plate": {"row_names": ["A"]}},
        {"dimensions": None},
        {"dimensions": [4, 5]},
        {"dimensions": "yx"},
        {"backend": "scratch"},
        {"shape": (4, 5)},
    ],
    ids=str,
)
def test_wrong_fields_of_settings_are_refused(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError, match=field):
        AcquisitionSettings(**wrong)


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("a/b", "a/b"),
        (Path("a", "b"), "a/b"),
        ("~/a", "~/a"),
        (AnyPath("a/b"), "a/b"),
        (AnyPath(b"a/b"), "a/b"),
        ("µ/ä".encode(), "µ/ä"),
        ("C:/a", "C:/a"),
        ("a//b", "a//b"),
    ],
    ids=str,
)
def test_a_path_is_kept_as_a_string(path, stored):
    s = AcquisitionSettings(root_path=path, dimensions=[Y, X])
    assert (s.root_path, s.output_path) == (stored, stored)
    assert ScratchFormat(spill_dir=path).spill_dir == stored


def test_an_entry_of_a_folder_is_a_path(tmp_path):
    (tmp_path / "run").mkdir()
    (entry,) = os.scandir(tmp_path)
    s = AcquisitionSettings(root_path=entry, format=ScratchFormat(spill_dir=entry))
    assert s.root_path == s.format.spill_dir == str(tmp_path / "run")


def test_no_root_path_is_memory():
    assert AcquisitionSettings(root_path=None).root_path == ""


@pytest.mark.parametrize("path", [5, 1.5, True, ["a"], object(), {"a": 1}], ids=str)
@pytest.mark.parametrize("field", ["root_path", "spill_dir"])
def test_what_is_no_path_is_no_name_of_a_folder(field, path):
    make = AcquisitionSettings if field == "root_path" else ScratchFormat
    with pytest.raises(ValidationError, match="is not a path"):
        make(**{field: path})


@pytest.mark.parametrize("url", ["s3://bucket/run", "https://a/b", "file:///a", b"gs://a"])
@pytest.mark.parametrize("field", ["root_path", "spill_dir"])
def test_a_url_is_refused_with_the_way_out(field, url):
    make = AcquisitionSettings if field == "root_path" else ScratchFormat
    with pytest.raises(ValidationError, match=r"is a URL.*local disk"):
        make(**{field: url})


@pytest.mark.parametrize("compression", ["blosc-zstd", "blosc-lz4", "zstd", "lzw", "none"])
def test_compressions_are_accepted(compression):
    assert AcquisitionSettings(compression=compression).compression == compression


# ------------------------------------------------------------------ dtype


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        ("uint16", "uint16"),
        ("u2", "uint16"),
        (">u2", "uint16"),
        (np.uint16, "uint16"),
        (np.dtype("f4"), "float32"),
        (bool, "bool"),
        (float, "float64"),
        ("c8", "complex64"),
        ("", ""),
    ],
    ids=repr,
)
def test_a_dtype_is_anything_that_numpy_takes(dtype, name):
    assert AcquisitionSettings(dtype=dtype).dtype == name


@pytest.mark.parametrize("dtype", ["uint17", "pixels", " ", 16, object()], ids=type)
def test_an_unknown_dtype_is_refused(dtype):
    with pytest.raises(ValidationError, match="dtype"):
        AcquisitionSettings(dtype=dtype)


# ------------------------------------------------------------------ dimensions


@pytest.mark.parametrize(
    "dims",
    [
        [Y, X],
        [X, Y],
        [T, Y, X],
        [T, C, Z, Y, X],
        [P, T, C, Z, Y, X],
        [T, C, Z, P, Y, X],
        [P, Y, X],
        [dim("t", None), C, Y, X],
        [dim("t", None), P, Y, X],
        [dim("Y", 4), dim("X", 5)],
        [dim("y", 4, unit="um"), dim("x", 5, unit="nm")],
        [dim("row", 4, "space"), dim("column", 5, "space")],
    ],
    ids=names,
)
def test_two_to_five_dimensions_and_one_of_positions(dims):
    s = AcquisitionSettings(dimensions=dims)
    assert names(s.dimensions) == names(dims)
    assert s.shape == tuple(d.count for d in dims)


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ([Y], "2 to 5"),
        ([P, Y], "2 to 5"),
        ([dim(n) for n in "abcd"] + [Y, X], "2 to 5"),
        ([P] + [dim(n) for n in "abcd"] + [Y, X], "2 to 5"),
        ([P, dim("q", 2, "position"), Y, X], "one position"),
        ([T, T, Y, X], "unique.*'t'"),
        ([T, dim("y", 4), dim("y", 5)], "unique.*'y'"),
        ([T, dim("c", None), Y, X], "first.*unbounded"),
        ([P, dim("t", None), Y, X], "first.*unbounded"),
        ([dim("t", None), dim("c", None), Y, X], "first.*unbounded"),
        ([T, dim("y", None), X], "first.*unbounded"),
        ([Y, dim("x", None)], "first.*unbounded"),
        ([T, dim("y", 4, "other"), X], "'y'"),
        ([T, Y, dim("x", 5, unit="ms")], "'x'"),
        ([T, Y, P], "space"),
        ([T, Y, dim("c", kind="channel", coords=["a"])], "space"),
    ],
    ids=lambda value: str(names(value)) if isinstance(value, list) else "",
)
def test_wrong_dimensions_are_refused(dims, message):
    with pytest.raises(ValidationError, match=message):
        AcquisitionSettings(dimensions=dims)


def test_an_unbounded_position_dimension_is_not_implemented():
    with pytest.raises(NotImplementedError, match="position"):
        AcquisitionSettings(dimensions=[{"name": "p", "type": "position"}, Y, X])


@pytest.mark.parametrize("frame", [("y", "x"), ("x", "y"), ("Y", "X")])
def test_untyped_frame_axes_become_spatial(frame):
    s = AcquisitionSettings(dimensions=[dim(name) for name in frame])
    assert [d.type for d in s.dimensions] == ["space", "space"]


def test_untyped_frame_axes_with_other_names_become_spatial_with_a_warning():
    with pytest.warns(UserWarning, match="'row'") as warned:
        s = AcquisitionSettings(dimensions=[T, dim("row", 4), X])
    assert len(warned) == 1
    assert [d.type for d in s.dimensions] == [None, "space", "space"]


@pytest.mark.parametrize("unit", ["px", "", "UM"])
@pytest.mark.parametrize("as_dict", [True, False], ids=["dict", "object"])
def test_untyped_frame_axes_take_units_of_length_only(unit, as_dict):
    fields = {"name": "y", "count": 4, "unit": unit}
    with pytest.raises(ValidationError, match=f"{unit!r} is not a unit"):
        AcquisitionSettings(dimensions=[fields if as_dict else Dimension(**fields), X])


def test_dimensions_given_are_not_changed():
    given_dims = [T, dim("y", 4), dim("x", 5)]
    before = copy.deepcopy(given_dims)
    AcquisitionSettings(dimensions=given_dims)
    assert given_dims == before


# ------------------------------------------------------------------ storage order


@pytest.mark.parametrize("order", ["ome", "acquisition"])
@pytest.mark.parametrize("dims", [[T, C, Z, Y, X], [Z, P, C, T, Y, X], [Y, X]], ids=names)
def test_both_words_for_the_storage_order_keep_the_acquisition_order(order, dims):
    s = AcquisitionSettings(dimensions=dims, storage_order=order)
    assert names(s.array_storage_dimensions) == [d.name for d in dims if d is not P]
    assert s.storage_index_permutation is None


@pytest.mark.parametrize(
    ("order", "permutation"),
    [
        (["t", "p", "c", "z", "y", "x"], None),
        (["p", "t", "c", "z", "x", "y"], None),
        (["c", "t", "p", "z", "y", "x"], (1, 0, 2)),
        (["z", "t", "c", "p", "y", "x"], (2, 0, 1)),
        (("z", "c", "t", "p", "x", "y"), (2, 1, 0)),
    ],
    ids=str,
)
def test_a_list_permutes_all_axes_but_those_of_the_frame(order, permutation):
    s = AcquisitionSettings(dimensions=[T, P, C, Z, Y, X], storage_order=order)
    assert s.storage_index_permutation == permutation
    assert names(s.storage_index_dimensions) == [n for n in order if n in "tcz"]
    assert names(s.array_storage_dimensions)[-2:] == ["y", "x"]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([], "every dimension"),
        (["y", "x"], "every dimension"),
        (["t", "c", "y", "x"], "every dimension"),
        (["t", "p", "c", "q", "y", "x"], "every dimension"),
        (["t", "t", "p", "c", "y", "x"], "every dimension"),
        (["t", "p", "y", "c", "x"], "frame"),
        (["y", "x", "t", "p", "c"], "frame"),
    ],
    ids=str,
)
def test_a_wrong_storage_order_is_refused(order, message):
    with pytest.raises(ValidationError, match=f"storage_order.*{message}"):
        AcquisitionSettings(dimensions=[T, P, C, Y, X], storage_order=order)


def test_a_storage_order_is_checked_when_the_dimensions_come():
    s = AcquisitionSettings(storage_order=["c", "t", "y", "x"])
    assert AcquisitionSettings(storage_order=["anything"]).dimensions == ()
    s.dimensions = [T, C, Y, X]
    assert s.storage_index_permutation == (1, 0)
    with pytest.raises(ValidationError, match="storage_order"):
        s.dimensions = [T, Z, Y, X]


# ------------------------------------------------------------------ derived properties


def test_derived_properties_of_an_acquisition():
    s = AcquisitionSettings(
        root_path="here",
        dimensions=[T, WELLS, C, Z, Y, X],
        storage_order=["z", "p", "t", "c", "y", "x"],
    )
    assert s.output_path == "here"
    assert s.shape == (3, 2, 2, 6, 4, 5)
    assert s.is_unbounded is False
    assert s.num_frames == 3 * 2 * 2 * 6
    assert s.positions == tuple(TWO_WELLS)
    assert s.position_dimension_index == 1
    assert names(s.frame_dimensions) == ["y", "x"]
    assert names(s.index_dimensions) == ["t", "c", "z"]
    assert names(s.array_dimensions) == ["t", "c", "z", "y", "x"]
    assert names(s.storage_index_dimensions) == ["z", "t", "c"]
    assert s.storage_index_permutation == (2, 0, 1)
    assert names(s.array_storage_dimensions) == ["z", "t", "c", "y", "x"]


def test_derived_properties_of_a_single_frame():
    s = AcquisitionSettings(dimensions=[Y, X])
    assert s.output_path == ""
    assert s.shape == (4, 5)
    assert s.num_frames == 1
    assert s.positions == (Position(name="0"),)
    assert s.position_dimension_index is None
    assert s.index_dimensions == s.storage_index_dimensions == ()
    assert s.array_dimensions == s.array_storage_dimensions == s.frame_dimensions
    assert s.storage_index_permutation is None


@pytest.mark.parametrize("more", [[], [C], [P], [P, C]], ids=names)
def test_an_unbounded_acquisition_has_no_number_of_frames(more):
    s = AcquisitionSettings(dimensions=[dim("t", None), *more, Y, X])
    assert s.is_unbounded is True
    assert s.num_frames is None
    assert s.shape[0] is None


def test_numbers_of_frames_are_exact():
    s = AcquisitionSettings(dimensions=[dim("t", 2**73), dim("c", 3), Y, X])
    assert s.num_frames == 3 * 2**73


@pytest.mark.parametrize("count", [3, 3.0, "3", np.int64(3)], ids=repr)
def test_there_are_as_many_positions_as_were_counted(count):
    dims = [{"name": "p", "type": "position", "count": count}, Y, X]
    s = AcquisitionSettings(dimensions=dims)
    assert [p.name for p in s.positions] == ["0", "1", "2"]


@settings(max_examples=50)
@given(st.data())
def test_derived_properties_are_those_of_a_walk_over_all_frames(data):
    sizes = data.draw(
        st.dictionaries(st.sampled_from("tcz"), st.integers(1, 3), max_size=3)
    )
    at = data.draw(st.none() | st.integers(0, len(sizes)))
    dims = [dim(n, count) for n, count in sizes.items()]
    if at is not None:
        dims.insert(at, P)
    order = data.draw(st.permutations(names(dims)))
    s = AcquisitionSettings(dimensions=[*dims, Y, X], storage_order=[*order, "y", "x"])

    walk = list(itertools.product(*(range(d.count) for d in dims)))
    assert s.num_frames == len(walk)
    assert len({index[at] for index in walk} if at is not None else {0}) == len(s.positions)
    assert s.position_dimension_index == at

    stored = [n for n in order if n != "p"]
    assert names(s.index_dimensions) == list(sizes)
    assert names(s.array_dimensions) == [*sizes, "y", "x"]
    assert names(s.storage_index_dimensions) == stored
    assert names(s.array_storage_dimensions) == [*stored, "y", "x"]
    if stored == list(sizes):
        assert s.storage_index_permutation is None
    else:
        assert [list(sizes)[i] for i in s.storage_index_permutation] == stored


# ------------------------------------------------------------------ ready to stream


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "complex128"])
def test_settings_with_dimensions_and_a_dtype_are_ready(dtype):
    s = AcquisitionSettings(dimensions=[dim("t", None), Y, X], dtype=dtype)
    assert s.validate_stream_ready() is True


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "uint16"}, "dimensions"),
        ({"dimensions": [], "dtype": "uint16"}, "dimensions"),
        ({"dimensions": [Y, X]}, "dtype"),
        ({"dimensions": [Y, X], "dtype": ""}, "dtype"),
        ({"dimensions": [Y, X], "dtype": object}, "dtype.*object"),
        ({"dimensions": [Y, X], "dtype": "U5"}, "dtype.*str"),
        ({"dimensions": [Y, X], "dtype": "M8[s]"}, "dtype.*datetime"),
        ({"dimensions": [Y, X], "dtype": [("a", "u1")]}, "dtype.*void"),
        ({"dimensions": [dim("y", None), X], "dtype": "uint16"}, "'y'"),
    ],
    ids=itertools.count(),
)
def test_settings_that_lack_something_are_not_ready(fields, message):
    s = AcquisitionSettings(**fields)
    with pytest.raises(ValueError, match=message):
        s.validate_stream_ready()
    with pytest.raises(ValueError, match=message):
        create_stream(s)


def test_settings_may_be_completed_later():
    s = AcquisitionSettings()
    s.dimensions = dims_from_standard_axes({"t": 2, "y": 4, "x": 5})
    s.dtype = "u1"
    assert s.validate_stream_ready() is True
    assert s.shape == (2, 4, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"p": {"count": 3}},
        {"p": {"count": 1}},
        {"p": {"type": "other"}, "t": {"type": "position"}},
        {"t": {"count": 0}},
        {"t": {"type": "position"}},
        {"c": {"count": None}},
        {"c": {"name": "t"}},
        {"y": {"count": 0}},
    ],
    ids=str,
)
def test_settings_made_inconsistent_behind_their_back_give_no_stream(change):
    dims = AcquisitionSettings(dimensions=[T, P, C, Y, X]).dimensions
    dims = tuple(d.model_copy(update=change.get(d.name)) for d in dims)
    s = AcquisitionSettings(dtype="u1").model_copy(update={"dimensions": dims})
    with pytest.raises(ValueError, match=r"dimension|position|name|count"):
        create_stream(s).close()


# ------------------------------------------------------------------ formats


@pytest.mark.parametrize(
    "fmt",
    [
        "scratch",
        "memory",
        "auto",
        "Scratch",
        "MEMORY",
        {"name": "scratch"},
        {"name": "scratch", "backend": "scratch"},
        ScratchFormat(),
    ],
    ids=str,
)
def test_the_scratch_format_goes_by_these_names(fmt):
    assert AcquisitionSettings(format=fmt).format == ScratchFormat()
    s = AcquisitionSettings()
    s.format = fmt
    assert s.format == ScratchFormat()


@pytest.mark.parametrize(
    "fields",
    [
        {"max_memory_bytes": 1000},
        {"max_memory_bytes": 2**73},
        {"suffix": ".dat"},
        {"spill_to_disk": False},
        {"spill_dir": "/somewhere"},
        {"populate": "all"},
        {"casting": "same_kind"},
        {"casting": "unsafe"},
    ],
    ids=str,
)
def test_a_format_is_given_by_its_fields_or_as_an_object(fields):
    fmt = ScratchFormat(**fields)
    for given_format in (fmt, {"name": "scratch"} | fields):
        s = AcquisitionSettings(format=given_format, root_path="a")
        assert s.format == fmt
        assert {name: getattr(s.format, name) for name in fields} == fields
    assert fmt != ScratchFormat()


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "n5"},
        {"backend": "auto"},
        {"max_memory_bytes": "4 GiB"},
        {"max_memory_bytes": 0.5},
        {"suffix": None},
        {"spill_to_disk": "maybe"},
        {"spill_dir": 3},
        {"populate": "behind"},
        {"populate": None},
        {"populate": True},
        {"casting": "equiv"},
        {"compression": "zstd"},
    ],
    ids=str,
)
def test_wrong_fields_of_a_format_are_refused(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError, match=field):
        ScratchFormat(**wrong)
    with pytest.raises(ValidationError, match=field):
        AcquisitionSettings(format={"name": "scratch"} | wrong)


@pytest.mark.parametrize("fmt", ["n5", "", None, 3, {"name": "n5"}, object], ids=str)
def test_an_unknown_format_is_refused(fmt):
    with pytest.raises(ValidationError, match="format"):
        AcquisitionSettings(format=fmt)


FOREIGN = [
    ("ome-tiff", "OME-TIFF"),
    ("OME-TIFF", "OME-TIFF"),
    ("tiff", "OME-TIFF"),
    ("tifffile", "OME-TIFF"),
    ("ome-zarr", "OME-Zarr"),
    ("OME-Zarr", "OME-Zarr"),
    ("zarr", "OME-Zarr"),
    ("tensorstore", "OME-Zarr"),
    ("acquire-zarr", "OME-Zarr"),
    ("zarrs-python", "OME-Zarr"),
    ("zarr-python", "OME-Zarr"),
    ({"name": "ome-tiff"}, "OME-TIFF"),
    ({"name": "ome-tiff", "backend": "tifffile", "suffix": ".tif"}, "OME-TIFF"),
    ({"name": "ome-zarr"}, "OME-Zarr"),
    ({"name": "ome-zarr", "backend": "tensorstore"}, "OME-Zarr"),
]


def says_who_writes_it(name):
    return rf"scratch.*{name}.*ome-writers"


@pytest.mark.parametrize(("fmt", "name"), FOREIGN, ids=str)
def test_other_formats_get_an_error_that_says_what_writes_them(fmt, name):
    with pytest.raises(ValidationError, match=says_who_writes_it(name)):
        AcquisitionSettings(format=fmt)
    s = AcquisitionSettings()
    with pytest.raises(ValidationError, match=says_who_writes_it(name)):
        s.format = fmt
    assert s.format == ScratchFormat()


@pytest.mark.parametrize(
    ("cls", "fields", "name"),
    [
        ("OmeTiffFormat", {}, "OME-TIFF"),
        ("OmeTiffFormat", {"backend": "tifffile", "suffix": ".tif"}, "OME-TIFF"),
        ("OmeZarrFormat", {}, "OME-Zarr"),
        ("OmeZarrFormat", {"backend": "zarr-python"}, "OME-Zarr"),
    ],
)
def test_format_objects_of_ome_writers_get_the_same_error(cls, fields, name):
    ome_writers = pytest.importorskip("ome_writers")
    with pytest.raises(ValidationError, match=says_who_writes_it(name)):
        AcquisitionSettings(format=getattr(ome_writers, cls)(**fields))


def test_a_scratch_format_of_ome_writers_is_taken():
    ome_writers = pytest.importorskip("ome_writers")
    fmt = ome_writers.ScratchFormat(max_memory_bytes=5, spill_to_disk=False)
    s = AcquisitionSettings(format=fmt)
    assert s.format == ScratchFormat(max_memory_bytes=5, spill_to_disk=False)


@pytest.mark.parametrize(
    ("root_path", "name"),
    [
        ("a.tif", "OME-TIFF"),
        ("a.tiff", "OME-TIFF"),
        ("a.ome.tiff", "OME-TIFF"),
        ("dir/A.OME.TIF", "OME-TIFF"),
        ("a.zarr", "OME-Zarr"),
        ("a.ome.zarr", "OME-Zarr"),
        (Path("dir") / "a.Zarr", "OME-Zarr"),
        ("a.ome.zarr/", "OME-Zarr"),
        (b"a.ome.zarr", "OME-Zarr"),
    ],
    ids=str,
)
@pytest.mark.parametrize("fmt", [{}, {"format": "auto"}], ids=str)
def test_suffixes_of_other_formats_under_auto_get_the_same_error(root_path, name, fmt):
    with pytest.raises(ValidationError, match=says_who_writes_it(name)):
        AcquisitionSettings(root_path=root_path, **fmt)


def test_suffixes_of_other_formats_under_auto_in_capitals_are_no_scratch():
    with pytest.raises(ValidationError, match="format"):
        AcquisitionSettings(root_path="a.ome.zarr", format="AUTO")


@pytest.mark.parametrize("root_path", ["", "a", "a.dat", "zarr", "a.zarr/b", "a.tiff.d"])
def test_other_root_paths_under_auto_are_scratch(root_path):
    s = AcquisitionSettings(root_path=root_path, format="auto")
    assert s.format == ScratchFormat()


@pytest.mark.parametrize("fmt", ["scratch", {"name": "scratch"}, ScratchFormat()], ids=str)
def test_a_format_that_is_given_goes_before_the_suffix(fmt):
    s = AcquisitionSettings(root_path="a.ome.zarr", dimensions=[Y, X], format=fmt)
    assert s.format.name == "scratch"
    assert s.output_path == "a.ome.zarr"


# ------------------------------------------------------------------ plates


def test_a_plate_with_its_wells_is_accepted():
    s = AcquisitionSettings(dimensions=[WELLS, Y, X], plate=SIX_WELLS)
    assert s.plate == SIX_WELLS
    as_dict = SIX_WELLS.model_dump()
    assert AcquisitionSettings(dimensions=[WELLS, Y, X], plate=as_dict) == s


def test_a_plate_may_come_before_the_dimensions():
    s = AcquisitionSettings(plate=SIX_WELLS)
    s.dimensions = [WELLS, Y, X]
    with pytest.raises(ValidationError, match="plate"):
        s.dimensions = [P, Y, X]


@pytest.mark.parametrize("dims", [[Y, X], [T, Y, X]], ids=names)
def test_a_plate_needs_a_position_dimension(dims):
    with pytest.raises(ValidationError, match=r"plate.*position"):
        AcquisitionSettings(dimensions=dims, plate=SIX_WELLS)


@pytest.mark.parametrize(
    "coords",
    [
        ["b"],
        [TWO_WELLS[0], "b"],
        [TWO_WELLS[0], Position(name="b", grid_row=0, grid_column=0)],
    ],
    ids=len,
)
def test_a_plate_needs_a_well_for_every_position(coords):
    wells = Dimension(name="p", type="position", coords=coords)
    with pytest.raises(ValidationError, match=r"plate_row.*\['b'\]"):
        AcquisitionSettings(dimensions=[wells, Y, X], plate=SIX_WELLS)


@pytest.mark.parametrize(
    ("row", "column"), [("C", "1"), ("A", "4"), ("a", "1"), ("A", "01")]
)
def test_wells_that_the_plate_lacks_are_warned_of(row, column):
    outside = Position(name="far", plate_row=row, plate_column=column)
    wells = Dimension(name="p", coords=[*TWO_WELLS, outside])
    with pytest.warns(UserWarning, match=r"\['far'\].*plate") as warned:
        AcquisitionSettings(dimensions=[wells, Y, X], plate=SIX_WELLS)
    assert len(warned) == 1


# ------------------------------------------------------------------ copies and dumps

EXAMPLES = [
    AcquisitionSettings(),
    AcquisitionSettings(dimensions=[Y, X], dtype="u2"),
    AcquisitionSettings(
        root_path="a/b",
        dimensions=[dim("t", None, unit="ms", scale=0.5), C, Y, X],
        dtype="float32",
        format=ScratchFormat(max_memory_bytes=2**73, spill_to_disk=False),
        compression="zstd",
        storage_order=["c", "t", "y", "x"],
        overwrite=True,
    ),
    AcquisitionSettings(
        dimensions=[
            WELLS,
            Dimension(name="c", coords=[Channel(name="a", color="red")]),
            Y,
            X,
        ],
        plate=SIX_WELLS,
        storage_order="acquisition",
        format=ScratchFormat(spill_dir="/x", casting="unsafe", suffix=".s"),
    ),
    AcquisitionSettings(root_path="a.ome.zarr", format="scratch"),
]
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))


@each_example
def test_a_dump_loads_as_it_was(example):
    assert AcquisitionSettings(**example.model_dump()) == example
    assert AcquisitionSettings.model_validate(example.model_dump(mode="json")) == example
    assert AcquisitionSettings.model_validate_json(example.model_dump_json()) == example


@each_example
def test_a_dump_of_what_was_set_loads_as_it_was(example):
    assert AcquisitionSettings(**example.model_dump(exclude_unset=True)) == example


@each_example
def test_a_pickle_loads_as_it_was(example):
    assert pickle.loads(pickle.dumps(example)) == example


@each_example
def test_copies_are_equal_and_deep_copies_are_independent(example):
    copied = example.model_copy(deep=True)
    assert copied == example.model_copy() == example
    copied.format.max_memory_bytes = 1
    copied.overwrite = not example.overwrite
    assert example.format.max_memory_bytes > 1
    assert copied.overwrite != example.overwrite


def test_a_copy_may_change_a_field():
    s = AcquisitionSettings(dimensions=[Y, X], dtype="u2")
    copied = s.model_copy(update={"overwrite": True})
    assert copied.model_dump() == s.model_dump() | {"overwrite": True}
    assert s.overwrite is False


def test_fields_that_only_this_library_has_are_dumped_when_they_ask_for_something():
    assert set(ScratchFormat().model_dump()) == {
        "name",
        "backend",
        "max_memory_bytes",
        "suffix",
        "spill_to_disk",
    }
    for fields in ({"spill_dir": "/x"}, {"casting": "unsafe"}, {"populate": "all"}):
        dump = ScratchFormat(**fields).model_dump()
        assert dump == ScratchFormat().model_dump() | fields
        assert AcquisitionSettings(format=dump).format == ScratchFormat(**fields)


@pytest.mark.parametrize(
    "data",
    [
        {"format": "auto"},
        {"format": {"name": "scratch", "suffix": ".a"}, "root_path": "a.zarr"},
        {"dimensions": [{"name": "p", "type": "position", "count": 2}, dict(Y), dict(X)]},
        {
            "dimensions": [
                {"name": "p", "type": "position", "coords": ["a", {"name": "b"}]},
                {"name": "y", "count": 4, "unit": "um"},
                {"name": "x", "count": 5},
            ],
            "storage_order": ["p", "y", "x"],
        },
    ],
    ids=str,
)
def test_the_given_dicts_are_not_changed(data):
    before = copy.deepcopy(data)
    AcquisitionSettings.model_validate(data)
    assert data == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "uint17"),
        ("dimensions", [Y]),
        ("compression", "gzip"),
        ("overwrite", "maybe"),
        ("no_such_field", 1),
    ],
)
def test_assignments_are_validated(field, value):
    s = AcquisitionSettings(dimensions=[Y, X], dtype="u2")
    before = s.model_copy(deep=True)
    with pytest.raises(ValidationError):
        setattr(s, field, value)
    assert s == before
