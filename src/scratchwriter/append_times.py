"""append_times.bin: how long appends took, for those who look on from outside.

A thread brings it up to date now and then, and who closes the dataset does at the end; an
append does nothing for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scratchwriter._region import view_file
from scratchwriter.manifest import APPEND_TIMES, MappedFile, faults_of
from scratchwriter.stats import NUM_BUCKETS, AppendTimes, make_append_times

RECORD = np.dtype(
    [
        ("longest_append_ns", "i8"),
        ("first_append_ns", "i8"),  # on the monotonic clock, as the next
        ("last_append_ns", "i8"),
        ("append_counts", "i8", NUM_BUCKETS),
    ]
)
_MOST = 1 << 40  # of appends that took equally long


class AppendTimesFile:
    """It, as its writer sees it.

    Raises
    ------
    OSError
        If it exists or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        with (folder / APPEND_TIMES).open("xb") as file:
            file.write(bytes(RECORD.itemsize))  # with blocks of its own: it is mapped
        self.file = MappedFile(folder / APPEND_TIMES)

    def store(self, measured: Mapping[str, Any]) -> None:
        """Tell what a `FrameWriter` has measured."""
        record = self.file.record(RECORD)
        for name in RECORD.names or ():
            record[name] = measured[name]


def read_append_times(folder: Path) -> AppendTimes | None:
    """Return what is told so far; None if nothing is.

    Raises
    ------
    DatasetError
        If the file is damaged.
    """
    path = folder / APPEND_TIMES
    if not os.path.lexists(path):
        return None
    with faults_of(path):
        data = view_file(path)
        if len(data) != RECORD.itemsize:
            raise ValueError(f"it has {len(data)} bytes, not {RECORD.itemsize}")
        record = np.frombuffer(data, RECORD)[0].copy()
        counts = record["append_counts"]
        if counts.min() < 0 or counts.max() > _MOST or record["longest_append_ns"] < 0:
            raise ValueError("its counts are out of range")
    elapsed_ns = int(record["last_append_ns"]) - int(record["first_append_ns"])
    return make_append_times(counts, int(record["longest_append_ns"]), elapsed_ns)
