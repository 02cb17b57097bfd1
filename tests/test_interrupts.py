"""Signals and interrupts that arrive at any line of what begins, grows or ends a stream."""

import contextlib
import gc
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path

import pytest

from edges import (
    PLACES,
    AtLine,
    check_dataset,
    check_frames,
    check_stream,
    descriptors,
    frame_of,
    in_child,
    lines_of,
    num_threads,
    settings_of,
)
from scratchwriter import create_stream
from test_native import OK, native
from waiting import wait_until

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and looks into /proc"
)
STAGED = [place for place in PLACES if "staged" in place]
FRAMES = 6  # more than "left memory" keeps in memory


def interrupt():
    raise KeyboardInterrupt


def begin(place, folder):
    stream = create_stream(settings_of(place, folder))
    for number in range(FRAMES):
        stream.append(frame_of(number))
    return stream


def told(error):
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} {error}: {where.line}"


def report(faults):
    """Fail with all lines at which something is wrong, not with the first alone."""
    assert not faults, f"{len(faults)} lines:\n" + "\n".join(faults)


# ------------------------------------------------------------------ close inside close


def close_in_a_handler(folder, place):
    faults = []
    stream = begin(place, Path(folder) / "first")
    numbers = lines_of(stream.close)
    for number in numbers:
        stream = begin(place, Path(folder) / str(number))
        refused = []

        def close(signum, frame, stream=stream, refused=refused):
            try:
                stream.close()
            except RuntimeError as error:  # later again, as the outer one does
                refused.append(error)

        signal.signal(signal.SIGUSR1, close)
        with AtLine(number, lambda: signal.raise_signal(signal.SIGUSR1)) as line:
            stream.close()
        try:
            check_stream(stream, FRAMES)
        except Exception as error:
            faults.append(f"{line.where}: {told(error)}")
    report(faults)


@pytest.mark.parametrize("place", PLACES)
def test_a_signal_handler_may_close_at_any_line_of_close(tmp_path, place):
    in_child(close_in_a_handler, tmp_path, place)


# ------------------------------------------------- an interrupt of what begins and ends


def in_use(folder):
    """Descriptors, folders that will be removed, and threads."""
    gc.collect()
    return (
        sorted(descriptors().values()),
        sorted(path.name for path in folder.glob("scratchwriter_*")),
    )


def interrupt_create(folder, place, what):
    folder, faults = Path(folder), []
    gc.freeze()

    def settings(number):
        return settings_of(
            place,
            folder / str(number),
            overwrite=what == "overwrite",
            populate="all" if what == "populated" else "ahead",
        )

    def make(number):
        # With nothing between: what is made is in the caller's hands, or undone.
        return create_stream(settings(number))

    def old(number):
        (folder / str(number)).mkdir(exist_ok=True)
        if what == "overwrite":
            with create_stream(settings(number)) as stream:
                stream.append(frame_of(9))
        elif PLACES[place].get("on_disk"):
            (folder / str(number)).rmdir()

    old("first")
    numbers = lines_of(lambda: make("first").close())
    for number in numbers:
        old(number)
        before, threads = in_use(folder / str(number)), num_threads()
        made = settings(number)
        is_interrupted, stream = False, None
        try:
            with AtLine(number, interrupt) as line:
                stream = create_stream(made)
        except KeyboardInterrupt:
            is_interrupted = True
        except Exception:
            # pydantic makes an error of its own of one that comes while it validates.
            is_interrupted = True
        if not is_interrupted:
            stream.close()
            continue
        after = in_use(folder / str(number))
        if after != before:
            left = [name for name in after[0] if name not in before[0]]
            faults.append(f"{line.where} leaves {left or ''} {after[1] or ''}")
            with contextlib.suppress(Exception):
                wait_until(lambda threads=threads: num_threads() <= threads, timeout_s=0.2)
        else:
            wait_until(lambda threads=threads: num_threads() <= threads)
        try:
            again(made, what)
        except Exception as error:
            faults.append(f"{line.where}: then {told(error)}")
    report(faults)


def again(settings, what):
    """Make a stream at the same place, at once."""
    try:
        stream = create_stream(settings)
    except FileExistsError:
        if what == "overwrite":
            raise
        stream = create_stream(settings.model_copy(update={"overwrite": True}))
    with stream:
        stream.append(frame_of(0))
    check_stream(stream, 1)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("memory", "new"),
        ("memory, bounded", "populated"),
        ("memory, ring", "new"),
        ("disk", "new"),
        ("disk", "overwrite"),
        ("disk, bounded", "overwrite"),
        ("spilled, bounded", "new"),
        *((place, "new") for place in STAGED),
        *((place, "overwrite") for place in STAGED[:1]),
    ],
)
def test_an_interrupt_at_any_line_of_create_stream_leaves_nothing(tmp_path, place, what):
    in_child(interrupt_create, tmp_path, place, what)


