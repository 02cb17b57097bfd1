"""Telling callbacks of frames, off the thread that appends them.

An append does nothing for it. A thread walks behind the frame cursor and works out from
the numbers of the frames what there is to tell; so it is all the same whether the cursor
is of this process or of another one's, and however far a callback falls behind, nothing
is kept for it but two numbers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, Protocol, Self, get_args

from scratchwriter.coords import CoordSystem, CoordUpdate
from scratchwriter.plan import skip_of

EventName = Literal["coords_changed", "coords_expanded"]
Callback = Callable[[CoordUpdate], object]

# How late a callback may be before it is told of the newest only.
_STALE_S = 0.05  # "coords_expanded", which is for displays
_FOLD_S = 1.0  # "coords_changed"
_CHECK_S = 0.01  # how often to look whether there is an end
_POLL_S, _IDLE_POLL_S, _IDLE_S = 0.0005, 0.002, 1.0

_log = logging.getLogger(__name__)


class Frames(Protocol):
    """Who knows of the frames of an acquisition."""

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Return the cursor, when it is past `seen`, at the latest after the timeout."""

    def is_over(self) -> bool:
        """Tell whether no more frames come; asked before the cursor."""

    def skips(self) -> Sequence[range]:
        """Return which frames were skipped."""


class Listener:
    """A callback that is told of frames; made by `on`. A context manager.

    Attributes
    ----------
    num_folded : int
        How many frames "coords_changed" did not tell of, because the callback was more
        than a second behind.
    """

    def __init__(
        self,
        event: EventName,
        callback: Callback,
        first: int,
        forget: Callable[[Listener], None],
    ) -> None:
        self.event = event
        self.first = first  # frame that it is told of
        self.num_folded = 0
        self._callback = callback
        self._forget = forget

    def tell(self, update: CoordUpdate) -> None:
        """Call the callback, whatever it does; called by the thread of the events."""
        try:
            self._callback(update)
        except BaseException:
            _log.exception(
                "A callback of %r failed at frame %d: %r",
                self.event,
                update.frame_number,
                self._callback,
            )

    def fold(self, num_frames: int) -> None:
        """Note that it is not told of so many frames."""
        if self.num_folded == 0:
            _log.warning(
                "A callback of %r is slower than the camera and is not told of every "
                "frame: %r. Its listener counts them (num_folded).",
                self.event,
                self._callback,
            )
        self.num_folded += num_frames

    def stop(self) -> None:
        """Tell it no more. It may be in the middle of being told just now."""
        self._forget(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<Listener {self.event} {self._callback!r}>"


class Events:
    """The listeners of an acquisition, and the thread that tells them."""

    def __init__(self, coords: CoordSystem, frames: Frames) -> None:
        self._coords, self._frames = coords, frames
        self._lock = threading.Lock()
        self._listeners: tuple[Listener, ...] = ()
        self._thread: threading.Thread | None = None

    def on(self, event: EventName, callback: Callback) -> Listener:
        """Have a callback told of the frames from now on; see `ScratchStream.on`."""
        if event not in get_args(EventName):
            raise ValueError(
                f"There is no event {event!r}: 'coords_changed' tells of every frame, "
                "'coords_expanded' of those with a new coordinate."
            )
        if not callable(callback):
            raise TypeError(f"callback must be callable, got {callback!r}")
        cursor = self._frames.wait(-1, 0, 0)
        listener = Listener(event, callback, cursor, self._forget)
        with self._lock:
            self._listeners = (*self._listeners, listener)
            if self._thread is None and not self._frames.is_over():
                self._thread = threading.Thread(
                    target=self._run,
                    args=(cursor,),
                    name="scratchwriter-events",
                    daemon=True,
                )
                self._thread.start()
        return listener

    def finish(self, timeout_s: float) -> None:
        """Return when all is told of an acquisition that is over, or time is up.

        Time is up if a callback waits for who calls this; it is told of the rest later.
        """
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _forget(self, listener: Listener) -> None:
        with self._lock:
            self._listeners = tuple(x for x in self._listeners if x is not listener)

    # ------------------------------------------------------------------- in the thread

    def _run(self, cursor: int) -> None:
        seen = cursor
        news_s = time.monotonic()
        while True:
            is_over = self._frames.is_over()
            idle = time.monotonic() - news_s > _IDLE_S
            poll_s = _IDLE_POLL_S if idle else _POLL_S
            cursor = self._frames.wait(seen, 0 if is_over else _CHECK_S, poll_s)
            if cursor > seen:
                self._tell(seen, cursor)
                seen, news_s = cursor, time.monotonic()
            elif is_over or not self._is_wanted():
                return

    def _is_wanted(self) -> bool:
        """Tell whether there are listeners; if not, the thread ends."""
        with self._lock:
            if not self._listeners:
                self._thread = None
            return bool(self._listeners)

    def _tell(self, first: int, stop: int) -> None:
        """Tell of the frames from `first` to before `stop`."""
        since_s = time.monotonic()
        skips = self._frames.skips()
        expands = False
        while first < stop:
            late_s = time.monotonic() - since_s
            is_folded = late_s > _FOLD_S
            skip = skip_of(first, skips)
            last = first if skip is None else min(skip.stop, stop) - 1
            last = stop - 1 if is_folded else last
            is_mark = self._coords.is_high_water_mark(first, last)
            if is_folded:
                self._fold(first, last - _num_skipped(first, last, skips))
            self._emit("coords_changed", last, is_mark)
            expands |= is_mark
            if expands and (late_s <= _STALE_S or last + 1 == stop):
                self._emit("coords_expanded", last, True)
                expands = False
            first = last + 1

    def _emit(self, event: EventName, frame: int, is_mark: bool) -> None:
        update = None
        for listener in self._listeners:
            if listener.event == event and listener.first <= frame:
                update = update or self._coords.update(frame, is_mark)
                listener.tell(update)

    def _fold(self, first: int, stop: int) -> None:
        for listener in self._listeners:
            if listener.event == "coords_changed" and listener.first < stop:
                listener.fold(stop - max(first, listener.first))


def _num_skipped(first: int, stop: int, skips: Sequence[range]) -> int:
    """Return how many frames from `first` to before `stop` were skipped."""
    found = (min(skip.stop, stop) - max(skip.start, first) for skip in skips)
    return sum(n for n in found if n > 0)
