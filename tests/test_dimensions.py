import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from scratchwriter import (
    Channel,
    Dimension,
    Plate,
    Position,
    StandardAxis,
    dims_from_standard_axes,
)

PREFIXES = {
    "yocto": "y",
    "zepto": "z",
    "atto": "a",
    "femto": "f",
    "pico": "p",
    "nano": "n",
    "micro": "µ",
    "milli": "m",
    "centi": "c",
    "deci": "d",
    "": "",
    "hecto": "h",
    "kilo": "k",
    "mega": "M",
    "giga": "G",
    "tera": "T",
    "peta": "P",
    "exa": "E",
    "zetta": "Z",
    "yotta": "Y",
}
LENGTHS = {
    "angstrom": "Å",
    "foot": "ft",
    "inch": "in",
    "mile": "mi",
    "parsec": "pc",
    "yard": "yd",
} | {f"{prefix}meter": f"{short}m" for prefix, short in PREFIXES.items()}
TIMES = {"day": "d", "hour": "h", "minute": "min"} | {
    f"{prefix}second": f"{short}s" for prefix, short in PREFIXES.items()
}
UNITS = [("space", *pair) for pair in LENGTHS.items()]
UNITS += [("time", *pair) for pair in TIMES.items()]

UNTYPED = {
    "name": "a",
    "count": None,
    "type": None,
    "coords": None,
    "chunk_size": None,
    "shard_size_chunks": None,
    "unit": None,
    "scale": None,
    "translation": None,
}


def well(name, row="A", column="1", **fields):
    return Position(name=name, plate_row=row, plate_column=column, **fields)


def cell(name, row=0, column=0, **fields):
    return Position(name=name, grid_row=row, grid_column=column, **fields)


# ------------------------------------------------------------------ one dimension


def test_a_dimension_needs_a_name_only():
    assert Dimension(name="a").model_dump() == UNTYPED


@pytest.mark.parametrize("name", ["x", "y", "z", "c", "t", "p"])
def test_a_name_alone_says_nothing_of_the_type(name):
    assert Dimension(name=name, count=2).type is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": None},
        {"count": 0},
        {"count": -1},
        {"count": 1.5},
        {"count": "many"},
        {"type": "spatial"},
        {"type": "Space"},
        {"chunk_size": 0},
        {"shard_size_chunks": 0},
        {"scale": "wide"},
        {"translation": "left"},
        {"unit": 3},
        {"coords": 5},
        {"coords": [None]},
        {"size": 3},
    ],
    ids=str,
)
def test_wrong_fields_of_a_dimension_are_refused(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError, match=field):
        Dimension(**{"name": "a"} | wrong)


def test_a_dimension_without_a_name_is_refused():
    with pytest.raises(ValidationError, match="name"):
        Dimension(count=3)


@pytest.mark.parametrize("count", [3, 2**73, 3.0, "3", np.int64(3)], ids=repr)
def test_a_count_is_an_exact_integer(count):
    stored = Dimension(name="a", count=count).count
    assert type(stored) is int
    assert stored == int(count)


def test_assignments_are_validated():
    dim = Dimension(name="a", count=3)
    dim.count = 4
    assert dim.count == 4
    with pytest.raises(ValidationError):
        dim.count = 0
    with pytest.raises(ValidationError):
        dim.size = 3
    assert dim.count == 4


@pytest.mark.parametrize(
    "fields",
    [
        {"unit": "um"},
        {"type": "position", "count": 2},
        {"type": "channel", "coords": ["a", "b"]},
        {"coords": [Position(name="a"), "b"]},
    ],
    ids=str,
)
def test_the_given_dict_is_not_changed(fields):
    data = {"name": "a"} | fields
    before = {k: list(v) if isinstance(v, list) else v for k, v in data.items()}
    Dimension.model_validate(data)
    assert data == before


# ------------------------------------------------------------------ units


