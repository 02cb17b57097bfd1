"""staging.bin: the newest bytes of the arrays, as long as they are not in their files.

Everything read here is untrusted, and may change while it is read: the writer uses a slot
again once what it held is in a file.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import (
    STAGING,
    STAGING_HEADER,
    STAGING_IN_FILE_OFFSET,
    STAGING_MAGIC,
    STAGING_MOST_POSITIONS,
    STAGING_MOST_SLOTS,
    STAGING_SLOT,
    STAGING_SLOTS_NBYTES,
    STAGING_STAGED_OFFSET,
    array_name,
)
from scratchwriter._region import OverlaidFile, overlay_file, view_open_file
from scratchwriter._region.system import descriptor_of_regular, read_pieces
from scratchwriter.errors import DatasetError

# Addresses, which cost nothing: for frames that come while a dataset is open.
_MORE_NBYTES = 1 << 32
_MAP_NBYTES = 4 << 20  # of a file at a time, or more
_MOST_SLOT_NBYTES = 1 << 26  # several times what any writer has


class _Staging(NamedTuple):
    """staging.bin as it is mapped at one moment; its content changes.

    Attributes
    ----------
    identity : tuple of int
        Of the file: its device, its number there, and its length.
    data : memoryview
        All of it.
    piece_nbytes : int
        Of a slot.
    slots : numpy.ndarray of layout.STAGING_SLOT
        What they hold.
    in_file_nbytes : numpy.ndarray of int64
        Per position, all before is in its file.
    staged_nbytes : numpy.ndarray of int64
        Per position, where its last slot ends.
    """

    identity: tuple[int, int, int]
    data: memoryview
    piece_nbytes: int
    slots: npt.NDArray[np.void]
    in_file_nbytes: npt.NDArray[np.int64]
    staged_nbytes: npt.NDArray[np.int64]


class _Held(NamedTuple):
    """What a slot holds of a position: bytes of the array from `start` to `stop`."""

    start: int
    stop: int
    after: int  # all from there to `start` is in the position's file
    number: int  # of the slot
    generation: int


def is_staged(folder: Path) -> bool:
    """Return whether some bytes of a dataset may not be in the files of its arrays."""
    return os.path.lexists(folder / STAGING)


class StagingReader:
    """Reads staging.bin; it is mapped once for all looks at it.

    Parameters
    ----------
    folder : pathlib.Path
        Of the dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / STAGING
        self._staging: _Staging | None = None  # as it was mapped last

    def copy(
        self, position: int, start: int, stop: int, put: Callable[[int, memoryview], object]
    ) -> list[tuple[int, int]]:
        """Copy what is staged of a range of a position's bytes; return what is not.

        Parameters
        ----------
        position, start, stop : int
            The range.
        put : callable
            Is called with the number of a byte, and what is there and after it. What the
            writer has replaced meanwhile is returned as not staged.

        Returns
        -------
        list of tuple of int
            First byte, and the one behind the last, of what is in the position's file by
            now: read it afterwards.

        Raises
        ------
        DatasetError
            If the file is missing or damaged.
        """
        with faults_of(self.path):
            staging, found = self._held(position)
        at, in_file = start, []
        for held in found:
            low, high = max(held.start, start), min(held.stop, stop)
            if low >= high:
                continue
            where = _slot_start(staging, held.number) - held.start
            put(low, staging.data[where + low : where + high])
            if int(staging.slots["generation"][held.number]) != held.generation:
                with faults_of(self.path):
                    _need_in_file(staging, position, low, high)
                continue
            in_file.append((at, low))
            at = high
        in_file.append((at, stop))
        return [(low, high) for low, high in in_file if low < high]

    def check(self, position: int) -> None:
        """Check that all of a position is in a slot or in its file.

        Raises
        ------
        DatasetError
            If it is not, or the file is missing or damaged.
        """
        with faults_of(self.path):
            self._held(position)

    def first_held(self, position: int) -> int | None:
        """Return the first byte that a slot may hold: all before is in the position's file.

        None if there is no staging.bin.

        Raises
        ------
        DatasetError
            If the file is damaged.
        """
        with faults_of(self.path):
            if self._now() is None:
                return None
            staging, found = self._held(position)
            starts = [held.start for held in found]
            return min([*starts, int(staging.in_file_nbytes[position])])

    def _held(self, position: int) -> tuple[_Staging, list[_Held]]:
        """Return staging.bin, and what its slots hold of a position, in order."""
        while True:
            staging = self._now()
            if staging is None:
                raise ValueError("it is missing")
            generations = staging.slots["generation"].copy()
            try:
                return staging, _checked(staging, position)
            except ValueError:
                # The writer may have used slots again meanwhile, or made some, and the file
                # longer, since it was mapped.
                is_same = (staging.slots["generation"] == generations).all()
                if is_same and self._now() is staging:
                    raise

    def _now(self) -> _Staging | None:
        try:
            status = self.path.lstat()
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("not a regular file")
        staging = self._staging
        if staging is None or staging.identity != _identity(status):
            try:
                staging = _map_staging(self.path)
            except FileNotFoundError:
                return None
            self._staging = staging
        return staging


