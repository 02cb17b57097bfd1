"""The C ABI: frames from native threads, from other languages, from other extensions."""

import ctypes
import gc
import importlib.util
import re
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import scratchwriter
from marks import PORTABLE
from reference import read_plain
from scratchwriter import ScratchFormat, create_stream, open_scratch

EXAMPLES = Path(__file__).parent.parent / "examples"
OK, CLOSED, BUSY, FULL, FAILED, INVALID, APART = range(7)
UNKNOWN = -1
FRAME = np.arange(20, dtype="uint16").reshape(4, 5)

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or not EXAMPLES.exists(), reason="the driver needs pthreads"
)


class Stream(ctypes.Structure):
    """`scratchwriter_stream` of scratchwriter.h."""

    _fields_ = [
        ("abi_version", ctypes.c_uint32),
        ("nbytes", ctypes.c_uint32),
        ("state", ctypes.c_void_p),
        ("frame_nbytes", ctypes.c_int64),
        ("height", ctypes.c_int64),
        ("width", ctypes.c_int64),
        ("itemsize", ctypes.c_int64),
        ("dtype", ctypes.c_char * 16),
        ("append", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)),
        (
            "append_rows",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_int64,
                ctypes.c_int64,
            ),
        ),
        (
            "reserve",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.POINTER(ctypes.c_void_p),
            ),
        ),
        (
            "commit",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_void_p,
                ctypes.c_void_p,
            ),
        ),
        ("skip", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int64)),
        ("frames_written", ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)),
        ("status_text", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int)),
        (
            "error_text",
            ctypes.CFUNCTYPE(
                ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64
            ),
        ),
    ]


def native(stream):
    return Stream.from_address(stream.c_address)


def example(name):
    path = EXAMPLES / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return example("c_driver/record.py").build(tmp_path_factory.mktemp("driver"))


def await_first(driver, camera):
    end_s = time.monotonic() + 20
    while driver.driver_sent(camera) == 0:
        assert time.monotonic() < end_s, f"status {driver.driver_join(camera)}"


def expected(i, shape):
    return ((i + np.arange(np.prod(shape))) % 65536).astype("uint16").reshape(shape)


# ------------------------------------------------------------------- a driver's thread


@pytest.mark.parametrize("way", [0, 1, 2], ids=["append", "rows", "slot"])
@pytest.mark.parametrize("length", [None, 4000])
def test_a_driver_records_while_python_has_the_gil(
    make_settings, place, driver, way, length
):
    made = make_settings({"t": length, "y": 64, "x": 64}, **place)
    before_s = sys.getswitchinterval()
    with create_stream(made) as stream:
        camera = driver.driver_start(stream.c_address, 4000, 50_000, way, None)
        await_first(driver, camera)
        sys.setswitchinterval(30)
        try:
            end_s = time.monotonic() + 20
            # No call that would give the GIL away.
            while stream.frames_written <= 100 and time.monotonic() < end_s:
                pass
            while_spinning = stream.frames_written
        finally:
            sys.setswitchinterval(before_s)
        assert while_spinning > 100
        assert driver.driver_join(camera) == OK
        assert stream.frames_written == 4000
        for i in range(0, 4000, 37):
            np.testing.assert_array_equal(stream.arrays[0][i], expected(i, (64, 64)))
        if way:
            assert stream.timestamps[0].tolist() == [1000 * i for i in range(4000)]
            assert stream.frame_ids[0].tolist() == list(range(4000))


def test_frames_of_c_and_of_python_are_stored_whole_and_in_turn(
    make_settings, place, driver
):
    made = make_settings({"t": None, "y": 64, "x": 64}, **place)
    with create_stream(made) as stream:
        cameras = [
            driver.driver_start(stream.c_address, 2000, 20_000, way, None) for way in (0, 2)
        ]
        for i in range(2000):
            if i % 2:
                stream.append(expected(i, (64, 64)))
            else:
                with stream.slot() as frame:
                    frame[...] = expected(i, (64, 64))
        assert [driver.driver_join(camera) for camera in cameras] == [OK, OK]
        array = stream.arrays[0][...]
    assert len(array) == 6000
    first = array[:, 0, 0]
    whole = first[:, None] + np.arange(64 * 64)
    np.testing.assert_array_equal(array.reshape(6000, -1), whole.astype("uint16"))
    assert sorted(first.tolist()) == sorted(3 * list(range(2000)))


