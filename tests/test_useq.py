"""MDA sequences of useq become settings as with ome-writers, in the order of events."""

import itertools
import math
import os

import numpy as np
import pytest

ome_writers = pytest.importorskip("ome_writers")
useq = pytest.importorskip("useq")

import scratchwriter
from random_sequences import is_drawn_again, random_sequence
from scratchwriter import AcquisitionSettings, useq_to_acquisition_settings
from scratchwriter.bridges.useq import EventNumbers

GRID = {"rows": 2, "columns": 2, "fov_width": 10, "fov_height": 5}
TIMES = {"interval": 1, "loops": 3}
STACK = {"range": 4, "step": 1}
SCATTERED = {
    "num_points": 3,
    "max_width": 10,
    "max_height": 10,
    "random_seed": 1,
    "fov_width": 1,
    "fov_height": 1,
}
AB = [{"x": 1, "y": 2, "name": "A"}, {"x": 3, "y": 4, "z": 5}]


def own_grid(**more):
    return {"x": 1, "y": 1, "sequence": {"grid_plan": GRID | more}}


def wells(**more):
    plan = {"plate": "96-well", "a1_center_xy": (5, 6), "selected_wells": ([0, 1], [0, 2])}
    return useq.WellPlatePlan(**(plan | more))


EDGES = {"top": 0, "left": 0, "bottom": 10, "right": 10, "fov_width": 5, "fov_height": 5}
SEQUENCES = {
    "nothing": {},
    "times": {"time_plan": {"interval": 10, "loops": 5}},
    "often": {"time_plan": {"interval": 0.010, "loops": 5}},
    "at once": {"time_plan": {"interval": 0, "loops": 3}},
    "for a while": {"time_plan": {"interval": 2, "duration": 11}},
    "for no time": {"time_plan": {"interval": 2, "duration": 0}},
    "spread": {"time_plan": {"duration": 10, "loops": 5}},
    "phases": {"time_plan": [TIMES, {"interval": 5, "loops": 2}]},
    "one phase": {"time_plan": [TIMES]},
    "a phase for a while": {"time_plan": [{"interval": 1, "duration": 4}]},
    "three phases": {"time_plan": [TIMES, {"interval": 5, "loops": 2}, TIMES]},
    "channels": {"channels": ["DAPI", {"config": "FITC", "exposure": 5}]},
    "stack": {"z_plan": {"top": 10, "bottom": 2, "step": 2}},
    "above": {"z_plan": {"above": 3, "below": 2, "step": 0.5}},
    "heights": {"z_plan": {"relative": [0, 1, 3]}},
    "downwards": {"z_plan": STACK | {"go_up": False}},
    "one height": {"z_plan": {"range": 0, "step": 1}},
    "no stack to leave out": {"channels": [{"config": "a", "do_stack": False}]},
    "offset": {"channels": ["a", {"config": "b", "z_offset": 2}], "z_plan": STACK},
    "positions": {"stage_positions": AB},
    "half a position": {"stage_positions": [{"x": 1, "y": None, "z": None}]},
    "all": {
        "axis_order": "tpcz",
        "time_plan": TIMES,
        "stage_positions": AB,
        "channels": ["A", "B"],
        "z_plan": STACK,
    },
    "channels first": {
        "axis_order": "cptz",
        "time_plan": TIMES,
        "stage_positions": AB,
        "channels": ["A", "B"],
        "z_plan": STACK,
    },
    "grid": {"grid_plan": GRID},
    "grid of edges": {"grid_plan": EDGES},
    "grid at random": {"grid_plan": SCATTERED},
    "grid within times": {"axis_order": "tgc", "time_plan": TIMES, "grid_plan": GRID},
    "grid around times": {"axis_order": "gtc", "time_plan": TIMES, "grid_plan": GRID},
    "grid at positions": {"stage_positions": AB, "grid_plan": GRID, "channels": ["a", "b"]},
    "positions at grid": {
        "axis_order": "tgpcz",
        "stage_positions": AB,
        "grid_plan": GRID,
        "channels": ["a", "b"],
    },
    "a grid of its own": {"stage_positions": [*AB, own_grid()], "channels": ["a"]},
    "instead of another": {
        "stage_positions": [*AB, own_grid(columns=3)],
        "grid_plan": GRID,
    },
    "within times": {
        "axis_order": "tpc",
        "time_plan": TIMES,
        "stage_positions": [*AB, own_grid()],
    },
    "an empty sequence": {"stage_positions": [{"x": 1, "y": 1, "sequence": {}}]},
    "grid at random at positions": {"stage_positions": AB, "grid_plan": SCATTERED},
    "grid at random at one position": {"stage_positions": AB[:1], "grid_plan": SCATTERED},
    "own grid at random": {
        "stage_positions": [{"x": 1, "sequence": {"grid_plan": SCATTERED}}, *AB]
    },
    "positions in wells": {
        "stage_positions": [
            {"x": 1, "name": "a", "plate_row": 2, "plate_col": 3},
            {"x": 2, "name": "a", "plate_row": 4, "plate_col": 0},
        ]
    },
    "a place in a grid": {"stage_positions": [{"x": 1, "grid_row": 2, "grid_col": 3}]},
    "wells": {"stage_positions": wells()},
    "wells within times": {
        "axis_order": "tpc",
        "time_plan": TIMES,
        "channels": ["A"],
        "stage_positions": wells(plate=24),
    },
    "points in wells": {
        "stage_positions": wells(
            well_points_plan={"rows": 1, "columns": 2, "fov_width": 1, "fov_height": 1}
        )
    },
}
REFUSED = {
    "times left out": {
        "channels": ["a", {"config": "b", "acquire_every": 2}],
        "time_plan": TIMES,
    },
    "stacks left out": {
        "channels": ["a", {"config": "b", "do_stack": False}],
        "z_plan": STACK,
    },
    "plate and grid": {"stage_positions": wells(), "grid_plan": GRID},
    "own times": {
        "stage_positions": [*AB, {"x": 1, "y": 1, "sequence": {"time_plan": TIMES}}]
    },
    "own stack": {"stage_positions": [{"x": 1, "y": 1, "sequence": {"z_plan": STACK}}]},
    "own channels": {"stage_positions": [{"x": 1, "sequence": {"channels": ["a"]}}]},
    "grid apart from positions": {
        "axis_order": "pcg",
        "channels": ["a", "b"],
        "stage_positions": AB,
        "grid_plan": GRID,
    },
}
ENDLESS = {
    "no interval": {"interval": 0, "duration": 11},
    "in the end": [TIMES, {"interval": 0, "duration": 2}],
}


