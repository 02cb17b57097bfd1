"""What callbacks are told of frames."""

import asyncio
import copy
import functools
import gc
import inspect
import logging
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from scratchwriter import (
    AcquisitionSettings,
    CoordUpdate,
    Dimension,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from waiting import wait_until

FRAME = np.ones((4, 5), "uint16")


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """No callback is late because the machine is slow; the tests of late ones set this."""
    for name in ("_STALE_S", "_FOLD_S", "_COMPLAIN_S"):
        monkeypatch.setattr(f"scratchwriter.events.{name}", 600.0)


@pytest.fixture
def stream(make_settings, place):
    sizes = {"t": None, "p": ["A", "B"], "c": ["DAPI", "FITC"], "y": 4, "x": 5}
    with create_stream(make_settings(sizes, **place)) as stream:
        yield stream


def told(stream, event, act):
    """What a listener is told of while something is done, and until the end."""
    updates = []
    stream.on(event, updates.append)
    act()
    stream.close()
    return updates


def append(stream, n):
    for _ in range(n):
        stream.append(FRAME)


def test_every_frame_is_reported_in_order(stream):
    updates = told(stream, "coords_changed", lambda: append(stream, 1000))
    assert [u.frame_number for u in updates] == list(range(1000))
    slots = [(t, p, c) for t in range(250) for p in range(2) for c in range(2)]
    assert [tuple(u.current_indices.values()) for u in updates] == [
        (*slot, 0, 0) for slot in slots
    ]


def test_every_new_extent_is_reported(stream):
    updates = told(stream, "coords_expanded", lambda: append(stream, 9))
    assert [u.frame_number for u in updates] == [0, 1, 2, 4, 8]
    assert all(u.is_high_water_mark for u in updates)
    assert updates[1].max_coords == {
        "t": range(1),
        "p": ("A",),
        "c": ("DAPI", "FITC"),
        "y": range(4),
        "x": range(5),
    }
    assert updates[-1].max_coords["t"] == range(3)


def test_only_what_has_a_new_coordinate_is_a_high_water_mark(stream):
    updates = told(stream, "coords_changed", lambda: append(stream, 9))
    marks = [u.frame_number for u in updates if u.is_high_water_mark]
    assert marks == [0, 1, 2, 4, 8]


def test_an_update_cannot_be_changed(stream):
    (update,) = told(stream, "coords_changed", lambda: append(stream, 1))
    with pytest.raises(FrozenInstanceError):
        update.frame_number = 3
    with pytest.raises(TypeError):
        update.max_coords["c"] = ()
    with pytest.raises(TypeError):
        update.max_coords["c"][0] = "x"
    with pytest.raises(TypeError):
        update.current_indices["t"] = 3
    assert isinstance(update, CoordUpdate)


def test_what_is_skipped_together_is_reported_together(stream):
    def act():
        append(stream, 1)
        stream.skip(frames=10**6)
        append(stream, 1)

    updates = told(stream, "coords_changed", act)
    assert [u.frame_number for u in updates] == [0, 10**6, 10**6 + 1]


def test_batches_and_slots_are_reported_frame_by_frame(stream):
    def act():
        stream.extend(np.ones((5, 4, 5), "uint16"))
        with stream.slot() as frame:
            frame[...] = 1

    updates = told(stream, "coords_changed", act)
    assert [u.frame_number for u in updates] == list(range(6))


def test_a_listener_is_called_from_when_it_was_added_until_it_is_stopped(stream):
    append(stream, 3)
    updates, others = [], []
    listener = stream.on("coords_changed", updates.append)
    stream.append(FRAME)
    wait_until(lambda: updates)
    listener.stop()
    with stream.on("coords_changed", others.append):
        stream.append(FRAME)
        wait_until(lambda: others)
    stream.append(FRAME)
    stream.close()
    assert [u.frame_number for u in updates] == [3]
    assert [u.frame_number for u in others] == [4]


def test_each_callback_runs_in_a_thread_of_its_own(stream):
    threads = [set(), set()]
    stream.on("coords_changed", lambda _: threads[0].add(threading.current_thread()))
    stream.on("coords_expanded", lambda _: threads[1].add(threading.current_thread()))
    append(stream, 5)
    stream.close()
    assert [len(of_one) for of_one in threads] == [1, 1]
    together = threads[0] | threads[1]
    assert len(together) == 2
    assert threading.current_thread() not in together
    assert not any(thread.is_alive() for thread in together)


def test_a_slow_callback_holds_up_no_other(stream):
    slow, fast, may_go_on = [], [], threading.Event()

    def look(update):
        slow.append(update)
        may_go_on.wait(60)

    stream.on("coords_changed", look)
    stream.on("coords_changed", fast.append)
    append(stream, 150)
    wait_until(lambda: len(fast) == 150)
    assert len(slow) <= 1
    may_go_on.set()
    stream.close()
    assert len(slow) == 150


def test_stopped_listeners_are_forgotten(stream):
    for _ in range(10):
        stream.on("coords_changed", lambda _: None).stop()
    kept = stream.on("coords_changed", lambda _: None)
    assert stream._events._listeners == {kept}


def test_listeners_at_different_frames_each_receive_what_holds_there(make_settings):
    from scratchwriter.coords import CoordSystem
    from scratchwriter.plan import make_plan

    settings = make_settings({"t": None, "y": 4, "x": 5})
    coords, wrong = CoordSystem(settings, make_plan(settings)), []

    def walk(step):
        for frame in range(0, 20_000, step):
            update = coords.update(frame, True)
            if update.max_coords["t"] != range(frame + 1):
                wrong.append(frame)

    threads = [threading.Thread(target=walk, args=(step,)) for step in (1, 2, 3)]
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert wrong == []


def test_listeners_may_be_stopped_while_garbage_is_collected(stream):
    class Viewer:
        def __init__(self):
            self.listener = stream.on("coords_changed", lambda _: None)
            self.itself = self

        def __del__(self):
            self.listener.stop()

    before = gc.get_threshold()
    gc.set_threshold(2)
    try:
        for _ in range(50):
            Viewer()
            append(stream, 1)
    finally:
        gc.set_threshold(*before)


def test_many_skips_before_cost_listeners_nothing(make_settings):
    stream = create_stream(make_settings({"t": None, "y": 4, "x": 5}))
    for _ in range(20_000):
        stream.skip()
        stream.append(FRAME)
    ranges = stream._events._frames.skips(39_990, 40_000)
    assert len(ranges) == 5
    updates = told(stream, "coords_changed", lambda: append(stream, 3))
    assert [u.frame_number for u in updates] == [40_000, 40_001, 40_002]


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(1), KeyboardInterrupt()])
def test_an_exception_is_logged_and_stops_nothing(stream, caplog, error):
    def fail(_):
        raise error

    stream.on("coords_changed", fail)
    updates = told(stream, "coords_changed", lambda: append(stream, 3))
    assert len(updates) == 3
    failures = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(failures) == 1  # one message per second
    assert "failed at frame 0" in failures[0].message
    assert failures[0].exc_info[1] is error


