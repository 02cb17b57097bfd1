"""What the operating system tells about its memory and its file systems."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory_nbytes() -> int | None:
    """Return how much memory this process could still use, in bytes.

    The least of what the machine has and what the control groups of the process leave.
    Page cache counts as available. None where the system does not say.
    """
    known = [_machine_available(), *_cgroup_available()]
    return min((n for n in known if n is not None), default=None)


def addresses_nbytes() -> int | None:
    """Return how many addresses this process may have (ulimit -v); None: no limit."""
    if resource is None:
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def writeback_threshold_nbytes() -> int | None:
    """Return how many bytes may wait for the disk before the kernel begins to write them.

    None where the system does not say. (vm.dirty_background_bytes, or _ratio of the
    memory that is available.)
    """
    vm = _PROC / "sys" / "vm"
    nbytes = _number(vm / "dirty_background_bytes")
    if nbytes:
        return nbytes
    percent, available = _number(vm / "dirty_background_ratio"), _machine_available()
    if percent is None or available is None:
        return None
    return available * percent // 100


def lock_file(fd: int) -> bool:
    """Lock an open file for as long as it is open; False if somebody else has.

    The lock goes with the process, and binds only those who ask for it. Where there are
    no locks (some network file systems, Windows) everybody gets it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
            raise
    return True


@contextmanager
def errors_name(path: Path) -> Iterator[None]:
    """Have every OSError name a path: those of an open file do not."""
    try:
        yield
    except OSError as error:
        code = error.errno or 0
        raise OSError(code, os.strerror(code), str(path)) from None


def is_ram_backed(folder: Path) -> bool:
    """Tell whether a folder's files live in memory (tmpfs, ramfs)."""
    folder = folder.resolve()
    best, kind = -1, ""
    for line in _lines(_PROC / "self" / "mounts"):
        fields = line.split()
        if len(fields) > 2:
            # /proc writes blanks in a path as \040 and the like
            mount = Path(fields[1].encode().decode("unicode_escape"))
            # The last mount on a path is the one that shows.
            if folder.is_relative_to(mount) and len(mount.parts) >= best:
                best, kind = len(mount.parts), fields[2]
    return kind in ("tmpfs", "ramfs")


def _machine_available() -> int | None:
    for line in _lines(_PROC / "meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    try:  # at least the free pages
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")
    except (ValueError, OSError):
        return None


def _cgroup_available() -> list[int | None]:
    """Return what is left in each memory control group that the process is in."""
    left: list[int | None] = []
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = _CGROUP, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = _CGROUP / "memory"
            names = (
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            )
        else:
            continue
        group = root / path.lstrip("/")
        while True:
            left.append(_group_available(group, *names))
            if group == root or root not in group.parents:
                break
            group = group.parent
    return left


def _group_available(
    group: Path, limit_name: str, used_name: str, cache_name: str
) -> int | None:
    limit, used = _number(group / limit_name), _number(group / used_name)
    if limit is None or used is None:  # "max": no limit
        return None
    for line in _lines(group / "memory.stat"):
        name, _, value = line.partition(" ")
        if name == cache_name:  # page cache, given back on demand
            used -= int(value)
    return max(limit - used, 0)


def _number(path: Path) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
