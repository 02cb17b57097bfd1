"""A small file that is mapped for stores from compiled code."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import numpy.typing as npt


class MappedFile:
    """A small file mapped for stores from elsewhere; `address` is its first byte's."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._bytes: npt.NDArray[np.uint8] = np.frombuffer(
                mmap.mmap(file.fileno(), 0), np.uint8
            )

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    def record(self, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Return the beginning of the file as a record."""
        return self._bytes[: dtype.itemsize].view(dtype)
