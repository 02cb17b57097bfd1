"""Calls that fail, are interrupted, or are overtaken by another one half-way."""

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._writing.arrays import GrowingArray
from scratchwriter._writing.dataset_files import DatasetFiles
from scratchwriter._writing.storage import Storage
from waiting import wait_until

SIZES = {"t": None, "y": 64, "x": 64}
FRAME = np.ones((64, 64), "uint16")
# scratchwriter.h
OK, CLOSED, BUSY, FULL, FAILED = range(5)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def spilling(make_settings, tmp_path):
    """Settings of a stream that leaves memory after 128 frames."""
    fmt = ScratchFormat(max_memory_bytes=1 << 20, spill_dir=str(tmp_path))
    return make_settings(SIZES, format=fmt)


def fill(stream, frames, **extras):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it spills
        for _ in range(frames):
            stream.append(FRAME, **extras)


def refuse_to_spill(array, folder, start):
    raise OSError(errno.ENOSPC, "full")


def is_published(stream):
    files = stream._storage._files
    return files is not None and files.is_published


def c_append(stream, kind=ctypes.CFUNCTYPE):
    """The function for C as a Python function of no arguments; PYFUNCTYPE keeps the GIL."""
    append = kind(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(stream.c_append.function)
    state, data = stream.c_append.state, FRAME.ctypes.data
    return lambda: append(state, data)


def interrupted_at(function, line, action):
    """Run `action()` with Ctrl-C where `function` comes to a line of its source."""

    def trace(frame, event, _):
        if frame.f_code is not function.__code__:
            return trace if event == "call" else None
        text = Path(frame.f_code.co_filename).read_text().splitlines()[frame.f_lineno - 1]
        if event == "line" and text.strip().startswith(line):
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            action()
    finally:
        sys.settrace(before)


# ------------------------------------------------------------------------------ spilling


def test_flushes_of_several_threads_write_every_line_of_metadata_once(spilling):
    with create_stream(spilling) as stream:
        stop = threading.Event()

        def flush():
            while not stop.is_set():
                stream.flush()

        threads = [threading.Thread(target=flush) for _ in range(3)]
        for thread in threads:
            thread.start()
        fill(stream, 1000, frame_metadata={"k": "x" * 20_000})
        wait_until(lambda: is_published(stream))
        stop.set()
        for thread in threads:
            thread.join()
        path = stream.path
        stream.close()
        with open_scratch(path) as dataset:
            lines = list(dataset.frame_metadata)
    assert [line["_idx"] for line in lines] == [[i] for i in range(1000)]


def test_a_dataset_is_not_published_while_another_flush_copies(spilling, monkeypatch):
    copying, publishing = threading.Event(), threading.Event()
    copy_log, publish = DatasetFiles.copy_log, DatasetFiles.publish

    def slow_copy(self, writer):
        copying.set()
        publishing.wait(0.5)  # it does not come
        assert not publishing.is_set()
        copy_log(self, writer)

    def noted_publish(self, *args):
        publishing.set()
        publish(self, *args)

    monkeypatch.setattr(DatasetFiles, "copy_log", slow_copy)
    monkeypatch.setattr(DatasetFiles, "publish", noted_publish)
    with create_stream(spilling) as stream:
        fill(stream, 300, frame_metadata={"k": "x" * 20_000})
        threads = [threading.Thread(target=stream.flush) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert copying.wait(60)
        for thread in threads:
            thread.join()
        assert is_published(stream)


def test_records_that_could_not_spill_at_first_are_in_a_file_when_flush_returns(
    spilling, monkeypatch
):
    spill, failures = GrowingArray.spill, []

    def spill_later(self, folder, start):
        if self._file_name.startswith("frame_records") and not failures:
            failures.append(1)
            raise OSError(errno.ENOSPC, "full for a moment")
        spill(self, folder, start)

    monkeypatch.setattr(GrowingArray, "spill", spill_later)
    with create_stream(spilling) as stream:
        number = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while number < 400:
                with contextlib.suppress(OSError):
                    stream.append(FRAME, timestamp_ns=number + 7, frame_id=number)
                    number += 1
        assert failures
        stream.flush()
        with open_scratch(stream.path) as dataset:  # nothing else is known after a kill
            assert dataset.timestamps[0].tolist() == list(range(7, 407))
            assert dataset.frame_ids[0].tolist() == list(range(400))


def test_a_spill_that_was_interrupted_is_completed_by_itself(spilling):
    with (
        create_stream(spilling) as stream,
        pytest.warns(UserWarning, match="kept in files"),
    ):

        def append_all():
            while stream.frames_written < 300:
                stream.append(FRAME)

        interrupted_at(Storage._make_room, "self._complete_spill()", append_all)
        append_all()
        wait_until(lambda: is_published(stream))
        wait_until(lambda: stream._storage._has_warned_of_spill)


def test_a_stream_that_could_not_spill_stays_in_memory_and_can_be_closed(
    spilling, monkeypatch, tmp_path
):
    with create_stream(spilling) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(GrowingArray, "spill", refuse_to_spill)
            for _ in range(2):
                with pytest.raises(OSError, match="full"):
                    fill(stream, 1000)
        frames = stream.frames_written
        assert 0 < frames < 1000
    assert list(tmp_path.glob("scratchwriter_*")) == []
    assert (stream.path, stream.arrays[0].shape[0]) == (None, frames)


def test_a_stream_that_could_not_spill_does_so_when_there_is_room(
    spilling, monkeypatch, tmp_path
):
    with create_stream(spilling) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(GrowingArray, "spill", refuse_to_spill)
            with pytest.raises(OSError, match="full"):
                fill(stream, 1000)
        fill(stream, 300)
        frames, path = stream.frames_written, stream.path
    with open_scratch(path) as dataset:
        assert (dataset.frames_written, dataset.state) == (frames, "closed")


def test_no_code_of_the_user_runs_while_frames_wait(spilling, monkeypatch):
    def show(*args, **options):
        closer = threading.Thread(target=stream.close)
        closer.start()
        closer.join()

    monkeypatch.setattr(warnings, "showwarning", show)
    stream = create_stream(spilling)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="closed"):
            for _ in range(1000):
                stream.append(FRAME)
    assert stream.closed


# ------------------------------------------------------------------------- calls from C


def test_c_may_append_with_the_gil_while_a_stream_spills(spilling):
    program = textwrap.dedent(f"""
        import ctypes, faulthandler, sys, warnings
        import numpy as np
        from scratchwriter import AcquisitionSettings, create_stream
        warnings.simplefilter("ignore")
        settings = AcquisitionSettings.model_validate_json({spilling.model_dump_json()!r})
        with create_stream(settings) as stream:
            faulthandler.dump_traceback_later(300, exit=True)
            signature = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
            append, state = signature(stream.c_append.function), stream.c_append.state
            frame = np.ones((64, 64), "uint16")
            for _ in range(20000):
                assert append(state, frame.ctypes.data) == 0
                stream._storage._show_append_times()
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)


def test_an_error_whose_text_cannot_be_made_is_a_status(make_settings):
    class WordlessError(MemoryError):
        def __str__(self):
            raise MemoryError

    def make_room(*args):
        raise WordlessError

    fmt = ScratchFormat(max_memory_bytes=1 << 20, spill_to_disk=False)
    with create_stream(make_settings(SIZES, format=fmt)) as stream:
        stream._storage.make_room = make_room
        append = c_append(stream)
        assert {append() for _ in range(1000)} == {OK, FAILED}


def test_an_exception_of_a_handler_is_raised_by_python_and_c_continues(spilling):
    def handler(*args):
        raise TimeoutError("the time is over")

    with create_stream(spilling) as stream, pytest.warns(UserWarning, match="kept in"):
        make_room, calls = stream._storage.make_room, []

        def make_room_in_time(*args):
            if not calls:
                calls.append(1)
                signal.raise_signal(signal.SIGINT)
            make_room(*args)

        stream._storage.make_room = make_room_in_time
        before = signal.signal(signal.SIGINT, handler)
        append = c_append(stream)
        try:
            with pytest.raises(TimeoutError, match="the time is over"):
                for _ in range(1000):
                    append()
        finally:
            signal.signal(signal.SIGINT, before)
        assert {append() for _ in range(1000)} == {OK}


def test_the_error_of_a_close_in_a_handler_is_raised_and_c_learns_of_the_close(
    spilling, tmp_path
):
    stream = create_stream(spilling)
    storage = stream._storage
    storage._lost = errno.EIO, tmp_path / "pos_0.dat"
    make_room = storage._make_room

    def closed_in_between(*args):
        signal.raise_signal(signal.SIGINT)
        make_room(*args)

    storage._make_room = closed_in_between
    before = signal.signal(signal.SIGINT, lambda *args: stream.close())
    append, found = c_append(stream), []
    try:
        with pytest.raises(OSError, match="device has not taken"):
            while not found or found[-1] == OK:
                found.append(append())
            sum(range(1000))  # anything: it is raised when Python runs again
    finally:
        signal.signal(signal.SIGINT, before)
    assert found[-1:] in ([CLOSED], [OK])
    assert append() == CLOSED


# --------------------------------------------------------------------- slots and threads


def test_a_slot_is_entered_by_one_of_two_threads(make_settings):
    inside, leave = threading.Event(), threading.Event()

    class Slow(dict):
        def items(self):
            if threading.current_thread() is second:
                inside.set()
                assert leave.wait(60)
            return super().items()

    with create_stream(make_settings(SIZES)) as stream:
        slot = stream.slot(frame_metadata=Slow(a=1))

        def enter():
            with slot as frame:
                frame[...] = 1

        second = threading.Thread(target=enter)
        second.start()
        assert inside.wait(60)
        with pytest.raises(RuntimeError, match="open or was used"):
            slot.__enter__()
        leave.set()
        second.join()
        assert stream.frames_written == 1


def test_what_is_refused_before_a_slot_opens_can_be_corrected(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        slot = stream.slot(timestamp_ns=-5)
        with pytest.raises(ValueError, match="timestamp_ns"):
            slot.__enter__()
        slot.timestamp_ns = 5
        with slot as frame:
            frame[...] = 1
        assert stream.timestamps[0].tolist() == [5]


def test_a_slot_of_a_thread_that_has_ended_is_not_that_of_the_next_one(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        for _ in range(20):  # the system gives the same identifier again
            slot, errors = stream.slot(), []
            opener = threading.Thread(target=slot.__enter__)
            opener.start()
            opener.join()

            def append(errors=errors):
                try:
                    stream.append(FRAME)
                except RuntimeError as error:
                    errors.append(error)

            waiting = threading.Thread(target=append)
            waiting.start()
            waiting.join(0.01)
            slot.__exit__(None, None, None)
            waiting.join()
            assert errors == []


# ------------------------------------------------------------------------------- the end


def test_a_close_that_was_interrupted_before_it_began_ends_nothing(make_settings):
    seen = []
    with create_stream(make_settings(SIZES)) as stream:
        stream.on("coords_changed", lambda update: seen.append(update.frame_number))
        interrupted_at(Storage._finish, "self.writer.close()", stream.close)
        assert not stream.closed
        fill(stream, 3)
    assert seen == [0, 1, 2]


def test_a_listener_that_was_interrupted_while_it_was_added_is_not_called_after_close(
    make_settings,
):
    seen = []
    with create_stream(make_settings(SIZES)) as stream:
        interrupted_at(
            type(stream._events).on,
            "return listener",
            lambda: stream.on("coords_changed", lambda update: seen.append(1)),
        )
        fill(stream, 3)
    assert len(seen) == 3  # it had been started


def test_an_array_that_cannot_be_ended_keeps_no_other_from_it(
    make_settings, tmp_path, monkeypatch
):
    end = GrowingArray.end

    def end_of_all_but_one(self, nbytes):
        if self._number == 0:
            raise MemoryError("no addresses")
        end(self, nbytes)

    sizes = {"t": None, "p": 3, "y": 64, "x": 64}
    stream = create_stream(make_settings(sizes, root_path=str(tmp_path / "data")))
    fill(stream, 6)
    with monkeypatch.context() as patch:
        patch.setattr(GrowingArray, "end", end_of_all_but_one)
        with pytest.raises(MemoryError, match="no addresses"):
            stream.close()
    nbytes = [(tmp_path / "data" / f"pos_{i}.dat").stat().st_size for i in range(3)]
    assert nbytes[0] > nbytes[1] == nbytes[2] == 2 * FRAME.nbytes
    stream.close()
    assert (tmp_path / "data" / "pos_0.dat").stat().st_size == nbytes[1]
    with open_scratch(tmp_path / "data") as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 6)


def test_a_warning_that_cannot_be_shown_does_not_end_the_thread_that_syncs(
    make_settings, tmp_path, monkeypatch
):
    sync, calls = DatasetFiles.sync, []

    def failing_once(self):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EMFILE, "too many open files")
        return sync(self)

    def show(*args, **options):
        raise ValueError("there is no stderr")

    monkeypatch.setattr(DatasetFiles, "sync", failing_once)
    monkeypatch.setattr(warnings, "showwarning", show)
    fmt = ScratchFormat(durability="system", sync_interval_s=0.01)
    settings = make_settings(SIZES, root_path=str(tmp_path / "data"), format=fmt)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with create_stream(settings) as stream:
            stream.append(FRAME)
            wait_until(lambda: len(calls) > 2)


def test_an_interrupt_at_exit_keeps_no_dataset_from_being_finished(tmp_path):
    program = textwrap.dedent("""
        import atexit, signal, sys
        import numpy as np
        from scratchwriter import AcquisitionSettings, create_stream
        from scratchwriter import dims_from_standard_axes as dims
        from scratchwriter._writing.storage import Storage
        import scratchwriter.stream

        signal.signal(signal.SIGINT, signal.default_int_handler)
        streams = []
        for number in range(4):
            settings = AcquisitionSettings(
                dimensions=dims({"t": None, "y": 64, "x": 64}), dtype="uint16",
                root_path=f"{sys.argv[1]}/{number}",
            )
            streams.append(create_stream(settings))
            streams[-1].append(np.ones((64, 64), "uint16"))

        lines = 0
        def trace(frame, event, _):
            global lines
            if frame.f_code is not scratchwriter.stream._finish_one_at_exit.__code__:
                return trace
            lines += event == "line"
            if event == "line" and lines == int(sys.argv[2]):
                raise KeyboardInterrupt
            return trace
        atexit.register(lambda: sys.settrace(trace))
    """)
    for line in range(2, 8):
        folder = tmp_path / str(line)
        folder.mkdir()
        command = [sys.executable, "-c", program, str(folder), str(line)]
        subprocess.run(command, capture_output=True, check=False)
        states = []
        for path in sorted(folder.iterdir()):
            with open_scratch(path) as dataset:
                states.append(dataset.state)
                assert dataset.frames_written == 1
        assert sum(state == "closed" for state in states) >= 3, (line, states)


@needs_fork
def test_a_forked_child_writes_nothing_of_a_stream_that_is_closed(make_settings, tmp_path):
    with create_stream(make_settings(SIZES, root_path=str(tmp_path / "data"))) as stream:
        stream.append(FRAME)
    before = (tmp_path / "data" / "manifest.json").read_bytes()
    pid = os.fork()
    if pid == 0:
        try:
            stream.set_global_metadata("child", {"a": 1})
        except ValueError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (tmp_path / "data" / "manifest.json").read_bytes() == before
