"""skips.bin: which frames were skipped.

Everything read here may have been written by anybody.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import SKIP_PAIR, SKIPS
from scratchwriter._region.system import open_regular
from scratchwriter.plan import Skips

_CHUNK_NBYTES = 1 << 16  # read at a time


def read_skips(folder: Path, cursor: int) -> list[range]:
    """Return which of the first `cursor` frames were skipped.

    Raises
    ------
    DatasetError
        If the file is damaged.
    """
    ranges = read_skips_between(folder, -(1 << 63), cursor)  # all are looked at
    # What a killed writer has recorded but not done does not count.
    return [range(skip.start, min(skip.stop, cursor)) for skip in ranges]


def read_skips_between(folder: Path, first: int, stop: int) -> Skips:
    """Return the skipped ranges that have a frame from `first` to before `stop`.

    In a time that does not grow with the ranges before.

    Raises
    ------
    DatasetError
        If the file is damaged there.
    """
    path = folder / SKIPS
    if not os.path.lexists(path):
        return Skips()
    found: list[npt.NDArray[np.int64]] = []
    before = -1
    with faults_of(path), open_regular(path) as file:
        low, high = 0, os.fstat(file.fileno()).st_size // SKIP_PAIR.itemsize
        while low < high:  # for the first range that ends behind it
            middle = (low + high) // 2
            file.seek(SKIP_PAIR.itemsize * middle + 8)
            if int.from_bytes(file.read(8), sys.byteorder, signed=True) <= first:
                low = middle + 1
            else:
                high = middle
        file.seek(SKIP_PAIR.itemsize * low)
        # In pieces: what is damaged is refused before it takes memory.
        while len(data := file.read(_CHUNK_NBYTES)) >= SKIP_PAIR.itemsize:
            # Half a pair is what a killed writer did not get to the end of.
            data = data[: len(data) // SKIP_PAIR.itemsize * SKIP_PAIR.itemsize]
            pairs = np.frombuffer(data, np.int64).reshape(-1, 2)
            if (np.diff(pairs.ravel(), prepend=before) <= 0).any():
                raise ValueError("its ranges are not in order")
            wanted = pairs[pairs[:, 0] < stop]
            found.append(wanted)
            if len(wanted) < len(pairs):
                break
            before = int(pairs[-1, 1])
    return Skips(np.concatenate(found) if found else ())