def test_a_slow_display_receives_the_newest(stream, monkeypatch):
    monkeypatch.setattr("scratchwriter.events._STALE_S", 0.05)
    updates, is_behind = [], threading.Event()

    def show(update):
        updates.append(update)
        is_behind.wait(60)
        time.sleep(0.1)

    stream.on("coords_expanded", show)
    append(stream, 1)
    wait_until(lambda: updates)
    append(stream, 799)
    is_behind.set()
    stream.close()
    assert len(updates) <= 3  # the first, one that is not late yet, and the newest
    assert updates[-1].max_coords["t"] == range(200)
    numbers = [u.frame_number for u in updates]
    assert numbers == sorted(set(numbers))


def test_a_callback_slower_than_the_camera_learns_how_much_it_missed(
    stream, monkeypatch, caplog
):
    monkeypatch.setattr("scratchwriter.events._FOLD_S", 1.0)
    updates, is_behind = [], threading.Event()

    def look(update):
        updates.append(update)
        is_behind.wait(60)
        time.sleep(0.02)

    listener = stream.on("coords_changed", look)
    append(stream, 1)
    wait_until(lambda: updates)
    stream.skip(frames=7)
    append(stream, 192)
    is_behind.set()
    stream.close()
    assert updates[-1].frame_number == 199
    assert len(updates) < 100
    assert listener.num_folded > 0
    # Each frame was told of, or counted; the seven that were skipped are told of as one.
    assert len(updates) + listener.num_folded == 200 - 6
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "slower than the camera" in warning.message