def _checked(staging: _Staging, position: int) -> list[_Held]:
    """Return what the slots hold of a position, in order; ValueError if some is missing."""
    # In this order: what no slot holds any more is in the file before.
    staged_nbytes = int(staging.staged_nbytes[position])
    found = sorted(_entries(staging.slots, position))
    in_file_nbytes = int(staging.in_file_nbytes[position])
    at = 0
    for held in found:
        if (
            not 0 <= held.after <= held.start < held.stop
            or held.stop > held.start + staging.piece_nbytes
            or _slot_start(staging, held.number + 1) > len(staging.data)
        ):
            raise ValueError(f"slot {held.number} holds no bytes")
        if held.start < at:
            raise ValueError(f"slot {held.number} holds the bytes of another")
        _need_all(position, held.after, max(at, in_file_nbytes))
        at = held.stop
    _need_all(position, staged_nbytes, max(at, in_file_nbytes))
    return found


def _map_staging(path: Path) -> _Staging:
    with descriptor_of_regular(path) as file:
        identity = _identity(os.fstat(file.fileno()))
        data = view_open_file(file)
    header = np.frombuffer(data, STAGING_HEADER, 1)[0]
    nbytes = int(header["piece_nbytes"])
    if header["magic"] != STAGING_MAGIC or not 0 < nbytes <= _MOST_SLOT_NBYTES:
        raise ValueError("it is not the staging of a scratch dataset")
    most = int(header["most_slots"])
    if not 0 < most <= STAGING_MOST_SLOTS:
        raise ValueError(f"it cannot have {most} slots")
    entries = np.frombuffer(data, STAGING_SLOT, most, STAGING_HEADER.itemsize)
    in_file, staged = (
        np.frombuffer(data, np.int64, STAGING_MOST_POSITIONS, offset)
        for offset in (STAGING_IN_FILE_OFFSET, STAGING_STAGED_OFFSET)
    )
    return _Staging(identity, data, nbytes, entries, in_file, staged)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    # While it is mapped, no other file gets its number.
    return status.st_dev, status.st_ino, status.st_size


def _slot_start(staging: _Staging, number: int) -> int:
    return STAGING_SLOTS_NBYTES + number * staging.piece_nbytes


def _entries(slots: npt.NDArray[np.void], position: int) -> Iterator[_Held]:
    """Yield what is said of a position."""
    numbers = np.flatnonzero(slots["position"] == position)
    before = slots["generation"][numbers]
    entries = slots[numbers]  # a copy
    after = slots["generation"][numbers]
    # What has changed meanwhile is in the file.
    is_whole = (before > 0) & (before % 2 == 0) & (before == after)
    is_whole &= entries["position"] == position
    columns = (
        *(entries[name][is_whole].tolist() for name in ("start", "stop", "after")),
        *(column[is_whole].tolist() for column in (numbers, before)),
    )
    return itertools.starmap(_Held, zip(*columns, strict=True))


def _need_in_file(staging: _Staging, position: int, start: int, stop: int) -> None:
    if stop > int(staging.in_file_nbytes[position]):
        raise ValueError(_missing_text(position, start, stop))


def _need_all(position: int, wanted_nbytes: int, found_nbytes: int) -> None:
    """Check that what is held, or in the file, reaches as far as something says."""
    if wanted_nbytes > found_nbytes:
        raise ValueError(_missing_text(position, found_nbytes, wanted_nbytes))


def _missing_text(position: int, start: int, stop: int) -> str:
    return (
        f"bytes {start} to {stop} of {array_name(position)} are neither in it nor in that "
        "file"
    )


