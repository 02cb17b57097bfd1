"""The thread that brings files to the device at regular times."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress


class Syncer:
    """Calls a method again and again, as long as its owner lives.

    Parameters
    ----------
    flush : bound method
        What to call. What it raises becomes a warning; the next call may succeed.
    interval_s : float
        Between two calls.
    """

    def __init__(self, flush: Callable[[], None], interval_s: float) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(
            target=_run,
            args=(weakref.WeakMethod(flush), self._stopping, interval_s),
            name="scratchwriter-sync",
            daemon=True,
        )

    def start(self) -> None:
        """Begin to call it."""
        self._thread.start()

    def stop(self) -> None:
        """End it; a call under way is waited for."""
        self._stopping.set()
        # Garbage may be collected, and a stream with it, on that very thread.
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join()


def warn_in_thread(text: str) -> None:
    """Warn; where that raises, the thread continues all the same."""
    with suppress(Exception):
        warnings.warn(text, stacklevel=3)


def _run(
    flush: weakref.WeakMethod[Callable[[], None]],
    stopping: threading.Event,
    interval_s: float,
) -> None:
    while not stopping.wait(interval_s):
        method = flush()
        if method is None:
            return
        try:
            method()
        except Exception as error:
            warn_in_thread(f"The data is not on the device: {error}")
        del method