def test_a_driver_learns_that_the_stream_was_closed(make_settings, place, driver):
    stream = create_stream(make_settings({"t": None, "y": 64, "x": 64}, **place))
    # On the portable region a slot of a file that was closed is no memory any more.
    way = 1 if PORTABLE else 2
    camera = driver.driver_start(stream.c_address, 1_000_000_000, 10_000, way, None)
    while driver.driver_sent(camera) < 10:
        time.sleep(0.001)
    stream.close()
    arrays, written = stream.arrays, stream.frames_written
    del stream
    gc.collect()
    assert driver.driver_join(camera) == CLOSED
    for i in range(0, written, 11):
        np.testing.assert_array_equal(arrays[0][i], expected(i, (64, 64)))


@pytest.mark.parametrize("way", [1, 2])
def test_a_driver_goes_on_when_the_frames_leave_memory(
    make_settings, tmp_path, driver, way
):
    fmt = ScratchFormat(max_memory_bytes=500 * 8192, spill_dir=str(tmp_path))
    with create_stream(make_settings({"t": None, "y": 64, "x": 64}, format=fmt)) as stream:
        with pytest.warns(UserWarning, match="max_memory_bytes"):
            camera = driver.driver_start(stream.c_address, 3000, 50_000, way, None)
            assert driver.driver_join(camera) == OK
        assert stream.timestamps[0].tolist() == [1000 * i for i in range(3000)]
    with open_scratch(stream.path) as dataset:
        assert dataset.frame_ids[0].tolist() == list(range(3000))
    (array,) = read_plain(stream.path)
    for i in range(3000):
        np.testing.assert_array_equal(array[i], expected(i, (64, 64)))


def test_a_driver_learns_that_the_disk_is_full_and_why(make_settings, small_disk, driver):
    made = make_settings({"t": None, "y": 64, "x": 64}, root_path=str(small_disk / "d"))
    with create_stream(made) as stream:
        camera = driver.driver_start(stream.c_address, 100_000, 1000, 0, None)
        assert driver.driver_join(camera) == FAILED
        text = ctypes.create_string_buffer(1024)
        state = native(stream).state
        assert native(stream).error_text(state, text, 1024) == len(text.value)
        assert re.search(rb"OSError.*No space.*more bytes are needed", text.value)
        assert native(stream).error_text(state, text, 5) > 5
        assert text.value == b"OSEr"
        written = stream.frames_written
        assert written > 10
    (array,) = read_plain(small_disk / "d")
    assert len(array) == written


# ------------------------------------------------------------------------- the functions


def test_the_struct_says_what_a_frame_is(make_settings):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5}, dtype="float32")) as stream:
        found = native(stream)
        assert (found.abi_version, found.nbytes) == (1, ctypes.sizeof(Stream))
        assert (found.height, found.width, found.itemsize) == (4, 5, 4)
        assert found.frame_nbytes == 80
        assert np.dtype(found.dtype.decode()) == np.dtype("float32")


def test_each_status_has_its_text(make_settings):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5})) as stream:
        texts = [native(stream).status_text(status) for status in (*range(7), 99)]
    assert len(set(texts)) == 8
    assert texts[0] == b"ok"
    assert texts[-1] == b"unknown status"


def test_calls_that_cannot_be_served_are_a_status(make_settings, place):
    with create_stream(make_settings({"t": 4, "y": 4, "x": 5}, **place)) as stream:
        c = native(stream)
        state, data, frames = c.state, FRAME.ctypes.data, ctypes.c_void_p()
        assert c.append(state, None) == INVALID
        assert c.append_rows(state, data, 9, UNKNOWN, UNKNOWN) == INVALID
        assert c.append_rows(state, data, 10, -2, UNKNOWN) == INVALID
        assert c.reserve(state, 0, ctypes.byref(frames)) == INVALID
        assert c.commit(state, 1, None, None) == CLOSED  # nothing is open
        assert c.skip(state, 0) == INVALID
        assert c.reserve(state, 2, ctypes.byref(frames)) == OK
        assert c.append(state, data) == BUSY
        assert c.commit(state, 3, None, None) == INVALID
        ctypes.memmove(frames.value, data, 40)
        assert c.commit(state, 1, None, None) == OK
        assert c.append_rows(state, data, 10, 5, 6) == OK
        assert c.skip(state, 3) == FULL
        assert c.skip(state, 2) == OK
        assert c.append(state, data) == FULL
        assert c.reserve(state, 1, ctypes.byref(frames)) == FULL
        assert c.frames_written(state) == 4
        np.testing.assert_array_equal(stream.arrays[0][:2], [FRAME, FRAME])
        assert not stream.arrays[0][2:].any()
        assert stream.timestamps[0].tolist() == [-1, 5, -1, -1]
    assert c.append(state, data) == CLOSED
    assert c.reserve(state, 1, ctypes.byref(frames)) == CLOSED
    assert c.commit(state, 1, None, None) == CLOSED
    assert c.skip(state, 1) == CLOSED
    assert c.frames_written(state) == 4


