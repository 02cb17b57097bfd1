"""How far a dataset is that another process records, and whether it goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from scratchwriter._watch import wait_for_cursor
from scratchwriter.manifest import SKIPS, ProgressView, read_skips

_LOOK_FOR_WRITER_S = 0.1  # a system call or three


class FixedProgress:
    """The frames of a dataset that nobody records, and whose cursor does not tell them."""

    def __init__(self, cursor: int, skips: Sequence[range] = ()) -> None:
        self._cursor, self._skips = cursor, skips

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Return how many frames there are."""
        return self._cursor

    def is_over(self) -> bool:
        """Tell that no more come."""
        return True

    def skips(self) -> Sequence[range]:
        """Return which frames were skipped."""
        return self._skips


class LiveProgress:
    """Waits for the frames of a dataset; the writer does nothing for it.

    Parameters
    ----------
    progress : ProgressView
        Of the dataset.
    is_given_up : callable
        Whether the reader has closed the dataset: then no more frames come, to it.
    """

    def __init__(
        self, folder: Path, progress: ProgressView, is_given_up: Callable[[], bool]
    ) -> None:
        self._folder, self._progress, self._is_given_up = folder, progress, is_given_up
        self._is_over = False
        self._look_s = 0.0  # when to look for the writer again
        self._skips: list[range] = []
        self._skips_nbytes = 0

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        """Return the cursor, when it is past `seen`, at the latest after the timeout."""
        return wait_for_cursor(
            self._progress.cursor_array, seen, round(timeout_s * 1e9), round(poll_s * 1e9)
        )

    def is_over(self) -> bool:
        """Tell whether no more frames come: closed, or the writer is dead."""
        if not self._is_over:
            self._is_over = self._is_given_up() or self._progress.is_closed
        if not self._is_over and time.monotonic() >= self._look_s:
            self._is_over = self._progress.has_writer is False
            self._look_s = time.monotonic() + _LOOK_FOR_WRITER_S
        return self._is_over

    def skips(self) -> list[range]:
        """Return which frames were skipped."""
        path = self._folder / SKIPS
        nbytes = path.lstat().st_size if os.path.lexists(path) else 0
        if nbytes != self._skips_nbytes:
            # Also such as are recorded and not counted yet: nobody asks for those.
            self._skips = read_skips(self._folder, (1 << 63) - 1)
            self._skips_nbytes = nbytes
        return self._skips
