"""How far a dataset is that another process records, and whether it continues."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from scratchwriter._files.progress import ProgressView
from scratchwriter._files.skips import read_skips_between
from scratchwriter._native.turns import wait_for_frames
from scratchwriter._native.watch import wait_for_cursor
from scratchwriter.plan import Skips

_LOOK_FOR_WRITER_S = 0.1  # a system call or three


class FixedProgress:
    """The frames of a dataset that is not recorded, and whose number is known.

    Attributes
    ----------
    skips : callable
        Returns which ranges were skipped that have a frame from one to before another.
    """

    def __init__(
        self, cursor: int, skips: Callable[[int, int], Skips] = lambda first, stop: Skips()
    ) -> None:
        self._cursor, self.skips = cursor, skips

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Return the number of frames."""
        return self._cursor

    def is_over(self) -> bool:
        """Return True: no more frames come."""
        return True

    def give_up(self) -> None:
        """Do nothing: no thread waits."""


class LiveProgress:
    """Waits for the frames of a dataset; the writer does nothing for it."""

    def __init__(self, folder: Path, progress: ProgressView) -> None:
        self._folder, self._progress = folder, progress
        self._given_up = np.zeros(1, np.int64)  # polled by the threads that wait
        self._is_over = False
        self._look_s = 0.0  # when to check the writer's lock again

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Wait until the cursor is past `seen`, or the timeout; return the cursor.

        Raises
        ------
        DatasetError
            If this dataset cannot have so many frames.
        """
        cursors = self._progress.cursor_array
        wait = partial(wait_for_cursor, cursors, self._given_up, seen)
        cursor = wait_for_frames(wait, seen, timeout_s, poll_s)
        self._progress.check(cursor)
        return cursor

    def is_over(self) -> bool:
        """Return whether no more frames come: closed, given up, or the writer is dead."""
        if not self._is_over:
            self._is_over = bool(self._given_up[0]) or self._progress.is_closed
        if not self._is_over and time.monotonic() >= self._look_s:
            self._is_over = self._progress.has_writer is False
            self._look_s = time.monotonic() + _LOOK_FOR_WRITER_S
        return self._is_over

    def give_up(self) -> None:
        """Make the threads that wait return."""
        self._given_up[0] = 1

    def skips(self, first: int, stop: int) -> Skips:
        """Return the skipped ranges that contain any of these frames.

        Raises
        ------
        DatasetError
            If the file is damaged, or belongs to another recording.
        """
        skips = read_skips_between(self._folder, first, stop)
        self._progress.need_in(self._folder)  # after it was read
        return skips