def shown(settings):
    """Return settings without times and heights, of which ome-writers makes up some."""
    made_up = {"scale", "translation", "coords"}
    dims = [
        dim.model_dump(
            mode="json", exclude_none=True, exclude=made_up if dim.name in "tz" else None
        )
        for dim in settings["dimensions"]
    ]
    plate = settings["plate"]
    return dims, None if plate is None else plate.model_dump(exclude_none=True)


def both(seq, **options):
    ours = useq_to_acquisition_settings(seq, 64, 32, **options)
    theirs = ome_writers.useq_to_acquisition_settings(seq, 64, 32, **options)
    return shown(ours), shown(theirs)


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize(
    "options", [{}, {"pixel_size_um": 0.5}, {"chunk_shapes": {"t": 2, "x": 16}}]
)
def test_a_sequence_becomes_what_ome_writers_makes_of_it(name, options):
    ours, theirs = both(useq.MDASequence(**SEQUENCES[name]), **options)
    assert ours == theirs


@pytest.mark.parametrize("name", [name for name in SEQUENCES if name != "nothing"])
def test_events_come_in_the_order_of_the_frames(name):
    seq = useq.MDASequence(**SEQUENCES[name])
    dims = useq_to_acquisition_settings(seq, 64, 32)["dimensions"]
    number = EventNumbers(seq)
    numbers = [number(event.index) for event in seq]
    assert numbers == list(range(math.prod(dim.count for dim in dims[:-2])))


@pytest.mark.parametrize("name", SEQUENCES)
def test_what_comes_of_a_sequence_makes_a_stream(name):
    seq = useq.MDASequence(**SEQUENCES[name])
    settings = AcquisitionSettings(
        **useq_to_acquisition_settings(seq, 64, 32), dtype="uint16"
    )
    assert settings.validate_stream_ready()


