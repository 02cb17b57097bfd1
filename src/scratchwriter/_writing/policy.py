"""Where an acquisition is placed, how much it may take, and what is said when it may not.

`place` decides once, before anything is made: the `Placement` says where the arrays are,
how their addresses are reserved, how far ahead of the frames they are made ready, and what
happens at the limit of memory. Afterwards only an array that has reached a limit asks again
(`MemoryBudget`, `spill`).
"""

from __future__ import annotations

import errno
import math
import os
import shutil
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scratchwriter._files.folders import dataset_files, disk_nbytes, spill_parent
from scratchwriter._region import why_not_stageable
from scratchwriter._region.system import addresses_nbytes, available_memory_nbytes
from scratchwriter.errors import size_text
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings, ScratchFormat
from scratchwriter.stats import DiskStats

_ADDRESSES_NBYTES = 1 << 46  # of a process; more than any memory
_RESERVE_NBYTES = 1 << 42
# Datasets of up to that are in the page cache: exact for everybody at any moment.
_PAGE_CACHE_NBYTES = 256 << 20
# Of the file that is staged in: enough for a disk that pauses for half a second. Its pages
# are dirty all the time. So it is also no more than this part of the memory that is
# available, or Linux begins to write it to the disk again and again (from a tenth on).
_STAGING_NBYTES, _SLOTS_PART = 1 << 30, 16
_KEEP_SLOTS_S = 10  # of that file, what was not needed
_ALLOCATED_NBYTES = 128 << 20  # of blocks ahead of what is staged, over all positions
_PIECE_NBYTES, _LEAST_PIECE_NBYTES = 8 << 20, 2 << 20  # see `_region/staging.pyx`
_MOST_STAGED_POSITIONS = 128
# Of the memory that is available, what may wait for the disk.
_STAGING_PART = 2
# How far ahead of the frames memory and files are made ready, over all positions.
_MEMORY_WINDOW_NBYTES = 64 << 20
_FILE_WINDOW_NBYTES = 64 << 20
# The least for which the machine is asked at a time, over all positions.
_GRANT_NBYTES = 256 << 20
_LONG_S = 600
_FASTER = (
    "Use a faster disk (`scratchwriter disk PATH` measures one), a lower rate or smaller "
    "frames; ScratchFormat(max_staging_bytes=...) takes longer bursts."
)
# Memory of one position from which on huge pages (2 MiB) are no waste.
_HUGE_FROM_NBYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Staging:
    """How files are staged and written directly; see `_region/staging.pyx`.

    Attributes
    ----------
    from_nbytes : int
        Of each array: before that the page cache is used.
    piece_nbytes : int
        What is staged, and written, at a time.
    most_slots : int
        How many pieces the staging file may have.
    keep_ns : int
        After which pieces of it that were not needed are given back to the system.
    most_cached_pieces : int
        How many more may wait for the disk in the page cache, before frames do.
    window_nbytes : int
        How far ahead of the frames pieces are made ready, over all positions.
    allocated_nbytes : int
        How far ahead of the frames files have blocks, over all positions.
    is_required : bool
        Whether it is an error if the system has not the means for it.
    """

    from_nbytes: int
    piece_nbytes: int
    most_slots: int
    keep_ns: int
    most_cached_pieces: int
    window_nbytes: int
    allocated_nbytes: int
    is_required: bool


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
    populates_all : bool
        Whether all memory is made ready before the first frame.
    memory_steps : tuple of int
        Per position, how far an array in memory may grow.
    max_memory_bytes : int
        The limit that the user set.
    window_nbytes : int
        How far ahead of the frames arrays are made ready, over all positions.
    staging : Staging or None
        Of files; None: they are in the page cache.
    why_not_direct : str
        In words, if there is a reason; else empty.
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
    populates_all: bool
    memory_steps: tuple[int, ...]
    max_memory_bytes: int
    window_nbytes: int
    staging: Staging | None
    why_not_direct: str


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
    folder, window_nbytes = None, _MEMORY_WINDOW_NBYTES
    staging, why_not_direct = None, "it is in memory"
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
    if folder is not None:  # also for files that come at the limit of memory
        staging, why_not_direct = stage(folder, plan, fmt)
    if kind != "memory" and staging is None and fmt.disk_io == "direct":
        raise OSError(
            errno.EOPNOTSUPP,
            f"disk_io='direct' is not possible: {why_not_direct}. Use 'auto' or "
            "'page_cache'",
            str(folder),
        )
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
        populates_all=(
            fmt.populate == "all" and kind == "memory" and not plan.is_unbounded
        ),
        memory_steps=tuple(memory_steps(plan, fmt, position) for position in positions),
        max_memory_bytes=fmt.max_memory_bytes,
        window_nbytes=window_nbytes,
        staging=staging,
        why_not_direct=why_not_direct,
    )


