"""progress.bin: how far a recording is, its writer, and the writer's lock.

Everything read here is untrusted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

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
from scratchwriter._region import view_open_file
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import (
    boot_id,
    descriptor_of_regular,
    errors_name,
    is_at,
    is_lock_free,
    lock_file,
    open_regular,
    process_lives,
    sync_file,
    write_all,
)
from scratchwriter.errors import DatasetError

# An array of one, so that its fields are arrays that share the header's memory.
_Header: TypeAlias = npt.NDArray[np.void]


class Progress:
    """progress.bin of a dataset that is being recorded, locked while it is.

    Attributes
    ----------
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
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        lock = Descriptor(path, flags, closed_in_children=True)
        with errors_name(path, PROGRESS_NBYTES):
            is_locked = lock_file(lock)
            if is_locked is False:
                raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            self.is_locked = is_locked is True
            write_all(lock, header.tobytes())
            self._identity = _Identity(lock, header)
            # A lock lives as long as a mapping of the descriptor that holds it, in forked
            # children, too. So the file is opened once more to be mapped.
            with Descriptor(path, os.O_RDWR) as file:
                if not os.path.sameopenfile(file.fileno(), lock.fileno()):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
                self._file: MappedFile | None = MappedFile(file)
        self._lock: Descriptor | None = lock

    @property
    def file(self) -> MappedFile:
        """The mapped file; code that stores to it keeps a reference."""
        if self._file is None:
            raise ValueError(f"{self._path} is closed.")
        return self._file

    @property
    def cursor_address(self) -> int:
        return self._address_of("cursor")

    @property
    def dropped_address(self) -> int:
        return self._address_of("dropped")

    @property
    def in_files_address(self) -> int:
        return self._address_of("in_files")

    def _address_of(self, name: str) -> int:
        return self.file.address + _offset(name)

    def mark_synced(self, frames: int) -> None:
        """Record that so many frames are on the device.

        Other processes see the number only when the record of it is on the device, too:
        after a power cut the dataset has no smaller one.
        """
        self._store("synced", np.int64(frames))
        sync_file(self._path)
        self._store("confirmed", np.int64(frames))

    def mark_closed(self) -> None:
        """Record that the dataset is finished, and release the lock. Can be repeated."""
        self._store("state", np.uint32(CLOSED))
        self.release()

    def _store(self, name: str, value: np.generic) -> None:
        if self._file is not None:
            self._file.record(PROGRESS_HEADER)[name] = value
            return
        # It was released: this is a flush after close, or an interrupted close.
        with open_regular(self._path, writable=True) as file:
            if not self._identity.is_of(_read_header(file.fileno())):
                raise FileNotFoundError(
                    errno.ENOENT, "Another dataset has taken its place", str(self._path)
                )
            file.seek(_offset(name))
            file.write(value.tobytes())

    def is_in(self, folder: Path) -> bool:
        """Return whether it is still the file in its folder."""
        return self._identity.is_at(folder / PROGRESS, is_held=self._file is not None)

    def release(self) -> None:
        """Release the lock, and the mapping unless other code still stores to it."""
        self._file = None
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()


class _Identity:
    """What distinguishes a progress.bin from any other file under the same name."""

    def __init__(self, file: Descriptor, header: _Header) -> None:
        status = os.fstat(file.fileno())
        self._number = status.st_dev, status.st_ino
        self._recording = _recording_of(header)

    def is_of(self, header: _Header | None) -> bool:
        """Return whether a header belongs to the same recording."""
        return header is not None and _recording_of(header) == self._recording

    def is_at(self, path: Path, *, is_held: bool) -> bool:
        """Return whether it is the file at a path.

        While the file is held, open or mapped, no other file can have its inode number.
        Later another may, so the header is compared.
        """
        try:
            status = path.lstat()
            if (status.st_dev, status.st_ino) != self._number:
                return False
            if is_held:
                return True
            with descriptor_of_regular(path) as file:
                return self.is_of(_read_header(file.fileno()))
        except (OSError, ValueError):
            return False


def _recording_of(header: _Header) -> tuple[bytes, ...]:
    """Return the fields that never change during a recording."""
    return tuple(header[name].tobytes() for name in ("pid", "boot_id", "recording_id"))


def _read_header(fd: int) -> _Header | None:
    """Return the header of a newly opened file; None if it is too short."""
    data = os.read(fd, PROGRESS_NBYTES)
    return np.frombuffer(data, PROGRESS_HEADER) if len(data) == PROGRESS_NBYTES else None


def _offset(name: str) -> int:
    offset: int = PROGRESS_HEADER.fields[name][1]  # type: ignore[index]
    return offset


