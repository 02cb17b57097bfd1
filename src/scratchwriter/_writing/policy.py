"""Where an acquisition is placed, how much it may take, and what is said when it may not.

`place` decides once, before anything is made: the `Placement` says where the arrays are,
how their addresses are reserved, how far ahead of the frames they are made ready, and what
happens at the limit of memory. Afterwards only an array that has reached a limit asks again
(`MemoryBudget`, `spill`).
"""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scratchwriter._files.folders import dataset_files, disk_nbytes, spill_parent
from scratchwriter._region.system import (
    addresses_nbytes,
    available_memory_nbytes,
    writeback_threshold_nbytes,
)
from scratchwriter.errors import size_text
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings, ScratchFormat

_ADDRESSES_NBYTES = 1 << 46  # of a process; more than any memory
_RESERVE_NBYTES = 1 << 42
_BACKLOG_NBYTES = 256 << 20
# How far ahead of the frames memory and files are made ready, over all positions.
_MEMORY_WINDOW_NBYTES = 64 << 20
_FILE_WINDOW_NBYTES = 256 << 20
# The least for which the machine is asked at a time, over all positions.
_GRANT_NBYTES = 256 << 20
# Memory of one position from which on huge pages (2 MiB) are no waste.
_HUGE_FROM_NBYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Writeback:
    """How files are written to the disk while they are recorded.

    Attributes
    ----------
    backlog_nbytes : int
        Bytes behind the frames that may wait for the disk.
    cached_nbytes : int
        Bytes behind those that stay in memory, too.
    """

    backlog_nbytes: int
    cached_nbytes: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the arrays of an acquisition are, and what happens at their limit.

    Attributes
    ----------
    kind : {'memory', 'folder', 'temporary'}
        In memory, in the folder that the settings name, or in a temporary one.
    folder : pathlib.Path or None
        That folder, or the one in which a temporary folder is made, now or at the limit
        of memory; None for arrays that stay in memory.
    needed_nbytes : int
        What the arrays need at the beginning.
    limit : str
        Which limit of memory sends them to a temporary folder, in words; else empty.
    spills : bool
        Whether arrays in memory continue in files at its limit; else that is a MemoryError.
    reserve_nbytes : int
        Addresses to reserve per position.
    records_reserve_nbytes : int
        Addresses to reserve for records that have no end.
    growth_steps : int
        How many steps a file grows by where no thread is ahead of the frames.
    huge_pages : bool
        Whether memory is taken in huge pages.
    memory_steps : tuple of int
        Per position, how far an array in memory may grow.
    max_memory_bytes : int
        The limit that the user set.
    window_nbytes : int
        How far ahead of the frames arrays are made ready, over all positions.
    writeback : Writeback or None
        Of files.
    """

    kind: Literal["memory", "folder", "temporary"]
    folder: Path | None
    needed_nbytes: int
    limit: str
    spills: bool
    reserve_nbytes: int
    records_reserve_nbytes: int
    growth_steps: int
    huge_pages: bool
    memory_steps: tuple[int, ...]
    max_memory_bytes: int
    window_nbytes: int
    writeback: Writeback | None


def place(settings: AcquisitionSettings, plan: FramePlan) -> Placement:
    """Decide where an acquisition is placed.

    Raises
    ------
    MemoryError
        If it has to be in memory and does not fit.
    """
    fmt, needed_nbytes = settings.format, plan.total_nbytes
    limit = "" if settings.root_path else memory_shortage(needed_nbytes, fmt) or ""
    if limit and not fmt.spill_to_disk:
        raise memory_error(needed_nbytes, limit)
    spills = plan.is_unbounded and fmt.spill_to_disk and not plan.ring_steps
    folder, window_nbytes, writeback = None, _MEMORY_WINDOW_NBYTES, None
    kind: Literal["memory", "folder", "temporary"] = "memory"
    if settings.root_path:
        kind = "folder"
        folder = Path(settings.output_path).expanduser().absolute()
        if folder.is_symlink():
            folder = folder.resolve()
    elif limit:
        kind, folder = "temporary", spill_parent(fmt)
    elif spills:
        folder = spill_parent(fmt)
    if kind != "memory" and folder is not None:
        spills = False
        window_nbytes = file_window_nbytes(folder, needed_nbytes)
        writeback = _writeback()
    addresses, huge_from_nbytes = plan.step_nbytes, plan.step_nbytes
    if plan.is_unbounded:
        addresses = max(reserve_nbytes(), 2 * needed_nbytes) // plan.num_positions
        # As far ahead of the frames memory is made ready in any case.
        huge_from_nbytes = _MEMORY_WINDOW_NBYTES // plan.num_positions
    positions = range(plan.num_positions)
    return Placement(
        kind=kind,
        folder=folder,
        needed_nbytes=needed_nbytes,
        limit=limit,
        spills=spills,
        reserve_nbytes=addresses,
        records_reserve_nbytes=reserve_nbytes(),
        growth_steps=max(_MEMORY_WINDOW_NBYTES // needed_nbytes, 1),
        huge_pages=huge_from_nbytes >= _HUGE_FROM_NBYTES,
        memory_steps=tuple(memory_steps(plan, fmt, position) for position in positions),
        max_memory_bytes=fmt.max_memory_bytes,
        window_nbytes=window_nbytes,
        writeback=writeback,
    )


@dataclass(frozen=True, slots=True)
class Spill:
    """Why and how arrays of a placement in memory continue in files.

    Attributes
    ----------
    needed_nbytes : int
        What the arrays need.
    limit : str
        Which limit that crosses, in words.
    writeback : Writeback
        Of the files.
    """

    needed_nbytes: int
    limit: str
    writeback: Writeback


def spill(placement: Placement, needed_nbytes: int, limit: str) -> Spill:
    """Decide how arrays continue that have reached a limit of memory.

    Parameters
    ----------
    placement : Placement
        In memory.
    needed_nbytes : int
        What the arrays need from now on.
    limit : str
        The limit, in words.

    Raises
    ------
    MemoryError
        If they have to stay in memory.
    """
    if not placement.spills:
        raise memory_error(needed_nbytes, limit)
    return Spill(needed_nbytes, limit, _writeback())


class MemoryBudget:
    """How far arrays may grow in memory.

    The machine is asked for many steps at a time: asking takes a millisecond.

    Parameters
    ----------
    placement : Placement
        With the limit that the user set.
    plan : FramePlan
        Sizes of a step.
    """

    def __init__(self, placement: Placement, plan: FramePlan) -> None:
        self._placement, self._plan = placement, plan
        self._granted_steps = 0

    def shortage(self, position: int, step: int) -> str | None:
        """Return which limit a step of a position would cross, in words; None if none."""
        plan = self._plan
        if step > self._placement.memory_steps[position]:
            return limit_text(self._placement.max_memory_bytes)
        if step > self._granted_steps:
            # Half of what is available, besides what is made ready ahead of the frames
            # whether it was asked for or not.
            ahead_nbytes = max(_MEMORY_WINDOW_NBYTES, plan.frame_nbytes)
            available = available_nbytes() - ahead_nbytes
            if self._steps_in(_GRANT_NBYTES) * plan.total_nbytes > available:
                return machine_limit(available + ahead_nbytes)
            most_nbytes = max(available // 2, _GRANT_NBYTES)
            self._granted_steps = step - 1 + self._steps_in(most_nbytes)
        return None

    def granted_steps(self, position: int) -> int:
        """Return how far a position may grow without another question."""
        return min(self._granted_steps, self._placement.memory_steps[position])

    def _steps_in(self, nbytes: int) -> int:
        return max(nbytes // self._plan.total_nbytes, 1)


def memory_shortage(needed_nbytes: int, fmt: ScratchFormat) -> str | None:
    """Return which limit `needed_nbytes` of memory would cross, in words; None if none."""
    if needed_nbytes > fmt.max_memory_bytes:
        return limit_text(fmt.max_memory_bytes)
    return machine_shortage(needed_nbytes)


def limit_text(max_memory_bytes: int) -> str:
    """Name the limit that the user set."""
    return f"max_memory_bytes={max_memory_bytes} ({size_text(max_memory_bytes)})"


def available_nbytes() -> int:
    """Return the memory that the machine has available; no limit if it is unknown."""
    available = available_memory_nbytes()
    return _ADDRESSES_NBYTES if available is None else available


def machine_shortage(needed_nbytes: int) -> str | None:
    """Say how much memory the machine has if it is less than needed, else None."""
    available = available_nbytes()
    return machine_limit(available) if needed_nbytes > available else None


def machine_limit(available: int) -> str:
    """Name the limit that the machine sets."""
    return f"the memory that this machine has available ({size_text(available)})"


def memory_steps(plan: FramePlan, fmt: ScratchFormat, position: int) -> int:
    """Return how many steps of a position fit in memory if all positions grow evenly."""
    rounds, rest_nbytes = divmod(fmt.max_memory_bytes, plan.total_nbytes)
    return rounds + (position < rest_nbytes // plan.step_nbytes)


def reserve_nbytes() -> int:
    """Return how many addresses to reserve for an acquisition that has no end.

    They cost nothing. A process has 2**47; where it is limited, most are left to others.
    """
    limit = addresses_nbytes()
    return _RESERVE_NBYTES if limit is None else min(_RESERVE_NBYTES, limit // 4)


def memory_error(needed_nbytes: int, limit: str) -> MemoryError:
    """Return the refusal of an acquisition that must stay in memory and does not fit."""
    return MemoryError(
        f"The arrays need {size_text(needed_nbytes)}, more than {limit}. Set root_path (or "
        f"spill_to_disk=True) to keep them in files{_or_raise(limit)}."
    )


def warn_of_spill(why: Placement | Spill, folder: Path, *, stacklevel: int) -> None:
    """Warn the user that the data goes to a temporary folder."""
    warnings.warn(
        f"The arrays need {size_text(why.needed_nbytes)}, more than {why.limit}: they are "
        f"kept in files in {folder}, which is removed when Python exits. Set root_path to "
        f"keep them{_or_raise(why.limit)}.",
        stacklevel=stacklevel,
    )


def warn_of_no_lock(folder: Path, *, stacklevel: int) -> None:
    """Warn the user that nothing keeps a second writer out."""
    warnings.warn(
        f"{folder} cannot be locked, its file system has no locks: nothing keeps another "
        "program from recording into it, or readers from taking it for a killed one.",
        stacklevel=stacklevel,
    )


def _or_raise(limit: str) -> str:
    return ", or raise max_memory_bytes" if "max_memory_bytes" in limit else ""


def file_window_nbytes(folder: Path, needed_nbytes: int) -> int:
    """Return how far ahead files may be allocated: not much of a disk nearly full."""
    disk = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if disk is None:
        return _FILE_WINDOW_NBYTES
    free_nbytes = shutil.disk_usage(disk).free - needed_nbytes
    if disk == folder:  # with a dataset that is to be replaced
        with suppress(OSError):  # another process may be replacing it just now
            free_nbytes += sum(map(disk_nbytes, dataset_files(folder)))
    return min(_FILE_WINDOW_NBYTES, max(free_nbytes, 0) // 8)


def _writeback() -> Writeback:
    return Writeback(backlog_nbytes(_FILE_WINDOW_NBYTES), cached_nbytes())


def backlog_nbytes(ahead_nbytes: int) -> int:
    """Return how many bytes of files may wait before they are written back.

    With what is made ready ahead of the frames they are at the kernel's own threshold,
    beyond which it writes by itself, all at once, and everybody's. Not below: a thread that
    writes to the disk takes time of the cores (512x512 at 2 kHz, 2 GB, on 2 cores of a
    virtual machine: p99.9 2.2 ms if it begins at two fifths of the threshold, 0.06 ms
    before).
    """
    threshold_nbytes = writeback_threshold_nbytes()
    if threshold_nbytes is None:
        return _BACKLOG_NBYTES
    return max(threshold_nbytes - ahead_nbytes, threshold_nbytes // 4)


def cached_nbytes() -> int:
    """Return how much of the files stays in memory when the disk has it: half of what is.

    The page cache takes all memory otherwise, from everybody, and the next frames wait
    until the kernel has found pages to give up.
    """
    return available_nbytes() // 2
