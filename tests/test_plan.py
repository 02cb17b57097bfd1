import itertools

import pytest

from reference import Model
from scratchwriter import AcquisitionSettings, Dimension
from scratchwriter.plan import make_plan


def settings(sizes, order="acquisition", dtype="uint16"):
    dims = [
        Dimension(name=n, count=c, type="position" if n == "p" else None)
        for n, c in [*sizes.items(), ("y", 3), ("x", 4)]
    ]
    if isinstance(order, list):
        order = [*order, "y", "x"]
    return AcquisitionSettings(dimensions=dims, dtype=dtype, storage_order=order)


def test_strides_follow_acquisition_order():
    plan = make_plan(settings({"t": 5, "c": 2, "z": 3}))
    assert plan.frame_nbytes == 24
    assert plan.strides_nbytes == (2 * 3 * 24, 3 * 24, 24)
    assert plan.total_nbytes == 5 * 2 * 3 * 24
    assert plan.num_frames == 30


def test_storage_order_permutes_strides():
    plan = make_plan(settings({"t": 5, "c": 2, "z": 3}, ["z", "t", "c"]))
    assert plan.strides_nbytes == (2 * 24, 24, 5 * 2 * 24)
    assert plan.file_dims == ("z", "t", "c", "y", "x")
    assert plan.storage_axes == (0, 1, 2, 3, 4)


def test_positions_have_no_stride_and_arrays_of_their_own():
    plan = make_plan(settings({"t": 5, "p": 4, "c": 2}))
    assert plan.strides_nbytes == (2 * 24, 0, 24)
    assert plan.num_positions == 4
    assert plan.step_nbytes == 5 * 2 * 24
    assert plan.total_nbytes == 4 * plan.step_nbytes


def test_an_unbounded_axis_is_outermost_in_the_file_whatever_the_storage_order():
    plan = make_plan(settings({"t": None, "c": 2, "z": 3}, ["z", "c", "t"]))
    assert plan.file_dims == ("t", "z", "c", "y", "x")
    assert plan.storage_axes == (1, 2, 0, 3, 4)  # from the file's to the user's order
    assert plan.strides_nbytes == (6 * 24, 24, 2 * 24)
    assert plan.step_nbytes == 6 * 24
    assert plan.num_frames is None


def test_sizes_are_exact_beyond_64_bits():
    plan = make_plan(settings({"t": 2**40, "z": 2**40, "c": 2**40}))
    assert plan.total_nbytes == 2**120 * 24
    assert plan.num_frames == 2**120


@pytest.mark.parametrize(
    "sizes", [{"t": None}, {"t": None, "p": 3}, {"t": None, "c": 2, "p": 3}]
)
@pytest.mark.parametrize("more", [{}, {"z": 2}])
def test_lengths_after_every_frame_are_those_of_the_model(sizes, more):
    s = settings(sizes | more)
    plan, model = make_plan(s), Model(s)
    for cursor in range(40):
        for position in range(plan.num_positions):
            expected = model.array(position, order="file")
            assert plan.file_shape(position, cursor) == expected.shape
            assert plan.file_nbytes(position, cursor) == expected.nbytes
        model.skip(1)


@pytest.mark.parametrize("order", list(itertools.permutations("tcz")))
def test_bounded_shapes_do_not_depend_on_the_cursor(order):
    sizes = {"t": 5, "c": 2, "z": 3}
    plan = make_plan(settings(sizes, list(order)))
    assert (
        plan.file_shape(0, 0)
        == plan.file_shape(0, 30)
        == (*(sizes[n] for n in order), 3, 4)
    )


def test_a_single_frame_has_no_axes():
    plan = make_plan(settings({}))
    assert plan.counts == plan.strides_nbytes == ()
    assert plan.num_frames == 1
    assert plan.file_shape(0, 0) == (3, 4)
