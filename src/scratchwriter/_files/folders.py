"""The folders of datasets: claimed, emptied, temporary, and removed."""

from __future__ import annotations

import atexit
import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from scratchwriter._files.layout import MANIFEST, PROGRESS, is_dataset_name
from scratchwriter._files.manifest import read_manifest
from scratchwriter._files.progress import Locked, ProgressView, locked
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import is_ram_backed, lock_folder
from scratchwriter.errors import DatasetError, too_small_disk_error
from scratchwriter.settings import ScratchFormat

_SPILL_PREFIX = "scratchwriter_"
_SPILL_MARK = ".scratchwriter-temporary"  # in folders that may be removed


@contextmanager
def claimed(
    folder: Path, needed_nbytes: int, overwrite: bool, undo: ExitStack
) -> Iterator[None]:
    """Make a folder, or empty it of the dataset that it holds; keep others out meanwhile.

    Parameters
    ----------
    folder : pathlib.Path
    needed_nbytes : int
        What its disk must have free.
    overwrite : bool
        Whether a dataset in it may be deleted.
    undo : contextlib.ExitStack
        Receives what has to be undone if the acquisition cannot begin.

    Raises
    ------
    FileExistsError
        If it holds something that must not be deleted, is a file, or is being claimed by
        another stream; nothing was deleted.
    OSError
        If it cannot be made, or the disk is too small.
    """
    made = ExitStack()
    undo.push(made)
    while True:
        made.pop_all()  # from the last attempt: that folder is gone
        is_new = _make_if_absent(folder, needed_nbytes, made)
        if not (is_new or overwrite):
            _refuse_existing(folder)
        try:
            lock, is_free = lock_folder(folder)
        except FileNotFoundError:
            continue  # another stream made it, could not begin, and removed it
        break
    with ExitStack() as unlock:
        if lock is not None:
            unlock.enter_context(lock)
        if is_free is False:
            made.pop_all()  # it is in use
            raise _refusal(
                "Another stream is being made in this folder. Use another root_path",
                folder,
            )
        _empty(folder, needed_nbytes, overwrite)
        yield


def _make_if_absent(folder: Path, needed_nbytes: int, made: ExitStack) -> bool:
    """Make a folder; return whether it did not exist."""
    if folder.is_dir():
        return False
    if os.path.lexists(folder):
        raise _refusal("root_path is not a folder. Use another root_path", folder)
    parent = next((p for p in folder.parents if p.is_dir()), None)
    if parent is not None:
        require_disk(needed_nbytes, parent)
    # Before the folder is made, because an interrupt may come right after that.
    made.callback(_remove_if_empty, folder)
    try:
        folder.mkdir(parents=True)
    except FileExistsError:  # another stream made it first
        made.pop_all()
        return False
    return True


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # another process uses it now
        folder.rmdir()


def _refusal(why: str, folder: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, why, str(folder))


def _refuse_existing(folder: Path) -> NoReturn:
    with suppress(DatasetError), locked(folder) as lock:  # it may hold something else
        _need_lock(lock, folder)
    raise _refusal(
        "The folder exists. Use overwrite=True to replace the scratch dataset in it, or "
        "another root_path",
        folder,
    )


def _need_lock(lock: Locked, folder: Path) -> None:
    if lock.writer_pid is not None:
        raise _refusal(f"{lock.use_text}, or use another root_path", folder)


def _empty(folder: Path, needed_nbytes: int, overwrite: bool) -> None:
    """Delete the dataset in a folder, which is locked.

    The lock of the dataset is held until it is deleted: `recover` could try to finish it.
    """
    if not overwrite and any(folder.iterdir()):
        _refuse_existing(folder)  # recorded since the folder was made
    if any(folder.iterdir()) and not (is_dataset(folder) or is_beginning(folder)):
        raise _refusal(
            "The folder is not a scratch dataset and not empty: nothing is deleted. Use "
            "another root_path",
            folder,
        )
    with locked(folder) as lock:
        _need_lock(lock, folder)
        old_files = dataset_files(folder)
        freed_nbytes = sum(map(disk_nbytes, old_files))
        require_disk(needed_nbytes, folder, freed_nbytes=freed_nbytes)
        if others := [path.name for path in old_files if _is_folder(path)]:
            raise _refusal(
                f"It contains folders, not files of a dataset: {others}. Nothing is "
                "deleted. Use another root_path",
                folder,
            )
        # In this order, what an interruption leaves is still recognised as a dataset.
        old_files.sort(key=lambda path: (path.name == PROGRESS, path.name == MANIFEST))
        for path in old_files:
            path.unlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def disk_nbytes(path: Path) -> int:
    """Return how many bytes a file takes on its disk."""
    status = path.lstat()
    return getattr(status, "st_blocks", 0) * 512


def remove_files(folder: Path) -> None:
    """Remove the files of a dataset that could not begin."""
    for path in dataset_files(folder):
        path.unlink()


def is_dataset(folder: Path) -> bool:
    """Return whether a folder is a scratch dataset, of this library or of ome-writers."""
    try:
        read_manifest(folder)
    except (OSError, DatasetError):
        return False
    return True