@pytest.mark.parametrize(("kind", "name", "short"), UNITS)
@pytest.mark.parametrize("given_type", [True, False], ids=["typed", "untyped"])
def test_names_and_abbreviations_of_units_become_names(kind, name, short, given_type):
    fields = {"type": kind} if given_type else {}
    for unit in (name, short):
        dim = Dimension(name="a", unit=unit, **fields)
        assert (dim.unit, dim.type) == (name, kind)


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("um", "micrometer"),
        ("u", "micrometer"),
        ("micron", "micrometer"),
        ("A", "angstrom"),
        ("us", "microsecond"),
        ("usec", "microsecond"),
        ("µsec", "microsecond"),
        ("msec", "millisecond"),
        ("sec", "second"),
    ],
)
def test_common_spellings_of_units_become_names(unit, name):
    assert Dimension(name="a", unit=unit).unit == name


@pytest.mark.parametrize(
    ("unit", "name"),
    [
        ("MICROMETER", "micrometer"),
        ("Millisecond", "millisecond"),
        ("Micron", "micrometer"),
        ("MIN", "minute"),
        ("mSec", "millisecond"),
    ],
)
def test_units_of_three_letters_and_more_may_be_in_any_case(unit, name):
    assert Dimension(name="a", unit=unit).unit == name


@pytest.mark.parametrize(
    ("lower", "upper"),
    [("mm", "Mm"), ("pm", "Pm"), ("ym", "Ym"), ("zs", "Zs"), ("ms", "Ms")],
)
def test_short_abbreviations_keep_their_case(lower, upper):
    assert Dimension(name="a", unit=lower).unit != Dimension(name="a", unit=upper).unit


@pytest.mark.parametrize("unit", ["UM", "MM", "S", "M"])
def test_short_abbreviations_in_the_wrong_case_are_no_units(unit):
    assert Dimension(name="a", unit=unit).type is None
    with pytest.raises(ValidationError, match=unit):
        Dimension(name="a", unit=unit, type="space")


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ("space", "second"),
        ("space", "ms"),
        ("space", "px"),
        ("space", ""),
        ("time", "micrometer"),
        ("time", "mm"),
        ("time", "frames"),
        ("time", ""),
    ],
)
def test_space_and_time_take_only_units_of_their_own(kind, unit):
    with pytest.raises(ValidationError, match=f"{unit!r} is not a unit of {kind}"):
        Dimension(name="a", type=kind, unit=unit)


@pytest.mark.parametrize("unit", ["degree", "V", "", "um", "ms", "MICROMETER"])
@pytest.mark.parametrize("kind", ["other", "channel"])
def test_other_dimensions_keep_any_unit_as_it_is(kind, unit):
    dim = Dimension(name="a", type=kind, unit=unit)
    assert (dim.type, dim.unit) == (kind, unit)


@pytest.mark.parametrize("unit", ["degree", "V", ""])
def test_an_unknown_unit_gives_no_type_and_is_kept(unit):
    dim = Dimension(name="a", unit=unit)
    assert (dim.type, dim.unit) == (None, unit)


# ------------------------------------------------------------------ type and coords


@pytest.mark.parametrize(
    ("coords", "kind"),
    [
        ([Channel(name="a"), Channel(name="b")], "channel"),
        ([Channel(name="a"), "b"], "channel"),
        (["a", Channel(name="b")], "channel"),
        ([Position(name="a"), Position(name="b")], "position"),
        (["a", Position(name="b")], "position"),
        (["a", "b"], None),
        ([1.0, 2.5], None),
        ([{"name": "a"}], None),
    ],
    ids=str,
)
def test_objects_in_coords_say_the_type(coords, kind):
    dim = Dimension(name="a", coords=coords)
    assert dim.type == kind


@pytest.mark.parametrize("cls", [Channel, Position])
def test_strings_and_dicts_become_objects_where_the_type_is_known(cls):
    coords = ["a", {"name": "b"}, cls(name="c")]
    dim = Dimension(name="a", type=cls.__name__.lower(), coords=coords[:2])
    assert dim.coords == [cls(name="a"), cls(name="b")]
    dim = Dimension(name="a", coords=coords[::2])
    assert dim.coords == [cls(name="a"), cls(name="c")]


