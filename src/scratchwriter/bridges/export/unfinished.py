"""The folder of an unfinished export beside its goal, and how the goal appears."""

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
    """Have the folder of an unfinished export to oneself.

    Where a file system has no locks, several could; what a part is made of is told apart
    there too (see `parts`).
    """
    lock = _lock(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):
            # It may be gone, and another in its place.
            is_ours = lock is None or is_at(lock, folder / _LOCK)
            if is_ours and {path.name for path in folder.iterdir()} <= {_LOCK}:
                (folder / _LOCK).unlink(missing_ok=True)  # nothing was begun
                folder.rmdir()
        if lock is not None:
            lock.close()


def _lock(folder: Path) -> Descriptor | None:
    while True:
        folder.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):  # who had it was done, and removed it
            return _try_lock(folder)


def _try_lock(folder: Path) -> Descriptor | None:
    path = folder / _LOCK
    is_of_an_export = path.exists() or (folder / _JOB).exists()
    if not is_of_an_export and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is of no export: remove it, or rename it.")
    if not HAS_LOCKS:
        return None
    # Open for writing: NFS locks no other files.
    file = Descriptor(path, os.O_RDWR | os.O_CREAT, closed_in_children=True)
    if lock_file(file) is False:
        raise BlockingIOError(f"{folder}: another process makes this export now.")
    if not is_at(file, path):
        raise FileNotFoundError(path)
    return file


def keep_what_is_of(job: Job, folder: Path) -> None:
    """Keep what was done of the same job; remove what is of another."""
    told, path = json.dumps(asdict(job), sort_keys=True), folder / _JOB
    whole = folder / "whole"
    has_appeared = whole.is_dir() and not any(whole.iterdir())  # killed just after
    if path.is_file() and path.read_text() == told and not has_appeared:
        return
    for old in list(folder.iterdir()):
        if old.name != _LOCK:
            clear(old)
    path.write_text(told)


def clear(path: Path) -> None:
    """Remove a file or a folder, of which nothing is to be seen any more at once.

    Somebody who was given up may still write into a folder: what is left of it then is in
    nobody's way.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    gone = path.with_name(f".{path.name}.{uuid.uuid4().hex}.gone")
    shutil.rmtree(path.rename(gone), ignore_errors=True)


def need_apart(goal: Path, source: Path) -> None:
    """Check that the dataset is not in the way."""
    goal, source = goal.resolve(), source.resolve()
    if goal == source or goal in source.parents or source in goal.parents:
        raise ValueError(
            f"{goal} is, has or is in the dataset {source}: choose another place."
        )


def need_free(path: Path, overwrite: bool) -> None:
    """Check that nothing is there, or what may be replaced."""
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite=True.")
    if not _may_be_replaced(path):
        raise FileExistsError(
            f"{path} is a folder with more than an export: choose another name."
        )


def _may_be_replaced(path: Path) -> bool:
    """Return whether a path is a file, or a folder with nothing but what exports make."""
    if not path.is_dir() or path.is_symlink():
        return True
    tiff = re.compile(rf"{re.escape(path.name)}_p\d+\..*|.*\.ome")
    is_zarr = any((path / name).is_file() for name in _OF_ZARR)

    def is_of_it(child: Path) -> bool:
        if not child.is_dir():
            return child.name in _OF_ZARR if is_zarr else bool(tiff.fullmatch(child.name))
        if any((child / name).is_file() for name in _OF_ZARR):
            return is_zarr
        return is_zarr and all(map(is_of_it, child.iterdir()))  # of a position "a/b"

    return all(map(is_of_it, path.iterdir()))


def restore(goal: Path) -> None:
    """Put back what was to be replaced by somebody who was killed on the way."""
    for gone in goal.parent.glob(f"..{glob.escape(goal.name)}.*.gone"):
        shutil.rmtree(gone, ignore_errors=True)
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(replaced):
        if os.path.lexists(goal):
            clear(replaced)
        else:
            replaced.rename(goal)


def appear(made: Path, goal: Path, overwrite: bool) -> None:
    """Move what is complete to where it belongs, at once."""
    (whole,) = made.iterdir()
    need_free(goal, overwrite)
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(goal):
        goal.rename(replaced)  # quick, where to remove it is not
    try:
        whole.rename(goal)
    except BaseException:
        restore(goal)
        raise
    restore(goal)
