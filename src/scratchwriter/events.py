"""Telling callbacks of frames, off the thread that appends them.

An append does nothing for it. A thread for each callback walks behind the frame cursor and
works out from the numbers of the frames what there is to tell; so it is all the same
whether the cursor is of this process or of another one's, and however far a callback falls
behind, nothing is kept for it but a number, and no other callback waits for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol, Self, get_args

from scratchwriter.coords import CoordSystem, CoordUpdate
from scratchwriter.plan import Skips, skip_of

EventName = Literal["coords_changed", "coords_expanded"]
Callback = Callable[[CoordUpdate], object]

# How late a callback may be before it is told of the newest only.
_STALE_S = 0.05  # "coords_expanded", which is for displays
_FOLD_S = 1.0  # "coords_changed"
_CHECK_S = 0.1  # how often to look whether there is an end
# Frames are looked for this often, or, if none have come for a while, so much more rarely
# that a look costs nothing and comes in time compared with that while.
_LEAST_POLL_S, _MOST_POLL_S, _POLLS = 0.0005, 0.02, 2000
_COMPLAIN_S = 1.0  # between two messages about a callback that raises

_log = logging.getLogger(__name__)


class Frames(Protocol):
    """Who knows of the frames of an acquisition."""

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Return the cursor, when it is past `seen`, at the latest after the timeout."""

    def is_over(self) -> bool:
        """Return whether no more frames come; asked before the cursor."""

    def give_up(self) -> None:
        """Have those who wait wait no more: it is over."""

    def skips(self, first: int, stop: int) -> Skips:
        """Return the skipped ranges that have one of these frames."""


class Listener:
    """A callback that is told of frames; made by `on`. A context manager.

    Attributes
    ----------
    is_stopped : bool
        Whether `stop` was called.
    num_folded : int
        How many frames "coords_changed" did not tell of, because the callback was more
        than a second behind.
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
        is_over = frames.is_over()
        self._next = frames.wait(-1, 0, 0)  # frame that it is told of
        self._thread: threading.Thread | None = None
        if not is_over:
            self._thread = threading.Thread(
                target=self._run, name=f"scratchwriter-{event}", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """Tell it no more. It may be in the middle of being told just now."""
        self.is_stopped = True

    def join(self, timeout_s: float) -> None:
        """Return when all is told of an acquisition that is over, or time is up."""
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
        except Exception:  # the files are damaged, or not there any more
            _log.exception("%r is told of no more frames", self)

    def _follow(self) -> None:
        tell = {"coords_changed": self._tell_all, "coords_expanded": self._tell_marks}
        news_s = time.monotonic()
        while not self.is_stopped:
            is_over = self._frames.is_over()
            quiet_s = time.monotonic() - news_s
            poll_s = min(max(quiet_s / _POLLS, _LEAST_POLL_S), _MOST_POLL_S)
            cursor = self._frames.wait(self._next, 0 if is_over else _CHECK_S, poll_s)
            if cursor > self._next:
                tell[self.event](cursor)
                news_s = time.monotonic()
            elif is_over:
                return

    def _tell_all(self, cursor: int) -> None:
        """Tell of each frame before the cursor, and of what was skipped as of one."""
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
            self._tell(self._coords.update(last, is_mark))

    def _tell_marks(self, cursor: int) -> None:
        """Tell of each frame before the cursor that has a new coordinate."""
        since_s = time.monotonic()
        skips = self._frames.skips(self._next, cursor)
        while not self.is_stopped:
            mark = self._coords.next_mark(self._next, cursor)
            if mark is None:
                self._next = cursor
                return
            skip = skip_of(mark, skips)
            last = mark if skip is None else min(skip.stop, cursor) - 1
            # What is late is told of the newest only, which has all of the coordinates.
            if time.monotonic() - since_s > _STALE_S:
                last = cursor - 1
            self._next = last + 1
            self._tell(self._coords.update(last, True))

    def _tell(self, update: CoordUpdate) -> None:
        try:
            self._callback(update)
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
                "A callback of %r is slower than the camera and is not told of every "
                "frame: %r. Its listener counts them (num_folded).",
                self.event,
                self._callback,
            )
        self.num_folded += num_frames


class Events:
    """The listeners of an acquisition."""

    def __init__(self, coords: CoordSystem, frames: Frames) -> None:
        self._coords, self._frames = coords, frames
        # Each change is one step of a set: several threads may call, without a lock that an
        # interrupt could leave taken.
        self._listeners: set[Listener] = set()

    def on(self, event: EventName, callback: Callback, owner: object = None) -> Listener:
        """Have a callback told of the frames from now on; see `ScratchStream.on`.

        Who is the `owner` is kept as long as somebody is told.
        """
        if event not in get_args(EventName):
            raise ValueError(
                f"There is no event {event!r}: 'coords_changed' tells of every frame, "
                "'coords_expanded' of those with a new coordinate."
            )
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        listener = Listener(event, callback, self._coords, self._frames, owner)
        for other in tuple(self._listeners):
            if other.is_stopped:
                self._listeners.discard(other)
        self._listeners.add(listener)
        return listener

    def finish(self, timeout_s: float) -> None:
        """Return when all is told of an acquisition that is over, or time is up.

        Time is up if a callback waits for who calls this; it is told of the rest later.
        """
        self._frames.give_up()
        end_s = time.monotonic() + timeout_s
        for listener in tuple(self._listeners):
            self._listeners.discard(listener)
            if not listener.is_stopped:
                listener.join(max(end_s - time.monotonic(), 0))
