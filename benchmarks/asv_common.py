"""What the asv benchmarks share."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from native import compile_c
from writers import Target, make_records

Frame = npt.NDArray[np.uint16]


def make_frame(size: int) -> Frame:
    return np.random.default_rng(0).integers(0, 2**16, (size, size), np.uint16)


class Fresh:
    """A benchmark whose every sample has a folder and a target of its own.

    A stream takes its frames once: it is made by `setup` and closed by `teardown` for
    each sample, and a sample is one call. asv is to run no more of them than it must.
    """

    number = 1
    repeat: int | tuple[int, int, float] = (3, 20, 5.0)
    warmup_time = 0.0

    def setup(self, *_: Any) -> None:
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = Path(self._temporary.name)
        self._closing: list[Callable[[], object]] = []

    def teardown(self, *_: Any) -> None:
        for close in self._closing:
            close()
        self._temporary.cleanup()

    def at_end(self, close: Callable[[], object]) -> None:
        self._closing.append(close)

    def appender(self, target: Target, frame: Frame, count: int) -> Callable[[], None]:
        """Return what stores a frame `count` times; the target is closed at the end."""
        self.at_end(target.close)
        store, records = target.compile(), make_records()
        frames = [frame] * count
        records = (records * count)[:count]
        return lambda: store(frames, records, 0)

    def floor(self, frame: Frame, count: int) -> Callable[[], None]:
        """Return `memcpy` of a frame, `count` times in C, into memory in use."""
        library = compile_c("memcpy.c", self.folder, "-shared", "-fPIC")
        copy = ctypes.CDLL(str(library)).copy_frames
        copy.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2
        copy.restype = None
        array = np.ones((count, *frame.shape), np.uint16)
        arguments = array.ctypes.data, frame.ctypes.data, frame.nbytes, count
        return lambda kept=(array, frame): copy(*arguments)  # type: ignore[misc]