def test_rows_may_come_from_the_bottom_up(make_settings, place):
    with create_stream(make_settings({"t": 1, "y": 4, "x": 5}, **place)) as stream:
        c = native(stream)
        last_row = FRAME.ctypes.data + 3 * 10
        assert c.append_rows(c.state, last_row, -10, UNKNOWN, UNKNOWN) == OK
        np.testing.assert_array_equal(stream.arrays[0][0], FRAME[::-1])


def test_slots_that_are_apart_are_a_status(make_settings):
    sizes = {"t": 2, "p": 2, "y": 4, "x": 5}
    with create_stream(make_settings(sizes)) as stream:
        c, frames = native(stream), ctypes.c_void_p()
        assert c.reserve(c.state, 2, ctypes.byref(frames)) == APART


def test_an_address_outlives_its_stream(make_settings):
    stream = create_stream(make_settings({"t": 3, "y": 4, "x": 5}))
    c = native(stream)
    stream.close()
    del stream
    gc.collect()
    assert c.append(c.state, FRAME.ctypes.data) == CLOSED


def test_a_capsule_keeps_its_stream_going(make_settings):
    stream = create_stream(make_settings({"t": 3, "y": 4, "x": 5}))
    capsule, arrays = stream.capsule, stream.arrays
    del stream
    gc.collect()
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    c = Stream.from_address(pointer(capsule, b"scratchwriter.stream"))
    assert c.append(c.state, FRAME.ctypes.data) == OK
    np.testing.assert_array_equal(arrays[0][0], FRAME)
    with pytest.warns(UserWarning, match="garbage collected"):
        del capsule
        gc.collect()
    np.testing.assert_array_equal(arrays[0][0], FRAME)


def test_several_threads_of_c_wait_for_each_others_slots(make_settings):
    with create_stream(make_settings({"t": 400, "y": 4, "x": 5})) as stream:
        c = native(stream)
        done = []

        def camera(n):
            frames = ctypes.c_void_p()
            for _ in range(100):
                assert c.reserve(c.state, 1, ctypes.byref(frames)) == OK
                ctypes.memset(frames.value, n, 40)
                assert c.commit(c.state, 1, None, None) == OK
            done.append(n)

        threads = [threading.Thread(target=camera, args=(n,)) for n in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(done) == [1, 2, 3, 4]
        found = stream.arrays[0][...].reshape(400, 20)
    assert (found == found[:, :1]).all()
    assert np.unique(found[:, 0], return_counts=True)[1].tolist() == [100] * 4


# ------------------------------------------------------------------------- other languages


def test_ctypes_appends_by_address(make_settings):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5})) as stream:
        function, state = stream.c_append
        append = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(function)
        assert append(state, FRAME.ctypes.data) == OK
        np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_cffi_appends_by_address(make_settings):
    cffi = pytest.importorskip("cffi")
    ffi = cffi.FFI()
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5})) as stream:
        function, state = stream.c_append
        append = ffi.cast("int (*)(void *, const void *)", function)
        assert append(ffi.cast("void *", state), ffi.from_buffer(FRAME)) == OK
        np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_numba_appends_by_address(make_settings):
    numba = pytest.importorskip("numba")
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t)
    with create_stream(make_settings({"t": 50, "y": 4, "x": 5})) as stream:
        append = prototype(stream.c_append.function)

        @numba.njit(nogil=True)
        def record(state, frame):
            status = 0
            for i in range(50):
                frame[:] = i
                status |= append(state, frame.ctypes.data)
            return status

        assert record(stream.c_append.state, FRAME.copy()) == OK
        assert (stream.arrays[0][:, 3, 4] == np.arange(50)).all()


