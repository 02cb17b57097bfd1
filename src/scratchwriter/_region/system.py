"""What the operating system reports about its memory and its file systems."""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from scratchwriter._region.descriptor import Descriptor
from scratchwriter.errors import device_error, disk_error

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None  # type: ignore[assignment]
HAS_LOCKS = fcntl is not None

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
# EBADF: NFS does not lock for writing what is open for reading only, as folders are.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EBADF)
_READ_NBYTES = 4 << 20  # of a file at a time
_LOOK_S = 0.1  # more than it takes to look whether a lock is free


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


def lock_file(
    file: Descriptor | int, *, shared: bool = False, patience_s: float = _LOOK_S
) -> bool | None:
    """Lock an open file, or folder, for as long as it is open.

    The lock ends with the process, and binds only those that ask for it. Those that only
    look (by a shared lock) have it for a moment: it is asked for again until then.

    Returns
    -------
    bool or None
        False if it is taken. None where there are no locks (some network file
        systems, Windows).
    """
    if fcntl is None:
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    deadline_s = time.monotonic() + (0 if shared else patience_s)
    while (is_free := _try_lock(file, kind)) is False and time.monotonic() < deadline_s:
        time.sleep(_LOOK_S / 50)
    return is_free


def _try_lock(file: Descriptor | int, kind: int) -> bool | None:
    is_free: bool | None = True
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        is_free = False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        is_free = None
    return is_free


def is_lock_free(file: Descriptor) -> bool | None:
    """Return whether an open file is not locked; None where there are no locks."""
    is_free = lock_file(file, shared=True)
    if is_free and fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
    return is_free


def lock_folder(
    path: Path, *, patience_s: float = _LOOK_S
) -> tuple[Descriptor | None, bool | None]:
    """Open a folder and lock it: the open folder, and what `lock_file` says.

    The lock is that of the folder which has the name once it is locked: another may have
    come in the place of the one that was opened. Without locks there is no open folder
    where folders cannot be opened.

    Raises
    ------
    FileNotFoundError
        If there is none, or none any more.
    OSError
        If it cannot be opened.
    """
    if fcntl is None:
        return None, None
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
    while True:
        folder = Descriptor(path, flags, closed_in_children=True)
        with errors_name(path):
            is_free = lock_file(folder, patience_s=patience_s)
        if is_at(folder, path):
            return folder, is_free


def is_at(file: Descriptor, path: Path) -> bool:
    """Tell whether an open file, or folder, is the one that has a name now."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(file.fileno()), status)


@contextmanager
def errors_name(path: Path, needed_nbytes: int = 0) -> Iterator[None]:
    """Have every OSError name a path, and the room that is missing (see `disk_error`)."""
    try:
        yield
    except OSError as error:
        raise disk_error(error.errno or 0, path, needed_nbytes) from None


def descriptor_of_regular(
    path: Path, *, writable: bool = False, closed_in_children: bool = False
) -> Descriptor:
    """Open a file of unknown origin.

    Raises
    ------
    OSError
        If it cannot be opened; a symbolic link is not followed.
    ValueError
        If it is something else: a pipe and a device may never end.
    """
    flags = os.O_RDWR if writable else os.O_RDONLY
    flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = Descriptor(path, flags, closed_in_children=closed_in_children)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise ValueError("not a regular file")
    return file


@contextmanager
def open_regular(path: Path, *, writable: bool = False) -> Iterator[FileIO]:
    """Open a file of unknown origin, without a buffer, while a block runs.

    Raises
    ------
    OSError, ValueError
        As `descriptor_of_regular`.
    """
    with descriptor_of_regular(path, writable=writable) as descriptor:
        mode = "r+b" if writable else "rb"
        # That of FileIO would warn where an interrupt drops it.
        with FileIO(descriptor.fileno(), mode, closefd=False) as file:
            yield file


def write_all(file: Descriptor, data: bytes | memoryview) -> None:
    """Write all of it, where the file is."""
    left = memoryview(data)
    while left:
        left = left[os.write(file.fileno(), left) :]


def write_all_at(file: Descriptor, start: int, data: memoryview) -> None:
    """Write all of it, from a byte of the file on."""
    os.lseek(file.fileno(), start, os.SEEK_SET)
    write_all(file, data)


def read_pieces(file: Descriptor, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Read a range of bytes in pieces, with the number of the first of each.

    It ends early where the file ends.
    """
    while start < stop:
        os.lseek(file.fileno(), start, os.SEEK_SET)
        data = os.read(file.fileno(), min(stop - start, _READ_NBYTES))
        if not data:
            return
        yield start, data
        start += len(data)


def holes(file: Descriptor, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges before a byte where nothing is stored: they read as zeros.

    Space that was allocated and never written to counts as well. None are known where the
    system does not say (Windows, some file systems).
    """
    to_hole, to_data = (getattr(os, name, None) for name in ("SEEK_HOLE", "SEEK_DATA"))
    at = 0
    while at < stop and to_hole is not None and to_data is not None:
        try:
            start = os.lseek(file.fileno(), at, to_hole)
        except OSError:  # the file ends before, or its system does not know
            return
        try:
            at = os.lseek(file.fileno(), start, to_data)
        except OSError as error:
            if error.errno != errno.ENXIO:
                return
            at = stop  # there is no data any more
        if start < stop:
            yield start, min(at, stop)


def sync_file(path: Path) -> None:
    """Return when a file, or the list of names in a folder, is on the device.

    Raises
    ------
    DeviceError
        If the device does not take it.
    OSError
        If it cannot be opened: another try may do better.
    """
    with Descriptor(path, os.O_RDONLY) as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            raise device_error(error.errno or 0, path) from None


def process_lives(pid: int) -> bool:
    """Return whether a process of this number exists, whichever it is.

    False where one cannot ask without harm (Windows).
    """
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError, ValueError):
        return False
    except OSError:
        return True  # of another user
    return pid > 0


@functools.cache
def boot_id() -> str:
    """Return a text that differs each time the machine is started; empty if unknown."""
    return "".join(_lines(_PROC / "sys" / "kernel" / "random" / "boot_id"))


def takes_direct_writes(folder: Path) -> bool:
    """Tell whether files in a folder can be written past the page cache (O_DIRECT).

    The folder, or the nearest one above it that exists, is asked.
    """
    flags = getattr(os, "O_DIRECT", 0) | getattr(os, "O_TMPFILE", 0)
    if not (hasattr(os, "O_DIRECT") and hasattr(os, "O_TMPFILE")) or is_ram_backed(folder):
        return False
    found = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        with Descriptor(found, os.O_WRONLY | flags):
            return True
    except OSError:
        return False


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
    limit = _number(f"{group}/{limit_name}")
    if limit is None:  # "max": no limit
        return None
    used = _number(f"{group}/{used_name}")
    if used is None:
        return None
    for line in _lines(f"{group}/memory.stat"):
        name, _, value = line.partition(" ")
        if name == cache_name:  # page cache, given back on demand
            used -= int(value)
    return max(limit - used, 0)


def _number(path: str) -> int | None:
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdigit() else None


def _lines(path: str | Path) -> list[str]:
    try:
        # Without a buffer: these files are short, and several are read for each stream.
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return os.fsdecode(file.read()).splitlines()
    except OSError:
        return []