@pytest.mark.parametrize("name", ENDLESS)
def test_a_time_plan_without_an_end_is_an_unbounded_dimension(name):
    ours, theirs = both(useq.MDASequence(time_plan=ENDLESS[name]))
    assert ours == theirs
    assert "count" not in ours[0][0]


def test_units_are_those_that_are_asked_for():
    seq = useq.MDASequence(time_plan=[TIMES, {"interval": 5, "loops": 3}], z_plan=STACK)
    units = {"t": (5.0, "ms"), "z": (2.0, "nm"), "c": None}
    t, z, *_ = useq_to_acquisition_settings(seq, 64, 32, units=units)["dimensions"]
    assert (t.scale, t.unit, t.coords) == (5.0, "millisecond", None)
    assert (z.scale, z.unit, z.translation) == (2.0, "nanometer", None)


def coordinates(dim):
    """Return where each element of a dimension is, in its unit."""
    if dim.coords is not None:
        return dim.coords
    return [(dim.translation or 0) + i * dim.scale for i in range(dim.count)]


WITHOUT_INTERVAL = ["at once"]


@pytest.mark.parametrize("name", SEQUENCES)
def test_times_and_heights_are_those_of_the_plans(name):
    seq = useq.MDASequence(**SEQUENCES[name])
    dims = useq_to_acquisition_settings(seq, 64, 32)["dimensions"]
    for dim, plan in itertools.product(dims, (seq.time_plan, seq.z_plan)):
        if dim.name != ("t" if plan is seq.time_plan else "z"):
            continue
        assert dim.scale != 0
        if name in WITHOUT_INTERVAL:
            assert (dim.scale, dim.coords) == (None, None)
        else:
            assert coordinates(dim) == pytest.approx(list(plan))


@pytest.mark.parametrize(
    ("plan", "scale", "first", "coords"),
    [
        ({"relative": [0, 0.25, 0.5]}, 0.25, None, None),
        ({"absolute": [10, 8, 6, 4]}, -2, 10, None),
        ({"absolute": [10, 8, 6, 3]}, None, None, [10, 8, 6, 3]),
        ({"relative": [0, 0, 0]}, None, None, [0, 0, 0]),
        ({"absolute": [7]}, None, 7, None),
        ({"top": 1, "bottom": 0, "step": 0.1}, 0.1, None, None),
        ({"top": 3, "bottom": 1, "step": 1, "go_up": False}, -1, 3, None),
    ],
)
def test_heights_have_a_scale_if_they_are_evenly_spaced(plan, scale, first, coords):
    z, *_ = useq_to_acquisition_settings(useq.MDASequence(z_plan=plan), 8, 8)["dimensions"]
    assert (z.scale, z.translation, z.coords) == (scale, first, coords)


@pytest.mark.parametrize(
    ("plan", "scale", "coords"),
    [
        ({"interval": 0, "loops": 1}, None, None),
        ({"interval": 2, "loops": 1}, 2, None),
        ({"duration": 2, "loops": 1}, None, None),
        ({"interval": 0, "duration": 9}, None, None),
        ([{"interval": 2, "loops": 2}, {"interval": 2, "loops": 3}], 2, None),
        ([{"interval": 2, "loops": 2}, {"interval": 5, "loops": 1}], 2, None),
        ([{"interval": 2, "loops": 2}, {"interval": 5, "loops": 2}], None, [0, 2, 7]),
        ([{"interval": 2, "loops": 2}, {"interval": 0, "duration": 9}], None, None),
    ],
)
def test_times_have_a_scale_if_they_are_evenly_spaced(plan, scale, coords):
    seq = useq.MDASequence(time_plan=plan)
    t, *_ = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert (t.scale, t.coords) == (scale, coords)


def test_a_height_that_an_absolute_plan_overrides_is_none_of_the_position():
    seq = useq.MDASequence(stage_positions=[(1, 2, 3)], z_plan={"absolute": [10, 20]})
    p, *_ = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert p.coords[0].z_coord is None
    assert [event.z_pos for event in seq] == [10, 20]


