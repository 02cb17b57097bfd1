"""The life of a dataset that is being recorded: begin, growth, spill, flush, end.

A `Storage` carries out its `Placement` from top to bottom: the folder, the arrays in it,
the small files, the threads; and undoes it from bottom to top if that fails. In memory an
unbounded acquisition may outgrow its limit. Its arrays then spill: they continue in files
of a temporary folder, behind what they have in memory. A thread copies that into the files,
too, and when it has done so the dataset in the folder is complete and gets its manifest.

Locks: `_saving` guards what is copied from memory into files, `_lock` the small files and
the end; what publishes a dataset needs both. They are taken by `_guard.run` only: no
interrupt can leave one taken, and a call in the middle of another one of the same thread is
refused, or done afterwards (`finish`). Growth runs under the writer's own lock, where no
code of the user's runs: warnings come after it.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from scratchwriter._core import FrameWriter
from scratchwriter._files.folders import (
    claimed,
    make_spill_folder,
    reclaim_spill_folders,
    remove_files,
    remove_spill_folder,
)
from scratchwriter._files.layout import RECORD
from scratchwriter._files.manifest import dump_settings, need_manifest
from scratchwriter._files.metadata import encode_frame_metadata, encode_global_metadata
from scratchwriter._native.call_guard import CallGuard
from scratchwriter._region.system import sync_file
from scratchwriter._writing import policy
from scratchwriter._writing.arrays import ArraySet, DiskBehind, GrowingArray
from scratchwriter._writing.backlog import Backlog
from scratchwriter._writing.dataset_files import DatasetFiles
from scratchwriter._writing.syncer import Syncer, warn_in_thread
from scratchwriter.errors import DatasetError, DeviceError, device_error
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings

_LOOK_S = 0.01  # between looks whether a batch has come


class Storage:
    """A dataset that is being recorded. Nothing is made before `begin`.

    It is the provider of its writer: what a frame lacks, the writer asks of it.

    Parameters
    ----------
    settings : AcquisitionSettings
        Ready for a stream; not changed from here on.
    plan : FramePlan
        Derived from them.

    Attributes
    ----------
    writer : FrameWriter
    arrays : ArraySet
    finished : bool
        Whether the dataset is finished.
    synced : int
        How many of the first frames `flush` has brought to the device.

    Raises
    ------
    MemoryError
        If the arrays must be in memory and do not fit.
    """

    def __init__(self, settings: AcquisitionSettings, plan: FramePlan) -> None:
        fmt = settings.format
        self.settings, self.plan = settings, plan
        self.placement = policy.place(settings, plan)
        self.finished = False
        self.synced = 0  # frames that are on the device
        self.writer = FrameWriter(
            plan,
            fmt.casting,
            self,
            encode_frame_metadata,
            # In memory they can only be wanted for a file that comes later.
            keep_metadata=self.placement.spills,
            takes_time=fmt.timestamps,
        )
        self.arrays = ArraySet(plan, self.placement, self.writer)
        self._is_durable = fmt.durability == "system"
        self._files: DatasetFiles | None = None
        is_staged = self.placement.staging is not None
        self._settings_fields = dump_settings(settings) | {
            "disk_io": "direct" if is_staged else "page_cache",
            "why_not_direct": self.placement.why_not_direct,
        }
        self._global_metadata: dict[str, Any] = {}
        self._guard = CallGuard()
        self._saving, self._lock = threading.Lock(), threading.Lock()  # in that order
        self._undo = ExitStack()  # what `begin` has done
        self._undo_in_claim = ExitStack()  # of it, what only the lock of the folder allows
        self._saver: threading.Thread | None = None
        self._backlog: Backlog | None = None
        self._syncer: Syncer | None = None
        self._unsynced: list[Path] = []  # folders with new names in them
        self._lost: tuple[int, Path] | None = None  # errno and file the device failed for
        self._spill_decision: policy.Spill | None = None
        self._frames_at_spill = 0
        self._has_warned_of_spill = False
        self._disowned = False

    @property
    def folder(self) -> Path | None:
        """Folder of the dataset, also of a temporary one; None in memory."""
        return None if self._files is None else self._files.folder

    # ----------------------------------------------------------------------- begin

    def begin(self, on_populate: Callable[[int, int], object] | None = None) -> None:
        """Make everything. If that fails, `abandon` undoes it.

        Parameters
        ----------
        on_populate : callable(done_nbytes, total_nbytes), optional
            Called while all memory is made ready, if that is to be.

        Raises
        ------
        FileExistsError, OSError
            If the folder cannot be made, or its disk is too small.
        MemoryError
            If there is no room for the arrays.
        """
        undo, fmt = self._undo, self.settings.format
        claim = undo.enter_context(ExitStack())
        undo.callback(self.arrays.give_back)
        undo.callback(self.writer.close)
        folder = self._make_folder(claim)
        self.arrays.make(folder)
        if fmt.timestamps:
            self.arrays.make_records(folder)
            if folder is None:  # now, and not in the first append
                self.arrays.grow_records(RECORD.itemsize, None)
        if self.placement.spills:
            need_manifest(self._settings_fields, self.plan, {})
        if folder is not None:
            self._open_files(folder)
            undo.callback(self._release)
            undo.callback(self._remove_own_files)  # before the lock of the dataset is free
            self._publish()
        undo.callback(self._join_backlog)
        if self.placement.populates_all:
            self.arrays.populate(on_populate)
        undo.callback(self.arrays.stop_ahead)
        self.arrays.make_ahead()
        self._show_append_times()
        self.arrays.start_ahead()
        self._backlog = self.arrays.watch_disk()
        self._warn_at_the_beginning()
        if self._is_durable:
            self._syncer = Syncer(self.flush, fmt.sync_interval_s)
            undo.callback(self._syncer.stop)
            self._syncer.start()
        # From here on the lock of the dataset keeps others out, and not that of the folder.
        self._undo_in_claim.pop_all()
        claim.close()

    def abandon(self) -> None:
        """Undo what `begin` has done, from bottom to top."""
        self.finished = True
        self._undo.close()

    def _make_folder(self, claim: ExitStack) -> Path | None:
        placement, fmt, undo = self.placement, self.settings.format, self._undo
        folder = placement.folder
        if folder is None:
            return None
        if placement.kind != "folder":
            # Also for a spill that comes later: it takes time, which an append has not.
            reclaim_spill_folders(folder)
            if placement.kind == "memory":
                return None
            return make_spill_folder(
                fmt,
                placement.needed_nbytes,
                lambda folder: undo.callback(remove_spill_folder, folder),
            )
        new = [folder, *(path for path in folder.parents if not path.exists())]
        self._unsynced = [path.parent for path in new]
        overwrite = self.settings.overwrite
        try:
            claim.enter_context(claimed(folder, placement.needed_nbytes, overwrite, undo))
        except FileExistsError:
            from scratchwriter._files.repair import bring_to_files  # and all of the reader

            # Of a killed run. Whatever is there instead, it stays as it is.
            with suppress(OSError, DatasetError):
                bring_to_files(folder)
            raise
        undo.enter_context(self._undo_in_claim)
        self._undo_in_claim.callback(remove_files, folder)
        return folder

    def _remove_own_files(self) -> None:
        files = self._files
        if files is not None and files.is_published:
            with suppress(FileNotFoundError):  # else they are another stream's
                files.need_own_folder()
                remove_files(files.folder)

    def _warn_at_the_beginning(self) -> None:
        if self.folder is None or self._files is None:
            return
        if self.placement.kind == "temporary":
            policy.warn_of_spill(self.placement, self.folder, stacklevel=5)
        elif not self._files.is_locked:
            policy.warn_of_no_lock(self.folder, stacklevel=5)

    def _open_files(self, folder: Path) -> DatasetFiles:
        if self._files is None:
            self._files = DatasetFiles(
                folder, self.plan, self._settings_fields, syncs_manifest=self._is_durable
            )
        return self._files

    def _publish(self) -> None:
        """Make the dataset readable by others, if its files have all that it has."""
        files = self._files
        if files is None or files.is_published or not self.arrays.are_saved:
            return
        files.publish(self.writer, self._global_metadata)
        if self._is_durable:
            self._sync_names()
        self._show_append_times()

    def _show_append_times(self) -> None:
        if self._files is not None and self._files.append_times is not None:
            self.arrays.show_append_times(*self._files.append_times)

    # ------------------------------------------------- growth: asked for by the writer

    def make_room(self, position: int, stop_nbytes: int) -> None:
        """Make a slot writable, or a record (of the array behind the last position).

        Raises
        ------
        MemoryError, OSError
            If there is no room for it.
        """
        grow = partial(self._make_room, position, stop_nbytes)
        try:
            self._guard.run(partial(self.writer.exclusively, grow))
        except DiskBehind:
            # Without a lock: others go on meanwhile, and the writer asks again.
            if self._backlog is not None:
                self._backlog.wait(self.writer.frames_written)
        self._warn_of_spill()
        if self._backlog is None and self._spill_decision is not None:
            self._backlog = self.arrays.watch_disk()

    def make_steps(self, steps: int) -> None:
        """Make all arrays readable up to `steps`, for a long skip.

        Raises
        ------
        MemoryError, OSError
            If arrays of that length cannot be made.
        """
        self._guard.run(partial(self.writer.exclusively, partial(self._make_steps, steps)))

    def _make_room(self, position: int, stop_nbytes: int) -> None:
        writer, arrays = self.writer, self.arrays
        if writer.closed:
            return  # by another thread; the writer will say so
        if position == self.plan.num_positions:
            arrays.grow_records(stop_nbytes, self.folder if arrays.are_in_files else None)
            return
        if stop_nbytes <= writer.writable_nbytes(position) or writer.has_lease:
            # Another thread was here before; or it was lent memory that must not move: the
            # writer waits until it has given it back.
            return
        if not arrays.positions[position].is_in_file:
            step = -(-stop_nbytes // self.plan.step_nbytes)
            limit = arrays.grow_in_memory(position, step)
            if limit is None:
                return
            self._spill(position, step, limit)
        arrays.grow_in_file(position, stop_nbytes)
        self._complete_spill()

    def _make_steps(self, steps: int) -> None:
        if not (self.writer.closed or self.writer.has_lease):  # as in `_make_room`
            self.arrays.extend_to(steps)

    def _spill(self, position: int, step: int, limit: str) -> None:
        """Let a position continue in a file of a temporary folder."""
        needed_nbytes = step * self.plan.total_nbytes
        if self._spill_decision is None:
            self._frames_at_spill = self.writer.frames_written
            self._spill_decision = policy.spill(self.placement, needed_nbytes, limit)
        try:
            if self.folder is None:
                make_spill_folder(self.settings.format, needed_nbytes, self._open_files)
            assert self.folder is not None
            self._start_saver()  # first: if this is interrupted, it does the rest
            self.arrays.spill(position, self.folder)
        except BaseException:
            if not any(array.is_in_file for array in self.arrays.positions):
                # It stays in memory, and can be closed there.
                if self.folder is not None:
                    remove_spill_folder(self.folder)
                self._files = self._spill_decision = None
            raise

    def _complete_spill(self) -> None:
        """Do what follows when all arrays have spilled. Again: what has not been done."""
        files, decision = self._files, self._spill_decision
        if files is None or files.is_published or decision is None or self.writer.closed:
            return
        if self.arrays.are_in_files:
            self.arrays.spill_records(files.folder)
            self.arrays.stage()

    def _warn_of_spill(self) -> None:
        decision, folder = self._spill_decision, self.folder
        if decision is None or folder is None or self._has_warned_of_spill:
            return
        self._has_warned_of_spill = True
        policy.warn_of_spill(decision, folder, stacklevel=4)

    def _start_saver(self) -> None:
        if self._saver is None or not self._saver.is_alive():
            saver = threading.Thread(
                target=self._try_save, name="scratchwriter-save", daemon=True
            )
            with suppress(RuntimeError):  # else `flush` and `finish` save
                saver.start()
                self._saver = saver

    def _try_save(self) -> None:
        """Complete the files of a dataset that has spilled, and publish it."""
        # On a thread of its own. What fails is tried again by `flush` and `finish`.
        while not self.arrays.are_past_memory:
            if self.writer.closed or self._files is None:
                return
            time.sleep(_LOOK_S)
        try:
            self._guard.run(self._save, self._saving, what="save")
            self._guard.run(self._publish, self._saving, self._lock, what="publish")
        except Exception as error:
            warn_in_thread(f"{self.folder} is not complete yet: {error}")
        # The frame for which arrays spill warns before it is stored, unless it was
        # interrupted: once frames have come, this does.
        while not (self._has_warned_of_spill or self.writer.closed):
            if self.writer.frames_written > self._frames_at_spill:
                with suppress(Exception):
                    self._warn_of_spill()
            time.sleep(_LOOK_S)

    def _save(self) -> None:
        """Copy what is in memory into the files, while frames come."""
        if self._files is None or self._files.is_published:
            return
        self.writer.exclusively(self._complete_spill)
        try:
            for array in self.arrays.all:
                array.save()
        except DeviceError as error:
            self._note_lost(error)
            raise
        # What is proportional to the frames so far is done while they come.
        self._files.copy_log(self.writer)

    def _wait_for_saver(self) -> None:
        # Garbage may be collected, and a stream with it, on that very thread.
        if self._saver is not None and self._saver is not threading.current_thread():
            self._saver.join()

    # ---------------------------------------------------------------- to the device

    def flush(self) -> None:
        """Return when everything so far is on the device; see `ScratchStream.flush`."""
        self._need_owner("flush")
        if self.folder is None or not self.arrays.are_past_memory:
            return
        self._guard.run(self._save, self._saving, what="flush")
        self._guard.run(self._flush, self._saving, self._lock, what="flush")

    def _flush(self) -> None:
        files = self._files
        if files is None:
            return
        if not self.finished:
            self._publish()
        files.need_own_folder()
        # From now on: what replaces a manifest that is on the device is there, too.
        files.syncs_manifest = True
        self._sync(files)

    def _sync_names(self) -> None:
        """Bring the names of folders that were made to the device."""
        while self._unsynced:
            sync_file(self._unsynced[-1])
            self._unsynced.pop()

    def _sync(self, files: DatasetFiles) -> None:
        self._check_lost()
        try:
            self._sync_names()
            frames = self.arrays.bring_to_files()
            files.sync()
            self.arrays.check_written()  # last: a write-back may have failed meanwhile
            files.mark_synced(self.writer, frames)
            self.synced = frames
        except DeviceError as error:
            # The system reports it once, and takes the data for written from then on.
            self._note_lost(error)
            raise

    def _note_lost(self, error: DeviceError) -> None:
        # Not the error itself: its traceback would keep the caller's variables.
        self._lost = error.errno or 0, Path(error.filename)

    def _check_lost(self) -> None:
        if self._lost is not None:
            raise device_error(*self._lost)
        self.arrays.check_written()

    def _need_owner(self, what: str) -> None:
        if self._disowned:
            raise ValueError(
                f"Cannot {what}: the stream belongs to the process that this one was "
                "forked from."
            )

    # -------------------------------------------------------------------- metadata

    @property
    def global_metadata(self) -> dict[str, Any]:
        """A copy of the metadata of the acquisition by namespace."""
        return copy.deepcopy(self._global_metadata)

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Keep metadata of the acquisition; in the manifest, if there is one."""
        self._need_owner("set metadata")
        value = json.loads(encode_global_metadata(namespace, metadata))
        keep = partial(self._set_global_metadata, namespace, value)
        self._guard.run(keep, self._lock, what="set metadata")

    def _set_global_metadata(self, namespace: str, value: Any) -> None:
        before = self._global_metadata
        self._global_metadata = {**before, namespace: value}
        try:
            if self._files is not None and self._files.is_published:
                self._files.need_own_folder()
                self._files.write_manifest(self.writer, self._global_metadata)
            else:  # so that it can come to a folder later
                need_manifest(self._settings_fields, self.plan, self._global_metadata)
        except BaseException:
            self._global_metadata = before
            raise

    # ------------------------------------------------------------------------- end

    def finish(self, then: Callable[[], object] = lambda: None) -> None:
        """End the acquisition: exact file sizes, final manifest. The arrays stay.

        In the middle of another call of this thread (from a signal handler, or because
        garbage is collected) it is done when that call ends.

        Parameters
        ----------
        then : callable
            What follows, also if it fails.

        Raises
        ------
        OSError
            If a file cannot be written; the others are finished all the same, and what
            failed is tried again by the next call.
        """
        self._guard.after(partial(self._finish, then))

    def _finish(self, then: Callable[[], object]) -> None:
        self.writer.close()  # if it is interrupted, nothing has ended yet
        try:
            if self._syncer is not None:
                self._syncer.stop()
            self._wait_for_saver()
            self._guard.run(self._finish_files, self._saving, self._lock, what="close")
            self._join_backlog()
            self._check_lost()
        finally:
            then()

    def _join_backlog(self) -> None:
        if self._backlog is not None:
            self._backlog.join()

    def _finish_files(self) -> None:
        self.arrays.stop_ahead()
        if self.finished:
            return
        sizes = self.arrays.sizes(self.writer.frames_written)
        # Run from the last to the first, each whatever became of the others.
        with ExitStack() as steps:
            if self._files is not None:
                steps.callback(self._finish_files_of, self._files, sizes)
            for array, nbytes in sizes:
                steps.callback(array.end, nbytes)
        self.finished = True
        self._undo = ExitStack()  # it refers to this object

    def _finish_files_of(
        self, files: DatasetFiles, sizes: list[tuple[GrowingArray, int]]
    ) -> None:
        try:
            files.need_own_folder()
        except FileNotFoundError:
            files.release()
            self.finished = True
            raise
        with ExitStack() as steps:
            steps.callback(self._finish_dataset, files)
            for array, nbytes in sizes:
                steps.callback(array.finish, files.folder, nbytes)

    def _finish_dataset(self, files: DatasetFiles) -> None:
        self._publish()
        if not files.is_published:
            return  # what failed is reported; until it is done this is no whole dataset
        # The manifest is exact at any time; to write another one a full disk has no room.
        files.close_logs()
        if self._is_durable:
            with suppress(DeviceError):  # reported at the end of all
                self._sync(files)
        files.mark_closed(self.writer)
        if self._is_durable:
            files.sync_end()
        files.release()

    def disown(self) -> None:
        """In a forked child: leave everything to the parent."""
        self.writer.disown()
        self.arrays.disown()
        # Threads that do not exist here may have held them.
        self._guard = CallGuard()
        self._saving, self._lock = threading.Lock(), threading.Lock()
        self.finished = self._disowned = True
        self._undo = ExitStack()
        self._release()

    def _release(self) -> None:
        if self._files is not None:
            self._files.release()
