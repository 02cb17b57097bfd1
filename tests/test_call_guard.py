"""CallGuard: no call of an object runs in the middle of another one of the same thread."""

import signal
import threading

import pytest

from scratchwriter._native.call_guard import CallGuard


@pytest.fixture
def guard():
    return CallGuard()


@pytest.fixture
def lock():
    return threading.Lock()


def test_an_action_runs_with_its_lock_and_gives_its_result(guard, lock):
    assert guard.run(lambda: (lock.locked(), 5), lock) == (True, 5)
    assert not lock.locked()


def test_several_locks_are_taken_in_order_and_given_back(guard):
    locks = threading.Lock(), threading.Lock()
    assert guard.run(lambda: [lock.locked() for lock in locks], *locks) == [True, True]
    assert [lock.locked() for lock in locks] == [False, False]


def test_what_an_action_raises_is_raised_and_its_lock_is_free(guard, lock):
    with pytest.raises(ZeroDivisionError):
        guard.run(lambda: 1 / 0, lock)
    assert not lock.locked()
    assert guard.run(lambda: 5, lock) == 5


def test_afterwards_is_now_outside_of_a_call(guard):
    done = []
    guard.after(lambda: done.append(1))
    assert done == [1]


def test_afterwards_is_when_the_call_of_this_thread_has_ended(guard, lock):
    done = []

    def action():
        guard.after(lambda: done.append(lock.locked()))
        guard.run(lambda: guard.after(lambda: done.append("nested")))
        assert done == []

    guard.run(action, lock)
    assert done == [False, "nested"]


def test_what_is_for_afterwards_is_done_when_the_call_fails_too(guard, lock):
    done = []

    def action():
        guard.after(lambda: done.append(1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        guard.run(action, lock)
    assert done == [1]
    assert not lock.locked()


def test_of_what_is_for_afterwards_all_is_done_and_the_first_error_is_raised(guard):
    done = []

    def fail(error):
        done.append(error)
        raise error

    def action():
        for error in (KeyError(1), ValueError(2)):
            guard.after(lambda error=error: fail(error))
        guard.after(lambda: done.append(3))

    with pytest.raises(KeyError):
        guard.run(action)
    assert [type(what) for what in done] == [KeyError, ValueError, int]


def test_a_call_with_a_lock_is_refused_in_the_middle_of_another(guard, lock):
    def action():
        with pytest.raises(RuntimeError, match="Cannot flush in the middle of another"):
            guard.run(lambda: 5, lock, what="flush")
        return guard.run(lambda: 5)  # without a lock nothing is in its way

    assert guard.run(action, lock) == 5


def test_another_thread_waits_for_the_lock_and_defers_nothing(guard, lock):
    order, is_inside, may_end = [], threading.Event(), threading.Event()

    def first():
        is_inside.set()
        may_end.wait(60)
        order.append("first")

    threads = [threading.Thread(target=guard.run, args=(first, lock))]
    threads[0].start()
    is_inside.wait(60)
    second = threading.Thread(target=guard.run, args=(lambda: order.append("second"), lock))
    second.start()
    guard.after(lambda: order.append("third"))  # this thread is in no call
    may_end.set()
    for thread in [*threads, second]:
        thread.join(60)
    assert order == ["third", "first", "second"]


def test_an_interrupt_while_a_thread_waits_for_the_lock_leaves_nothing(guard, lock):
    done = []

    def interrupt(*_):
        guard.after(lambda: done.append(1))
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    lock.acquire()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            guard.run(lambda: 5, lock)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        lock.release()
    assert done == [1]
    assert guard.run(lambda: 5, lock) == 5