# ---------------------------------------------------------------- sequences at random


def where_frames_are(dims, number):
    """Return the index of a frame by the dimensions alone, and its position."""
    counts = [dim.count for dim in dims[:-2]]
    index = dict(
        zip([d.name for d in dims], np.unravel_index(number, counts), strict=False)
    )
    place = index.pop("p", None)
    positions = next((dim.coords for dim in dims if dim.name == "p"), [None])
    return index, positions[place or 0]


def is_where_it_says(event, dims, number, *, is_drawn):
    index, position = where_frames_are(dims, number)
    if any(event.index[name] != i for name, i in index.items()):
        return False
    at = (event.x_pos, event.y_pos)
    if position is None or None in at or (is_drawn and position.x_coord is None):
        return True
    return (position.x_coord, position.y_coord) == pytest.approx(at)


NUM_SEQUENCES = int(os.environ.get("SCRATCHWRITER_SEQUENCES", "500"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # of useq, and of plates left out
def test_each_event_of_random_sequences_is_found_where_its_index_says():
    stored = 0
    for seed in range(NUM_SEQUENCES):
        if (found := random_sequence(seed)) is None:
            continue
        seq, events = found
        try:
            asked = useq_to_acquisition_settings(seq, 8, 8)
        except NotImplementedError:
            continue
        dims = asked["dimensions"]
        number = EventNumbers(seq)
        assert len(events) == math.prod(dim.count for dim in dims[:-2]), seed
        for n, event in enumerate(events):
            assert number(event.index) == n, seed
            assert is_where_it_says(event, dims, n, is_drawn=is_drawn_again(seq)), seed
        if len(dims) > 2:
            AcquisitionSettings(dtype="uint16", **asked).validate_stream_ready()
        stored += 1
    assert stored > NUM_SEQUENCES / 3


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_array_has_room_for_is_refused_by_both(name):
    seq = useq.MDASequence(**REFUSED[name])
    with pytest.raises(NotImplementedError):
        ome_writers.useq_to_acquisition_settings(seq, 8, 8)
    with pytest.raises(
        NotImplementedError, match=r"sequence|well_points_plan|side by side"
    ):
        useq_to_acquisition_settings(seq, 8, 8)


def test_grids_that_differ_within_other_axes_are_refused_not_mixed_up():
    # useq visits the grid of a position last of all: c0 g0, c0 g1, c1 g0, c1 g1.
    seq = useq.MDASequence(stage_positions=[*AB, own_grid()], channels=["a", "b"])
    with pytest.raises(NotImplementedError, match=r"within c here.*Put 'p' last"):
        useq_to_acquisition_settings(seq, 8, 8)
    around = useq.MDASequence(
        axis_order="gpc", stage_positions=[*AB, own_grid()], grid_plan=GRID
    )
    with pytest.raises(NotImplementedError, match="give a grid_plan for all positions"):
        useq_to_acquisition_settings(around, 8, 8)


@pytest.mark.parametrize(
    ("plans", "names"),
    [
        ({"axis_order": "tpczg", "z_plan": STACK, "grid_plan": GRID}, "zpyx"),
        ({"axis_order": "cgtzp", "stage_positions": AB, "time_plan": TIMES}, "tpyx"),
        ({"axis_order": "pcg", "stage_positions": AB, "channels": ["a", "b"]}, "pcyx"),
        ({"axis_order": "tcz", "stage_positions": AB, "time_plan": TIMES}, "tyx"),
        ({"axis_order": "tcz", "stage_positions": wells(), "time_plan": TIMES}, "tyx"),
        (
            {
                "axis_order": "gtzc",
                "stage_positions": wells(),
                "grid_plan": GRID,
                "time_plan": TIMES,
            },
            "ptyx",
        ),
        (
            {
                "axis_order": "pczg",
                "stage_positions": AB,
                "grid_plan": GRID,
                "channels": ["a"],
                "z_plan": {"absolute": [5]},
            },
            "pczyx",
        ),
        (
            {
                "stage_positions": [own_grid(rows=1, columns=1), *AB],
                "channels": ["a", "b"],
            },
            "pcyx",
        ),
    ],
)
def test_only_what_is_visited_counts(plans, names):
    seq = useq.MDASequence(**plans)
    asked = useq_to_acquisition_settings(seq, 8, 8)
    assert "".join(dim.name for dim in asked["dimensions"]) == names
    AcquisitionSettings(dtype="uint16", **asked).validate_stream_ready()
    number = EventNumbers(seq)
    assert [number(event.index) for event in seq] == list(range(len(list(seq))))


def test_a_grid_around_no_position_is_where_useq_goes():
    # ome-writers adds the place of a position that is not visited.
    seq = useq.MDASequence(axis_order="gc", stage_positions=AB[:1], grid_plan=GRID)
    (p, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert [(pos.x_coord, pos.y_coord) for pos in p.coords] == [
        (event.x_pos, event.y_pos) for event in seq
    ]


RANDOM = {"num_points": 3, "max_width": 5, "max_height": 5}


@pytest.mark.parametrize(
    "plans",
    [
        {"grid_plan": RANDOM},
        {"stage_positions": AB[:1], "grid_plan": RANDOM},
        {"stage_positions": [{"x": 1, "y": 1, "sequence": {"grid_plan": RANDOM}}]},
    ],
)
def test_points_that_are_drawn_when_they_are_visited_have_no_place(plans):
    seq = useq.MDASequence(**plans)
    (p, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert [(pos.x_coord, pos.y_coord) for pos in p.coords] == [(None, None)] * 3
    assert len({pos.name for pos in p.coords}) == 3
    number = EventNumbers(seq)
    assert [number(event.index) for event in seq] == [0, 1, 2]


def test_points_of_which_nobody_knows_the_number_are_refused():
    field = {"allow_overlap": False, "fov_width": 1, "fov_height": 1}
    seq = useq.MDASequence(stage_positions=AB, grid_plan=RANDOM | field)
    with pytest.raises(NotImplementedError, match="give the plan a random_seed"):
        useq_to_acquisition_settings(seq, 8, 8)


@pytest.mark.parametrize(
    "index", [{"t": 0, "q": 0}, {"t": -1}, {"t": 3}, {}, {"t": 0, "p": 0}]
)
def test_an_index_that_is_not_visited_is_an_error(index):
    number = EventNumbers(useq.MDASequence(time_plan=TIMES))
    with pytest.raises(ValueError, match=r"not of this sequence, which visits \{'t': 3\}"):
        number(index)


def test_more_uneven_times_than_a_manifest_holds_are_left_out_with_a_warning():
    plan = [{"interval": 1, "loops": 10**9}, {"interval": 2, "loops": 10**9}]
    seq = useq.MDASequence(time_plan=plan)
    with pytest.warns(UserWarning, match="1,999,999,999 times that are not evenly spaced"):
        (t, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert (t.count, t.scale, t.coords) == (2 * 10**9 - 1, None, None)


@pytest.mark.parametrize("size", [math.nan, math.inf, -1.0])
def test_what_is_no_pixel_size_is_left_out_with_a_warning(size):
    seq = useq.MDASequence(time_plan=TIMES)
    with pytest.warns(UserWarning, match="is not a pixel size"):
        (*_, x) = useq_to_acquisition_settings(seq, 8, 8, pixel_size_um=size)["dimensions"]
    assert x.scale is None


def test_positions_that_useq_leaves_channels_out_of_are_refused():
    # An empty sequence of its own makes useq skip all channels but the first.
    seq = useq.MDASequence(
        stage_positions=[{"x": 1, "y": 1, "sequence": {}}], channels=["a", "b"]
    )
    assert len(list(seq)) == 1
    with pytest.raises(NotImplementedError, match="leave out a sequence that has no plan"):
        useq_to_acquisition_settings(seq, 8, 8)


def test_an_endless_time_plan_within_another_axis_is_refused():
    seq = useq.MDASequence(
        axis_order="ct", channels=["a", "b"], time_plan=ENDLESS["no interval"]
    )
    with pytest.raises(NotImplementedError, match="put 't' first"):
        useq_to_acquisition_settings(seq, 8, 8)


def in_well(row, column, **more):
    return {"x": row, "y": column, "plate_row": row, "plate_col": column} | more


@pytest.mark.parametrize(
    ("plans", "names"),
    [
        ({"stage_positions": [in_well(0, 0), in_well(0, 1)]}, ["fov0", "fov0"]),
        ({"stage_positions": [in_well(0, 0), in_well(0, 0)]}, ["fov0", "fov1"]),
        (
            {
                "stage_positions": [in_well(0, 0), in_well(0, 0, name="mine")],
                "grid_plan": {"rows": 1, "columns": 2},
            },
            ["fov0", "fov1", "mine", "mine"],  # two cells of the grid
        ),
        (
            {"stage_positions": [in_well(0, 0), in_well(0, 1)], "grid_plan": SCATTERED},
            ["fov0", "fov1", "fov2"] * 2,
        ),
        ({"stage_positions": [{"x": 1, "name": "a"}, {"x": 2, "name": "a"}]}, ["a", "a_1"]),
        ({"stage_positions": [{"x": 1, "name": "1"}, {"x": 2}]}, ["1", "1_1"]),
    ],
)
def test_positions_without_a_name_have_one_that_is_unique_in_its_well(plans, names):
    seq = useq.MDASequence(**plans)
    (p, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert [position.name for position in p.coords] == names


def test_channels_of_one_name_in_two_groups_have_labels_of_their_own():
    channels = [{"config": "a"}, {"config": "a", "group": "Other"}]
    (c, *_) = useq_to_acquisition_settings(useq.MDASequence(channels=channels), 8, 8)[
        "dimensions"
    ]
    assert [channel.name for channel in c.coords] == ["a", "a_1"]


def test_a_plate_that_only_some_positions_are_on_is_left_out():
    seq = useq.MDASequence(stage_positions=[in_well(1, 2), *AB])
    with pytest.warns(UserWarning, match="Only some of the positions are in wells"):
        asked = useq_to_acquisition_settings(seq, 8, 8)
    assert asked["plate"] is None
    settings = AcquisitionSettings(dtype="uint16", **asked)
    assert settings.positions[0].plate_row == "B"


def test_positions_at_points_without_a_grid_have_names_of_their_own():
    # ome-writers gives the same name twice, and refuses it then.
    seq = useq.MDASequence(axis_order="gp", stage_positions=AB, grid_plan=SCATTERED)
    (dim, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert [pos.name for pos in dim.coords[:3]] == [
        "A_p0000_g0000",
        "1_p0001_g0000",
        "A_p0000_g0001",
    ]


def test_a_grid_that_is_not_in_the_order_is_not_visited():
    seq = useq.MDASequence(axis_order="pc", stage_positions=AB, grid_plan=GRID)
    (dim, *_) = useq_to_acquisition_settings(seq, 8, 8)["dimensions"]
    assert len(dim.coords) == len(list(seq)) == 2


def test_what_is_no_sequence_is_refused():
    with pytest.raises(ValueError, match="must be a useq"):
        useq_to_acquisition_settings({}, 64, 64)


def test_what_a_sequence_says_in_vain_is_reported():
    positions = [useq.Position(x=1, y=2, plate_row=3)]
    seq = useq.MDASequence(stage_positions=positions)
    with pytest.warns(UserWarning, match="one of plate_row=3 and plate_col=None only"):
        asked = useq_to_acquisition_settings(seq, 64, 64)
    assert asked["plate"] is None
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 3})
    with pytest.warns(UserWarning, match="pixel_size_um=-1 is not a pixel size"):
        asked = useq_to_acquisition_settings(seq, 64, 64, pixel_size_um=-1)
    assert asked["dimensions"][-1].scale is None


def test_dims_from_useq_is_deprecated_and_works():
    seq = useq.MDASequence(time_plan=TIMES)
    with pytest.warns(DeprecationWarning, match="useq_to_acquisition_settings"):
        dims = scratchwriter.dims_from_useq(seq, 64, 32, pixel_size_um=0.5)
    assert [(dim.name, dim.count, dim.scale) for dim in dims] == [
        ("t", 3, 1.0),
        ("y", 32, 0.5),
        ("x", 64, 0.5),
    ]
