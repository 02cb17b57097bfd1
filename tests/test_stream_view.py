"""One array over all positions, against numpy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference import Model
from scratchwriter import (
    AcquisitionSettings,
    Dimension,
    ScratchFormat,
    StreamView,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)

SHAPE = (3, 4)


def frame_of(i):
    return np.arange(i + 1, i + 13, dtype="uint16").reshape(SHAPE)


def refusal_of(array, key):
    """What numpy does with an index: its result, or the kind of its error."""
    try:
        return array[key], None
    except (IndexError, TypeError, ValueError) as error:
        return None, type(error)


# ----------------------------------------------------------------- any index, any moment

sizes = st.fixed_dictionaries(
    {
        "t": st.sampled_from([None, 1, 3]),
        "p": st.sampled_from([None, 1, 3]),
        "c": st.sampled_from([None, 2]),
        "z": st.sampled_from([None, 2]),
    }
)


@st.composite
def acquisitions(draw):
    chosen = draw(sizes)
    names = ["t", *draw(st.permutations(["p", "c", "z"]))]
    kept = {n: chosen[n] for n in names if n == "t" or chosen[n] is not None}
    orders = [name for name in kept if name != "p"]
    order = draw(st.one_of(st.just("acquisition"), st.permutations(orders)))
    if not isinstance(order, str):
        order = [*order, *(["p"] if "p" in kept else []), "y", "x"]
    return kept, order


entries = st.one_of(
    st.integers(-4, 4),
    st.integers(-4, 4).map(np.int64),
    st.slices(5),
    st.builds(
        slice,
        st.none() | st.integers(-5, 5),
        st.none() | st.integers(-5, 5),
        st.none() | st.sampled_from([-3, -2, -1, 1, 2, 3]),
    ),
    st.none(),
    st.lists(st.integers(-2, 1), min_size=1, max_size=2),
    st.booleans(),
)
keys = st.one_of(
    entries,
    st.lists(entries, max_size=6).map(tuple),
    st.tuples(st.lists(entries, max_size=3), st.lists(entries, max_size=3)).map(
        lambda parts: (*parts[0], ..., *parts[1])
    ),
)


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    acquisition=acquisitions(),
    actions=st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=8),
    wanted=st.lists(keys, min_size=1, max_size=6),
    on_disk=st.booleans(),
)
def test_any_index_is_that_of_numpy_live_and_closed(
    acquisition, actions, wanted, on_disk, tmp_path_factory
):
    sizes, order = acquisition
    path = tmp_path_factory.mktemp("view") / "data" if on_disk else None
    made = AcquisitionSettings(
        root_path="" if path is None else str(path),
        dimensions=dims_from_standard_axes({**sizes, "y": 3, "x": 4}),
        dtype="uint16",
        storage_order=order,
    )
    model = Model(made)
    with create_stream(made) as stream:
        views = [
            (stream.view(strict=True), True),
            (stream.view(dynamic_shape=False), False),
        ]
        for is_append, n in actions:
            left = model.left()
            n = n if left is None else min(n, left)
            for _ in range(n if is_append else 0):
                frame = frame_of(len(model.visited))
                stream.append(frame)
                model.append(frame)
            if not is_append and n:
                stream.skip(frames=n)
                model.skip(n)
            check(views, model, wanted)
        if path is not None:
            with open_scratch(path) as dataset:
                check([(dataset.view(strict=True), True)], model, wanted)
    check(views, model, wanted)
    if path is not None:
        with open_scratch(path) as dataset:
            check([(dataset.view(dynamic_shape=False), False)], model, wanted)


def check(views, model, wanted):
    for view, is_dynamic in views:
        expected = model.joint_array(is_dynamic=is_dynamic)
        assert view.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(view), expected)
        for key in wanted:
            value, error = refusal_of(expected, key)
            if error is not None:
                with pytest.raises(error):
                    view[key]
                continue
            found = view[key]
            np.testing.assert_array_equal(found, value)
            assert np.shape(found) == np.shape(value)
            assert found.dtype == value.dtype
            assert isinstance(found, np.ndarray) == isinstance(value, np.ndarray)
            if isinstance(found, np.ndarray):
                assert not found.flags.writeable


# ------------------------------------------------------------------------ what it shows


@pytest.fixture
def stream(make_settings, place):
    sizes = {"t": 4, "p": ["A", "B"], "c": ["DAPI", "FITC"], "y": 4, "x": 5}
    with create_stream(make_settings(sizes, **place)) as stream:
        yield stream


def test_a_view_shows_what_has_been_seen_and_its_last_is_the_newest(stream, frames):
    view = stream.view()
    assert view.shape == (0, 0, 0, 4, 5)
    assert len(view) == 0
    assert view.coords == {"t": range(0), "p": [], "c": [], "y": range(4), "x": range(5)}
    stream.append(frames[0])
    assert view.shape == (1, 1, 1, 4, 5)
    assert view.coords["p"] == ["A"]
    np.testing.assert_array_equal(view[-1, -1, -1], frames[0])
    for frame in frames[1:7]:
        stream.append(frame)
    assert view.shape == (2, 2, 2, 4, 5)
    assert view.coords["t"] == range(2)
    assert view.coords["c"] == ["DAPI", "FITC"]
    np.testing.assert_array_equal(view[-1, -1, 0], frames[6])
    assert not view[-1, -1, -1].any()  # it has not come yet
    assert view.dims == ("t", "p", "c", "y", "x")
    assert view.ndim == 5
    assert view.dtype == np.uint16
    assert repr(view) == "<StreamView t=2, p=2, c=2, y=4, x=5, dtype=uint16>"


def test_beyond_what_was_seen_there_are_zeros_and_strictly_an_error(stream, frames):
    stream.append(frames[1])
    assert not stream.view()[3, 1, 1].any()
    assert stream.view()[3].shape == (1, 1, 4, 5)
    with pytest.raises(IndexError, match=r"index 4 is out of bounds for axis 0 \('t'\)"):
        stream.view()[4]
    with pytest.raises(IndexError, match=r"index 1 .* axis 0 \('t'\) with size 1"):
        stream.view(strict=True)[1]
    with pytest.raises(IndexError, match="index -2"):
        stream.view()[-2]


def test_a_view_of_what_is_planned_does_not_change_its_shape(stream, frames):
    view = stream.view(dynamic_shape=False)
    assert view.shape == (4, 2, 2, 4, 5)
    stream.append(frames[0])
    assert view.shape == (4, 2, 2, 4, 5)
    assert view.coords["p"] == ["A", "B"]
    assert not view[-1].any()


def test_one_position_is_indexed_without_a_copy(stream, frames):
    for frame in frames[:16]:
        stream.append(frame)
    view = stream.view()
    for key in [(0, 0), (slice(None), 1), (slice(None, None, -1), 0, 1), (..., 0, 0, 0, 0)]:
        if np.ndim(view[key]):
            position = key[1] if key[0] is not ... else 0
            stored = np.asarray(stream.arrays[position])
            assert np.shares_memory(view[key], stored)
    assert np.shares_memory(view[:, 1:], np.asarray(stream.arrays[1]))


def test_an_array_of_several_positions_is_a_copy_and_says_so(stream, frames):
    stream.append(frames[0])
    view = stream.view()
    with pytest.raises(ValueError, match="leave out copy=False"):
        np.array(view, copy=False)
    assert np.asarray(view, dtype=np.float32).dtype == np.float32


def test_a_view_outlives_its_stream(make_settings, frames):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5})) as stream:
        view = stream.view()
        stream.append(frames[3])
    del stream
    np.testing.assert_array_equal(view[-1], frames[3])


def test_strings_and_floats_are_coordinates_too(frames):
    made = AcquisitionSettings(
        dimensions=[
            Dimension(name="t", count=3, type="time", coords=[0.0, 0.7, 2.0]),
            Dimension(name="state", count=2, type="other", coords=["on", "off"]),
            *dims_from_standard_axes({"y": 4, "x": 5}),
        ],
        dtype="uint16",
    )
    with create_stream(made) as stream:
        view = stream.view()
        for frame in frames[:3]:
            stream.append(frame)
        assert view.coords["t"] == [0.0, 0.7]
        assert view.coords["state"] == ["on", "off"]


@pytest.mark.parametrize("positions", [1, 2])
def test_a_view_of_a_ring_shows_what_is_kept(place, positions):
    made = AcquisitionSettings(
        dimensions=dims_from_standard_axes(
            {"t": None, "p": positions, "c": 2, "y": 3, "x": 4}
        ),
        dtype="uint16",
        format=ScratchFormat(keep_last=3),
        **place,
    )
    with create_stream(made) as stream:
        view = stream.view()
        for i in range(200):
            stream.append(frame_of(i))
            steps = i // (2 * positions) + 1
            first = max(steps - 3, 0)
            assert view.coords["t"] == range(first, steps)
            number = first * 2 * positions  # the oldest that is kept
            for t in range(len(view)):
                for p in range(positions if i >= 2 * positions else 1):
                    for c in range(2):
                        expected = frame_of(number) if number <= i else 0 * frame_of(0)
                        np.testing.assert_array_equal(view[t, p, c], expected)
                        number += 1


def test_a_frame_is_found_by_its_number(stream, frames):
    for frame in frames[:7]:
        stream.append(frame)
    view = stream.view()
    np.testing.assert_array_equal(view.frame(6), frames[6])
    for number in (7, -1):
        with pytest.raises(IndexError, match=f"no frame {number}: 7 have come"):
            view.frame(number)


def test_a_frame_that_is_not_stored_yet_is_not_seen_in_part(stream, frames):
    view = stream.view(dynamic_shape=False)
    with stream.slot() as slot:
        slot[...] = 7
        assert not view[0, 0, 0].any()
    assert (view[0, 0, 0] == 7).all()


def test_a_view_can_be_made_from_a_stream_or_a_dataset(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        for frame in frames[:3]:
            stream.append(frame)
        view = StreamView.from_stream(stream, strict=True)
        with pytest.raises(IndexError):
            view[3]
    with open_scratch(tmp_path / "d") as dataset:
        np.testing.assert_array_equal(StreamView.from_stream(dataset), view)


def test_iterating_ends_at_what_has_been_seen(make_settings, frames):
    with create_stream(make_settings({"t": 10, "y": 4, "x": 5})) as stream:
        for frame in frames[:3]:
            stream.append(frame)
        view = stream.view()
        np.testing.assert_array_equal(list(view), view)
        assert len(list(view)) == len(list(reversed(view))) == 3


@pytest.mark.parametrize(
    "key", [slice(2), slice(1, None, -1), slice(0, 1), slice(2, 2), slice(-100, None, -1)]
)
def test_what_a_position_has_is_no_copy_though_others_are_farther(
    make_settings, frames, key
):
    settings = make_settings({"t": None, "p": ["a", "b"], "y": 4, "x": 5})
    with create_stream(settings) as stream:
        for frame in frames[:5]:  # "b" has not come to the third step
            stream.append(frame)
        view, stored = stream.view(), stream.arrays[1]
        whole = np.asarray(view)
        np.testing.assert_array_equal(view[key, 1], whole[key, 1])
        if len(whole[key]):
            assert np.shares_memory(view[key, 1], stored[...])