def test_only_what_came_since_is_counted_as_folded(make_settings, monkeypatch, caplog):
    monkeypatch.setattr("scratchwriter.events._FOLD_S", 0.0)
    updates, is_behind = [], threading.Event()

    def look(update):
        updates.append(update)
        is_behind.wait(60)

    stream = create_stream(make_settings({"t": None, "y": 4, "x": 5}))
    stream.skip(frames=50)
    append(stream, 40)
    listener = stream.on("coords_changed", look)
    append(stream, 1)
    wait_until(lambda: updates)
    assert listener.num_folded == 0
    assert not caplog.records
    append(stream, 10)
    is_behind.set()
    stream.close()
    assert [u.frame_number for u in updates] == [90, 100]
    assert listener.num_folded == 9
    assert len(caplog.records) == 1


def test_close_from_a_callback_or_with_one_that_waits_for_it_is_no_deadlock(
    make_settings, monkeypatch
):
    monkeypatch.setattr("scratchwriter.stream._CALLBACKS_TIMEOUT_S", 0.2)
    settings = make_settings({"t": None, "y": 4, "x": 5})
    stream = create_stream(settings)
    stream.on("coords_changed", lambda _: stream.close())
    stream.append(FRAME)
    wait_until(lambda: stream.closed)

    stream, is_closed, updates = create_stream(settings), threading.Event(), []

    def wait_for_main_thread(update):
        is_closed.wait(60)
        updates.append(update)

    stream.on("coords_changed", wait_for_main_thread)
    append(stream, 2)
    stream.close()
    assert not updates
    is_closed.set()
    wait_until(lambda: len(updates) == 2)


def test_listeners_may_come_late_and_come_again(stream):
    append(stream, 2)
    stream.on("coords_changed", lambda _: None).stop()
    time.sleep(0.05)  # the thread ends: nobody listens
    updates = told(stream, "coords_changed", lambda: append(stream, 2))
    assert [u.frame_number for u in updates] == [2, 3]
    stream.on("coords_changed", updates.append)  # closed: nothing to be told
    assert len(updates) == 2


def test_wrong_events_and_callbacks_are_refused(stream):
    with pytest.raises(ValueError, match="no event 'frame'"):
        stream.on("frame", print)
    with pytest.raises(TypeError, match="callable"):
        stream.on("coords_changed", 3)


def test_a_view_tells_when_its_coordinates_change(stream):
    calls, fixed = [], []
    view = stream.view()
    assert view.coords_changed.connect(lambda: calls.append(view.shape[:3])) is not None
    stop = view.coords_changed.connect(lambda: fixed.append(1))
    view.coords_changed.disconnect(stop)
    with pytest.raises(ValueError, match="not connected"):
        view.coords_changed.disconnect(stop)
    append(stream, 5)
    stream.close()
    assert calls[-1] == (2, 2, 2)
    assert not fixed


def test_a_view_of_a_bounded_plan_that_does_not_change_tells_nothing(make_settings):
    calls = []
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5})) as stream:
        view = stream.view(dynamic_shape=False)
        view.coords_changed.connect(lambda: calls.append(1))
        append(stream, 3)
    assert not calls


def test_coordinates_are_those_of_the_dimensions():
    settings = AcquisitionSettings(
        dimensions=[
            Dimension(name="t", count=3, type="time", coords=[0.0, 0.7, 2.0]),
            Dimension(name="state", count=2, type="other", coords=["on", "off"]),
            *dims_from_standard_axes({"y": 4, "x": 5}),
        ],
        dtype="uint16",
    )
    stream = create_stream(settings)
    updates = told(stream, "coords_changed", lambda: append(stream, 3))
    assert updates[-1].max_coords["t"] == (0.0, 0.7)
    assert updates[-1].max_coords["state"] == ("on", "off")


def test_in_a_ring_the_coordinates_are_those_that_are_kept(make_settings):
    settings = make_settings({"t": None, "y": 4, "x": 5}, format=ScratchFormat(keep_last=3))
    stream = create_stream(settings)
    updates = told(stream, "coords_changed", lambda: append(stream, 9))
    assert updates[-1].max_coords["t"] == range(6, 9)
    assert updates[-1].current_indices["t"] == 8


def test_a_stream_with_listeners_that_is_never_closed_ends_with_its_program(tmp_path):
    program = textwrap.dedent("""
        import numpy as np
        from scratchwriter import *
        stream = create_stream(AcquisitionSettings(
            root_path="data", dtype="uint16",
            dimensions=dims_from_standard_axes({"t": None, "y": 4, "x": 5})))
        stream.on("coords_changed", print)
        stream.append(np.ones((4, 5), "uint16"))
    """)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=30
    )
    assert ran.returncode == 0, ran.stderr


