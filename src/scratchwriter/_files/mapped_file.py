"""A small file that is mapped for stores from compiled code."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scratchwriter._region import view_open_file
from scratchwriter._region.descriptor import Descriptor


class MappedFile:
    """A small file mapped for stores from compiled code; `address` is its first byte's.

    It stays mapped, but not open, as long as this object or an array of it lives. So code
    that stores to the address keeps a reference to this object.

    Parameters
    ----------
    file : Descriptor
        Open for reading and writing, and not empty.
    """

    def __init__(self, file: Descriptor) -> None:
        self._bytes: npt.NDArray[np.uint8] = np.frombuffer(
            view_open_file(file, writable=True), np.uint8
        )

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    def record(self, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Return the beginning of the file as a record."""
        return self._bytes[: dtype.itemsize].view(dtype)
