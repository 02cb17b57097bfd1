"""Live, read-only arrays."""

import numpy as np
import pytest

from reference import Model
from scratchwriter import create_stream


@pytest.fixture
def stream(make_settings, place):
    settings = make_settings(
        {"t": None, "c": 2, "y": 4, "x": 5},
        storage_order=["c", "t", "y", "x"],
        **place,
    )
    with create_stream(settings) as stream:
        yield stream


def test_an_array_looks_like_a_numpy_array(stream):
    (array,) = stream.arrays
    assert array.shape == (2, 1, 4, 5)
    assert array.dtype == np.uint16
    assert array.ndim == 4
    assert len(array) == 2
    assert "(2, 1, 4, 5)" in repr(array)


def test_an_array_grows_with_the_frames(stream, frames):
    (array,) = stream.arrays
    for i, frame in enumerate(frames[:7]):
        stream.append(frame)
        assert array.shape == (2, i // 2 + 1, 4, 5)
        np.testing.assert_array_equal(array[i % 2, i // 2], frame)
        np.testing.assert_array_equal(array[i % 2, -1 if i % 2 == 0 else i // 2], frame)


KEYS = [
    0,
    -1,
    np.int64(1),
    (1, 2),
    slice(None),
    (slice(None), slice(None, None, -2)),
    (..., 3),
    (0, [0, 2]),
    None,
    (1, 1, 1, 1),
    np.array([True, False]),
]


@pytest.mark.parametrize("key", KEYS, ids=repr)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_indexing_is_that_of_numpy(stream, frames, key, closed):
    model = Model(stream.settings)
    for frame in frames[:7]:
        stream.append(frame)
        model.append(frame)
    if closed:
        stream.close()
    result = stream.arrays[0][key]
    np.testing.assert_array_equal(result, model.array(0)[key], strict=True)


def test_indices_outside_are_refused_as_by_numpy(stream):
    with pytest.raises(IndexError):
        stream.arrays[0][2]
    with pytest.raises(IndexError):
        stream.arrays[0][0, 0, 0, 0, 0]


def test_results_are_read_only(stream, frames):
    stream.append(frames[0])
    (array,) = stream.arrays
    with pytest.raises(TypeError):
        array[0] = 1
    for result in (array[0], np.asarray(array), array[...]):
        assert not result.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            result.flags.writeable = True
    # and none of this hinders the writer
    stream.append(frames[1])


def test_slices_are_views_that_see_later_frames(stream, frames, monkeypatch):
    (array,) = stream.arrays
    stream.append(frames[0])
    row = array[:, 0]
    assert row.base is not None
    stream.append(frames[1])
    np.testing.assert_array_equal(row[1], frames[1])


def test_array_converts_and_copies_on_request(stream, frames):
    stream.append(frames[0])
    (array,) = stream.arrays
    assert np.asarray(array, dtype=float).dtype == float
    copy = np.array(array)
    copy[:] = 0
    np.testing.assert_array_equal(array[0, 0], frames[0])
    assert np.shares_memory(np.asarray(array), np.asarray(array))


def test_an_array_outlives_its_stream(make_settings, place, frames):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5}, **place)) as stream:
        stream.append(frames[0])
        view, held = stream.arrays[0], stream.arrays[0][0]
    del stream
    np.testing.assert_array_equal(view[0], frames[0])
    np.testing.assert_array_equal(held, frames[0])


# --------------------------------------------------------------------------- operators

OPERATIONS = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "+": lambda a, b: a + b,
    "reflected -": lambda a, b: b - a,
    "unary ~": lambda a, b: ~a,
    "divmod": lambda a, b: divmod(a, 7)[1],
    "ufunc": lambda a, b: np.maximum(a, b),
    "reduce": lambda a, b: np.add.reduce(a, axis=-1),
    "out": lambda a, b: np.add(a, b, out=np.empty(a.shape, "uint16")),
    "mean": lambda a, b: np.mean(a),
    "any": lambda a, b: (a == 3).any(),
}


@pytest.mark.parametrize("other", ["number", "array", "itself"])
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("what", ["array", "view"])
def test_operators_are_those_of_numpy(stream, frames, what, name, other):
    stream.extend(frames[:6])
    live = stream.arrays[0] if what == "array" else stream.view()
    plain = np.array(live)
    others = {"number": (3, 3), "array": (plain[::-1],) * 2, "itself": (live, plain)}
    ours, theirs = others[other]
    found = OPERATIONS[name](live, ours)
    expected = OPERATIONS[name](plain, theirs)
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("what", ["array", "view"])
def test_operators_do_not_change_it(stream, frames, what):
    stream.extend(frames[:2])
    live = stream.arrays[0] if what == "array" else stream.view()
    before = np.array(live)
    with pytest.raises(TypeError, match="View is read-only"):
        live += 1
    with pytest.raises(TypeError, match="let add make an array"):
        np.add(before, 1, out=live)
    np.testing.assert_array_equal(live, before)
    assert {live: 1}[live] == 1  # as a key it is itself
