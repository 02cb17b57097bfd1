"""Regions: memory that grows. Every difference between operating systems is in here.

`MappedRegion` (Linux) reserves its addresses once and grows in place. `PortableRegion`
is made of numpy and `mmap` alone and serves elsewhere; `SCRATCHWRITER_REGION=portable`
asks for it.
"""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path
from typing import Protocol

import numpy as np

from scratchwriter._region import portable
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.portable import PortableRegion, PortableRing
from scratchwriter._region.system import takes_direct_writes


class Region(Protocol):
    """One contiguous array of bytes, in memory or in a file, that grows at its end.

    Arrays handed out keep it alive; it is unmapped with the last of them.
    """

    @property
    def path(self) -> Path | None:
        """Its file, None in memory."""

    @property
    def address(self) -> int:
        """Where it begins. A portable region moves when it grows."""

    @property
    def memory(self) -> object:
        """What keeps the bytes at `address` while it is held."""

    @property
    def moves(self) -> bool:
        """Whether its bytes get other addresses when it grows."""

    @property
    def nbytes(self) -> int:
        """How many bytes can be read."""

    @property
    def memory_nbytes(self) -> int:
        """How many of them, the first ones, are in memory and not in a file."""

    def extend(self, nbytes: int) -> None:
        """Make the first `nbytes` readable: zeros, where nothing was written.

        Raises MemoryError or OSError, and is then as it was before.
        """

    def allocate(self, start: int, stop: int) -> None:
        """Make the bytes from `start` to `stop` safe to write, and those before readable.

        What could fail later (a full disk) fails here: MemoryError or OSError, and the
        region is as it was before.
        """

    def populate(self, start: int, stop: int) -> None:
        """Touch the pages of readable bytes before a store has to; they keep their values.

        Raises MemoryError if the system refuses memory for them.
        """

    def spill(self, path: Path, start: int) -> None:
        """Spill: continue in a new file at `path`; nothing was written from `start` on.

        What lies before may stay in memory until `save`: a hole in the file.
        """

    def save(self) -> None:
        """Write what is still in memory into the file, if there is one. Once.

        Raises DeviceError if the device does not take it: it is reported only once.
        """

    def save_as(self, path: Path, nbytes: int) -> None:
        """Write the first bytes of a region in memory into a new file at `path`. Once."""

    @property
    def is_saved(self) -> bool:
        """Whether nothing is in memory that a file lacks."""

    def end(self, nbytes: int, lent_stop: int = 0) -> None:
        """Keep the first `nbytes`, and memory up to `lent_stop`; give back the rest.

        Nothing is stored behind `nbytes` any more, but memory that was lent out may still
        be used. The file stays as it is: see `trim`.
        """

    def trim(self, nbytes: int) -> None:
        """Cut the file, if there is one, to `nbytes`; after `end`."""

    def array(
        self, dtype: np.dtype[np.generic], shape: tuple[int, ...], start: int = 0
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
        """Return the region from a byte on, the first as a rule, as a read-only array.

        That of a ring continues at its beginning.
        """


def _use_portable() -> bool:
    choice = os.environ.get("SCRATCHWRITER_REGION", "")
    if choice not in ("", "mapped", "portable"):
        raise ValueError(
            f"SCRATCHWRITER_REGION={choice!r}: use 'mapped', 'portable' or leave it out."
        )
    return choice == "portable" or (choice == "" and sys.platform != "linux")


def why_not_stageable(folder: Path) -> str:
    """Return why the files in a folder cannot be staged and written directly, or ""."""
    if _use_portable():
        return "arrays are mapped by portable means"
    if not takes_direct_writes(folder):
        return "its file system does not take direct writes"
    return ""


def make_region(
    reserve_nbytes: int,
    path: Path | None = None,
    *,
    huge_pages: bool = False,
    least_nbytes: int | None = None,
) -> Region:
    """Make an empty region in memory, or in a new file at `path`.

    Parameters
    ----------
    reserve_nbytes : int
        How far it may grow in place. Addresses only: it costs no memory.
    path : Path, optional
        File to make; it must not exist.
    huge_pages : bool
        Take memory in pages of 2 MiB, where the system has them: several times as fast
        to make ready, and a waste for arrays that will not fill them.
    least_nbytes : int, optional
        So many addresses will do, if the system refuses more. None: all of them.

    Raises
    ------
    MemoryError, OSError
        If the addresses or the file cannot be had.
    """
    if _use_portable():
        return PortableRegion(path)
    from scratchwriter._region.mapped import MappedRegion

    while True:
        try:
            return MappedRegion(reserve_nbytes, path, huge_pages=huge_pages)
        except MemoryError:
            if least_nbytes is None or reserve_nbytes <= least_nbytes:
                raise
            reserve_nbytes = max(reserve_nbytes // 4, least_nbytes)


def allocate_most(region: Region, start: int, stop: int, most_stop: int, unit: int) -> int:
    """Make bytes safe to store to, and those behind them as far as there is room.

    Parameters
    ----------
    region : Region
        Whose bytes.
    start, stop, most_stop : int
        From where on; how far at least; how far at most.
    unit : int
        Of which there are whole ones between `stop` and what is returned.

    Returns
    -------
    int
        How far.

    Raises
    ------
    MemoryError, OSError
        If there is not even room up to `stop`.
    """
    while True:
        try:
            region.allocate(start, most_stop)
        except (MemoryError, OSError):
            if most_stop == stop:
                raise
            most_stop = stop + (most_stop - stop) // unit // 8 * unit
        else:
            return most_stop


def make_ring(nbytes: int, path: Path | None = None) -> Region:
    """Make a region that does not grow and whose arrays continue at its beginning.

    Parameters
    ----------
    nbytes : int
        Whole pages. All of it is there at once.
    path : Path, optional
        File to make; it must not exist. None: in memory.

    Raises
    ------
    MemoryError, OSError
        If they cannot be had.
    """
    if _use_portable():
        return PortableRing(nbytes, path)
    from scratchwriter._region.mapped import MappedRing

    return MappedRing(nbytes, path)


def view_ring(path: Path, nbytes: int) -> memoryview:
    """Return the bytes of a ring's file twice, one behind the other; see `view_file`."""
    if _use_portable() or nbytes % mmap.ALLOCATIONGRANULARITY:
        # As they are now: a copy. The machine that wrote it may have smaller pages.
        data = portable.map_file(path)[:nbytes]
        return memoryview(bytes(data) * 2)
    from scratchwriter._region.mapped import map_ring

    return map_ring(path, nbytes)


def view_file(path: Path) -> memoryview:
    """Return the bytes of a file as they are now, read-only, without reading them.

    Raises
    ------
    OSError
        If it cannot be opened; a symbolic link is not followed.
    ValueError
        If it is not a regular file, or empty.
    """
    if _use_portable():
        return portable.map_file(path)
    from scratchwriter._region.file_view import map_file

    return map_file(path)


def view_open_file(file: Descriptor, *, writable: bool = False) -> memoryview:
    """Return the bytes of an open file, as far as it reaches now.

    They stay mapped as long as they are held; the file may be closed.

    Parameters
    ----------
    file : Descriptor
        Of a regular file that is not empty; for `writable`, open for reading and writing.
    writable : bool
        Whether what is stored there goes into the file.

    Raises
    ------
    OSError
        If it cannot be mapped.
    ValueError
        If it is empty.
    """
    if _use_portable():
        return portable.map_open_file(file, writable)
    from scratchwriter._region.file_view import map_open_file

    return map_open_file(file, writable)


class OverlaidFile(Protocol):
    """The first bytes of a file, mapped, and behind them copies. Read-only.

    What is neither mapped nor put there is zero.
    """

    @property
    def reserved_nbytes(self) -> int:
        """How many bytes it can have."""

    @property
    def mapped_nbytes(self) -> int:
        """How many of the first bytes are mapped from the file."""

    def map_file(self, file: Descriptor, stop: int) -> None:
        """Map whole pages of the file up to `stop`, instead of copies, if that works."""

    def put(self, start: int, data: bytes | memoryview) -> None:
        """Store a copy; what is mapped by now stays."""

    def view(self, nbytes: int) -> memoryview:
        """Return its first bytes."""


def overlay_file(nbytes: int, more_nbytes: int) -> OverlaidFile:
    """Make an `OverlaidFile` of so many bytes, or some more where that costs nothing.

    Raises
    ------
    MemoryError
        If there are no such addresses.
    """
    if _use_portable():
        return portable.OverlaidCopy(nbytes)
    from scratchwriter._region import file_view

    try:
        return file_view.OverlaidFile(2 * nbytes + more_nbytes)
    except (MemoryError, OverflowError):
        return file_view.OverlaidFile(nbytes)
