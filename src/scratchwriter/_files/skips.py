"""skips.bin: which frames were skipped.

Everything read here is untrusted.
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
    ranges = read_skips_between(folder, -(1 << 63), cursor)  # checks all of them
    # A killed writer may have recorded a skip that it did not commit: it does not count.
    return [range(skip.start, min(skip.stop, cursor)) for skip in ranges]


def read_skips_between(folder: Path, first: int, stop: int) -> Skips:
    """Return the skipped ranges that have a frame from `first` to before `stop`.

    The time that this takes does not grow with the number of earlier ranges.

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
        while low < high:  # finds the first range that ends after `first`
            middle = (low + high) // 2
            file.seek(SKIP_PAIR.itemsize * middle + 8)
            if int.from_bytes(file.read(8), sys.byteorder, signed=True) <= first:
                low = middle + 1
            else:
                high = middle
        file.seek(SKIP_PAIR.itemsize * low)
        # In pieces, so that a damaged file is refused before it takes much memory.
        while len(data := file.read(_CHUNK_NBYTES)) >= SKIP_PAIR.itemsize:
            # A killed writer may leave half a pair at the end.
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