# ---------------------------------------------------------------------- other extensions

CYTHON = """
# distutils: language = c
from scratchwriter cimport (
    SCRATCHWRITER_OK, scratchwriter_from_capsule, scratchwriter_stream
)

def record(capsule, unsigned short[:, ::1] frame, int count):
    cdef scratchwriter_stream* stream = scratchwriter_from_capsule(capsule)
    cdef int i, status = SCRATCHWRITER_OK
    with nogil:
        for i in range(count):
            frame[0, 0] = i
            status |= stream.append(stream.state, &frame[0, 0])
    return status
"""

C = """
#include <Python.h>
#include "scratchwriter.h"

static PyObject *record(PyObject *self, PyObject *args) {
    PyObject *capsule;
    Py_buffer frame;
    int count, status = 0;
    if (!PyArg_ParseTuple(args, "Ow*i", &capsule, &frame, &count)) return NULL;
    scratchwriter_stream *stream = scratchwriter_from_capsule(capsule);
    if (stream == NULL) return NULL;
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < count; i++) {
        *(unsigned short *)frame.buf = (unsigned short)i;
        status |= stream->append(stream->state, frame.buf);
    }
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&frame);
    return PyLong_FromLong(status);
}

static PyMethodDef methods[] = {{"record", record, METH_VARARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "outside", "", -1, methods};
PyMODINIT_FUNC PyInit_outside(void) { return PyModule_Create(&module); }
"""

SETUP = """
from setuptools import Extension, setup
import scratchwriter
extension = Extension(
    "outside", [{source!r}], include_dirs=[scratchwriter.get_include()],
    extra_compile_args=["-Wall", "-Werror"],
)
{cythonize}
setup(name="outside", ext_modules=extensions)
"""