def interrupt_close(folder, place, then):
    folder, faults = Path(folder), []
    gc.freeze()
    warnings.filterwarnings("ignore", "A ScratchStream", UserWarning)
    numbers = lines_of(begin(place, folder / "first").close)
    for number in numbers:
        before = sorted(descriptors().values())
        stream = begin(place, folder / str(number))
        path = stream.path
        with contextlib.suppress(KeyboardInterrupt), AtLine(number, interrupt) as line:
            stream.close()
        try:
            if then == "close":
                stream.close()
                check_stream(stream, FRAMES)
            arrays, stream = stream.arrays, None
            gc.collect()
            check_frames(arrays[0], FRAMES)
            arrays = None
            if path is not None:
                check_dataset(path, FRAMES)
        except Exception as error:
            faults.append(f"{line.where}: {told(error)}")
        arrays = stream = None
        gc.collect()
        left = [name for name in descriptors().values() if name not in before]
        # Of a temporary folder its lock is kept until the end, with its name.
        left = [name for name in left if not (path and name == str(path))]
        if left:
            faults.append(f"{line.where} leaves {left}")
    report(faults)


@pytest.mark.parametrize("then", ["close", "drop"])
@pytest.mark.parametrize("place", ["memory", "disk", "disk, ring", "left memory", *STAGED])
def test_after_an_interrupt_at_any_line_of_close_the_dataset_is_finished(
    tmp_path, place, then
):
    in_child(interrupt_close, tmp_path, place, then)


# ------------------------------------------------------------------ an interrupt of C


CALLS = {
    "append": lambda c, frame: c.append(c.state, frame.ctypes.data),
    "append with records": lambda c, frame: c.append_rows(
        c.state, frame.ctypes.data, frame.strides[0], 5, 6
    ),
    "skip": lambda c, frame: c.skip(c.state, 40),
}


def interrupt_c(folder, place, call):
    folder, faults = Path(folder), []
    frame = frame_of(4)

    def begin_on_the_edge(number):
        # The fifth frame is the one that leaves memory.
        stream = create_stream(settings_of(place, folder / str(number)))
        for i in range(4):
            stream.append(frame_of(i))
        return stream

    with begin_on_the_edge("first") as stream:
        numbers = lines_of(lambda: CALLS[call](native(stream), frame))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    frames = 44 if call == "skip" else 5
    for number in numbers:
        stream, arrived, statuses = begin_on_the_edge(number), [], []
        c = native(stream)
        try:
            with AtLine(number, lambda: signal.raise_signal(signal.SIGINT)) as line:
                statuses.append(CALLS[call](c, frame))
            for _ in range(1000):
                pass  # here at the latest
        except KeyboardInterrupt:
            arrived.append(True)
        if not line.has_acted:
            continue
        found = stream.frames_written
        if statuses not in ([], [OK]) or found != frames or not arrived:
            faults.append(f"{line.where}: {statuses}, {found} frames, {arrived=}")
        else:
            check_frames(stream.arrays[0], 5 if call != "skip" else 4)
        stream.close()
    report(faults)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("place", ["memory", "disk", "left memory", *STAGED])
def test_an_interrupt_while_c_asks_for_memory_costs_no_frame_and_arrives_later(
    tmp_path, place, call
):
    in_child(interrupt_c, tmp_path, place, call)


def interrupt_thread_of_c(folder, place):
    """A call of C on another thread asks Python; the interrupt is the main thread's."""
    stream = create_stream(settings_of(place, Path(folder) / "d"))
    c, frame, statuses = native(stream), frame_of(0), []

    def append():
        statuses.extend(c.append(c.state, frame.ctypes.data) for _ in range(20))

    thread = threading.Thread(target=append)
    with contextlib.suppress(KeyboardInterrupt):
        thread.start()
        signal.raise_signal(signal.SIGINT)
    thread.join()
    assert statuses == [OK] * 20
    stream.close()
    assert stream.frames_written == 20
    assert (stream.arrays[0][...] == frame).all()


@pytest.mark.parametrize("place", [p for p in PLACES if "t" not in PLACES[p]])
def test_an_interrupt_of_the_main_thread_is_none_of_a_thread_of_c(tmp_path, place):
    in_child(interrupt_thread_of_c, tmp_path, place)