@pytest.mark.parametrize("kind", [None, "space", "time", "other"])
@pytest.mark.parametrize("coords", [["a", "b"], [0.5, 1.5], ["a", 1.5]], ids=str)
def test_plain_coords_are_kept_on_other_dimensions(kind, coords):
    assert Dimension(name="a", type=kind, coords=coords).coords == coords


@pytest.mark.parametrize(
    "coords",
    [
        [Channel(name="a"), Position(name="b")],
        [Channel(name="a"), 1.0],
        [Channel(name="a"), {"name": "b"}],
        [Position(name="a"), 1.0],
        [Position(name="a"), {"name": "b"}],
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [None, "channel", "position"])
def test_objects_in_coords_mix_with_strings_only(coords, kind):
    with pytest.raises(ValidationError, match=r"Channel|Position"):
        Dimension(name="a", type=kind, coords=coords)


@pytest.mark.parametrize("cls", [Channel, Position])
@pytest.mark.parametrize("kind", ["space", "time", "other", "channel", "position"])
def test_objects_in_coords_need_their_type(cls, kind):
    own = cls.__name__.lower()
    if kind == own:
        assert Dimension(name="a", type=kind, coords=[cls(name="a")]).type == own
    else:
        with pytest.raises(ValidationError, match=f"type='{own}'"):
            Dimension(name="a", type=kind, coords=[cls(name="a")])


@pytest.mark.parametrize("kind", ["channel", "position"])
@pytest.mark.parametrize("coords", [[1.0], [None], [""], [["a"]]], ids=str)
def test_channels_and_positions_have_names(kind, coords):
    with pytest.raises(ValidationError):
        Dimension(name="a", type=kind, coords=coords)


@pytest.mark.parametrize("cls", [Channel, Position])
@pytest.mark.parametrize("unit", ["um", "ms"])
def test_coords_and_unit_may_not_say_different_types(cls, unit):
    with pytest.raises(ValidationError, match=r"coords.*unit"):
        Dimension(name="a", coords=[cls(name="a")], unit=unit)


@pytest.mark.parametrize("cls", [Channel, Position])
def test_a_given_type_settles_what_coords_and_unit_say(cls):
    kind = cls.__name__.lower()
    dim = Dimension(name="a", type=kind, coords=[cls(name="a")], unit="um")
    assert (dim.type, dim.unit) == (kind, "um")


def test_a_unit_that_says_no_type_goes_with_any_coords():
    dim = Dimension(name="a", coords=[Channel(name="a")], unit="degree")
    assert (dim.type, dim.unit) == ("channel", "degree")


@pytest.mark.parametrize(
    "coords",
    [["a", "b"], ("a", "b"), iter(["a", "b"]), np.array(["a", "b"]), {"a": 0, "b": 1}],
    ids=lambda coords: type(coords).__name__,
)
def test_coords_are_any_iterable(coords):
    assert Dimension(name="a", coords=coords).coords == ["a", "b"]


@settings(max_examples=50)
@given(
    coords=st.lists(st.text(min_size=1), min_size=1, unique=True),
    kind=st.sampled_from(["space", "time", "channel", "position", "other", None]),
    given_count=st.booleans(),
)
def test_the_number_of_coords_is_the_count(coords, kind, given_count):
    count = len(coords) if given_count else None
    dim = Dimension(name="a", type=kind, coords=coords, count=count)
    assert dim.count == len(coords)
    assert [getattr(c, "name", c) for c in dim.coords] == coords


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["space", "time", "channel", "position", "other", None])
def test_a_count_other_than_the_number_of_coords_is_refused(kind, count):
    with pytest.raises(ValidationError, match=f"2 elements.*{count}"):
        Dimension(name="a", type=kind, coords=["a", "b"], count=count)


@pytest.mark.parametrize("count", [None, 0, 1])
@pytest.mark.parametrize("kind", ["space", "time", "channel", "other", None])
def test_empty_coords_are_refused(kind, count):
    with pytest.raises(ValidationError, match="count"):
        Dimension(name="a", type=kind, coords=[], count=count)


# ------------------------------------------------------------------ channels


