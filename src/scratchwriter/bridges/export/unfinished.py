"""The folder of an unfinished export beside its target, and how the target appears."""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import HAS_LOCKS, is_at, lock_file
from scratchwriter.bridges.export.job import Job

_JOB, _LOCK = "export.json", "lock"
_REPLACED = ".{name}.replaced"
_OF_ZARR = ("zarr.json", ".zgroup", ".zattrs", ".zarray", ".zmetadata")


@contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Hold the folder of an unfinished export exclusively.

    Where the file system has no locks, several processes can be in it; even then they do
    not mix their parts (see `parts`).
    """
    lock = _lock(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            # The folder may be gone, with another in its place.
            is_ours = lock is None or is_at(lock, folder / _LOCK)
            if is_ours and {path.name for path in folder.iterdir()} <= {_LOCK}:
                (folder / _LOCK).unlink(missing_ok=True)  # nothing was begun
                folder.rmdir()
        if lock is not None:
            lock.close()


def _lock(folder: Path) -> Descriptor | None:
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # the process that held it removed it
            return _try_lock(folder)


def _try_lock(folder: Path) -> Descriptor | None:
    path = folder / _LOCK
    is_of_an_export = path.exists() or (folder / _JOB).exists()
    if not is_of_an_export and any(folder.iterdir()):
        raise FileExistsError(
            f"{folder} does not belong to an export: remove it, or rename it."
        )
    if not HAS_LOCKS:
        return None
    # Open for writing, because NFS locks no other files.
    file = Descriptor(path, os.O_RDWR | os.O_CREAT, closed_in_children=True)
    if lock_file(file) is False:
        raise BlockingIOError(f"{folder}: another process is making this export.")
    if not is_at(file, path):
        raise FileNotFoundError(path)
    return file


def keep_work_of(job: Job, folder: Path) -> None:
    """Keep what was done of the same job; remove what belongs to another."""
    wanted, path = json.dumps(asdict(job), sort_keys=True), folder / _JOB
    whole = folder / "whole"
    has_appeared = whole.is_dir() and not any(whole.iterdir())  # killed just after
    if path.is_file() and path.read_text() == wanted and not has_appeared:
        return
    for old in list(folder.iterdir()):
        if old.name != _LOCK:
            clear(old)
    path.write_text(wanted)


def clear(path: Path) -> None:
    """Remove a file or a folder, whose name is free at once.

    A worker that was abandoned may still write into the folder; what is left then is under
    another name and does no harm.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.gone")
    shutil.rmtree(path.rename(gone), ignore_errors=True)


def need_apart(goal: Path, source: Path) -> None:
    """Check that the target and the dataset do not contain each other."""
    goal, source = goal.resolve(), source.resolve()
    if goal == source or goal in source.parents or source in goal.parents:
        raise ValueError(
            f"{goal} is, contains or is in the dataset {source}: choose another place."
        )


def need_free(path: Path, overwrite: bool) -> None:
    """Check that a path does not exist, or may be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite=True.")
    if not _may_be_replaced(path):
        raise FileExistsError(
            f"{path} is a folder that holds more than an export: choose another name."
        )


def _may_be_replaced(path: Path) -> bool:
    """Return whether a path is a file, or a folder that holds only an export."""
    if not path.is_dir() or path.is_symlink():
        return True
    stem = re.sub(r"(\.ome)?\.tiff?$", "", path.name, flags=re.IGNORECASE)
    tiff = re.compile(rf"{re.escape(stem)}_p\d+\..*|.*\.ome")
    is_zarr = any((path / name).is_file() for name in _OF_ZARR)

    def is_of_it(child: Path) -> bool:
        if not child.is_dir():
            return child.name in _OF_ZARR if is_zarr else bool(tiff.fullmatch(child.name))
        if any((child / name).is_file() for name in _OF_ZARR):
            return is_zarr
        return is_zarr and all(map(is_of_it, child.iterdir()))  # for a position "a/b"

    return all(map(is_of_it, path.iterdir()))


def restore(goal: Path) -> None:
    """Put back the old target if a process was killed while it replaced it."""
    for gone in goal.parent.glob(f"..{glob.escape(goal.name)}.*.gone"):
        shutil.rmtree(gone, ignore_errors=True)
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(replaced):
        if os.path.lexists(goal):
            clear(replaced)
        else:
            replaced.rename(goal)


def appear(made: Path, goal: Path, overwrite: bool) -> None:
    """Move a complete export to its target, atomically."""
    (whole,) = made.iterdir()
    need_free(goal, overwrite)
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(goal):
        goal.rename(replaced)  # quick; removing it is not
    try:
        whole.rename(goal)
    except BaseException:
        restore(goal)
        raise
    restore(goal)
