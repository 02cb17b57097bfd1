"""A region of numpy and files alone, for where `MappedRegion` is not to be had."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

_ZEROS = bytes(1 << 20)


class PortableRegion:
    """See `Region`. It grows by a new mapping of its file, in memory by copying."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._buffer: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        if path is not None:
            path.touch(exist_ok=False)

    @property
    def path(self) -> Path | None:
        return self._path

    @property
    def address(self) -> int:
        return self._buffer.ctypes.data

    @property
    def nbytes(self) -> int:
        return self._buffer.nbytes

    def extend(self, nbytes: int) -> None:
        if nbytes > self.nbytes:
            if self._path is None:
                # Amortised: half as much again, which costs no memory until written.
                grown = _zeros(max(nbytes, self.nbytes * 3 // 2))
                grown[: self.nbytes] = self._buffer
                self._buffer = grown
            else:
                os.truncate(self._path, nbytes)
                self._buffer = _map(self._path, nbytes)

    def allocate(self, start: int, stop: int) -> None:
        if self._path is not None:
            _fill(self._path, start, stop)
            if stop > self.nbytes:
                self._buffer = _map(self._path, stop)
        self.extend(stop)

    def move_to_file(self, path: Path) -> None:
        path.touch(exist_ok=False)
        try:
            self._buffer.tofile(path)
            buffer = _map(path, self.nbytes)
        except BaseException:
            path.unlink()
            raise
        self._path, self._buffer = path, buffer

    def trim(self, nbytes: int) -> None:
        if self._path is not None:
            if isinstance(self._buffer, np.memmap):
                self._buffer.flush()
            # A mapping past the end of its file is a trap, and Windows refuses to cut a
            # mapped file: map what is left.
            self._buffer = np.zeros(0, np.uint8)
            os.truncate(self._path, nbytes)
            self._buffer = _map(self._path, nbytes)

    def array(
        self, dtype: np.dtype[np.generic], shape: tuple[int, ...]
    ) -> npt.NDArray[np.generic]:
        return np.ndarray(shape, dtype, buffer=memoryview(self._buffer).toreadonly())


def _zeros(nbytes: int) -> npt.NDArray[np.uint8]:
    try:
        return np.zeros(nbytes, np.uint8)
    except ValueError as error:  # more than an address can say
        raise MemoryError(f"{nbytes} bytes: {error}") from None


def _map(path: Path, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.memmap(path, np.uint8, "r+", shape=(nbytes,))


def _fill(path: Path, start: int, stop: int) -> None:
    """Give a file real blocks from `start` to `stop`, or leave it as it was."""
    length = path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        try:
            file.seek(start)
            while start < stop:
                start += file.write(_ZEROS[: stop - start])
        except OSError as error:
            file.truncate(length)
            raise OSError(
                error.errno, os.strerror(error.errno or errno.EIO), str(path)
            ) from None
