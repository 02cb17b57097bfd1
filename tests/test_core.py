"""FrameWriter: what a frame may be, where it goes, and what is refused."""

import array
import ctypes
import datetime
import gc
import itertools
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest

from marks import PORTABLE
from scratchwriter import ScratchFormat, create_stream

KINDS = "portable" if PORTABLE else "mapped"


@pytest.fixture
def stream(make_settings, place):
    with create_stream(make_settings({"t": 8, "y": 4, "x": 5}, **place)) as stream:
        yield stream


def stored(stream):
    return np.asarray(stream.arrays[0])


FRAME = np.arange(20, dtype="uint16").reshape(4, 5)


class Subclass(np.ndarray):
    pass


class OfDevice:
    """A tensor of another library, in the memory of a device."""

    def __init__(self, device):
        self._device = device

    def __dlpack_device__(self):
        return (self._device, 0)

    def __dlpack__(self, **kwargs):
        return FRAME.__dlpack__(**kwargs)


class ArrayInterface:
    __array_interface__ = FRAME.__array_interface__


class ArrayLike:
    def __array__(self, dtype=None, copy=None):
        return np.array(FRAME, dtype)


LAYOUTS = {
    "C order": FRAME,
    "Fortran order": np.asfortranarray(FRAME),
    "strided": np.repeat(np.repeat(FRAME, 2, 0), 3, 1)[::2, ::3],
    "negative strides": np.ascontiguousarray(FRAME[::-1, ::-1])[::-1, ::-1],
    "broadcast": np.broadcast_to(FRAME[:1], (4, 5)),
    "padded rows": np.pad(FRAME, ((0, 0), (0, 3)))[:, :5],
    "byte-swapped": FRAME.astype(">u2" if sys.byteorder == "little" else "<u2"),
    "unaligned": np.frombuffer(b"x" + FRAME.tobytes(), "uint16", offset=1).reshape(4, 5),
    "subclass": FRAME.view(Subclass),
    "masked": np.ma.MaskedArray(FRAME),
    "matrix-like": memoryview(FRAME),
    "array-like": ArrayLike(),
    "nested list": FRAME.tolist(),
    "bytes": FRAME.tobytes(),
    "bytearray": bytearray(FRAME.tobytes()),
    "memory of bytes": memoryview(FRAME.tobytes()),
    "memory of pixels": memoryview(FRAME.ravel()),
    "ctypes": (ctypes.c_uint16 * 20).from_buffer_copy(FRAME),
    "ctypes in rows": (ctypes.c_uint16 * 5 * 4).from_buffer_copy(FRAME),
    "array.array": array.array("H", FRAME.ravel().tolist()),
    "array interface": ArrayInterface(),
    "DLPack": OfDevice(1),
    "uint8": FRAME.astype("uint8"),
    "bool": FRAME > 7,
    "other descriptor": FRAME.astype(np.dtype("uint16", metadata={"a": 1})),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_memory_layout_is_stored_right(stream, layout):
    frame = LAYOUTS[layout]
    stream.append(FRAME[::-1])
    stream.append(frame)
    expected = np.asarray(frame)
    if expected.shape != FRAME.shape:  # a buffer, to numpy
        expected = FRAME
    np.testing.assert_array_equal(stored(stream)[1], expected)
    np.testing.assert_array_equal(stored(stream)[0], FRAME[::-1])
    assert not stored(stream)[2].any()


def test_read_only_frames_are_accepted(stream):
    frame = FRAME.copy()
    frame.flags.writeable = False
    stream.append(frame)
    np.testing.assert_array_equal(stored(stream)[0], FRAME)


def test_a_frame_may_be_a_view_of_the_stream_itself(stream):
    stream.append(FRAME)
    stream.append(stream.arrays[0][0])
    np.testing.assert_array_equal(stored(stream)[1], FRAME)


WRONG_SHAPES = {
    "leading axis": FRAME[None],
    "transposed": FRAME.T,
    "1-D": FRAME.ravel(),
    "scalar": np.uint16(3),
    "too small": FRAME[:3],
    "too large": np.zeros((4, 6), "uint16"),
    "broadcastable": FRAME[:1],
    "empty": np.zeros((0, 5), "uint16"),
}


@pytest.mark.parametrize("kind", WRONG_SHAPES)
def test_a_frame_of_another_shape_is_refused_and_nothing_is_consumed(stream, kind):
    frame = WRONG_SHAPES[kind]
    with pytest.raises(ValueError, match="shape") as error:
        stream.append(frame)
    assert str(frame.shape) in str(error.value)
    assert "(4, 5)" in str(error.value)
    assert stream.frames_written == 0
    stream.append(FRAME)
    np.testing.assert_array_equal(stored(stream)[0], FRAME)


@pytest.mark.parametrize("dtype", ["int16", "uint32", "float32", "float64", "complex64"])
def test_a_dtype_that_does_not_cast_safely_is_refused(stream, dtype):
    with pytest.raises(ValueError, match="dtype") as error:
        stream.append(np.zeros((4, 5), dtype))
    message = str(error.value)
    assert "uint16" in message
    assert "casting" in message
    assert stream.frames_written == 0


@pytest.mark.parametrize(
    "frame",
    [
        None,
        np.zeros((4, 5), "S1"),
        np.zeros((4, 5), object),
        np.zeros((4, 5), "M8[s]"),
        [[object()] * 5] * 4,
    ],
)
def test_what_holds_no_pixels_is_refused_by_its_kind(stream, frame):
    with pytest.raises(ValueError, match=r"NoneType|no pixels") as error:
        stream.append(frame)
    assert "settings' dtype" not in str(error.value)  # no remedy that would fail, too
    assert stream.frames_written == 0


@pytest.mark.parametrize(
    "frame", [[[1.5] * 5] * 4, [[-1] * 5] * 4, [["a"] * 5] * 4, [[2**40] * 5] * 4]
)
def test_plain_numbers_that_do_not_fit_are_refused(stream, frame):
    with pytest.raises(ValueError, match="dtype"):
        stream.append(frame)
    assert stream.frames_written == 0


@pytest.mark.parametrize(
    ("casting", "dtype", "accepted"),
    [
        ("safe", "uint32", False),
        ("same_kind", "uint32", True),
        ("same_kind", "float32", False),
        ("unsafe", "float32", True),
    ],
)
def test_casting_allows_more(make_settings, casting, dtype, accepted):
    settings = make_settings(
        {"t": 2, "y": 4, "x": 5}, format=ScratchFormat(casting=casting)
    )
    with create_stream(settings) as stream:
        frame = FRAME.astype(dtype)
        if accepted:
            stream.append(frame)
            np.testing.assert_array_equal(stored(stream)[0], FRAME)
        else:
            with pytest.raises(ValueError, match="casting"):
                stream.append(frame)


@pytest.mark.parametrize(
    "dtype", ["bool", "int8", "uint64", "float16", "float64", "complex128"]
)
def test_every_dtype_of_pixels_is_stored_exactly(make_settings, dtype):
    frame = (np.arange(20).reshape(4, 5) * 37 % 101).astype(dtype)
    with create_stream(make_settings({"t": 2, "y": 4, "x": 5}, dtype=dtype)) as stream:
        stream.append(frame)
    assert stream.arrays[0].dtype == dtype
    np.testing.assert_array_equal(stream.arrays[0][0], frame)


def test_frames_and_skips_beyond_the_plan_are_refused(stream):
    for _ in range(6):
        stream.append(FRAME)
    with pytest.raises(IndexError, match="exceed"):
        stream.skip(frames=3)
    assert stream.frames_written == 6
    stream.skip(frames=1)
    stream.append(FRAME + 1)
    for call in (lambda: stream.append(FRAME), stream.skip):
        with pytest.raises(IndexError, match="exceed"):
            call()
    np.testing.assert_array_equal(stored(stream)[7], FRAME + 1)
    assert not stored(stream)[6].any()


@pytest.mark.parametrize("frames", [0, -1, -(2**70)])
def test_a_skip_must_be_positive(stream, frames):
    with pytest.raises(ValueError, match="positive"):
        stream.skip(frames=frames)
    assert stream.frames_written == 0


def test_a_huge_skip_is_refused_by_a_bounded_plan(stream):
    with pytest.raises(IndexError, match="exceed"):
        stream.skip(frames=2**70)
    assert stream.frames_written == 0


@pytest.mark.parametrize("frames", [1.5, "1", None])
def test_a_skip_must_be_an_integer(stream, frames):
    with pytest.raises(TypeError):
        stream.skip(frames=frames)


def test_a_skip_may_be_a_numpy_integer(stream):
    stream.skip(frames=np.int64(3))
    assert stream.frames_written == 3


def test_append_and_skip_after_close_say_so(stream):
    stream.append(FRAME)
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        stream.append(FRAME)
    with pytest.raises(ValueError, match="closed"):
        stream.skip()
    assert stream.frames_written == 1


def test_frame_metadata_is_by_keyword_only(stream):
    with pytest.raises(TypeError):
        stream.append(FRAME, {"a": 1})


def _most_traced_nbytes(call):
    """Most that a thousand calls held in Python's memory at any moment."""
    for _ in itertools.repeat(None, 100):
        call()
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for _ in itertools.repeat(None, 100):
            call()
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        for _ in itertools.repeat(None, 1000):
            call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        gc.enable()


@pytest.mark.parametrize("count", [30_000, None])
def test_an_append_makes_no_python_object(make_settings, place, count):
    frame = np.ones((8, 8), "uint16")
    with create_stream(make_settings({"t": count, "y": 8, "x": 8}, **place)) as stream:
        append = stream.append
        while "mapped" in KINDS and stream.stats().populated_ahead_nbytes < 1000 * 128:
            time.sleep(0.001)  # or an append may have to ask for room
        nothing = _most_traced_nbytes(lambda: None)
        assert _most_traced_nbytes(lambda: append(frame)) == nothing
        # The measure sees an object that is gone at once:
        assert _most_traced_nbytes(lambda: append(frame) or [nothing]) > nothing


@pytest.mark.parametrize("shape", [(8, 8), (300, 300)], ids=["GIL held", "GIL released"])
def test_appends_of_several_threads_come_whole_and_none_is_lost(make_settings, shape):
    sizes = {"t": None, "y": shape[0], "x": shape[1]}
    per_thread = 200
    with create_stream(make_settings(sizes, dtype="uint32")) as stream:

        def camera(number):
            for i in range(per_thread):
                stream.append(np.full(shape, number * per_thread + i, "uint32"))

        threads = [threading.Thread(target=camera, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    array = stored(stream)
    assert (array == array[:, :1, :1]).all()
    assert sorted(array[:, 0, 0]) == list(range(4 * per_thread))


def test_a_close_waits_for_an_append_in_another_thread(make_settings):
    settings = make_settings({"t": None, "y": 512, "x": 512})
    for _ in range(20):
        stream = create_stream(settings)
        frame = np.full((512, 512), 7, "uint16")
        started = threading.Event()

        def camera(stream=stream, frame=frame, started=started):
            with pytest.raises(ValueError, match="closed"):
                while True:
                    stream.append(frame)
                    started.set()

        thread = threading.Thread(target=camera)
        thread.start()
        started.wait()
        stream.close()
        count = stream.frames_written
        thread.join()
        assert stream.frames_written == count
        assert (np.asarray(stream.arrays[0])[:count] == 7).all()


def test_metadata_that_is_not_a_mapping_is_refused_and_nothing_is_consumed(stream):
    with pytest.raises(TypeError, match="frame_metadata"):
        stream.append(FRAME, frame_metadata=[("t", datetime.date.today())])
    assert stream.frames_written == 0


def test_a_tensor_on_a_gpu_is_refused_with_the_remedy(stream):
    with pytest.raises(ValueError, match=r"OfDevice.*GPU.*cpu\(\)"):
        stream.append(OfDevice(2))
    assert stream.frames_written == 0


@pytest.mark.parametrize(
    "frame",
    [
        FRAME.tobytes()[:-1],
        FRAME.tobytes() + b"x",
        (ctypes.c_uint16 * 19)(),
        array.array("d", [0.0] * 20),
        array.array("I", [0] * 20),
        memoryview(FRAME.tobytes())[::2],
    ],
    ids=["short", "long", "pixels", "doubles", "wider pixels", "strided"],
)
def test_a_buffer_that_is_not_exactly_a_frame_is_refused(stream, frame):
    with pytest.raises(ValueError, match="Frame"):
        stream.append(frame)
    assert stream.frames_written == 0


class OnGPU:
    __cuda_array_interface__ = None


@pytest.mark.parametrize(
    ("frame", "remedy"),
    [
        (
            ctypes.cast((ctypes.c_uint16 * 20)(), ctypes.POINTER(ctypes.c_uint16)),
            "as_array",
        ),
        (ctypes.c_void_p(5), "as_array"),
        (12345, r"as_array.* or ffi\.buffer"),
        (OnGPU(), "asnumpy"),
    ],
    ids=["pointer", "void pointer", "address", "GPU"],
)
def test_what_has_no_pixels_to_read_is_refused_with_the_remedy(stream, frame, remedy):
    with pytest.raises(ValueError, match=remedy):
        stream.append(frame)
    assert stream.frames_written == 0


def test_signed_bytes_are_no_pixels_of_unsigned_ones(make_settings):
    with create_stream(make_settings({"t": 2, "y": 4, "x": 5}, dtype="uint8")) as stream:
        with pytest.raises(ValueError, match="int8"):
            stream.append(array.array("b", [-1] * 20))
        stream.append(array.array("B", [255] * 20))
        stream.append(bytes([7] * 20))
        assert stream.arrays[0][:, 0, 0].tolist() == [255, 7]
    made = make_settings({"t": 2, "y": 4, "x": 5}, dtype="bool")
    with create_stream(made) as stream, pytest.raises(ValueError, match="uint8"):
        stream.append(bytes([7] * 20))


@pytest.mark.parametrize("width", [5, 64, 3000])
def test_padded_rows_are_stored_without_their_padding(make_settings, place, width):
    padded = np.arange(3 * (width + 7), dtype="uint16").reshape(3, width + 7)
    with create_stream(make_settings({"t": 2, "y": 3, "x": width}, **place)) as stream:
        stream.append(padded[:, :width])
        stream.append(padded[::-1, 4 : 4 + width])
        np.testing.assert_array_equal(stream.arrays[0][0], padded[:, :width])
        np.testing.assert_array_equal(stream.arrays[0][1], padded[::-1, 4 : 4 + width])
