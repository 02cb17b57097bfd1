"""Where one thing ends while another still uses it."""

import contextlib
import ctypes
import errno
import gc
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest

import scratchwriter
from edges import (
    EVERY,
    PLACES,
    AtLine,
    AtLineOfThread,
    check_dataset,
    check_frames,
    check_stream,
    frame_of,
    in_child,
    lines_of,
    mapped_nbytes,
    settings_of,
)
from marks import PORTABLE
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._region.system import sync_file
from scratchwriter._writing import dataset_files
from scratchwriter.errors import DeviceError
from test_native import CLOSED, INVALID, OK, Stream
from waiting import remove_recorded, wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and looks into /proc"
)
SIZE = 512  # of frames: larger than what a page, or a copy with the GIL held, may be
BEFORE = 6  # frames, before something ends; more than "left memory" keeps there


def begin(place, folder, size=SIZE, **fields):
    stream = create_stream(settings_of(place, folder, size=size, **fields))
    for number in range(BEFORE):
        stream.append(frame_of(number, size))
    return stream


# ------------------------------------------------------------- slots while others close


def store_while_another_thread_closes(folder, place, count):
    for number in range(8):
        stream = begin(place, Path(folder) / str(number))
        stores, is_over = [], threading.Event()

        def fill(stream=stream, stores=stores, is_over=is_over):
            slot = stream.slot() if count == 1 else stream.slots(count)
            with pytest.raises(ValueError, match="closed"), slot as frames:
                while not is_over.is_set():
                    frames[...] = 7
                    stores.append(1)

        filler = threading.Thread(target=fill)
        filler.start()
        wait_until(lambda stores=stores: stores)
        stream.close()
        before = len(stores)
        wait_until(lambda stores=stores, before=before: len(stores) > before + 10)
        check_stream(stream, BEFORE)
        is_over.set()
        filler.join()
        check_stream(stream, BEFORE)


# Of a ring no more may be open than it has besides those that it shows.
SLOTS = [(place, count) for place in PLACES for count in (1, 4) if "ring" not in place] + [
    (place, 1) for place in PLACES if "ring" in place
]


@pytest.mark.parametrize(("place", "count"), SLOTS)
def test_a_slot_may_be_stored_into_while_another_thread_closes(tmp_path, place, count):
    in_child(store_while_another_thread_closes, tmp_path, place, count)


