"""The floor of the asv benchmarks: `memcpy` in a loop in C, into memory in use."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from native import compile_c


class Floor:
    """Copies frames one behind the other; call `close` afterwards."""

    def __init__(self, num_frames: int, frame: npt.NDArray[np.uint16]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        library = compile_c("memcpy.c", Path(self._folder.name), "-shared", "-fPIC")
        self._copy = ctypes.CDLL(str(library)).copy_frames
        self._copy.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2
        self._copy.restype = None
        self._array = np.ones((num_frames, *frame.shape), np.uint16)
        self._arguments = (
            self._array.ctypes.data,
            frame.ctypes.data,
            frame.nbytes,
            num_frames,
        )

    def run(self) -> None:
        self._copy(*self._arguments)

    def close(self) -> None:
        self._folder.cleanup()
