"""Frames that wait for a disk that is slower than the camera: how many, and warnings."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from scratchwriter._native.turns import take_turns
from scratchwriter._writing import policy
from scratchwriter._writing.syncer import warn_in_thread
from scratchwriter.stats import DISK_FIELDS, DiskStats, make_disk_stats

if TYPE_CHECKING:
    from scratchwriter._native.ahead import AheadThread

_WAIT_S = 0.001  # at a time
_IS_BEHIND, _IS_REFUSED = 1, 2  # as `AheadThread.wait_for_trouble` says


class Backlog:
    """What waits for the disk.

    It warns once when half of what may wait does, and when staging finds no room, from a
    thread that sleeps until then without the GIL; and once when a frame waits.

    Parameters
    ----------
    ahead : AheadThread
        That stages what comes to files.
    folder : pathlib.Path
        Where these are.
    """

    def __init__(self, ahead: AheadThread, folder: Path) -> None:
        self._ahead, self._folder = ahead, folder
        self._frame = -1  # that waited last
        self._thread = threading.Thread(
            target=_warn_in_time,
            args=(ahead, folder),
            name="scratchwriter-disk",
            daemon=True,
        )
        if not take_turns():  # it would never give up its own
            with suppress(RuntimeError):  # it only warns
                self._thread.start()

    def wait(self, frame: int) -> None:
        """Have a frame, by its number, wait for the disk."""
        try:
            self._wait(frame)
        except BaseException:
            self._ahead.forget_wait()
            raise

    def _wait(self, frame: int) -> None:
        if self._frame < 0:
            self._frame = frame - 1
            most_nbytes = disk_stats(self._ahead).max_staged_nbytes
            policy.warn_of_waiting(self._folder, most_nbytes, stacklevel=5)
        start_ns = time.monotonic_ns()
        time.sleep(_WAIT_S)
        self._ahead.count_wait(int(frame != self._frame), time.monotonic_ns() - start_ns)
        self._frame = frame

    def join(self) -> None:
        """Wait for the end of the thread, after that of the thread ahead."""
        # A warning's hook may close the stream, on that very thread.
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join()


def disk_stats(ahead: AheadThread) -> DiskStats:
    """Return how the disk does."""
    return make_disk_stats(dict(zip(DISK_FIELDS, ahead.disk, strict=True)))


def _warn_in_time(ahead: AheadThread, folder: Path) -> None:
    known = 0
    while found := ahead.wait_for_trouble(known):
        known |= found
        if found & _IS_BEHIND:
            warn_in_thread(policy.slow_disk_text(folder, disk_stats(ahead)))
        if found & _IS_REFUSED:
            warn_in_thread(policy.no_staging_text(folder, ahead.refused_code))
