"""Events: callbacks for new frames, off the thread that appends them.

An append does nothing for events. Each callback has a thread that follows the frame cursor
and derives the updates from the numbers of the frames. So the cursor may belong to this
process or another, and a callback that falls behind costs one stored number and delays no
other callback.
"""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Literal, Protocol, Self, get_args

from scratchwriter.coords import CoordSystem, CoordUpdate
from scratchwriter.plan import Skips, skip_of

EventName = Literal["coords_changed", "coords_expanded"]
Callback = Callable[[CoordUpdate], object]

# How late a callback may be before it gets only the newest frame.
_STALE_S = 0.05  # "coords_expanded", which is for displays
_FOLD_S = 1.0  # "coords_changed"
_CHECK_S = 0.1  # how often to check whether the acquisition is over
# Frames are polled for this often. If none have come for a while, polls become rarer, in
# proportion to that time, so that they cost next to nothing.
_LEAST_POLL_S, _MOST_POLL_S, _POLLS = 0.0005, 0.02, 2000
_COMPLAIN_S = 1.0  # between two messages about a callback that raises

_log = logging.getLogger(__name__)


class Frames(Protocol):
    """The progress of an acquisition."""

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Wait until the cursor is past `seen`, or the timeout; return the cursor."""

    def is_over(self) -> bool:
        """Return whether no more frames come; to be called before reading the cursor."""

    def give_up(self) -> None:
        """Make the threads that wait return: the acquisition is over."""

    def skips(self, first: int, stop: int) -> Skips:
        """Return the skipped ranges that contain any of these frames."""


class Listener:
    """A callback that is called for frames; made by `on`, then started. A context manager.

    Attributes
    ----------
    is_stopped : bool
        Whether `stop` was called.
    num_folded : int
        How many frames "coords_changed" left out, because the callback was more than a
        second behind.
    """

    def __init__(
        self,
        event: EventName,
        callback: Callback,
        coords: CoordSystem,
        frames: Frames,
        owner: object,
    ) -> None:
        self.event = event
        self._owner = owner
        self.is_stopped = False
        self.num_folded = 0
        self._callback, self._coords, self._frames = callback, coords, frames
        self._num_failures = 0
        self._complained_s = -_COMPLAIN_S
        self._next = 0  # frame to report
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Call it for the frames from now on."""
        is_over = self._frames.is_over()
        self._next = self._frames.wait(-1, 0, 0)
        if not is_over:
            self._thread = threading.Thread(
                target=self._run, name=f"scratchwriter-{self.event}", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Make no more calls. One that is under way may still end after this returns."""
        self.is_stopped = True

    def join(self, timeout_s: float) -> None:
        """Wait for the last call after the acquisition is over, or for the timeout."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Listener {self.event} {self._callback!r}>"

    # ------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            self._follow()
        except Exception:  # the files are damaged or gone
            _log.exception("%r gets no more frames", self)

    def _follow(self) -> None:
        report = {
            "coords_changed": self._report_all,
            "coords_expanded": self._report_marks,
        }
        last_news_s = time.monotonic()
        while not self.is_stopped:
            is_over = self._frames.is_over()
            quiet_s = time.monotonic() - last_news_s
            poll_s = min(max(quiet_s / _POLLS, _LEAST_POLL_S), _MOST_POLL_S)
            cursor = self._frames.wait(self._next, 0 if is_over else _CHECK_S, poll_s)
            if cursor > self._next:
                report[self.event](cursor)
                last_news_s = time.monotonic()
            elif is_over:
                return

    def _report_all(self, cursor: int) -> None:
        """Report each frame before the cursor, and a skipped range as one."""
        since_s = time.monotonic()
        skips = self._frames.skips(self._next, cursor)
        while self._next < cursor and not self.is_stopped:
            first = self._next
            skip = skip_of(first, skips)
            last = first if skip is None else min(skip.stop, cursor) - 1
            if time.monotonic() - since_s > _FOLD_S:
                last = cursor - 1
                self._fold(last - first - skips.num_between(first, last))
            self._next = last + 1
            is_mark = self._coords.next_mark(first, last + 1) is not None
            self._call(self._coords.update(last, is_mark))

    def _report_marks(self, cursor: int) -> None:
        """Report each frame before the cursor that has a new coordinate."""
        since_s = time.monotonic()
        skips = self._frames.skips(self._next, cursor)
        while not self.is_stopped:
            mark = self._coords.next_mark(self._next, cursor)
            if mark is None:
                self._next = cursor
                return
            skip = skip_of(mark, skips)
            last = mark if skip is None else min(skip.stop, cursor) - 1
            # A late callback gets only the newest frame, whose update has all coordinates.
            if time.monotonic() - since_s > _STALE_S:
                last = cursor - 1
            self._next = last + 1
            self._call(self._coords.update(last, True))

    def _call(self, update: CoordUpdate) -> None:
        try:
            _need_done(self._callback(update))
        except BaseException:
            self._num_failures += 1
            if time.monotonic() - self._complained_s > _COMPLAIN_S:
                self._complained_s = time.monotonic()
                _log.exception(
                    "A callback of %r failed at frame %d (failure %d): %r",
                    self.event,
                    update.frame_number,
                    self._num_failures,
                    self._callback,
                )

    def _fold(self, num_frames: int) -> None:
        if num_frames and not self.num_folded:
            _log.warning(
                "A callback of %r is slower than the camera and does not get every "
                "frame: %r. Its listener counts those left out (num_folded).",
                self.event,
                self._callback,
            )
        self.num_folded += num_frames


def need_callback(callback: object) -> None:
    """Check that something can be called, and does its work when it is.

    Raises
    ------
    TypeError
        If it cannot be called, or only makes a coroutine.
    """
    if not callable(callback):
        raise TypeError(f"callback must be callable, got {callback!r}")
    for function in (callback, type(callback).__call__):
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise _not_awaited(callback)


def _need_done(returned: object) -> None:
    """Check that a callback has done its work, as far as what it returned tells."""
    if isinstance(returned, Coroutine | AsyncGenerator):
        if isinstance(returned, Coroutine):
            returned.close()  # else Python warns, much later, that it was never awaited
        raise _not_awaited(returned)


def _not_awaited(what: object) -> TypeError:
    return TypeError(
        f"callback must be a plain function, because nobody would await {what!r}. Give a "
        "function that calls, for example, "
        "loop.call_soon_threadsafe(queue.put_nowait, update)."
    )


class Events:
    """The listeners of an acquisition."""

    def __init__(self, coords: CoordSystem, frames: Frames) -> None:
        self._coords, self._frames = coords, frames
        # A set, because each change of it is atomic: several threads may call `on`, without
        # a lock that an interrupt could leave locked.
        self._listeners: set[Listener] = set()

    def on(self, event: EventName, callback: Callback, owner: object = None) -> Listener:
        """Call a callback for the frames from now on; see `ScratchStream.on`.

        The `owner` is kept alive as long as the callback can be called.
        """
        if event not in get_args(EventName):
            raise ValueError(
                f"There is no event {event!r}: use 'coords_changed' for every frame, or "
                "'coords_expanded' for those with a new coordinate."
            )
        need_callback(callback)
        listener = Listener(event, callback, self._coords, self._frames, owner)
        for other in tuple(self._listeners):
            if other.is_stopped:
                self._listeners.discard(other)
        self._listeners.add(listener)  # first: `finish` waits for what has been started
        listener.start()
        return listener

    def finish(self, timeout_s: float) -> None:
        """Wait for the last calls of an acquisition that is over, or for the timeout.

        The timeout passes if a callback waits for the caller; its last calls come later.
        """
        self._frames.give_up()
        end_s = time.monotonic() + timeout_s
        for listener in tuple(self._listeners):
            self._listeners.discard(listener)
            if not listener.is_stopped:
                listener.join(max(end_s - time.monotonic(), 0))