def stage(folder: Path, plan: FramePlan, fmt: ScratchFormat) -> tuple[Staging | None, str]:
    """Decide whether the files in a folder are staged; if not, say why."""
    from_nbytes = 0
    if fmt.disk_io == "auto" and plan.is_unbounded:
        from_nbytes = _PAGE_CACHE_NBYTES // plan.num_positions
    if fmt.disk_io == "page_cache":
        return None, "disk_io='page_cache'"
    why_not = ""
    if not plan.is_in_order:
        why_not = "frames do not come in the order of their bytes in the file"
    elif plan.ring_steps:
        why_not = "keep_last: its file is used again and again"
    elif plan.num_positions > _MOST_STAGED_POSITIONS:
        why_not = f"{plan.num_positions} positions are more than {_MOST_STAGED_POSITIONS}"
    else:
        why_not = why_not_stageable(folder)
    if not why_not and fmt.disk_io == "auto" and not plan.is_unbounded:
        total_nbytes = plan.total_nbytes
        if total_nbytes <= _PAGE_CACHE_NBYTES:
            why_not = f"it has no more than {size_text(_PAGE_CACHE_NBYTES)}"
    if why_not:
        return None, why_not
    spare_nbytes = spare_disk_nbytes(folder, plan.total_nbytes)
    most_nbytes = most_staged_nbytes(fmt)
    room_nbytes = min(_STAGING_NBYTES, spare_nbytes, available_nbytes() // _SLOTS_PART)
    piece_nbytes = _PIECE_NBYTES
    while piece_nbytes > _LEAST_PIECE_NBYTES and (
        8 * plan.num_positions * piece_nbytes > room_nbytes
    ):
        piece_nbytes //= 2
    # One piece is written while the next is filled; of large frames, as many as two have.
    pieces_per_frame = -(-plan.frame_nbytes // piece_nbytes)
    least_slots = 2 * (plan.num_positions + pieces_per_frame) + 2
    slots = max(min(room_nbytes, most_nbytes) // piece_nbytes, least_slots)
    return (
        Staging(
            from_nbytes=from_nbytes,
            piece_nbytes=piece_nbytes,
            most_slots=slots,
            keep_ns=int(_KEEP_SLOTS_S * 1e9),
            most_cached_pieces=max(most_nbytes // piece_nbytes - slots, 0),
            window_nbytes=max(4, plan.num_positions) * piece_nbytes,
            allocated_nbytes=min(_ALLOCATED_NBYTES, spare_nbytes),
            is_required=fmt.disk_io == "direct",
        ),
        "",
    )


def most_staged_nbytes(fmt: ScratchFormat) -> int:
    """Return how many bytes may wait for the disk before frames do."""
    return fmt.max_staging_bytes or available_nbytes() // _STAGING_PART


@dataclass(frozen=True, slots=True)
class Spill:
    """Why and how arrays of a placement in memory continue in files.

    Attributes
    ----------
    needed_nbytes : int
        What the arrays need.
    limit : str
        Which limit that crosses, in words.
    """

    needed_nbytes: int
    limit: str


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
    return Spill(needed_nbytes, limit)


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


def populate_error(needed_nbytes: int, error: MemoryError) -> MemoryError:
    """Return the refusal of memory that was to be made ready before the first frame."""
    return MemoryError(
        f"The arrays need {size_text(needed_nbytes)} of memory at once, because of "
        f"populate='all': {error}. Record fewer frames, or set root_path to keep them in "
        "files."
    )


def warn_of_spill(why: Placement | Spill, folder: Path, *, stacklevel: int) -> None:
    """Warn the user that the data goes to a temporary folder."""
    warnings.warn(
        f"The arrays need {size_text(why.needed_nbytes)}, more than {why.limit}: they are "
        f"kept in files in {folder}, which is removed when Python exits. Set root_path to "
        f"keep them{_or_raise(why.limit)}.",
        stacklevel=stacklevel,
    )


def slow_disk_text(folder: Path, disk: DiskStats) -> str:
    """Say that frames will have to wait for the disk."""
    rate, camera = disk.disk_nbytes_per_s, disk.camera_nbytes_per_s
    takes = "has taken nothing" if math.isnan(rate) else f"takes {size_text(round(rate))}/s"
    seconds = disk.seconds_left
    soon = f" in {seconds:.0f} s" if 1 <= seconds <= _LONG_S else " if that continues"
    text = f"The disk of {folder} {takes}, and frames come at {size_text(round(camera))}/s."
    if rate >= camera:  # by now: these are rates of the last seconds
        text = f"The disk of {folder} is behind the camera."
    return (
        f"{text} {size_text(disk.staged_nbytes)} wait for the disk, of at most "
        f"{size_text(disk.max_staged_nbytes)}: append will wait, too,{soon}. {_FASTER}"
    )


def no_staging_text(folder: Path, code: int) -> str:
    """Say that staging.bin cannot be made, or made longer, and why."""
    why = os.strerror(code)
    remedy = "Make room, or lower ScratchFormat(max_staging_bytes=...)."
    if code == errno.EOPNOTSUPP:
        why = "its file system cannot allocate blocks ahead"
        remedy = "Use another file system, or ScratchFormat(disk_io='page_cache')."
    return (
        f"The disk of {folder} has no room for staging.bin to grow ({why}): frames go "
        f"through the page cache, and some may be late. {remedy}"
    )


def warn_of_waiting(folder: Path, most_nbytes: int, *, stacklevel: int) -> None:
    """Warn the user that a frame waits for the disk."""
    warnings.warn(
        f"The disk of {folder} is slower than the camera. {size_text(most_nbytes)} wait "
        f"for it, and no more may: append waits, too. {_FASTER}",
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
    return min(_FILE_WINDOW_NBYTES, spare_disk_nbytes(folder, needed_nbytes))


def spare_disk_nbytes(folder: Path, needed_nbytes: int) -> int:
    """Return what may be used for speed alone: an eighth of what stays free."""
    disk = next((path for path in (folder, *folder.parents) if path.is_dir()), None)
    if disk is None:
        return _FILE_WINDOW_NBYTES
    free_nbytes = shutil.disk_usage(disk).free - needed_nbytes
    if disk == folder:  # with a dataset that is to be replaced
        with suppress(OSError):  # another process may be replacing it just now
            free_nbytes += sum(map(disk_nbytes, dataset_files(folder)))
    return max(free_nbytes, 0) // 8