class Locked:
    """The lock of a dataset, as `locked` found it.

    Attributes
    ----------
    writer_pid : int or None
        The process that records the dataset and has the lock; None if the lock is ours.
    """

    def __init__(self, file: Descriptor | None, writer_pid: int | None) -> None:
        self._file, self.writer_pid = file, writer_pid

    @property
    def use_text(self) -> str:
        """What the process that has the lock does, in words."""
        if self.writer_pid and not process_lives(self.writer_pid):
            return (
                "The dataset is in use: another process repairs it, or records it on "
                "another machine. Wait until it has ended"
            )
        return (
            f"The dataset is being recorded by process {self.writer_pid}. Close that "
            "stream first"
        )

    def is_at(self, path: Path) -> bool:
        """Return whether the locked file is at a path; without one, whether none is."""
        if self._file is None:
            return not os.path.lexists(path)
        return is_at(self._file, path)


@contextmanager
def locked(folder: Path) -> Iterator[Locked]:
    """Hold the lock of a dataset, or find out which process records it.

    Where the file system has no locks, a dataset that is not closed counts as recorded if
    the process of its writer exists.

    Raises
    ------
    DatasetError
        If progress.bin is not a regular file.
    """
    path = folder / PROGRESS
    with ExitStack() as stack:
        while os.path.lexists(path):
            file = _open_to_lock(path)
            if file is None:
                continue  # removed since
            with faults_of(path):
                is_free = lock_file(file)
            # Another dataset may have taken its place before it was locked.
            if is_at(file, path):
                stack.enter_context(file)
                yield Locked(file, _writer_pid(file, is_free))
                return
        yield Locked(None, None)


def _open_to_lock(path: Path) -> Descriptor | None:
    with faults_of(path), suppress(FileNotFoundError):
        try:  # for writing, which NFS requires for an exclusive lock
            return descriptor_of_regular(path, writable=True, closed_in_children=True)
        except OSError:
            return descriptor_of_regular(path, closed_in_children=True)
    return None


def _writer_pid(file: Descriptor, is_free: bool | None) -> int | None:
    header = _read_header(file.fileno())
    if header is None:
        return 0 if is_free is False else None  # its writer has only just made it
    pid = int(header["pid"][0])
    is_open = header["state"][0] == RECORDING and header["boot_id"][0] in (
        b"",
        boot_id().encode(),
    )
    if is_free is False or (is_free is None and is_open and process_lives(pid)):
        return pid
    return None