def test_a_channel_needs_a_name_only():
    assert Channel(name="DAPI").model_dump() == {
        "name": "DAPI",
        "excitation_wavelength_nm": None,
        "emission_wavelength_nm": None,
        "fluorophore": None,
        "color": None,
    }


@pytest.mark.parametrize("cls", [Channel, Position])
def test_a_string_is_taken_as_the_name(cls):
    assert cls.model_validate("DAPI") == cls(name="DAPI")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 3},
        {"excitation_wavelength_nm": 0},
        {"excitation_wavelength_nm": 488.5},
        {"emission_wavelength_nm": -1},
        {"fluorophore": 3},
        {"color": "no such colour"},
        {"color": (1, 2)},
        {"colour": "red"},
    ],
    ids=str,
)
def test_wrong_fields_of_a_channel_are_refused(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError, match=field):
        Channel(**{"name": "a"} | wrong)


@pytest.mark.parametrize("color", ["red", "#f00", "#ff0000", (255, 0, 0)], ids=str)
def test_a_color_is_a_name_a_hex_string_or_numbers(color):
    channel = Channel(name="a", color=color)
    assert channel.color.as_rgb_tuple() == (255, 0, 0)
    assert Channel.model_validate_json(channel.model_dump_json()) == channel


@pytest.mark.parametrize(
    "coords",
    [
        ["a", "a"],
        ["a", Channel(name="a")],
        [Channel(name="a"), "b", Channel(name="a", fluorophore="GFP")],
    ],
    ids=str,
)
def test_channel_names_must_be_unique(coords):
    with pytest.raises(ValidationError, match=r"unique.*'a'"):
        Dimension(name="c", type="channel", coords=coords)


@pytest.mark.parametrize("kind", ["space", "time", "other", None])
def test_names_on_other_dimensions_may_repeat(kind):
    assert Dimension(name="a", type=kind, coords=["a", "a"]).coords == ["a", "a"]


def test_a_channel_dimension_may_go_without_channels():
    dim = Dimension(name="c", type="channel", count=2)
    assert dim.coords is None


# ------------------------------------------------------------------ positions


def test_a_position_needs_a_name_only():
    assert Position(name="a").model_dump() == {
        "name": "a",
        "plate_row": None,
        "plate_column": None,
        "grid_row": None,
        "grid_column": None,
        "x_coord": None,
        "y_coord": None,
        "z_coord": None,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": 3},
        {"plate_row": 1, "plate_column": "1"},
        {"plate_row": "A", "plate_column": 1},
        {"grid_row": "A", "grid_column": 1},
        {"grid_row": 0.5, "grid_column": 1},
        {"x_coord": "left"},
        {"t_coord": 1.0},
    ],
    ids=str,
)
def test_wrong_fields_of_a_position_are_refused(wrong):
    with pytest.raises(ValidationError):
        Position(**{"name": "a"} | wrong)


@pytest.mark.parametrize(
    "half",
    [{"plate_row": "A"}, {"plate_column": "1"}, {"grid_row": 0}, {"grid_column": 0}],
    ids=str,
)
def test_rows_come_with_columns(half):
    (field,) = half
    with pytest.raises(ValidationError, match=field):
        Position(name="a", **half)


@pytest.mark.parametrize("count", [1, 3, 3.0, "3", True, np.int64(3)], ids=repr)
def test_positions_that_are_only_counted_are_named_by_their_number(count):
    dim = Dimension(name="p", type="position", count=count)
    assert dim.coords == [Position(name=str(i)) for i in range(int(count))]


@pytest.mark.parametrize(
    "fields",
    [{}, {"count": None}, {"coords": None}, {"coords": []}, {"coords": [], "count": 2}],
    ids=str,
)
def test_a_position_dimension_without_an_end_is_not_implemented(fields):
    with pytest.raises(NotImplementedError, match="position"):
        Dimension(name="p", type="position", **fields)


@pytest.mark.parametrize("count", [0, -1, 2.5, "many"])
def test_a_wrong_count_of_positions_is_refused(count):
    with pytest.raises(ValidationError, match="count"):
        Dimension(name="p", type="position", count=count)