class ArrayBytes:
    """The bytes of a position, for those that copy them from wherever they are.

    Parameters
    ----------
    staging : StagingReader
        Of the dataset's folder.
    position : int
        Which array.
    in_file_nbytes : callable, optional
        Returns how many of the first are in the file, if there is no staging any more; by
        default nothing is staged.

    Attributes
    ----------
    file : Descriptor
        The position's file.
    """

    def __init__(
        self,
        staging: StagingReader,
        position: int,
        in_file_nbytes: Callable[[], int] | None = None,
    ) -> None:
        self._staging, self._position = staging, position
        self._in_file_nbytes = in_file_nbytes
        self._path = staging.path.with_name(array_name(position))
        with faults_of(self._path):
            # One for all mappings of it: those of one descriptor become one.
            self.file = descriptor_of_regular(self._path, closed_in_children=True)

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def copy(self, start: int, stop: int, put: Callable[[int, memoryview], object]) -> None:
        """Copy a range of bytes that frames have filled.

        `put` is called as by `StagingReader.copy`; what it got last of a byte counts.

        Raises
        ------
        DatasetError
            If a file is damaged.
        """
        for low, high in self._copy_staged(start, stop, put):
            self._read(low, high, put)

    def _copy_staged(
        self, start: int, stop: int, put: Callable[[int, memoryview], object]
    ) -> list[tuple[int, int]]:
        """Copy what is staged of a range; return what is in the file."""
        if self._in_file_nbytes is None:
            return [(start, stop)]
        path = self._staging.path
        try:
            if os.path.lexists(path):
                return self._staging.copy(self._position, start, stop, put)
        except DatasetError:
            # Or the writer has closed the dataset meanwhile.
            if os.path.lexists(path) or stop > self._in_file_nbytes():
                raise
        if stop > self._in_file_nbytes():
            raise DatasetError(
                f"{path} is missing: it had bytes of {self._path.name}, from "
                f"{self._in_file_nbytes()} on"
            )
        return [(start, stop)]

    def _read(
        self, start: int, stop: int, put: Callable[[int, memoryview], object]
    ) -> None:
        pieces = read_pieces(self.file, start, stop)
        while start < stop:
            with faults_of(self._path):
                at, data = next(pieces, (start, b""))
                if not data:
                    raise ValueError(f"it has only {start} bytes")
            put(at, memoryview(data))
            start = at + len(data)


class StagedArray:
    """The bytes of a position whose newest ones are staged, for readers.

    What is old is mapped from the file. What a slot of the staging may still hold is copied
    when it is asked for, from there and not from the disk; the file takes its place later.
    So arrays that were made of it stay as they are.

    Parameters
    ----------
    staging : StagingReader
        Of the dataset's folder.
    position : int
        Which array.
    nbytes : int
        How many it has now; it may get some more.
    in_file_nbytes : callable
        Returns how many of the first are in the file, if there is no staging any more.
    need_same : callable
        Raises DatasetError if the folder now has another dataset.
    """

    def __init__(
        self,
        staging: StagingReader,
        position: int,
        nbytes: int,
        in_file_nbytes: Callable[[], int],
        need_same: Callable[[], None],
    ) -> None:
        self._staging, self._position = staging, position
        self._in_file_nbytes, self._need_same = in_file_nbytes, need_same
        self._overlaid: OverlaidFile = overlay_file(nbytes, _MORE_NBYTES)
        self._path = staging.path.with_name(array_name(position))
        self._bytes = ArrayBytes(staging, position, in_file_nbytes)
        self._looked_nbytes = 0  # how many had come when it was last asked what to map
        self._copied: list[tuple[int, int]] = []  # ranges of bytes, in order, apart
        self._lock = threading.Lock()
        need_same()

    @property
    def most_nbytes(self) -> int:
        """How many bytes it can have."""
        return self._overlaid.reserved_nbytes

    def view(self, nbytes: int, filled_nbytes: int) -> memoryview:
        """Return its first bytes; what is not mapped is right after `make_ready`.

        Parameters
        ----------
        nbytes : int
            How many.
        filled_nbytes : int
            How many of these frames have filled.

        Raises
        ------
        DatasetError
            If a file is damaged, or another dataset's.
        """
        with self._lock:
            if filled_nbytes >= self._looked_nbytes + _MAP_NBYTES:
                self._looked_nbytes = filled_nbytes
                self._map(filled_nbytes)
            return self._overlaid.view(nbytes)

    def close(self) -> None:
        """Close the file; what was made ready stays."""
        self._bytes.close()

    def make_ready(self, start: int, stop: int) -> None:
        """Copy a range of bytes that frames have filled, where it is not mapped.

        Raises
        ------
        DatasetError
            If a file is damaged, or another dataset's.
        """
        with self._lock:
            missing = self._missing(start, stop)
            for low, high in missing:
                self._bytes.copy(low, high, self._overlaid.put)
            if missing:
                self._need_same()  # after it was read
            for low, high in missing:
                self._note_copied(low, high)

    def _map(self, filled_nbytes: int) -> None:
        """Map what no slot can hold any more."""
        held = self._staging.first_held(self._position)
        stop = min(filled_nbytes, self._in_file_nbytes() if held is None else held)
        with faults_of(self._path):
            self._overlaid.map_file(self._bytes.file, stop)
        self._need_same()

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of a range that are neither mapped nor copied."""
        at, missing = max(start, self._overlaid.mapped_nbytes), []
        for first, last in self._copied:
            if last > at and first < stop:
                missing.append((at, first))
                at = last
        missing.append((at, stop))
        return [(low, high) for low, high in missing if low < high]

    def _note_copied(self, start: int, stop: int) -> None:
        at = bisect_right(self._copied, (start, stop))
        self._copied.insert(at, (start, stop))
        merged: list[tuple[int, int]] = []
        for first, last in self._copied:
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
            elif last > self._overlaid.mapped_nbytes:
                merged.append((first, last))
        self._copied = merged