@pytest.mark.parametrize("language", ["cython", "c"])
def test_an_extension_of_somebody_else_builds_against_the_package_and_records(
    make_settings, tmp_path, language
):
    cythonize = "extensions = [extension]"
    if language == "cython":
        pytest.importorskip("Cython")
        cythonize = (
            "from Cython.Build import cythonize; extensions = cythonize([extension])"
        )
    pytest.importorskip("setuptools")
    source = "outside.pyx" if language == "cython" else "outside.c"
    (tmp_path / source).write_text(CYTHON if language == "cython" else C)
    (tmp_path / "setup.py").write_text(SETUP.format(source=source, cythonize=cythonize))
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    program = """
    import numpy as np, outside
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    dims = dims_from_standard_axes({"t": 50, "y": 4, "x": 5})
    with create_stream(AcquisitionSettings(dimensions=dims, dtype="uint16")) as stream:
        assert outside.record(stream.capsule, np.ones((4, 5), "uint16"), 50) == 0
        assert stream.arrays[0][:, 0, 0].tolist() == list(range(50))
    assert outside.record(stream.capsule, np.ones((4, 5), "uint16"), 1) == 1
    try:
        outside.record(object(), np.ones((4, 5), "uint16"), 1)
    except (ValueError, TypeError):
        print("done")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "done\n", ended.stderr


# -------------------------------------------------------------- what is refused, or fails


def test_counts_of_any_size_are_refused_and_harm_nothing(make_settings, place):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, **place)) as stream:
        c = native(stream)
        for i in range(3):
            stream.append(FRAME + i)
        for frames in (2**63 - 1, 2**62 + 5, 10**18):
            assert c.skip(c.state, frames) == FAILED
        slot = ctypes.c_void_p()
        for count in (0, -1, 65537, 2**60, 2**63 - 1):
            assert c.reserve(c.state, count, slot) == INVALID
        assert c.reserve(c.state, 1, slot) == OK
        for count in (2, 2**60, 2**63 - 1, -1):
            assert c.commit(c.state, count, None, None) == INVALID
        assert c.commit(c.state, 0, None, None) == OK
        assert stream.frames_written == 3
        stream.append(FRAME + 3)
    np.testing.assert_array_equal(stream.arrays[0][:, 0, 0], range(4))


def test_c_commits_more_slots_than_its_table_on_the_stack_has(make_settings, place):
    count = 40
    with create_stream(make_settings({"t": count, "y": 4, "x": 5}, **place)) as stream:
        c, slots = native(stream), ctypes.c_void_p()
        values = (ctypes.c_int64 * count)(*range(count))
        assert c.reserve(c.state, count, ctypes.byref(slots)) == OK
        frames = np.array([expected(i, (4, 5)) for i in range(count)])
        ctypes.memmove(slots.value, frames.ctypes.data, frames.nbytes)
        assert c.commit(c.state, count, values, values) == OK
        np.testing.assert_array_equal(stream.arrays[0], frames)
        assert stream.timestamps[0].tolist() == list(range(count))


def test_what_c_commits_are_its_own_slots(make_settings):
    with create_stream(make_settings({"t": 4, "y": 4, "x": 5})) as stream:
        c = native(stream)
        with stream.slot() as frame:
            frame[...] = 1
            assert c.commit(c.state, 1, None, None) == CLOSED
            frame[...] = 2
        assert stream.frames_written == 1
        assert (stream.arrays[0][0] == 2).all()
        assert c.commit(c.state, 1, None, None) == CLOSED


def test_slots_whose_commit_fails_are_given_back(make_settings, monkeypatch):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5})) as stream:
        c, slot = native(stream), ctypes.c_void_p()

        def no_room(folder):
            raise OSError(28, "No space: \udcff")  # a name that is not UTF-8

        monkeypatch.setattr(stream._storage.arrays, "make_records", no_room)
        assert c.reserve(c.state, 1, slot) == OK
        ctypes.memset(slot, 1, 40)
        times = (ctypes.c_int64 * 1)(5)
        assert c.commit(c.state, 1, times, None) == FAILED
        text = ctypes.create_string_buffer(200)
        c.error_text(c.state, text, 200)
        assert rb"No space: \udcff" in text.value
        monkeypatch.undo()
        thread = threading.Thread(target=stream.append, args=(FRAME,))
        thread.start()
        thread.join(20)
        assert stream.frames_written == 1
        np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_slots_from_c_are_in_the_stats(make_settings):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5})) as stream:
        c, slot = native(stream), ctypes.c_void_p()
        for _ in range(100):
            c.reserve(c.state, 1, slot)
            c.commit(c.state, 1, None, None)
        stats = stream.stats()
        assert stats.frames == 100
        assert stats.timed_appends == 7
        assert stats.frames_per_s > 0


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc here")
def test_streams_whose_address_was_asked_for_leave_no_file_open(make_settings, tmp_path):
    def num_open():
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir()))

    before = num_open()
    for i in range(20):
        made = make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(tmp_path / str(i)))
        with create_stream(made) as stream:
            assert native(stream).append(native(stream).state, FRAME.ctypes.data) == OK
        del stream
    assert num_open() == before


def test_a_thread_of_c_differs_from_one_of_python_beside_other_interpreters(tmp_path):
    program = """
    import ctypes, sys, threading, time
    sys.path[:0] = TESTS
    import numpy as np
    from test_native import native, OK
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    interpreters.create()
    dims = dims_from_standard_axes({"t": None, "y": 4, "x": 5})
    with create_stream(AcquisitionSettings(dimensions=dims, dtype="uint16")) as stream:
        c, frame = native(stream), np.ones((4, 5), "uint16")
        # Without the GIL, by a function of ctypes, while Python has a slot open.
        appended = []
        def append():
            appended.append(c.append(c.state, frame.ctypes.data))
        with stream.slot() as slot:
            thread = threading.Thread(target=append)
            thread.start()
            time.sleep(0.1)
        thread.join()
        assert appended == [OK]
    print("done")
    """.replace("TESTS", repr([str(Path(__file__).parent)]))
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.stdout == "done\n", ended.stderr


def test_the_header_is_c_and_cpp(tmp_path):
    include = f"-I{scratchwriter.get_include()}"
    for compiler, name in (("cc", "a.c"), ("c++", "a.cpp")):
        (tmp_path / name).write_text(
            '#include "scratchwriter.h"\nint main(void) { return 0; }\n'
        )
        command = [compiler, "-Wall", "-Werror", "-pedantic", include, "-fsyntax-only"]
        subprocess.run([*command, str(tmp_path / name)], check=True)