@pytest.mark.parametrize(
    "coords",
    [
        ["a", "a"],
        ["a", Position(name="a", x_coord=1.0)],
        [well("a"), "b", well("a")],
        [cell("a"), cell("a", x_coord=1.0)],
        [
            well("a", grid_row=0, grid_column=1),
            well("a", grid_row=0, grid_column=1),
        ],
    ],
    ids=str,
)
def test_position_names_must_be_unique_in_a_well_and_a_grid_cell(coords):
    with pytest.raises(ValidationError, match=r"unique.*'a'"):
        Dimension(name="p", type="position", coords=coords)


@pytest.mark.parametrize(
    "coords",
    [
        [well("a"), well("a", column="2")],
        [well("a"), well("a", row="B")],
        [cell("a"), cell("a", row=1)],
        [cell("a"), cell("a", column=1)],
        [well("a"), cell("a"), Position(name="a")],
        [well("a", grid_row=0, grid_column=0), well("a", grid_row=0, grid_column=1)],
        [well("a"), well("a", grid_row=0, grid_column=0)],
    ],
    ids=str,
)
def test_position_names_may_repeat_in_other_wells_and_grid_cells(coords):
    assert Dimension(name="p", coords=coords).coords == coords


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize(
    "dim",
    [
        Dimension(name="a"),
        Dimension(name="t", count=3, unit="ms", scale=0.5, translation=-2),
        Dimension(name="z", unit="um", coords=[0.0, 0.5, 2.5]),
        Dimension(name="c", coords=[Channel(name="a", color="lime"), "b"]),
        Dimension(name="c", type="channel", coords=["a", "b"], unit="um"),
        Dimension(name="p", coords=[well("a", x_coord=1.5), cell("a"), "a"]),
        Dimension(name="p", type="position", count=3),
        Dimension(name="o", type="other", coords=["1", 2.5], chunk_size=2),
    ],
    ids=lambda dim: f"{dim.name}-{dim.type}",
)
def test_a_dumped_dimension_loads_as_it_was(dim):
    assert Dimension(**dim.model_dump()) == dim
    assert Dimension.model_validate(dim.model_dump(mode="json")) == dim
    assert Dimension.model_validate_json(dim.model_dump_json()) == dim
    assert Dimension(**dim.model_dump(exclude_unset=True)) == dim
    assert dim.model_copy(deep=True) == dim


# ------------------------------------------------------------------ plates


@pytest.mark.parametrize(
    ("wells", "rows", "columns"),
    [
        (6, 2, 3),
        (12, 3, 4),
        (24, 4, 6),
        (48, 6, 8),
        (96, 8, 12),
        (384, 16, 24),
        (1536, 32, 48),
        ((1, 1), 1, 1),
        ((5, 60), 5, 60),
    ],
)
def test_a_standard_plate_has_as_many_rows_and_columns(wells, rows, columns):
    plate = Plate.from_standard_wells(wells)
    assert len(set(plate.row_names)) == len(plate.row_names) == rows
    assert plate.column_names == [str(i) for i in range(1, columns + 1)]
    assert plate.name is None


def test_rows_past_z_have_doubled_and_tripled_letters():
    rows = Plate.from_standard_wells((79, 1)).row_names
    assert rows[:2] + rows[25:28] == ["A", "B", "Z", "AA", "BB"]
    assert rows[51:54] + rows[77:] == ["ZZ", "AAA", "BBB", "ZZZ", "AAAA"]


@pytest.mark.parametrize(
    "wells", [0, 7, -96, "96", None, (0, 3), (3, -1), (3,), (2, 3, 4), ()], ids=repr
)
def test_other_plates_are_refused(wells):
    with pytest.raises(ValueError, match="plate"):
        Plate.from_standard_wells(wells)


@pytest.mark.parametrize(
    "wrong",
    [
        {"row_names": "AB"},
        {"column_names": [1, 2]},
        {"row_names": None},
        {"name": 3},
        {"wells": 96},
    ],
    ids=str,
)
def test_wrong_fields_of_a_plate_are_refused(wrong):
    (field,) = wrong
    with pytest.raises(ValidationError, match=field):
        Plate(**{"row_names": ["A"], "column_names": ["1"]} | wrong)


