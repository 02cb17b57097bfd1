"""Waiting where threads are no threads: gevent makes them take turns on one.

A wait in C never gives up its turn, so that nobody else would have one. There it is a poll,
and a sleep that gevent has replaced.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def take_turns() -> bool:
    """Return whether gevent has replaced the threads of this process."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey is not None and bool(monkey.is_module_patched("threading"))


def wait_for_frames(
    wait: Callable[[int, int], int], seen: int, timeout_s: float, poll_s: float
) -> int:
    """Wait until a cursor is past `seen`, or the timeout; return the cursor.

    Parameters
    ----------
    wait : callable(timeout_ns, poll_ns) -> int
        Waits without the GIL.
    """
    if not take_turns():
        return wait(round(timeout_s * 1e9), round(poll_s * 1e9))
    end_s = time.monotonic() + timeout_s
    while (cursor := wait(0, 0)) <= seen and (left_s := end_s - time.monotonic()) > 0:
        time.sleep(min(poll_s, left_s))
    return cursor
