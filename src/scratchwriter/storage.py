"""Where the frames of one acquisition are: regions, files, the folder, growth, clean-up.

A `Storage` begins in memory or in a folder. In memory an unbounded acquisition may
outgrow its limit; it then moves to a temporary folder and goes on as if it had begun
there.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scratchwriter import policy
from scratchwriter._core import FrameWriter
from scratchwriter._region import Region, make_region
from scratchwriter.manifest import (
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    ManifestDraft,
    Progress,
    array_name,
    dataset_files,
    is_dataset,
)
from scratchwriter.metadata import encode_frame_metadata, encode_global_metadata
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings, ScratchFormat

# How far files are allocated ahead of the frames, over all positions.
_WINDOW_NBYTES = 64 << 20
# Addresses reserved for an unbounded acquisition, over all positions. They cost nothing;
# a process has 2**47.
_RESERVE_NBYTES = 1 << 42
_SPILL_PREFIX = "scratchwriter_"
_O_BINARY = getattr(os, "O_BINARY", 0)  # Windows only


class Storage:
    """The arrays of an acquisition and the writer that fills them.

    Parameters
    ----------
    settings : AcquisitionSettings
        Ready for a stream; not changed from here on.
    plan : FramePlan
        Derived from them.

    Attributes
    ----------
    folder : pathlib.Path or None
        Folder of the dataset, also of a temporary one; None in memory.
    writer : FrameWriter
    regions : list of Region
        One per position.

    Raises
    ------
    FileExistsError, OSError
        If the folder cannot be made, or its disk is too small.
    MemoryError
        If the arrays must be in memory and do not fit.
    """

    def __init__(self, settings: AcquisitionSettings, plan: FramePlan) -> None:
        self.settings = settings
        self.plan = plan
        self.folder: Path | None = None
        self.regions: list[Region] = []
        self.closed = False
        self._global_metadata: dict[str, Any] = {}
        self._allocated_steps = [0] * plan.num_positions
        self._finish_lock = threading.RLock()
        self._spill_folder: Path | None = None
        self._progress: Progress | None = None
        self._manifest: ManifestDraft | None = None
        self._log_fd = -1
        with ExitStack() as undo:
            limit = policy.memory_shortage(plan.total_nbytes, settings.format)
            if settings.root_path:
                self._begin_in_folder(undo)
            elif limit is None:
                self._make_arrays(None, undo)
            elif not settings.format.spill_to_disk:
                raise policy.memory_error(plan.total_nbytes, limit)
            else:
                self._begin_in_spill_folder(limit, undo)
            undo.pop_all()

    # ----------------------------------------------------------------------- begin

    def _begin_in_folder(self, undo: ExitStack) -> None:
        folder = Path(self.settings.output_path).expanduser().absolute()
        _claim(folder, self.plan.total_nbytes, self.settings.overwrite, undo)
        undo.callback(_remove_files, folder)
        self._make_arrays(folder, undo)
        self._publish(folder)

    def _begin_in_spill_folder(self, limit: str, undo: ExitStack) -> None:
        needed_nbytes = self.plan.total_nbytes
        folder = _make_spill_folder(self.settings.format, needed_nbytes)
        undo.callback(_remove_spill_folder, folder)
        self._make_arrays(folder, undo)
        self._publish(folder)
        policy.warn_of_spill(needed_nbytes, limit, folder, stacklevel=5)

    def _make_arrays(self, folder: Path | None, undo: ExitStack) -> None:
        plan = self.plan
        self.writer = FrameWriter(
            plan,
            self.settings.format.casting,
            self._make_room,
            self._make_steps,
            encode_frame_metadata,
            # Without a file they can only be wanted for a later one.
            keep_metadata=plan.is_unbounded and self.settings.format.spill_to_disk,
        )
        undo.callback(self.writer.close)  # it refers to self: break the circle
        reserve_nbytes = plan.step_nbytes
        if plan.is_unbounded:
            most_nbytes = max(_RESERVE_NBYTES, 2 * plan.total_nbytes)
            reserve_nbytes = most_nbytes // plan.num_positions
        for position in range(plan.num_positions):
            path = folder and folder / array_name(position)
            self.regions.append(_reserve(reserve_nbytes, plan.step_nbytes, path))
            if plan.is_unbounded:
                self.regions[-1].extend(plan.step_nbytes)
            else:
                self._allocate(position, 0, 1)

    def _publish(self, folder: Path) -> None:
        """Make the dataset readable by others: progress, manifest, frame metadata."""
        with ExitStack() as undo:
            for name in (PROGRESS, MANIFEST, FRAME_METADATA):
                undo.callback((folder / name).unlink, missing_ok=True)
            progress = Progress(folder / PROGRESS)
            self.writer.publish_cursor(progress.cursor_address, progress.file)
            self._write_manifest(folder)
            path = folder / FRAME_METADATA
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY, 0o666)
            undo.callback(os.close, fd)
            self.writer.log_to(fd, path)
            undo.pop_all()
        self._progress, self._log_fd, self.folder = progress, fd, folder

    # ---------------------------------------------------------------------- growth

    def _make_room(self, position: int, stop_nbytes: int) -> None:
        """Make a slot writable. Called by the writer when it has arrived at the end."""
        step = -(-stop_nbytes // self.plan.step_nbytes)
        self.writer.exclusively(lambda: self._grow(position, step))

    def _grow(self, position: int, step: int) -> None:
        if step <= self._allocated_steps[position]:
            return  # another thread was here before
        if self.folder is None:
            fmt = self.settings.format
            limit = policy.machine_shortage(self._window_steps * self.plan.step_nbytes)
            most = policy.memory_steps(self.plan, fmt, position)
            if step > most:
                limit = policy.memory_limit(fmt)
            if limit is None:
                try:
                    self._allocate_ahead(position, step, most)
                except MemoryError as error:
                    limit = f"the system gives ({error})"
                else:
                    return
            self._leave_memory(step, limit)
        self._allocate_ahead(position, step, None)

    @property
    def _window_steps(self) -> int:
        return max(_WINDOW_NBYTES // self.plan.total_nbytes, 1)

    def _allocate_ahead(self, position: int, step: int, most: int | None) -> None:
        last = step - 1 + self._window_steps
        if most is not None:
            last = min(last, most)
        try:
            self._allocate(position, step - 1, last)
        except (MemoryError, OSError):
            if last == step:
                raise
            self._allocate(position, step - 1, step)

    def _allocate(self, position: int, start: int, stop: int) -> None:
        step_nbytes = self.plan.step_nbytes
        self.regions[position].allocate(start * step_nbytes, stop * step_nbytes)
        self._allocated_steps[position] = stop
        self._attach(position)

    def _attach(self, position: int) -> None:
        writable_nbytes = self._allocated_steps[position] * self.plan.step_nbytes
        self.writer.attach(position, self.regions[position], writable_nbytes)

    def _make_steps(self, steps: int) -> None:
        """Make all arrays readable up to `steps`. Called by the writer for a long skip."""
        self.writer.exclusively(lambda: self._extend(steps))

    def _extend(self, steps: int) -> None:
        for position, region in enumerate(self.regions):
            region.extend(steps * self.plan.step_nbytes)
            self._attach(position)
        self.writer.set_readable_steps(steps)

    def _leave_memory(self, steps: int, limit: str) -> None:
        """Move everything to a temporary folder, and go on there."""
        needed_nbytes = steps * self.plan.total_nbytes
        if not self.settings.format.spill_to_disk:
            raise policy.memory_error(needed_nbytes, limit)
        # What fails half-way (a full disk) is taken up again by the next append.
        if self._spill_folder is None:
            self._spill_folder = _make_spill_folder(self.settings.format, needed_nbytes)
        for position, region in enumerate(self.regions):
            if region.path is None:
                region.move_to_file(self._spill_folder / array_name(position))
                self._attach(position)
        self._publish(self._spill_folder)
        policy.warn_of_spill(needed_nbytes, limit, self._spill_folder, stacklevel=6)

    # -------------------------------------------------------------------- metadata

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Keep metadata of the acquisition; in the manifest, if there is one."""
        value = json.loads(encode_global_metadata(namespace, metadata))
        before = self._global_metadata
        self._global_metadata = {**before, namespace: value}
        try:
            if self.folder is not None:
                self._write_manifest(self.folder)
        except BaseException:
            self._global_metadata = before
            raise

    def _write_manifest(self, folder: Path) -> None:
        draft = ManifestDraft(
            folder,
            self.settings,
            self.plan,
            self.writer.frames_written,
            self._global_metadata,
        )
        try:
            if self.closed or not self.plan.is_unbounded:
                draft.replace()
            else:
                self.writer.exclusively(lambda: self._switch_manifest(draft))
        except BaseException:
            draft.discard()
            raise

    def _switch_manifest(self, draft: ManifestDraft) -> None:
        """Let the writer renew the lengths in the draft, then put it in place."""
        self.writer.publish_steps(draft.length_addresses, draft.file)
        try:
            draft.replace()
        except BaseException:
            if self._manifest is not None:
                before = self._manifest
                self.writer.publish_steps(before.length_addresses, before.file)
            raise
        self._manifest = draft

    # ------------------------------------------------------------------------- end

    def finish(self) -> None:
        """End the acquisition: exact file sizes, final manifest. The arrays stay.

        Raises
        ------
        OSError
            If a file cannot be written; the others are finished all the same.
        """
        with self._finish_lock, ExitStack() as steps:
            if self.closed:
                return
            self.writer.close()
            self.closed = True
            if self.folder is None or self._progress is None:
                return
            # Run from the last to the first, each whatever became of the others.
            steps.callback(self._progress.mark_closed)
            steps.callback(self._write_manifest, self.folder)
            steps.callback(os.close, self._log_fd)
            cursor = self.writer.frames_written
            for position, region in enumerate(self.regions):
                steps.callback(region.trim, self.plan.file_nbytes(position, cursor))
            self._manifest = None