# ------------------------------------------------------------------ standard axes


@pytest.mark.parametrize(
    ("axis", "kind", "unit"),
    [
        ("x", "space", "micrometer"),
        ("y", "space", "micrometer"),
        ("z", "space", "micrometer"),
        ("t", "time", "second"),
        ("c", "channel", None),
        ("p", "position", None),
    ],
)
def test_a_standard_axis_knows_its_type_and_unit(axis, kind, unit):
    axis = StandardAxis(axis)
    assert (axis.dimension_type(), axis.unit()) == (kind, unit)
    dim = axis.to_dimension(count=3, chunk_size=2, shard_size_chunks=4, scale=0.5)
    assert (dim.name, dim.type, dim.unit) == (axis.value, kind, unit)
    assert (dim.count, dim.scale) == (3, 0.5)
    assert (dim.chunk_size, dim.shard_size_chunks) == (2, 4)


def test_standard_axes_are_made_in_the_order_given():
    dims = dims_from_standard_axes({"t": None, "p": 2, "c": 3, "z": 4, "y": 5, "x": 6})
    assert [(d.name, d.count) for d in dims] == [
        ("t", None),
        ("p", 2),
        ("c", 3),
        ("z", 4),
        ("y", 5),
        ("x", 6),
    ]


def test_standard_axes_take_labels_for_a_size():
    dims = dims_from_standard_axes(
        {"p": ["a", well("b")], "c": ("DAPI", Channel(name="GFP")), "z": [0.5, 1.5]}
    )
    assert [d.count for d in dims] == [2, 2, 2]
    assert dims[0].coords == [Position(name="a"), well("b")]
    assert dims[1].coords == [Channel(name="DAPI"), Channel(name="GFP")]
    assert dims[2].coords == [0.5, 1.5]


def test_standard_axes_take_numpy_integers_for_a_size():
    dims = dims_from_standard_axes({"p": np.int64(2), "y": np.uint16(3)})
    assert [d.count for d in dims] == [2, 3]
    assert len(dims[0].coords) == 2


def test_chunks_are_whole_frames_by_default():
    sizes = {"t": 9, "p": 2, "c": 3, "y": 5, "x": 6}
    dims = dims_from_standard_axes(sizes)
    assert [d.chunk_size for d in dims] == [1, None, 1, 5, 6]
    assert {d.shard_size_chunks for d in dims} == {None}
    dims = dims_from_standard_axes(sizes, {"t": 3, StandardAxis.X: 2}, {"y": 4})
    assert [d.chunk_size for d in dims] == [3, None, 1, 5, 2]
    assert [d.shard_size_chunks for d in dims] == [None, None, None, 4, None]


@pytest.mark.parametrize("name", ["q", "T", "", "time"])
def test_unknown_axis_names_are_refused(name):
    with pytest.raises(ValueError, match=r"axes.*'x'"):
        dims_from_standard_axes({name: 3, "y": 4, "x": 5})


@pytest.mark.parametrize("size", [0, -1, 2.0, 2.5])
@pytest.mark.parametrize("name", ["t", "y"])
def test_a_wrong_size_of_an_axis_is_refused(name, size):
    with pytest.raises(ValueError, match=r"count|coords|size"):
        dims_from_standard_axes({name: size})


@pytest.mark.parametrize("size", [None, []])
def test_an_endless_axis_of_positions_is_not_implemented(size):
    with pytest.raises(NotImplementedError, match="position"):
        dims_from_standard_axes({"p": size, "y": 4, "x": 5})


@pytest.mark.parametrize("name", ["DAPI", "", np.str_("FITC"), b"DAPI"])
@pytest.mark.parametrize("axis", ["c", "p", "z"])
def test_a_bare_string_is_no_list_of_labels(axis, name):
    with pytest.raises(ValidationError, match="coords must be a list: use"):
        dims_from_standard_axes({axis: name, "y": 4, "x": 5})
    with pytest.raises(ValidationError, match="coords must be a list: use"):
        Dimension(name=axis, coords=name)
