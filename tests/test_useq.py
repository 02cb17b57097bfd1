"""MDA sequences of useq become settings as with ome-writers, in the order of events."""

import math

import pytest

ome_writers = pytest.importorskip("ome_writers")
useq = pytest.importorskip("useq")

import scratchwriter
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
    "grid around one position": {
        "axis_order": "gc",
        "stage_positions": AB[:1],
        "grid_plan": GRID,
        "channels": ["a"],
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
    dims = [
        dim.model_dump(mode="json", exclude_none=True) for dim in settings["dimensions"]
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
    seq = useq.MDASequence(time_plan=TIMES, z_plan=STACK, channels=["a"])
    units = {"t": (5.0, "ms"), "z": (2.0, "nm"), "c": None}
    ours, theirs = both(seq, units=units)
    named = {"ms": "millisecond", "nm": "nanometer"}  # as the dimensions here have them
    for dim in theirs[0]:
        if "unit" in dim:
            dim["unit"] = named.get(dim["unit"], dim["unit"])
    assert ours == theirs


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
    with pytest.raises(NotImplementedError, match=r"visited within c.*Put 'p' last"):
        useq_to_acquisition_settings(seq, 8, 8)
    around = useq.MDASequence(
        axis_order="gpc", stage_positions=[*AB, own_grid()], grid_plan=GRID
    )
    with pytest.raises(NotImplementedError, match="the grid of all"):
        useq_to_acquisition_settings(around, 8, 8)


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
