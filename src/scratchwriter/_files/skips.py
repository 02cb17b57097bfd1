"""skips.bin: which frames were skipped.

Everything read here is untrusted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import SKIP_PAIR, SKIPS
from scratchwriter._region.system import open_regular
from scratchwriter.plan import Skips

BEFORE_ALL = -(1 << 63)  # also before the numbers that a damaged file may have
_CHUNK_NBYTES = 1 << 16  # read at a time


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
        for pairs, num_intact in _pieces(file):
            if num_intact < len(pairs):
                raise ValueError("its ranges are not in order")
            wanted = pairs[pairs[:, 0] < stop]
            found.append(wanted)
            if len(wanted) < len(pairs):
                break
    return Skips(np.concatenate(found) if found else ())


def read_intact_skips(folder: Path) -> Skips:
    """Return the skipped ranges as far as they are in order.

    After a power cut the end of the file may be anything.

    Raises
    ------
    DatasetError
        If the file cannot be read.
    """
    path = folder / SKIPS
    if not os.path.lexists(path):
        return Skips()
    found: list[npt.NDArray[np.int64]] = []
    with faults_of(path), open_regular(path) as file:
        for pairs, num_intact in _pieces(file):
            found.append(pairs[:num_intact])
            if num_intact < len(pairs):
                break
    return Skips(np.concatenate(found) if found else ())


def _pieces(file: BinaryIO) -> Iterator[tuple[npt.NDArray[np.int64], int]]:
    """Read ranges, and how many of each piece are in order.

    In pieces, so that a damaged file is refused before it takes much memory.
    """
    before = -1
    while len(data := file.read(_CHUNK_NBYTES)) >= SKIP_PAIR.itemsize:
        # A killed writer may leave half a pair at the end.
        data = data[: len(data) // SKIP_PAIR.itemsize * SKIP_PAIR.itemsize]
        pairs = np.frombuffer(data, np.int64).reshape(-1, 2)
        yield pairs, _num_in_order(pairs, before)
        before = int(pairs[-1, 1])


def _num_in_order(pairs: npt.NDArray[np.int64], before: int) -> int:
    """Return how many of the first ranges begin behind the one before, and have frames."""
    # Compared, because a difference of damaged numbers may overflow.
    numbers = np.concatenate([[before], pairs.ravel()])
    wrong = np.flatnonzero(numbers[1:] <= numbers[:-1])
    return int(wrong[0]) // 2 if len(wrong) else len(pairs)