# ---------------------------------------------------------------------- folders


def _claim(folder: Path, needed_nbytes: int, overwrite: bool, undo: ExitStack) -> None:
    """Make a folder, or empty it of the dataset that it holds."""
    if folder.is_dir():
        if not overwrite:
            raise FileExistsError(
                errno.EEXIST,
                "The folder exists. Use overwrite=True to replace the scratch dataset "
                "in it, or another root_path",
                str(folder),
            )
        if any(folder.iterdir()) and not is_dataset(folder):
            raise FileExistsError(
                errno.EEXIST,
                "The folder is not a scratch dataset and not empty: nothing is "
                "deleted. Use another root_path",
                str(folder),
            )
        old_files = dataset_files(folder)
        policy.require_disk(
            needed_nbytes, folder, freed_nbytes=sum(map(_disk_nbytes, old_files))
        )
        for path in old_files:
            path.unlink()
    elif os.path.lexists(folder):
        raise FileExistsError(
            errno.EEXIST,
            "root_path is not a folder. Use another root_path",
            str(folder),
        )
    else:
        parent = next((p for p in folder.parents if p.is_dir()), None)
        if parent is not None:
            policy.require_disk(needed_nbytes, parent)
        folder.mkdir(parents=True)
        undo.callback(folder.rmdir)


