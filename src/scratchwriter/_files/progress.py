"""progress.bin: how far a recording is, who writes it, and the lock of its writer.

Everything read here may have been written by anybody.
"""

from __future__ import annotations

import errno
import os
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import (
    CLOSED,
    PROGRESS,
    PROGRESS_HEADER,
    PROGRESS_MAGIC,
    PROGRESS_NBYTES,
    PROGRESS_VERSION,
    RECORDING,
    RESTARTED,
)
from scratchwriter._files.mapped_file import MappedFile
from scratchwriter._region import view_file
from scratchwriter._region.system import (
    boot_id,
    errors_name,
    hold,
    is_lock_free,
    lock_file,
    open_regular,
    process_lives,
    sync_file,
    unlock,
)
from scratchwriter.errors import DatasetError


class Progress:
    """progress.bin of a dataset that is being recorded, locked while it is.

    Attributes
    ----------
    file : MappedFile
        It, mapped.
    is_locked : bool
        False where the file system has no locks.

    Raises
    ------
    OSError
        If it exists or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        header = np.zeros(1, PROGRESS_HEADER)
        header["magic"] = PROGRESS_MAGIC
        header["version"] = PROGRESS_VERSION
        header["state"] = RECORDING
        header["pid"] = os.getpid()
        header["boot_id"] = boot_id().encode()
        header["recording_id"] = np.void(os.urandom(16))
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, 0o666)
        hold(self._fd)
        with ExitStack() as undo:
            undo.callback(self.release)
            with errors_name(path, PROGRESS_NBYTES):
                is_locked = lock_file(self._fd)
                if is_locked is False:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                self.is_locked = is_locked is True
                os.write(self._fd, header.tobytes())  # of one page: whole, or not at all
                status = os.fstat(self._fd)
                self.file = MappedFile(path)
            undo.pop_all()
        self._identity = status.st_dev, status.st_ino

    @property
    def cursor_address(self) -> int:
        return self._address_of("cursor")

    @property
    def dropped_address(self) -> int:
        return self._address_of("dropped")

    def _address_of(self, name: str) -> int:
        offset: int = PROGRESS_HEADER.fields[name][1]  # type: ignore[index]
        return self.file.address + offset

    def mark_synced(self, frames: int) -> None:
        """Tell that so many frames are on the device, and have that there, too."""
        self.file.record(PROGRESS_HEADER)["synced"] = frames
        sync_file(self._path)

    def mark_closed(self) -> None:
        self.file.record(PROGRESS_HEADER)["state"] = CLOSED
        self.release()

    def is_in(self, folder: Path) -> bool:
        """Tell whether it is still the one in its folder."""
        try:
            status = (folder / PROGRESS).lstat()
        except OSError:
            return False
        # Its number is not given to another file while this one is mapped.
        return (status.st_dev, status.st_ino) == self._identity

    def release(self) -> None:
        """Give up the lock."""
        fd, self._fd = self._fd, -1
        unlock(fd)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold the lock of a dataset, or yield the process id of its writer.

    Where there are no locks, a writer is who has not closed, if there is such a process.

    Raises
    ------
    DatasetError
        If what holds the lock is not a regular file.
    """
    path = folder / PROGRESS
    if not os.path.lexists(path):
        yield None
        return
    with faults_of(path):
        try:
            file = open_regular(path, writable=True)  # as NFS wants it for such a lock
        except OSError:
            file = open_regular(path)
    with file:
        with faults_of(path):
            is_free = lock_file(file.fileno())
        data = file.read(PROGRESS_NBYTES).ljust(PROGRESS_NBYTES, b"\0")
        header = np.frombuffer(data, PROGRESS_HEADER)
        pid = int(header["pid"][0])
        is_open = header["state"][0] == RECORDING and header["boot_id"][0] in (
            b"",
            boot_id().encode(),
        )
        if is_free is False or (is_free is None and is_open and process_lives(pid)):
            yield pid
        else:
            yield None


