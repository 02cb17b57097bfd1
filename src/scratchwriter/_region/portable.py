"""A region of numpy and files alone, for systems without `MappedRegion`."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import errors_name, open_regular

_ZEROS = bytes(1 << 20)


class PortableRegion:
    """See `Region`. It grows by a new mapping of its file, in memory by copying."""

    def __init__(self, path: Path | None = None) -> None:
        self._path: Path | None = None
        self._identity = (0, 0)  # of the file: another may come under its name
        self._is_saved_as = False
        self._buffer: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        if path is not None:
            path.touch(exist_ok=False)
            self._path, self._identity = path, _identity(path.stat())

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def address(self) -> int:
        return self._buffer.ctypes.data

    @property
    def memory(self) -> object:
        return self._buffer

    @property
    def moves(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    @property
    def memory_nbytes(self) -> int:
        return self.nbytes if self._path is None else 0

    def extend(self, nbytes: int) -> None:
        if nbytes >= 1 << 63:
            raise MemoryError(f"{nbytes} bytes are more than a file or memory can have")
        if nbytes > self.nbytes:
            if self._path is None:
                # Amortised: half as much again, which costs no memory until written.
                grown = np.zeros(max(nbytes, self.nbytes * 3 // 2), np.uint8)
                grown[: self.nbytes] = self._buffer
                self._buffer = grown
            else:
                with self._open(self._path, nbytes - self.nbytes) as file:
                    length = os.fstat(file.fileno()).st_size
                    file.truncate(max(nbytes, length))
                    try:
                        self._buffer = _map(file, nbytes)
                    except BaseException:
                        file.truncate(length)
                        raise

    def allocate(self, start: int, stop: int) -> None:
        if self._path is not None:
            with self._open(self._path, stop - start) as file:
                _fill(file, start, stop)
                if stop > self.nbytes:
                    self._buffer = _map(file, stop)
        self.extend(stop)

    def populate(self, start: int, stop: int) -> None:
        touched = self._buffer[start:stop]
        for pages in (touched[:: mmap.PAGESIZE], touched[-1:]):
            pages |= 0  # a store that changes nothing

    def spill(self, path: Path, start: int) -> None:
        with self._written_to(path, self.nbytes) as file:
            buffer, identity = _map(file, self.nbytes), _identity(os.fstat(file.fileno()))
            self._buffer, self._identity, self._path = buffer, identity, path

    def save(self) -> None:
        """All is in the file since `spill`."""

    def save_as(self, path: Path, nbytes: int) -> None:
        if self._is_saved_as:
            return
        with self._written_to(path, nbytes):
            self._is_saved_as = True

    @property
    def is_saved(self) -> bool:
        return self._path is not None or self._is_saved_as

    def end(self, nbytes: int, lent_stop: int = 0) -> None:
        """Do nothing: no addresses are reserved, and no memory is lent out (`moves`)."""

    def trim(self, nbytes: int) -> None:
        if self._path is not None:
            with self._open(self._path) as file:
                file.truncate(nbytes)
                self._buffer = _map(file, nbytes)  # none past the end of the file

    def array(
        self, dtype: np.dtype[np.generic], shape: tuple[int, ...], start: int = 0
    ) -> npt.NDArray[np.generic]:
        # A buffer that is read-only by itself: no flag of the array can undo that.
        buffer = np.frombuffer(self._buffer.data.toreadonly(), np.uint8)
        return np.ndarray(shape, dtype, buffer=buffer, offset=start)

    @contextmanager
    def _written_to(self, path: Path, nbytes: int) -> Iterator[FileIO]:
        """Make a file of what is in memory; it is removed unless that is noted here."""
        try:
            made = Descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            with (
                errors_name(path, nbytes),
                FileIO(made.fileno(), "r+b", closefd=False) as file,
            ):
                _write_all(file, self._buffer.data[:nbytes])
                yield file
        except FileExistsError:
            raise  # it is not ours
        except BaseException:
            if not self.is_saved:
                path.unlink(missing_ok=True)
            raise

    @contextmanager
    def _open(self, path: Path, needed_nbytes: int = 0) -> Iterator[FileIO]:
        with errors_name(path, needed_nbytes), FileIO(str(path), "r+b") as file:
            if _identity(os.fstat(file.fileno())) != self._identity:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            yield file


class PortableRing(PortableRegion):
    """See `make_ring`. An array that continues at the beginning is a copy."""

    def __init__(self, nbytes: int, path: Path | None = None) -> None:
        super().__init__(path)
        super().allocate(0, nbytes)

    def extend(self, nbytes: int) -> None:
        if nbytes > self.nbytes > 0:
            raise MemoryError("a ring does not grow")
        super().extend(nbytes)

    def allocate(self, start: int, stop: int) -> None:
        self.extend(stop)

    @property
    def moves(self) -> bool:
        return False

    def spill(self, path: Path, start: int) -> None:
        raise MemoryError("a ring does not leave memory")

    def save_as(self, path: Path, nbytes: int) -> None:
        raise MemoryError("a ring does not leave memory")

    @property
    def is_saved(self) -> bool:
        return True

    def trim(self, nbytes: int) -> None:
        """All of it stays."""

    def array(
        self, dtype: np.dtype[np.generic], shape: tuple[int, ...], start: int = 0
    ) -> npt.NDArray[np.generic]:
        stop = start + math.prod(shape) * dtype.itemsize
        if stop <= self.nbytes:
            return super().array(dtype, shape, start)
        behind = self._buffer[: stop - self.nbytes]
        array = np.concatenate([self._buffer[start:], behind]).view(dtype).reshape(shape)
        array.flags.writeable = False
        return array


class OverlaidCopy:
    """See `OverlaidFile`. Nothing is mapped, all of it are copies."""

    mapped_nbytes = 0

    def __init__(self, nbytes: int) -> None:
        self.reserved_nbytes = nbytes
        self._buffer = np.zeros(nbytes, np.uint8)

    def map_file(self, file: Descriptor, stop: int) -> None:
        """Do nothing."""

    def put(self, start: int, data: bytes | memoryview) -> None:
        self._buffer[start : start + len(data)] = np.frombuffer(data, np.uint8)

    def view(self, nbytes: int) -> memoryview:
        return self._buffer[:nbytes].data.toreadonly()


def map_file(path: Path) -> memoryview:
    """See `view_file`."""
    with open_regular(path) as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def map_open_file(file: Descriptor, writable: bool = False) -> memoryview:
    """See `view_open_file`."""
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return memoryview(mmap.mmap(file.fileno(), 0, access=access))


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _map(file: FileIO, nbytes: int) -> npt.NDArray[np.uint8]:
    if nbytes == 0:  # which cannot be mapped
        return np.zeros(0, np.uint8)
    return np.memmap(file, np.uint8, "r+", shape=(nbytes,))


def _fill(file: FileIO, start: int, stop: int) -> None:
    """Give a file real blocks from `start` to `stop`, or leave it as it was."""
    length = os.fstat(file.fileno()).st_size
    try:
        file.seek(start)
        while start < stop:
            start += _write_all(file, memoryview(_ZEROS)[: stop - start])
    except OSError:
        file.truncate(length)
        raise


def _write_all(file: FileIO, data: memoryview) -> int:
    written = 0
    while written < len(data):
        written += file.write(data[written:])
    return written