def test_a_stream_that_is_not_closed_is_collected_with_its_listeners(make_settings):
    stream = create_stream(make_settings({"t": None, "y": 4, "x": 5}))
    updates = []
    stream.on("coords_changed", updates.append)
    append(stream, 1)
    with pytest.warns(UserWarning, match="without being closed"):
        del stream
    wait_until(lambda: updates)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_receives_nothing_and_can_end(stream):
    stream.on("coords_changed", lambda _: None)
    append(stream, 1)
    child = os.fork()
    if child == 0:
        stream.close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_both_events_tell_a_skip_as_one(make_settings):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5})) as stream:
        told = {"coords_expanded": [], "coords_changed": []}
        for event, updates in told.items():
            stream.on(event, updates.append)
        stream.skip(frames=5)
        stream.append(np.ones((4, 5), "uint16"))
    for updates in told.values():
        assert [update.frame_number for update in updates] == [4, 5]


def test_an_update_can_be_sent_to_another_process_and_put_into_a_set(stream):
    (update, *_) = told(stream, "coords_expanded", lambda: append(stream, 1))
    again = pickle.loads(pickle.dumps(update))
    assert again == copy.deepcopy(update) == update
    assert {update, again} == {update}
    with pytest.raises(TypeError):
        again.current_indices["t"] = 3


def test_closing_does_not_wait_for_a_listener_that_was_stopped(stream, monkeypatch):
    monkeypatch.setattr("scratchwriter.stream._CALLBACKS_TIMEOUT_S", 1e6)
    go_on = threading.Event()
    watchdog = threading.Timer(60, go_on.set)
    watchdog.start()
    listener = stream.on("coords_changed", lambda _: go_on.wait())
    append(stream, 1)
    listener.stop()
    stream.close()
    stream.close()
    assert not go_on.is_set()
    watchdog.cancel()
    go_on.set()


# -------------------------------------------------------------------------- coroutines


class AsyncCallable:
    async def __call__(self, update):
        """Never run."""

    async def method(self, update):
        """Never run."""


async def coroutine(update):
    """Never run."""


async def generator(update):
    yield update


COROUTINES = {
    "function": coroutine,
    "method": AsyncCallable().method,
    "object": AsyncCallable(),
    "partial": functools.partial(coroutine),
    "generator": generator,
}


@pytest.mark.parametrize("name", COROUTINES)
def test_a_coroutine_as_a_callback_is_refused(make_settings, tmp_path, name):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream, open_scratch(tmp_path / "d") as dataset:
        for on in (stream.on, dataset.on):
            with pytest.raises(TypeError, match=r"loop\.call_soon_threadsafe"):
                on("coords_changed", COROUTINES[name])
        for view in (stream.view(), dataset.view()):
            with pytest.raises(TypeError, match="callback must be a plain function"):
                view.coords_changed.connect(COROUTINES[name])


RETURN_A_COROUTINE = {
    "lambda": lambda update: coroutine(update),
    "partial of an object": functools.partial(AsyncCallable()),
    "lambda, of a generator": lambda update: generator(update),
}


@pytest.mark.parametrize("name", RETURN_A_COROUTINE)
def test_a_callback_that_returns_a_coroutine_is_reported(stream, caplog, name):
    stream.on("coords_changed", RETURN_A_COROUTINE[name])
    updates = told(stream, "coords_changed", lambda: append(stream, 3))
    assert len(updates) == 3
    (failure,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "failed at frame 0" in failure.message
    assert "loop.call_soon_threadsafe" in str(failure.exc_info[1])


def test_a_coroutine_that_a_callback_returns_is_closed(stream, caplog):
    made = []

    def give():
        made.append(coroutine(None))
        return made[-1]

    stream.view().coords_changed.connect(give)
    append(stream, 1)
    stream.close()
    (given,) = made
    assert inspect.getcoroutinestate(given) == inspect.CORO_CLOSED
    (failure,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert "nobody would await <coroutine object coroutine" in str(failure.exc_info[1])


def test_what_runs_by_itself_may_be_returned(stream, caplog):
    async def main():
        loop, updates = asyncio.get_running_loop(), []

        async def note(update):
            updates.append(update)

        stream.on(
            "coords_changed",
            lambda update: asyncio.run_coroutine_threadsafe(note(update), loop),
        )
        append(stream, 3)
        while len(updates) < 3:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert not [r for r in caplog.records if r.levelno == logging.ERROR]
