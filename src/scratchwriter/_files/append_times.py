"""append_times.bin: how long appends took, and how the disk does, for other processes.

A thread updates it now and then, and closing the dataset does at the end; an append does
nothing for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import APPEND_TIMES, APPEND_TIMES_RECORD
from scratchwriter._files.mapped_file import MappedFile
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import errors_name, open_regular, write_all
from scratchwriter.stats import (
    DISK_FIELDS,
    AppendTimes,
    DiskStats,
    make_append_times,
    make_disk_stats,
)

_MOST = 1 << 40  # of appends that took equally long
_MOST_OF_DISK = 1 << 53  # bytes, and nanoseconds; exact as a float


class AppendTimesFile:
    """append_times.bin as its writer sees it.

    Attributes
    ----------
    file : MappedFile
        The mapped file; code that stores to it keeps a reference.

    Raises
    ------
    OSError
        If it exists or cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / APPEND_TIMES
        with (
            errors_name(path, APPEND_TIMES_RECORD.itemsize),
            Descriptor(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as file,
        ):
            # Written, not only made longer: a full disk must fail here, not in a store.
            write_all(file, bytes(APPEND_TIMES_RECORD.itemsize))
            self.file = MappedFile(file)

    def store(self, measured: Mapping[str, Any]) -> None:
        """Store what a `FrameWriter` has measured."""
        record = self.file.record(APPEND_TIMES_RECORD)
        for name in set(APPEND_TIMES_RECORD.names or ()) & set(measured):
            record[name] = measured[name]


def read_append_times(folder: Path) -> AppendTimes | None:
    """Return the times so far; None if the dataset has none.

    Raises
    ------
    DatasetError
        If the file is damaged.
    """
    record = _read_record(folder)
    if record is None:
        return None
    elapsed_ns = int(record["last_append_ns"]) - int(record["first_append_ns"])
    return make_append_times(
        record["append_counts"], int(record["longest_append_ns"]), elapsed_ns
    )


def read_disk_stats(folder: Path) -> DiskStats | None:
    """Return how the disk does; None unless files are, or were, written directly.

    Raises
    ------
    DatasetError
        If the file is damaged.
    """
    record = _read_record(folder)
    if record is None or record["max_staged_nbytes"] == 0:
        return None
    return make_disk_stats({name: int(record[name]) for name in DISK_FIELDS})


def _read_record(folder: Path) -> np.void | None:
    path = folder / APPEND_TIMES
    if not os.path.lexists(path):
        return None
    with faults_of(path):
        # Read, not mapped, because another process may cut it meanwhile.
        with open_regular(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            data = file.read(APPEND_TIMES_RECORD.itemsize)
        if not nbytes == len(data) == APPEND_TIMES_RECORD.itemsize:
            raise ValueError(f"it has {nbytes} bytes, not {APPEND_TIMES_RECORD.itemsize}")
        record: np.void = np.frombuffer(data, APPEND_TIMES_RECORD)[0]
        counts = record["append_counts"]
        if counts.min() < 0 or counts.max() > _MOST or record["longest_append_ns"] < 0:
            raise ValueError("its counts are out of range")
        if not all(0 <= int(record[name]) <= _MOST_OF_DISK for name in DISK_FIELDS):
            raise ValueError("its rates are out of range")
    return record