def _disk_nbytes(path: Path) -> int:
    status = path.lstat()
    return getattr(status, "st_blocks", 0) * 512


def _remove_files(folder: Path) -> None:
    for path in dataset_files(folder):
        path.unlink()


_spill_folders: set[tuple[int, Path]] = set()  # with the process that made them


def _make_spill_folder(fmt: ScratchFormat, needed_nbytes: int) -> Path:
    """Make a temporary folder that only this user can enter (mode 0700)."""
    parent = policy.spill_parent(fmt)
    parent.mkdir(parents=True, exist_ok=True)
    policy.require_disk(needed_nbytes, parent)
    folder = Path(tempfile.mkdtemp(prefix=_SPILL_PREFIX, dir=parent)).absolute()
    _spill_folders.add((os.getpid(), folder))
    return folder


def _remove_spill_folder(folder: Path) -> None:
    _spill_folders.discard((os.getpid(), folder))
    shutil.rmtree(folder, ignore_errors=True)


@atexit.register
def _remove_spill_folders() -> None:
    for pid, folder in list(_spill_folders):
        if pid == os.getpid():
            _remove_spill_folder(folder)


# ---------------------------------------------------------------------- addresses


def _reserve(most_nbytes: int, least_nbytes: int, path: Path | None) -> Region:
    """Make a region with as many addresses as can be had."""
    while True:
        try:
            return make_region(most_nbytes, path)
        except MemoryError:
            if most_nbytes <= least_nbytes:
                raise
            most_nbytes = max(most_nbytes // 4, least_nbytes)
