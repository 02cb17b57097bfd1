"""Where the frames of one acquisition are: regions, files, the folder, growth, clean-up.

A `Storage` begins in memory or in a folder. In memory an unbounded acquisition may
outgrow its limit. Its arrays then go on in files of a temporary folder, behind what they
have in memory; a thread copies that into the files too, and when it has done so the
dataset in the folder is complete and gets its manifest.
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
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scratchwriter import policy
from scratchwriter._core import FrameWriter
from scratchwriter._region import Region, make_region, moves_when_it_grows
from scratchwriter.manifest import (
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    ManifestDraft,
    Progress,
    array_name,
    dataset_files,
    is_dataset,
    locked,
)
from scratchwriter.metadata import encode_frame_metadata, encode_global_metadata
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings, ScratchFormat

if TYPE_CHECKING:
    from scratchwriter._ahead import AheadThread
    from scratchwriter._region._mapped import MappedRegion

# How far ahead of the frames memory and files are made ready, over all positions.
_MEMORY_WINDOW_NBYTES = 64 << 20
_FILE_WINDOW_NBYTES = 256 << 20
# Memory of one position from which on huge pages (2 MiB) are no waste.
_HUGE_FROM_NBYTES = 4 << 20
# For how much the memory that the machine has is asked at a time, over all positions.
_GRANT_NBYTES = 256 << 20
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
        self.finished = False
        self._disowned = False
        self._global_metadata: dict[str, Any] = {}
        self._writable_steps = [0] * plan.num_positions  # in memory, or portable
        self._granted_steps = 0  # what the machine was asked for
        self._ahead: AheadThread | None = None
        self._saver: threading.Thread | None = None
        self._lock = threading.RLock()  # of the manifest and of the end
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
            self._start_ahead()
            undo.pop_all()

    # ----------------------------------------------------------------------- begin

    def _begin_in_folder(self, undo: ExitStack) -> None:
        folder = Path(self.settings.output_path).expanduser().absolute()
        _claim(folder, self.plan.total_nbytes, self.settings.overwrite, undo)
        undo.callback(_remove_files, folder)
        self._make_arrays(folder, undo)
        undo.callback(self._release)
        self._publish(folder)

    def _begin_in_spill_folder(self, limit: str, undo: ExitStack) -> None:
        needed_nbytes = self.plan.total_nbytes
        folder = _make_spill_folder(self.settings.format, needed_nbytes)
        undo.callback(_remove_spill_folder, folder)
        self._make_arrays(folder, undo)
        undo.callback(self._release)
        self._publish(folder)
        policy.warn_of_spill(needed_nbytes, limit, folder, stacklevel=5)

    def _make_arrays(self, folder: Path | None, undo: ExitStack) -> None:
        plan, fmt = self.plan, self.settings.format
        self.writer = FrameWriter(
            plan,
            fmt.casting,
            self._make_room,
            self._make_steps,
            encode_frame_metadata,
            # Without a file they can only be wanted for a later one.
            keep_metadata=plan.is_unbounded and fmt.spill_to_disk,
        )
        undo.callback(self.writer.close)  # it refers to self: break the circle
        reserve_nbytes = huge_from_nbytes = plan.step_nbytes
        if plan.is_unbounded:
            most_nbytes = max(policy.reserve_nbytes(), 2 * plan.total_nbytes)
            reserve_nbytes = most_nbytes // plan.num_positions
            # As far ahead of the frames memory is made ready in any case.
            huge_from_nbytes = _MEMORY_WINDOW_NBYTES // plan.num_positions
        huge_pages = huge_from_nbytes >= _HUGE_FROM_NBYTES
        for position in range(plan.num_positions):
            path = folder and folder / array_name(position)
            region = _reserve(reserve_nbytes, plan.step_nbytes, path, huge_pages)
            self.regions.append(region)
            if plan.is_unbounded:
                region.extend(plan.step_nbytes)
                if folder is not None or self._memory_shortage(position, 1) is not None:
                    self._attach(position)  # with nothing writable yet
            else:
                region.allocate(0, plan.step_nbytes)
                # In files the thread ahead opens slot by slot, if it can.
                gated = folder and plan.is_in_order and not moves_when_it_grows(region)
                self._writable_steps[position] = 0 if gated else 1
                self._attach(position)

    def _start_ahead(self) -> None:
        plan, fmt = self.plan, self.settings.format
        if any(map(moves_when_it_grows, self.regions)):
            return
        from scratchwriter._ahead import AheadThread  # is not built everywhere

        window_nbytes = _MEMORY_WINDOW_NBYTES
        if self.folder is not None:
            window_nbytes = policy.file_window_nbytes(self.folder, _FILE_WINDOW_NBYTES)
        memory_stops = [0] * plan.num_positions
        if plan.is_unbounded and self.folder is None:
            for position, region in enumerate(self.regions):
                stop = policy.memory_steps(plan, fmt, position) * plan.step_nbytes
                memory_stops[position] = min(
                    stop, policy.reserve_nbytes() // plan.num_positions
                )
                # All at once: what is opened bit by bit makes the frames wait for it.
                with suppress(MemoryError):  # it may also be opened bit by bit
                    region.extend(memory_stops[position])
        self._ahead = AheadThread(
            plan,
            self.writer,
            cast("list[MappedRegion]", self.regions),
            memory_stops,
            window_nbytes,
        )
        if self.folder is not None:
            self._ahead.start_writeback(policy.backlog_nbytes())

    def _stop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()

    def _publish(self, folder: Path) -> None:
        """Make the dataset readable by others: progress, manifest, frame metadata."""
        with ExitStack() as undo:
            for name in (PROGRESS, MANIFEST):
                undo.callback((folder / name).unlink, missing_ok=True)
            progress = Progress(folder / PROGRESS)
            undo.callback(progress.release)
            self.writer.publish_cursor(progress.cursor_address, progress.file)
            self._write_manifest(folder)
            self.writer.log_to(*self._open_log(folder))
            undo.pop_all()
        self._progress, self.folder = progress, folder

    def _open_log(self, folder: Path) -> tuple[int, Path]:
        path = folder / FRAME_METADATA
        if self._log_fd < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY
            self._log_fd = os.open(path, flags, 0o666)
        return self._log_fd, path

    # ---------------------------------------------------------------------- growth

    def _make_room(self, position: int, stop_nbytes: int) -> None:
        """Make a slot writable. Called by the writer when it has arrived at the end."""
        self.writer.exclusively(lambda: self._grow(position, stop_nbytes))

    def _grow(self, position: int, stop_nbytes: int) -> None:
        if self.writer.closed:
            return  # by another thread; the writer will say so
        step = -(-stop_nbytes // self.plan.step_nbytes)
        if self.regions[position].path is None:
            if step <= self._writable_steps[position]:
                return  # another thread was here before
            limit = self._memory_shortage(position, step)
            if limit is None:
                return
            self._leave_memory(position, step, limit)
        if self._ahead is None:
            self._allocate(position, step, step - 1 + self._steps_in(_MEMORY_WINDOW_NBYTES))
            return
        code = self._ahead.prepare_now(position, stop_nbytes - self.plan.frame_nbytes)
        if code == -1 or code == errno.ENOMEM:
            raise MemoryError(
                f"The addresses reserved for an array end at {stop_nbytes} bytes. Raise "
                "the limit of addresses (ulimit -v), or begin a new dataset."
            )
        if code != 0:
            raise OSError(code, os.strerror(code), str(self.regions[position].path))

    def _memory_shortage(self, position: int, step: int) -> str | None:
        """Grow in memory, or say which limit that would cross."""
        fmt = self.settings.format
        most = policy.memory_steps(self.plan, fmt, position)
        if step > most:
            return policy.memory_limit(fmt)
        if step > self._granted_steps:
            window_steps = self._steps_in(_GRANT_NBYTES)
            limit = policy.machine_shortage(window_steps * self.plan.total_nbytes)
            if limit is not None:
                return limit
            self._granted_steps = step - 1 + window_steps
        try:
            self._allocate(position, step, min(self._granted_steps, most))
        except MemoryError as error:
            return f"the system gives ({error})"
        return None

    def _steps_in(self, nbytes: int) -> int:
        return max(nbytes // self.plan.total_nbytes, 1)

    def _allocate(self, position: int, step: int, last: int) -> None:
        """Make a step writable, and more up to `last` if there is room for it."""
        region, step_nbytes = self.regions[position], self.plan.step_nbytes
        try:
            region.allocate((step - 1) * step_nbytes, last * step_nbytes)
        except (MemoryError, OSError):
            if last == step:
                raise
            last = step
            region.allocate((step - 1) * step_nbytes, last * step_nbytes)
        self._writable_steps[position] = last
        self._attach(position)

    def _attach(self, position: int) -> None:
        writable_nbytes = self._writable_steps[position] * self.plan.step_nbytes
        self.writer.attach(position, self.regions[position], writable_nbytes)

    def _make_steps(self, steps: int) -> None:
        """Make all arrays readable up to `steps`. Called by the writer for a long skip."""
        self.writer.exclusively(lambda: self._extend(steps))

    def _extend(self, steps: int) -> None:
        if self.writer.closed:
            return
        fmt = self.settings.format
        for position, region in enumerate(self.regions):
            most = policy.memory_steps(self.plan, fmt, position)
            if region.path is None and steps > most and not fmt.spill_to_disk:
                needed_nbytes = steps * self.plan.total_nbytes
                raise policy.memory_error(needed_nbytes, policy.memory_limit(fmt))
        for position, region in enumerate(self.regions):
            region.extend(steps * self.plan.step_nbytes)
            if moves_when_it_grows(region):
                self._attach(position)
        self.writer.set_readable_steps(steps)

    def _leave_memory(self, position: int, step: int, limit: str) -> None:
        """Go on in a file, behind what the position has in memory."""
        needed_nbytes = step * self.plan.total_nbytes
        if not self.settings.format.spill_to_disk:
            raise policy.memory_error(needed_nbytes, limit)
        is_first = self.folder is None
        if self.folder is None:
            self.folder = _make_spill_folder(self.settings.format, needed_nbytes)
        start_nbytes = self._writable_steps[position] * self.plan.step_nbytes
        self.regions[position].continue_in_file(
            self.folder / array_name(position), start_nbytes
        )
        self._attach(position)
        if self._ahead is not None:
            self._ahead.forget(position, start_nbytes)
            self._ahead.start_writeback(policy.backlog_nbytes())
        if all(region.path is not None for region in self.regions):
            self._saver = threading.Thread(target=self._try_save, name="scratchwriter")
            self._saver.start()
        if is_first:
            policy.warn_of_spill(needed_nbytes, limit, self.folder, stacklevel=6)

    def _try_save(self) -> None:
        """Complete the files of a dataset that began in memory, and publish it."""
        # On a thread of its own. What fails is tried again, and told, by `finish`.
        folder = self.folder
        with suppress(Exception):
            for region in self.regions:
                region.save()
            if folder is not None:
                # What is proportional to the frames so far is done while they come.
                self.writer.copy_log(*self._open_log(folder))
                with self._lock:
                    self.writer.exclusively(lambda: self._publish(folder))

    # ----------------------------------------------------------------------- stats

    def populated_ahead_nbytes(self) -> int:
        """Bytes ahead of the frames that can be stored to without a page fault."""
        if self._ahead is None:
            return 0
        return self._ahead.frames_ahead * self.plan.frame_nbytes

    def allocated_ahead_nbytes(self, cursor: int) -> int:
        """Bytes ahead of the frames that have memory granted, or blocks on the disk."""
        frames = self.plan.num_frames
        if frames is None:
            frames = min(self._writable_steps) * self.plan.step_frames
        ahead_nbytes = max(frames - cursor, 0) * self.plan.frame_nbytes
        return max(ahead_nbytes, self.populated_ahead_nbytes())

    def unwritten_nbytes(self, cursor: int) -> int:
        """Bytes in files that may not have been written to the disk yet."""
        if self.folder is None:
            return 0
        written_back = 0 if self._ahead is None else self._ahead.frames_written_back
        return (cursor - written_back) * self.plan.frame_nbytes

    # -------------------------------------------------------------------- metadata

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Keep metadata of the acquisition; in the manifest, if there is one."""
        if self._disowned:
            raise ValueError(
                "Cannot set metadata: the stream belongs to the process that this one was "
                "forked from."
            )
        value = json.loads(encode_global_metadata(namespace, metadata))
        with self._lock:
            before = self._global_metadata
            self._global_metadata = {**before, namespace: value}
            try:
                if self.folder is not None and self._progress is not None:
                    self._need_own_folder(self.folder)
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
            if self.writer.closed or not self.plan.is_unbounded:
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
            If a file cannot be written; the others are finished all the same, and what
            failed is tried again by the next call.
        """
        self.writer.close()
        self._stop_ahead()
        if self._saver is not None:
            self._saver.join()
        with self._lock:
            if self.finished:
                return
            if self.folder is not None:
                self._need_own_folder(self.folder)
            # Run from the last to the first, each whatever became of the others.
            with ExitStack() as steps:
                if self.folder is not None:
                    steps.callback(self._finish_dataset, self.folder)
                    for position in range(self.plan.num_positions):
                        steps.callback(self._finish_file, self.folder, position)
            self.finished = True

    def _need_own_folder(self, folder: Path) -> None:
        if self._progress is not None and not self._progress.is_in(folder):
            self._release()
            self.finished = True
            raise FileNotFoundError(
                errno.ENOENT,
                "The dataset was removed, or replaced by another: it is left as it is",
                str(folder),
            )

    def disown(self) -> None:
        """In a forked child: leave everything to the parent."""
        self.writer.disown()
        self.finished = self._disowned = True
        self._release()

    def _release(self) -> None:
        if self._progress is not None:
            self._progress.release()
        self._close_log()

    def _close_log(self) -> None:
        fd, self._log_fd = self._log_fd, -1
        if fd >= 0:
            os.close(fd)

    def _finish_file(self, folder: Path, position: int) -> None:
        region = self.regions[position]
        nbytes = self.plan.file_nbytes(position, self.writer.frames_written)
        if region.path is None:
            region.continue_in_file(folder / array_name(position), nbytes)
        region.trim(nbytes)  # first: it gives back room on the disk
        if self._progress is None:
            region.save()

    def _finish_dataset(self, folder: Path) -> None:
        if self._progress is None:
            self._publish(folder)
        self._close_log()
        self._write_manifest(folder)
        if self._progress is not None:
            self._progress.mark_closed()
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
        with locked(folder) as writer_pid:
            if writer_pid is not None:
                raise FileExistsError(
                    errno.EEXIST,
                    f"The dataset is being recorded by process {writer_pid}. Close that "
                    "stream first, or use another root_path",
                    str(folder),
                )
            old_files = dataset_files(folder)
            policy.require_disk(
                needed_nbytes, folder, freed_nbytes=sum(map(_disk_nbytes, old_files))
            )
            if others := [path.name for path in old_files if _is_folder(path)]:
                raise FileExistsError(
                    errno.EEXIST,
                    f"{others} in it are folders, not files of a dataset: nothing is "
                    "deleted. Use another root_path",
                    str(folder),
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


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


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


def _reserve(
    most_nbytes: int, least_nbytes: int, path: Path | None, huge_pages: bool
) -> Region:
    """Make a region with as many addresses as can be had."""
    while True:
        try:
            return make_region(most_nbytes, path, huge_pages=huge_pages)
        except MemoryError:
            if most_nbytes <= least_nbytes:
                raise
            most_nbytes = max(most_nbytes // 4, least_nbytes)