def is_beginning(folder: Path) -> bool:
    """Return whether a folder holds only what is left of a dataset without frames.

    Its writer died before the first frame, or its deletion was interrupted.
    """
    names = {path.name for path in folder.iterdir()}
    if not all(map(is_dataset_name, names)):
        return False
    try:
        cursor = ProgressView(folder).cursor
    except DatasetError:
        return False
    return MANIFEST not in names and (cursor == 0 or names == {PROGRESS})


def dataset_files(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to a scratch dataset, by their names."""
    return [path for path in folder.iterdir() if is_dataset_name(path.name)]


def require_disk(needed_nbytes: int, folder: Path, *, freed_nbytes: int = 0) -> None:
    """Raise OSError(ENOSPC) if a folder's file system has fewer bytes free than needed."""
    free_nbytes = shutil.disk_usage(folder).free + freed_nbytes
    if needed_nbytes > free_nbytes:
        raise too_small_disk_error(needed_nbytes, free_nbytes, folder)


def spill_parent(fmt: ScratchFormat) -> Path:
    """Return the folder in which temporary datasets are made.

    `spill_dir`, else the environment's (TMPDIR), else the first temporary folder that
    is not in memory, because there the data would take as much memory as before.
    """
    if fmt.spill_dir is not None:
        return Path(fmt.spill_dir).expanduser()
    for name in ("TMPDIR", "TEMP", "TMP"):  # tempfile reads them only once
        folder = Path(os.environ.get(name) or os.devnull)
        if folder.is_dir() and os.access(folder, os.W_OK):
            return folder
    default = Path(tempfile.gettempdir())
    for folder in (default, Path("/var/tmp"), Path.cwd()):  # noqa: S108
        if folder.is_dir() and os.access(folder, os.W_OK) and not is_ram_backed(folder):
            return folder
    return default


# Those of this process, with the locks that show other processes that it is alive.
_spill_folders: dict[Path, Descriptor | None] = {}


def make_spill_folder(
    fmt: ScratchFormat, needed_nbytes: int, note: Callable[[Path], object]
) -> Path:
    """Make a temporary folder that only this user can enter (mode 0700), and lock it.

    Parameters
    ----------
    fmt : ScratchFormat
    needed_nbytes : int
        What its disk must have free.
    note : callable
        Takes the folder over. If anything fails before it has returned, there is none.
    """
    parent = spill_parent(fmt)
    parent.mkdir(parents=True, exist_ok=True)
    require_disk(needed_nbytes, parent)
    while True:
        # Named before it is made: an interrupt may come right after that.
        folder = parent.absolute() / f"{_SPILL_PREFIX}{secrets.token_hex(4)}"
        try:
            # Another process that reclaims folders may find it before it is locked.
            with suppress(FileNotFoundError):
                folder.mkdir(0o700)
                lock, is_locked = lock_folder(folder)
                if is_locked is not False:
                    (folder / _SPILL_MARK).touch()
                    _spill_folders[folder] = lock
                    note(folder)
                    return folder
        except FileExistsError:
            continue  # another process's
        except BaseException:
            remove_spill_folder(folder)
            raise


def remove_spill_folder(folder: Path) -> None:
    """Remove a temporary folder with everything in it."""
    shutil.rmtree(folder, ignore_errors=True)
    lock = _spill_folders.pop(folder, None)
    if lock is not None:
        lock.close()


def reclaim_spill_folders(parent: Path) -> list[Path]:
    """Remove the temporary folders of processes that were killed; return which.

    Only folders that `make_spill_folder` made for this user, that hold nothing but files of
    a dataset, and whose lock is free, so that their owner is dead.
    """
    removed = []
    for folder in sorted(parent.glob(f"{_SPILL_PREFIX}*")):
        with suppress(OSError):
            lock, is_free = lock_folder(folder, patience_s=0)
            if lock is None:
                continue
            with lock:
                if is_free and _is_own_spill_folder(lock.fileno()):
                    for name in os.listdir(lock.fileno()):  # noqa: PTH208
                        os.unlink(name, dir_fd=lock.fileno())
                    folder.rmdir()
                    removed.append(folder)
    return removed


@contextmanager
def kept_spill_folder(folder: Path) -> Iterator[bool]:
    """Make a temporary folder permanent; yield whether it was temporary.

    It is locked meanwhile, so that no process reclaims it, and permanent after the block.

    Raises
    ------
    BlockingIOError
        If its owner is alive.
    """
    mark = folder / _SPILL_MARK
    if not mark.exists():
        yield False
        return
    lock, is_free = lock_folder(folder)
    with ExitStack() as unlock:
        if lock is not None:
            unlock.enter_context(lock)
        if is_free is False:
            raise BlockingIOError(
                errno.EAGAIN, "The temporary folder is in use", str(folder)
            )
        yield True
        mark.unlink(missing_ok=True)


def _is_own_spill_folder(fd: int) -> bool:
    status, names = os.fstat(fd), set(os.listdir(fd))
    return (
        status.st_uid == os.getuid()
        and stat.S_IMODE(status.st_mode) == 0o700
        and (_SPILL_MARK in names or not names)  # empty: its owner died before it marked it
        and all(map(is_dataset_name, names - {_SPILL_MARK}))
    )


@atexit.register
def _remove_spill_folders() -> None:
    for folder in list(_spill_folders):
        remove_spill_folder(folder)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_spill_folders.clear)