class ProgressView:
    """progress.bin as a reader sees it, while its writer continues.

    Until the dataset is closed the file is mapped and open, so that its lock can be checked
    whatever happens to its name. Once it says that it is closed, only a copy is kept.

    Attributes
    ----------
    num_frames : int or None
        The most that the dataset can have, if it is bounded.

    Raises
    ------
    DatasetError
        If the file is not a valid progress.bin.
    """

    def __init__(self, folder: Path) -> None:
        self._path = path = folder / PROGRESS
        self.num_frames: int | None = None
        self._had_writer: bool | None = False  # when the file was last open
        self._file: Descriptor | None = None
        with faults_of(path):
            file = descriptor_of_regular(path)
            nbytes = os.fstat(file.fileno()).st_size
            header = _read_header(file.fileno()) if nbytes == PROGRESS_NBYTES else None
            if header is None:
                raise ValueError(f"it has {nbytes} bytes, not {PROGRESS_NBYTES}")
            if (
                header["magic"][0] != PROGRESS_MAGIC
                or header["version"][0] != PROGRESS_VERSION
                or header["state"][0] not in (RECORDING, CLOSED, RESTARTED)
                or header["cursor"][0] < 0
            ):
                raise ValueError("it is not the progress of a scratch dataset")
            self._identity = _Identity(file, header)
            self._header = header
            if header["state"][0] == RECORDING:
                self._header = np.frombuffer(view_open_file(file), PROGRESS_HEADER)
                self._file = file

    def _now(self) -> _Header:
        """Return the current header; once it says closed, keep only a copy of it."""
        header = self._header
        if self._file is not None and header["state"][0] != RECORDING:
            self._header = header = header.copy()  # now, so that it counts the last frame
            # The descriptor is not closed here: another thread may be testing its lock.
            self._file = None
        return header

    def release(self) -> None:
        """Keep a copy of what it says now, and no file."""
        if self._file is not None:
            with suppress(DatasetError):
                self._had_writer = self.has_writer
            self._header, self._file = self._now().copy(), None

    @property
    def cursor(self) -> int:
        """Frames appended and skipped so far.

        Raises
        ------
        DatasetError
            If the file has an impossible number.
        """
        cursor = int(self._now()["cursor"][0])
        self.check(cursor)
        return cursor

    def check(self, cursor: int) -> None:
        """Check a cursor that was just read, because the file is untrusted."""
        if cursor < 0 or (self.num_frames is not None and cursor > self.num_frames):
            most = "" if self.num_frames is None else f" of {self.num_frames}"
            raise DatasetError(f"{self._path}: it counts {cursor} frames{most}")

    @property
    def cursor_array(self) -> npt.NDArray[np.int64]:
        """The cursor as an array of one, in the memory that the writer stores to."""
        cursor: npt.NDArray[np.int64] = self._now()["cursor"]
        return cursor

    @property
    def synced(self) -> int:
        """Frames that are certain to be on the device, and to be counted there."""
        header = self._now()
        if self._file is None:  # a writer may flush after it has closed
            with suppress(OSError, ValueError), open_regular(self._path) as file:
                newest = _read_header(file.fileno())
                if newest is not None and self._identity.is_of(newest):
                    header = newest
        # What is read from the device after a restart has been there before.
        name = "confirmed" if header["boot_id"][0] == boot_id().encode() else "synced"
        return min(max(int(header[name][0]), 0), self.cursor)

    @property
    def in_files(self) -> int:
        """How many of the first frames are in the files of the arrays.

        -1: all, staging.bin has none.
        """
        return min(max(int(self._now()["in_files"][0]), -1), self.cursor)

    @property
    def dropped(self) -> int:
        """Frame numbers that were missing so far, those of overwritten frames included."""
        return max(int(self._now()["dropped"][0]), 0)

    @property
    def is_closed(self) -> bool:
        """Whether the writer has finished the dataset, or `recover` has."""
        return bool(self._now()["state"][0] != RECORDING)

    @property
    def has_writer(self) -> bool | None:
        """Whether a process holds the writer's lock; None where there are no locks."""
        file = self._file
        if file is None:
            return self._had_writer
        with faults_of(self._path):
            is_free = is_lock_free(file)
        return None if is_free is None else not is_free

    def is_in(self, folder: Path) -> bool:
        """Return whether it is still the file in its folder."""
        file = self._file  # keeps it open until the check is done
        return self._identity.is_at(folder / PROGRESS, is_held=file is not None)

    def need_in(self, folder: Path) -> None:
        """Check that the files in its folder still belong to its recording.

        Raises
        ------
        DatasetError
            If they do not.
        """
        if not self.is_in(folder):
            raise DatasetError(
                f"{folder}: the dataset was removed or replaced by another since it "
                "was opened. Open it again."
            )

    @property
    def recording_id(self) -> str:
        """What no other recording has; empty in files of older versions."""
        found = self._header["recording_id"][0].tobytes()
        return str(found.hex()) if any(found) else ""

    @property
    def writer_pid(self) -> int:
        """Process id of the writer."""
        return int(self._header["pid"][0])

    def of_copy(self, cursor: int, *, may_lack_frames: bool) -> bytes:
        """Return the progress.bin of a finished copy, all of which is on the device.

        Parameters
        ----------
        cursor : int
            How many frames the copy has.
        may_lack_frames : bool
            Whether only those are certain that were on the device here.
        """
        now, header = self._now(), np.zeros(1, PROGRESS_HEADER)
        for name in PROGRESS_HEADER.names or ():  # without what may be between them
            header[name] = now[name]
        header["state"] = RESTARTED if may_lack_frames else CLOSED
        header["cursor"] = cursor
        certain = min(self.synced, cursor) if may_lack_frames else cursor
        header["synced"] = header["confirmed"] = certain
        if header["in_files"][0] >= 0:  # it stays known that some were staged
            header["in_files"] = cursor
        return header.tobytes()

    @property
    def may_lack_frames(self) -> bool:
        """Whether the machine was restarted before the dataset was closed."""
        header = self._now()
        if header["state"][0] == RECORDING:
            return header["boot_id"][0] not in (b"", boot_id().encode())
        return bool(header["state"][0] == RESTARTED)

    @property
    def was_closed_before_restart(self) -> bool:
        """Whether the machine was restarted after it was closed, and not all was synced.

        That is so for most datasets: by default a writer leaves that to the system.
        """
        header = self._now()
        is_other_boot = header["boot_id"][0] not in (b"", boot_id().encode())
        return bool(header["state"][0] == CLOSED and is_other_boot) and (
            self.synced < self.cursor
        )


def mark_closed(folder: Path, *, may_lack_frames: bool) -> bool:
    """Mark a dataset whose lock is ours as closed; return whether it was not so."""
    progress = ProgressView(folder)
    state = RESTARTED if may_lack_frames else CLOSED
    if progress.is_closed and not (may_lack_frames and not progress.may_lack_frames):
        return False
    with open_regular(folder / PROGRESS, writable=True) as file:
        file.seek(_offset("state"))
        file.write(np.uint32(state).tobytes())
    return True


def mark_in_files(folder: Path) -> None:
    """Record that all frames of a dataset whose lock is ours are in the arrays' files."""
    cursor = ProgressView(folder).cursor
    with open_regular(folder / PROGRESS, writable=True) as file:
        file.seek(_offset("in_files"))
        file.write(np.int64(cursor).tobytes())
