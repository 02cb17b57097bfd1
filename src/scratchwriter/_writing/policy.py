"""How much memory and disk an acquisition may take, and what is said when it may not."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

from scratchwriter._region.system import (
    addresses_nbytes,
    available_memory_nbytes,
    writeback_threshold_nbytes,
)
from scratchwriter.errors import size_text
from scratchwriter.plan import FramePlan
from scratchwriter.settings import ScratchFormat

_ADDRESSES_NBYTES = 1 << 46  # of a process; more than any memory
_RESERVE_NBYTES = 1 << 42
_BACKLOG_NBYTES = 256 << 20


def memory_shortage(needed_nbytes: int, fmt: ScratchFormat) -> str | None:
    """Say which limit `needed_nbytes` of memory would cross, None if none."""
    if needed_nbytes > fmt.max_memory_bytes:
        return memory_limit(fmt)
    return machine_shortage(needed_nbytes)


def memory_limit(fmt: ScratchFormat) -> str:
    """Name the limit that the user set."""
    return f"max_memory_bytes={fmt.max_memory_bytes} ({size_text(fmt.max_memory_bytes)})"


def available_nbytes() -> int:
    """Return the memory that the machine has available; all there is if it is unknown."""
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


def warn_of_spill(needed_nbytes: int, limit: str, folder: Path, *, stacklevel: int) -> None:
    """Tell the user that the data goes to a temporary folder."""
    warnings.warn(
        f"The arrays need {size_text(needed_nbytes)}, more than {limit}: they are kept in "
        f"files in {folder}, which is removed when Python exits. Set root_path to keep "
        f"them{_or_raise(limit)}.",
        stacklevel=stacklevel,
    )


def warn_of_no_lock(folder: Path, *, stacklevel: int) -> None:
    """Tell the user that nothing keeps a second writer out."""
    warnings.warn(
        f"{folder} cannot be locked, its file system has no locks: nothing keeps another "
        "program from recording into it, or readers from taking it for a killed one.",
        stacklevel=stacklevel,
    )


def _or_raise(limit: str) -> str:
    return ", or raise max_memory_bytes" if "max_memory_bytes" in limit else ""


def file_window_nbytes(folder: Path, most_nbytes: int) -> int:
    """Return how far ahead files may be allocated: not much of a disk nearly full."""
    return min(most_nbytes, shutil.disk_usage(folder).free // 8)


def backlog_nbytes(ahead_nbytes: int) -> int:
    """Return how many bytes of files may wait before they are written back.

    With what is made ready ahead of the frames they are at the kernel's own threshold,
    beyond which it writes by itself, all at once, and everybody's. Not below: who writes
    to the disk takes time of the cores (512x512 at 2 kHz, 2 GB, on 2 cores of a virtual
    machine: p99.9 2.2 ms if it begins at two fifths of the threshold, 0.06 ms before).
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