class ProgressView:
    """progress.bin as a reader sees it, while its writer goes on.

    Raises
    ------
    DatasetError
        If it is none.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / PROGRESS
        with faults_of(path):
            with open_regular(path) as file:
                # Kept: it is asked for the lock, whatever becomes of the name.
                self._fd = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._fd)
            data = view_file(path)
            if len(data) != PROGRESS_NBYTES:
                raise ValueError(f"it has {len(data)} bytes, not {PROGRESS_NBYTES}")
            self._header = np.frombuffer(data, PROGRESS_HEADER)
            if (
                self._header["magic"][0] != PROGRESS_MAGIC
                or self._header["version"][0] != PROGRESS_VERSION
                or self._header["state"][0] not in (RECORDING, CLOSED, RESTARTED)
                or self._header["cursor"][0] < 0
            ):
                raise ValueError("it is not the progress of a scratch dataset")
        self._path = path
        self.num_frames: int | None = (
            None  # the most that the dataset has, if it has an end
        )

    @property
    def cursor(self) -> int:
        """Frames appended and skipped so far.

        Raises
        ------
        DatasetError
            If that cannot be.
        """
        cursor = int(self._header["cursor"][0])
        self.check(cursor)
        return cursor

    def check(self, cursor: int) -> None:
        """Check a cursor that was just read: what is written there is believed never."""
        if cursor < 0 or (self.num_frames is not None and cursor > self.num_frames):
            most = "" if self.num_frames is None else f" of {self.num_frames}"
            raise DatasetError(f"{self._path}: it tells of {cursor} frames{most}")

    @property
    def cursor_array(self) -> npt.NDArray[np.int64]:
        """The same as an array of one, where the writer stores it."""
        cursor: npt.NDArray[np.int64] = self._header["cursor"]
        return cursor

    @property
    def synced(self) -> int:
        """Frames that are certain to be on the device."""
        return min(max(int(self._header["synced"][0]), 0), self.cursor)

    @property
    def dropped(self) -> int:
        """Frame numbers that were missing so far, those of overwritten frames included."""
        return max(int(self._header["dropped"][0]), 0)

    @property
    def is_closed(self) -> bool:
        """Whether the writer has finished the dataset, or `recover` has."""
        return bool(self._header["state"][0] != RECORDING)

    @property
    def has_writer(self) -> bool | None:
        """Whether somebody records it, told by the lock; None where there are no locks."""
        with faults_of(self._path):
            is_free = is_lock_free(self._fd)
        return None if is_free is None else not is_free

    def is_in(self, folder: Path) -> bool:
        """Tell whether it is still the one in its folder."""
        try:
            there = (folder / PROGRESS).lstat()
        except OSError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def need_in(self, folder: Path) -> None:
        """Check that what is in its folder is still of its recording.

        Raises
        ------
        DatasetError
            If it is not.
        """
        if not self.is_in(folder):
            raise DatasetError(
                f"{folder}: the dataset was removed or replaced by another since it "
                "was opened. Open it again."
            )

    @property
    def recording_id(self) -> str:
        """What no other recording has; empty before there was such a thing."""
        told = self._header["recording_id"][0].tobytes()
        return str(told.hex()) if any(told) else ""

    @property
    def writer_pid(self) -> int:
        """Process id of the writer."""
        return int(self._header["pid"][0])

    @property
    def may_lack_frames(self) -> bool:
        """Whether the machine was started anew before the dataset was closed."""
        if self._header["state"][0] == RECORDING:
            return self._header["boot_id"][0] not in (b"", boot_id().encode())
        return bool(self._header["state"][0] == RESTARTED)


def mark_closed(folder: Path) -> bool:
    """Mark a dataset that nobody writes as closed; tell whether it was not."""
    progress = ProgressView(folder)
    if progress.is_closed:
        return False
    state = RESTARTED if progress.may_lack_frames else CLOSED
    with open_regular(folder / PROGRESS, writable=True) as file:
        file.seek(PROGRESS_HEADER.fields["state"][1])  # type: ignore[index]
        file.write(np.uint32(state).tobytes())
    return True