@pytest.fixture(scope="module")
def camera_library(tmp_path_factory):
    library = tmp_path_factory.mktemp("camera") / "camera.so"
    source = Path(__file__).with_name("edge_camera.c")
    command = ["cc", "-shared", "-fPIC", "-O2", "-pthread", "-Wall", "-Werror"]
    command += [f"-I{scratchwriter.get_include()}", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


class Camera:
    """The thread of edge_camera.c, which has stored into frames that it reserved."""

    def __init__(self, library, address, count=1):
        self._library = ctypes.CDLL(library)
        self._library.camera_start.restype = ctypes.c_void_p
        self._library.camera_start.argtypes = [ctypes.c_void_p, ctypes.c_int64]
        for function in (self._library.camera_stores, self._library.camera_stop):
            function.argtypes = [ctypes.c_void_p]
        self._library.camera_stores.restype = ctypes.c_int64
        self._camera = self._library.camera_start(address, count)
        self.store()

    def store(self):
        """Return when it has stored some more."""
        before = self._library.camera_stores(self._camera)
        wait_until(lambda: self._library.camera_stores(self._camera) > before + 10)

    def stop(self):
        return self._library.camera_stop(self._camera)


def store_from_c_while_python_closes(folder, place, count, library):
    for number in range(8):
        stream = begin(place, Path(folder) / str(number))
        camera = Camera(library, stream.c_address, count)
        stream.close()
        camera.store()
        check_stream(stream, BEFORE)
        assert camera.stop() == CLOSED
        check_stream(stream, BEFORE)


@pytest.mark.parametrize(("place", "count"), SLOTS)
def test_frames_reserved_by_c_may_be_stored_into_while_python_closes(
    tmp_path, place, count, camera_library
):
    in_child(store_from_c_while_python_closes, tmp_path, place, count, camera_library)


def address_in(capsule):
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    return pointer(capsule, b"scratchwriter.stream")


def store_from_c_when_python_has_let_go(folder, place, held, library):
    before = 0
    threading.stack_size(1 << 18)  # how many run at once depends on the machine
    for number in range(5):
        if number == 2:  # by then the stacks of threads have been made that are kept
            before = mapped_nbytes()
        stream = begin(place, Path(folder) / str(number))
        capsule = stream.capsule if held == "capsule" else None
        address = stream.c_address if capsule is None else address_in(capsule)
        camera = Camera(library, address)
        stream.close()
        del stream
        gc.collect()
        camera.store()
        c = Stream.from_address(address)
        assert c.frames_written(c.state) == BEFORE
        assert camera.stop() == CLOSED
        del capsule
        gc.collect()
    if held == "capsule" and "LD_PRELOAD" not in os.environ:  # a sanitizer maps its own
        # Less than one of the three that came after: the memory of each was given back.
        assert mapped_nbytes() - before < BEFORE * SIZE * SIZE


@pytest.mark.parametrize("held", ["capsule", "address"])
@pytest.mark.parametrize("place", PLACES)
def test_frames_reserved_by_c_outlive_the_last_reference_of_python(
    tmp_path, place, held, camera_library
):
    in_child(store_from_c_when_python_has_let_go, tmp_path, place, held, camera_library)


def leave_slots_open(folder, place):
    kept = []
    for number in range(3):
        stream = begin(place, Path(folder) / str(number))
        slot = stream.slot()
        frame = slot.__enter__()
        view = frame[SIZE // 2 :]
        stream.close()
        del stream, slot, frame  # the view alone keeps the memory
        gc.collect()
        kept.append(view)
    for view in kept:
        assert (view == view[0, 0]).all()  # it may be read, whatever is there


@pytest.mark.parametrize("place", PLACES)
def test_an_array_of_a_slot_outlives_the_slot_and_the_stream(tmp_path, place):
    in_child(leave_slots_open, tmp_path, place)


def read_slots_after_close(folder, place, how):
    stream = begin(place, folder)
    count = 1 if "ring" in place else 4
    slot = stream.slots(count)
    frames = slot.__enter__()
    frames[...] = BEFORE + 1
    if how == "filled in part":
        slot.num_filled = 1
        slot.__exit__(None, None, None)
    elif how == "left by an error":
        slot.__exit__(KeyError, KeyError(), None)
    elif how == "dropped":
        del slot
        gc.collect()
    stored = BEFORE + (how == "filled in part")
    stream.close()
    frames.sum()  # it may be read, whatever is there
    check_stream(stream, stored)


@pytest.mark.parametrize("how", ["filled in part", "left by an error", "dropped"])
@pytest.mark.parametrize("place", PLACES)
def test_an_array_of_a_slot_that_was_left_can_be_read_after_close(tmp_path, place, how):
    in_child(read_slots_after_close, tmp_path / "d", place, how)


def refuse_a_commit_of_c_after_close(folder, place):
    stream = begin(place, folder)
    c, frames = Stream.from_address(stream.c_address), ctypes.c_void_p()
    assert c.reserve(c.state, 1, frames) == OK
    stream.close()
    del stream
    gc.collect()
    for _ in range(2):
        ctypes.memset(frames, 1, 2 * SIZE**2)
        assert c.commit(c.state, -1, None, None) == INVALID  # still reserved
    assert c.commit(c.state, 1, None, None) == CLOSED


@pytest.mark.parametrize("place", PLACES)
def test_what_c_has_reserved_stays_when_its_commit_is_invalid(tmp_path, place):
    in_child(refuse_a_commit_of_c_after_close, tmp_path / "d", place)


def collect_a_slot_while_the_writer_closes(folder, place):
    """Python looks for garbage when it makes a tuple, say, for which none is kept ready."""
    for threshold in (1, 2, 3, 5, 8):
        stream = begin(place, Path(folder) / str(threshold), size=8)
        kept = [(object(), 1, 2) for _ in range(5000)]
        cycle = [stream.slot()]
        cycle += [cycle, cycle[0].__enter__()]
        gc.disable()
        before = gc.get_threshold()
        del cycle
        gc.set_threshold(threshold)
        gc.enable()
        stream.close()
        gc.set_threshold(*before)
        del kept
        check_stream(stream, BEFORE)


@pytest.mark.parametrize("place", ["memory", "disk", "left memory"])
def test_a_slot_may_be_collected_while_the_writer_closes(tmp_path, place):
    in_child(collect_a_slot_while_the_writer_closes, tmp_path, place)


# ---------------------------------------------------------------------- half-way through


def close_what_has_spilled_in_part(folder):
    """The warning of the first position is an error, so that the second has not spilled."""
    settings = AcquisitionSettings(
        dimensions=dims_from_standard_axes({"t": None, "p": 2, "y": 256, "x": 256}),
        dtype="uint16",
        format=ScratchFormat(max_memory_bytes=100 * 2 * 2 * 256**2, spill_dir=str(folder)),
    )
    stream = create_stream(settings)
    for number in range(20):
        stream.append(frame_of(number, 256))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(UserWarning, match="max_memory_bytes"):
            stream.extend([frame_of(0, 256)] * 300)
    stream.close()
    for position in range(2):
        path = stream.path / f"pos_{position}.dat"
        data = np.fromfile(path, "uint16").reshape(-1, 256, 256)
        assert (data[:, 0, 0] == np.arange(10) * 2 + position + 1).all()
        assert (stream.arrays[position][...] == data).all()


def test_a_stream_of_which_one_position_has_spilled_is_closed(tmp_path):
    in_child(close_what_has_spilled_in_part, tmp_path)


def write_metadata_while_closing(folder, place):
    """The manifest that a thread is writing when the stream closes has the last lengths."""
    for number in range(40):
        stream = begin(place, Path(folder) / str(number), size=8)
        stream.flush()
        barrier = threading.Barrier(2)

        def write(stream=stream, barrier=barrier):
            barrier.wait()
            stream.set_global_metadata("here", {"a": 1})

        thread = threading.Thread(target=write)
        thread.start()
        barrier.wait()
        for more in range(BEFORE, BEFORE + 20):
            stream.append(frame_of(more, 8))
        stream.close()
        thread.join()
        check_dataset(stream.path, BEFORE + 20)


@pytest.mark.parametrize("place", ["disk", "left memory"])
def test_a_manifest_that_is_written_while_the_stream_closes_is_exact(tmp_path, place):
    in_child(write_metadata_while_closing, tmp_path, place)


def close_without_a_folder(folder):
    before = mapped_nbytes()
    kept = []
    for number in range(40):  # more than addresses for unbounded arrays exist
        stream = begin("disk", Path(folder) / str(number), size=64)
        remove_recorded(stream.path)
        with pytest.raises(FileNotFoundError, match="removed"):
            stream.close()
        kept.append(stream)
    assert mapped_nbytes() - before < 1 << 30
    for stream in kept:
        check_frames(stream.arrays[0], BEFORE)


@pytest.mark.skipif(PORTABLE, reason="none are reserved there")
def test_a_stream_whose_folder_was_removed_gives_its_addresses_back(tmp_path):
    in_child(close_without_a_folder, tmp_path)


class Local:
    """What a caller has."""


def forget_what_a_device_has_lost(folder):
    def use():
        local = Local()
        stream = begin("disk", folder, size=8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dataset_files, "sync_file", fail)
            with pytest.raises(DeviceError):
                stream.flush()
        with pytest.raises(DeviceError):
            stream.close()
        return weakref.ref(local), weakref.ref(stream)

    def fail(path):
        raise DeviceError(errno.EIO, "lost", str(path))

    kept = use()
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_a_device_that_has_lost_data_keeps_no_stream_alive(tmp_path):
    in_child(forget_what_a_device_has_lost, tmp_path / "d")


# -------------------------------------------------------------------- close inside close


def close_in_the_middle_of_a_call(folder):
    """The listeners get the frames before `close`, also when that is done afterwards."""
    stream = begin("disk", folder, size=8)
    seen = []
    stream.on("coords_changed", lambda update: seen.append(update.frame_number))
    stream.append(frame_of(BEFORE, 8))

    def sync_and_close(path):
        stream.close()
        assert not stream.closed
        stream.append(frame_of(stream.frames_written, 8))
        sync_file(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_files, "sync_file", sync_and_close)
        stream.flush()
    assert stream.closed
    assert seen[-1] == stream.frames_written - 1
    check_stream(stream, stream.frames_written)


def test_a_close_in_the_middle_of_a_call_is_done_when_that_ends(tmp_path):
    in_child(close_in_the_middle_of_a_call, tmp_path / "d")


def close_from_two_threads(folder, place):
    for number in range(30):
        stream = begin(place, Path(folder) / str(number), size=64)
        barrier, errors = threading.Barrier(2), []

        def close(stream=stream, barrier=barrier, errors=errors):
            try:
                barrier.wait()
                stream.close()
                check_stream(stream, BEFORE)  # for whichever of them returns first
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


@pytest.mark.parametrize("place", PLACES)
def test_two_threads_may_close_at_the_same_time(tmp_path, place):
    in_child(close_from_two_threads, tmp_path, place)


def close_from_a_callback(folder, place):
    for number in range(10):
        stream = create_stream(settings_of(place, Path(folder) / str(number)))
        stream.on("coords_changed", lambda update, stream=stream: stream.close())
        with contextlib.suppress(ValueError):  # closed
            for i in range(BEFORE):
                stream.append(frame_of(i))
        stream.close()
        assert 1 <= stream.frames_written <= BEFORE
        check_stream(stream, stream.frames_written)


@pytest.mark.parametrize("place", PLACES)
def test_a_callback_may_close(tmp_path, place):
    in_child(close_from_a_callback, tmp_path, place)


# --------------------------------------------------------- garbage, at the worst moments


CALLS = {
    "metadata": lambda stream: stream.set_global_metadata("here", {"a": 1}),
    "flush": lambda stream: stream.flush(),
    "close": lambda stream: stream.close(),
    "append": lambda stream: stream.append(frame_of(BEFORE)),
    "skip": lambda stream: stream.skip(frames=5),
    "slot": lambda stream: fill_slot(stream),
}


def fill_slot(stream):
    with stream.slot() as frame:
        frame[...] = frame_of(BEFORE)


class ClosesWhenCollected:
    def __init__(self, stream):
        self.myself, self.stream = self, stream

    def __del__(self):
        self.stream.close()


def abandon_slot(stream):
    slot = stream.slot()
    slot.__enter__()
    slot.frame_metadata = [slot]  # a circle: it is the collector who finds it


def abandon_closer(stream):
    ClosesWhenCollected(stream)


def collect_at_every_line(folder, place, call, abandon):
    gc.disable()
    gc.freeze()
    unraisable = []
    sys.unraisablehook = unraisable.append
    numbers, tries = None, 0

    def begin_on_the_edge():
        nonlocal tries
        tries += 1
        # The fifth frame is the one that leaves memory.
        stream = create_stream(settings_of(place, Path(folder) / str(tries)))
        for number in range(4 if call in ("append", "slot", "skip") else BEFORE):
            stream.append(frame_of(number))
        return stream

    stream = begin_on_the_edge()
    numbers = lines_of(lambda: CALLS[call](stream))
    stream.close()
    for number in [0, *numbers]:
        stream = begin_on_the_edge()
        before = stream.frames_written
        globals()[abandon](stream)
        # A thread that has lost a slot may not append before that has been collected;
        # one that has been closed meanwhile refuses.
        with (
            contextlib.suppress(RuntimeError, ValueError),
            AtLine(number, lambda: gc.collect(0)) as line,
        ):
            CALLS[call](stream)
        gc.collect(0)
        for found in unraisable:
            # "Cannot close while the stream is growing, from the thread that grows it"
            assert isinstance(found.exc_value, RuntimeError), (line.where, found)
        unraisable.clear()
        stream.close()
        assert before <= stream.frames_written <= before + 5, line.where
        check_frames(stream.arrays[0], before)
        if stream.path is not None:
            check_dataset(stream.path, before) if call == "metadata" else None
            with open_scratch(stream.path) as dataset:
                assert dataset.state == "closed", line.where


@pytest.mark.parametrize("abandon", [abandon_slot.__name__, abandon_closer.__name__])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["memory", "disk", "left memory"])
def test_garbage_is_collected_at_any_line_of_a_call_of_its_own_stream(
    tmp_path, place, call, abandon
):
    in_child(collect_at_every_line, tmp_path, place, call, abandon)


# Threads of the library: where the stream is that has one, its settings, how many lines.
THREADS = {
    "scratchwriter-sync": ("disk", {"durability": "system", "sync_interval_s": 0.02}, 90),
    "scratchwriter": ("left memory", {}, 200),
    "scratchwriter-coords_changed": ("disk", {}, 60),
}


def collect_on_a_thread_of_its_own(folder, name, abandon):
    gc.disable()
    gc.freeze()
    warnings.filterwarnings("ignore", "A ScratchStream", UserWarning)
    place, fields, lines = THREADS[name]
    for at in range(1, lines, EVERY):
        is_there, is_abandoned = threading.Event(), threading.Event()

        def collect(is_there=is_there, is_abandoned=is_abandoned):
            is_there.set()
            # It may hold what the main thread needs to come so far: not without an end.
            is_abandoned.wait(0.2)
            gc.collect(0)

        with AtLineOfThread(name, at, collect) as line:
            stream = create_stream(settings_of(place, Path(folder) / str(at), **fields))
            if "coords" in name:
                stream.on("coords_changed", lambda update: None)
            for number in range(BEFORE):
                stream.append(frame_of(number))
            (thread,) = [t for t in threading.enumerate() if t.name == name] or [None]
        path = stream.path
        if abandon == "slot":
            abandon_slot(stream)
        else:
            if thread is not None:
                wait_until(lambda: is_there.is_set() or not thread.is_alive())  # noqa: B023
            stream.myself = stream
            del stream
        is_abandoned.set()
        if thread is not None and (abandon == "stream" or place == "left memory"):
            thread.join(1)
            while thread.is_alive():  # it looked for garbage before there was any
                gc.collect()
                thread.join(1)
        gc.collect(0)
        if abandon == "slot":
            stream.close()
        check_dataset(path, BEFORE)
        if place == "left memory" and not line.has_acted:
            return


@pytest.mark.parametrize("abandon", ["stream", "slot"])
@pytest.mark.parametrize("name", THREADS)
def test_garbage_is_collected_at_any_line_of_a_thread_of_its_own_stream(
    tmp_path, name, abandon
):
    in_child(collect_on_a_thread_of_its_own, tmp_path, name, abandon)


# ----------------------------------------------------------------- what fails half-way


def open_slots_without_memory(folder, place, count):
    """Each allocation of Python's, one after the other, fails while a slot is opened."""
    testing = pytest.importorskip("_testcapi")
    stream = begin(place, folder, size=64)
    for at in range(200):
        slot = stream.slot() if count == 1 else stream.slots(count)
        testing.set_nomemory(at, at + 1)
        try:
            frame = slot.__enter__()
        except MemoryError:
            frame = None
        finally:
            testing.remove_mem_hooks()
        if frame is not None:
            frame[...] = frame_of(BEFORE)
            slot.__exit__(None, None, None)
            break
        del slot
        thread = threading.Thread(target=stream.stats)  # nothing is left locked
        thread.start()
        thread.join()
    else:
        raise AssertionError("no slot could be opened")
    assert at > 0
    stream.append(frame_of(BEFORE + count))
    stream.close()
    check_frames(stream.arrays[0], BEFORE + 1)
    assert stream.frames_written == BEFORE + count + 1


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("place", ["memory", "disk, bounded"])
def test_a_slot_whose_array_cannot_be_made_is_given_back(tmp_path, place, count):
    in_child(open_slots_without_memory, tmp_path / "d", place, count)


def listen_from_two_threads(folder, place):
    """At each line of `on`, another thread calls it, too."""
    folder = Path(folder)

    def ignore(update):
        pass

    with begin(place, folder / "first", size=64) as stream:
        numbers = lines_of(lambda: stream.on("coords_changed", ignore), every=1)
    for number in numbers:
        stream = begin(place, folder / str(number), size=64)
        heard, others = [], []

        def listen(name, stream=stream, heard=heard):
            def callback(update):
                time.sleep(0.01)  # `close` waits for whom it knows of
                heard.append(name)

            stream.on("coords_changed", callback)

        def call_too(others=others, listen=listen):
            others.append(threading.Thread(target=listen, args=("other",)))
            others[0].start()
            others[0].join(0.1)  # longer where the first one has to end before

        with AtLine(number, call_too) as line:
            listen("first")
        others[0].join()
        stream.append(frame_of(BEFORE, 64))
        stream.close()
        assert sorted(heard) == ["first", "other"], line.where


@pytest.mark.parametrize("place", ["memory", "disk, bounded"])
def test_two_threads_that_listen_at_once_are_both_waited_for(tmp_path, place):
    in_child(listen_from_two_threads, tmp_path, place)
