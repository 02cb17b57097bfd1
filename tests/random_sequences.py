"""Random MDA sequences of useq: all plans, grids of positions, wells, orders of axes."""

import random

import useq

_SEQUENCE = {
    "time_plan": lambda r: r.choice(
        [
            {"interval": r.choice([0, 0.5, 1]), "loops": r.randint(1, 3)},
            {"interval": 1, "duration": r.randint(0, 3)},
            {"duration": 4, "loops": r.randint(2, 4)},
            [{"interval": r.choice([1, 2]), "loops": n} for n in _numbers(r)],
        ]
    ),
    "channels": lambda r: [
        {
            "config": name,
            "do_stack": r.random() > 0.1,
            "acquire_every": r.choice([1] * 9 + [2]),
            "z_offset": r.choice([0, 0, 2]),
        }
        for name in "abc"[: r.randint(1, 3)]
    ],
    "z_plan": lambda r: r.choice(
        [
            {"range": r.randint(0, 3), "step": 1},
            {"top": 4, "bottom": 2, "step": 1, "go_up": r.random() < 0.5},
            {"above": 1, "below": 1, "step": 0.5},
            {"relative": [0, 0.25, 0.5]},
            {"relative": [0], "go_up": False},
            {"absolute": [10, 8, 6, 4]},
            {"absolute": [5, 6, 8]},
        ]
    ),
    "grid_plan": lambda r: r.choice(
        [
            {
                "rows": r.randint(1, 2),
                "columns": r.randint(1, 3),
                "mode": r.choice(["row_wise", "row_wise_snake", "column_wise", "spiral"]),
                **_FIELD,
            },
            {"num_points": r.randint(1, 3), "random_seed": _seed(r), **_AT_RANDOM},
            {"top": 0, "left": 0, "bottom": r.choice([0.5, 2]), "right": 2, **_FIELD},
        ]
    ),
}
_FIELD = {"fov_width": 1.5, "fov_height": 1.5}
_AT_RANDOM = {"max_width": 5, "max_height": 5, **_FIELD}


def _seed(r):
    return r.choice([1, 1, 1, None])


def _numbers(r):
    return [r.randint(1, 3) for _ in range(r.randint(1, 3))]


def _axis_order(r):
    axes = r.sample("tpgcz", 5)
    return "".join(axes[: r.randint(1, 5)] if r.random() < 0.4 else axes)


def _plans(r, chances):
    return {name: _SEQUENCE[name](r) for name in chances if r.random() < chances[name]}


def _own_sequence(r):
    chances = {"grid_plan": 0.6, "z_plan": 0.1, "time_plan": 0.05, "channels": 0.1}
    more = {"axis_order": _axis_order(r)} if r.random() < 0.2 else {}
    return _plans(r, chances) | more


def _position(r, number):
    position = {"x": round(r.uniform(-100, 100), 3), "y": 2.0}
    for chance, more in (
        (0.4, {"name": f"{r.choice('AB')}{number}"}),
        (0.1, {"name": "again"}),
        (0.3, {"z": 1.0}),
        (0.25, {"sequence": _own_sequence(r)}),
        (0.2, {"plate_row": r.randint(0, 1), "plate_col": r.randint(0, 1)}),
    ):
        if r.random() < chance:
            position |= more
    return position


def _wells(r):
    points = r.choice(
        [
            {},
            {"rows": 1, "columns": 2, **_FIELD},
            {"num_points": 2, "random_seed": _seed(r), **_AT_RANDOM},
        ]
    )
    return useq.WellPlatePlan(
        plate="96-well",
        a1_center_xy=(0, 0),
        selected_wells=([0, 1], [0, 1]),
        **({"well_points_plan": points} if points else {}),
    )


def is_drawn_again(seq):
    """Return whether a sequence has random points that useq draws each time it is asked."""
    return '"random_seed":null' in seq.model_dump_json()


def random_sequence(seed):
    """Return a sequence, and its events that give frames; None if useq has none of it."""
    r = random.Random(seed)
    plans = _plans(r, {"time_plan": 0.6, "channels": 0.6, "z_plan": 0.6, "grid_plan": 0.4})
    places = r.random()
    if places < 0.55:
        plans["stage_positions"] = [_position(r, i) for i in range(r.randint(1, 3))]
    elif places < 0.7:
        plans["stage_positions"] = _wells(r)
    try:
        seq = useq.MDASequence(axis_order=_axis_order(r), **plans)
        events = [event for event in seq if event.action.type == "acquire_image"]
    except (ValueError, KeyError):
        return None
    return (seq, events) if 0 < len(events) <= 2000 else None
