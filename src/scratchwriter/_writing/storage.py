"""The life of a dataset: where it is, its manifest and metadata, its end.

A `Storage` begins in memory or in a folder. In memory an unbounded acquisition may
outgrow its limit. Its arrays then go on in files of a temporary folder, behind what they
have in memory; a thread copies that into the files too, and when it has done so the
dataset in the folder is complete and gets its manifest.
"""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from scratchwriter._core import FrameWriter
from scratchwriter._files.append_times import AppendTimesFile
from scratchwriter._files.folders import (
    claimed,
    make_spill_folder,
    reclaim_spill_folders,
    remove_files,
    remove_spill_folder,
    spill_parent,
)
from scratchwriter._files.layout import (
    APPEND_TIMES,
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORDS,
    SKIPS,
    array_name,
)
from scratchwriter._files.manifest import ManifestDraft, dump_settings
from scratchwriter._files.metadata import encode_global_metadata
from scratchwriter._files.progress import Progress
from scratchwriter._region import Region
from scratchwriter._region.system import sync_file
from scratchwriter._writing import policy
from scratchwriter._writing.growth import Growth
from scratchwriter._writing.syncer import Syncer, warn_in_thread
from scratchwriter.errors import DeviceError
from scratchwriter.plan import FramePlan
from scratchwriter.settings import AcquisitionSettings

_O_BINARY = getattr(os, "O_BINARY", 0)  # Windows only
_LOOK_S = 0.01  # between looks whether a batch has come


class Storage:
    """A dataset that is being recorded.

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
    growth : Growth
        The arrays.
    synced : int
        How many of the first frames `flush` has brought to the device.

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
        self.finished = False
        self._disowned = False
        self._settings_fields = dump_settings(settings)
        self._global_metadata: dict[str, Any] = {}
        self._saver: threading.Thread | None = None
        self._saving = threading.Lock()  # of the files; taken before the next one
        self._lock = threading.RLock()  # of the manifest and of the end
        self._progress: Progress | None = None
        self._append_times: AppendTimesFile | None = None
        self._syncer: Syncer | None = None
        self._is_durable = settings.format.durability == "system"
        self._syncs_manifest = self._is_durable
        self._unsynced: list[Path] = []  # folders with new names in them
        self._lost: DeviceError | None = None  # what the device did not take
        self.synced = 0  # frames that are on the device
        self._has_warned_of_spill = False
        self._fds: dict[str, int] = {}  # of files that only grow, by name
        with ExitStack() as locks, ExitStack() as undo:
            limit = policy.memory_shortage(plan.total_nbytes, settings.format)
            if settings.root_path:
                self._begin_in_folder(locks, undo)
            elif limit is None:
                if plan.is_unbounded and settings.format.spill_to_disk:
                    # Now: it takes time, which an append that leaves memory has not.
                    reclaim_spill_folders(spill_parent(settings.format))
                self._make_arrays(None, undo)
            elif not settings.format.spill_to_disk:
                raise policy.memory_error(plan.total_nbytes, limit)
            else:
                self._begin_in_spill_folder(limit, undo)
            self.growth.start_ahead()
            self._show_append_times()
            if self._is_durable:
                self._syncer = Syncer(self.flush, settings.format.sync_interval_s)
            undo.pop_all()

    # ----------------------------------------------------------------------- begin

    def _begin_in_folder(self, locks: ExitStack, undo: ExitStack) -> None:
        folder = Path(self.settings.output_path).expanduser().absolute()
        if folder.is_symlink():
            folder = folder.resolve()
        new = [folder, *(path for path in folder.parents if not path.exists())]
        self._unsynced = [path.parent for path in new]
        needed_nbytes = self.plan.total_nbytes
        overwrite = self.settings.overwrite
        locks.enter_context(claimed(folder, needed_nbytes, overwrite, undo))
        undo.callback(remove_files, folder)
        self._make_arrays(folder, undo)
        undo.callback(self._release)
        self._publish(folder)
        if self._is_durable:
            self._sync_names()
        if self._progress is not None and not self._progress.is_locked:
            policy.warn_of_no_lock(folder, stacklevel=5)

    def _begin_in_spill_folder(self, limit: str, undo: ExitStack) -> None:
        needed_nbytes = self.plan.total_nbytes
        reclaim_spill_folders(spill_parent(self.settings.format))
        folder = make_spill_folder(self.settings.format, needed_nbytes)
        undo.callback(remove_spill_folder, folder)
        self._make_arrays(folder, undo)
        undo.callback(self._release)
        self._publish(folder)
        policy.warn_of_spill(needed_nbytes, limit, folder, stacklevel=5)

    def _make_arrays(self, folder: Path | None, undo: ExitStack) -> None:
        fmt = self.settings.format
        self.growth = Growth(self.plan, fmt, folder, self._leave_memory)
        undo.callback(self.growth.close)

    @property
    def writer(self) -> FrameWriter:
        return self.growth.writer

    @property
    def regions(self) -> list[Region]:
        return self.growth.regions

    def _publish(self, folder: Path) -> None:
        """Make the dataset readable by others: progress, manifest, frame metadata."""
        with ExitStack() as undo:
            for name in (PROGRESS, APPEND_TIMES, MANIFEST):
                undo.callback((folder / name).unlink, missing_ok=True)
            progress = Progress(folder / PROGRESS)
            undo.callback(progress.release)
            append_times = AppendTimesFile(folder)
            log, skips = self._open(folder, FRAME_METADATA), self._open(folder, SKIPS)

            def write_there() -> None:
                self.writer.publish_progress(
                    progress.cursor_address, progress.dropped_address, progress.file
                )
                self.writer.log_to(*log)
                self.writer.log_skips_to(*skips)

            self.writer.exclusively(write_there)
            self._write_manifest(folder)  # last: a folder with a manifest is complete
            undo.pop_all()
        self._progress, self._append_times, self.folder = progress, append_times, folder
        self._show_append_times()

    def _show_append_times(self) -> None:
        if self._append_times is not None:
            file = self._append_times.file
            self.growth.show_append_times(file.address, file)

    def _open(self, folder: Path, name: str) -> tuple[int, Path]:
        path = folder / name
        if name not in self._fds:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _O_BINARY
            self._fds[name] = os.open(path, flags, 0o666)
        return self._fds[name], path

    # ------------------------------------------------------------------ out of memory

    def _leave_memory(self, position: int, step: int, limit: str) -> None:
        """Let a position go on in a temporary folder. Called when memory has an end.

        If it is interrupted it is called again, and goes on.
        """
        needed_nbytes = step * self.plan.total_nbytes
        if not self.settings.format.spill_to_disk:
            raise policy.memory_error(needed_nbytes, limit)
        if self.folder is None:
            self.folder = make_spill_folder(self.settings.format, needed_nbytes)
        self.growth.continue_in_file(self.folder, position)
        if self.growth.is_in_files() and self._saver is None:
            saver = threading.Thread(
                target=self._try_save, name="scratchwriter", daemon=True
            )
            with suppress(RuntimeError):  # no thread to be had: `flush` and `finish` save
                saver.start()
                self._saver = saver
        if not self._has_warned_of_spill:
            self._has_warned_of_spill = True
            policy.warn_of_spill(needed_nbytes, limit, self.folder, stacklevel=6)

    def _try_save(self) -> None:
        """Complete the files of a dataset that began in memory, and publish it."""
        # On a thread of its own. What fails is tried again by `flush` and `finish`.
        while not self.growth.is_past_memory():
            time.sleep(_LOOK_S)
        try:
            self._save()
        except Exception as error:
            warn_in_thread(f"{self.folder} is not complete yet: {error}")

    def _save(self) -> None:
        with self._saving:
            if self.folder is None or self._progress is not None:
                return
            for region in self.growth.all_regions():
                region.save()
            # What is proportional to the frames so far is done while they come.
            self.writer.copy_log(*self._open(self.folder, FRAME_METADATA))
            with self._lock:
                self._publish(self.folder)

    def _wait_for_saver(self) -> None:
        # Garbage may be collected, and a stream with it, on that very thread.
        if self._saver is not None and self._saver is not threading.current_thread():
            self._saver.join()

    # ---------------------------------------------------------------- to the device

    def flush(self) -> None:
        """Return when everything so far is on the device; see `ScratchStream.flush`."""
        self._need_owner("flush")
        if self.folder is None or not self.growth.is_past_memory():
            return
        self._wait_for_saver()
        self._save()
        with self._lock:
            self._need_own_folder(self.folder)
            # From now on: what replaces a manifest that is on the device is there, too.
            self._syncs_manifest = True
            self._sync(self.folder)

    def _sync_names(self) -> None:
        """Bring the names of folders that were made to the device."""
        while self._unsynced:
            sync_file(self._unsynced[-1])
            self._unsynced.pop()

    def _sync(self, folder: Path) -> None:
        self._check_lost()
        frames = self.writer.frames_written
        try:
            self._sync_names()
            for position in range(self.plan.num_positions):
                sync_file(folder / array_name(position))
            for name in (FRAME_METADATA, SKIPS, MANIFEST):
                sync_file(folder / name)
            if (folder / RECORDS).exists():
                sync_file(folder / RECORDS)
            sync_file(folder)
            if self._append_times is not None:
                self._append_times.store(self.writer.measured())
            if self._progress is not None:
                self._progress.mark_synced(frames)
        except DeviceError as error:
            # The system tells it once, and takes the data for written from then on.
            self._lost = error
            raise
        self.synced = frames

    def _check_lost(self) -> None:
        if self._lost is not None:
            raise DeviceError(*self._lost.args[:2], self._lost.filename)
        self.growth.check_written_back()

    def _need_owner(self, what: str) -> None:
        if self._disowned:
            raise ValueError(
                f"Cannot {what}: the stream belongs to the process that this one was "
                "forked from."
            )

    # -------------------------------------------------------------------- metadata

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Keep metadata of the acquisition; in the manifest, if there is one."""
        self._need_owner("set metadata")
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
            self._settings_fields,
            self.plan,
            self.writer.frames_written,
            self._global_metadata,
            durable=self._syncs_manifest,
        )
        writer = self.writer
        try:
            if self.plan.is_unbounded:
                # The lengths are renewed in both: frames need not wait for the disk. Those
                # that came since the draft was begun are in it then, too.
                writer.exclusively(
                    lambda: writer.publish_steps(draft.length_addresses, draft.file)
                )
            draft.replace()
        finally:
            # An interrupt may come when it has been done.
            is_replaced = draft.is_in_place
            writer.exclusively(lambda: writer.settle_steps(is_replaced))
            if not is_replaced:
                draft.discard()

    # ------------------------------------------------------------------------- end

    def finish(self) -> None:
        """End the acquisition: exact file sizes, final manifest. The arrays stay.

        Raises
        ------
        OSError
            If a file cannot be written; the others are finished all the same, and what
            failed is tried again by the next call.
        """
        self.growth.close()
        if self._syncer is not None:
            self._syncer.stop()
        self._wait_for_saver()
        with self._saving, self._lock:
            if self.finished:
                return
            if self.folder is not None:
                self._need_own_folder(self.folder)
            # Run from the last to the first, each whatever became of the others.
            with ExitStack() as steps:
                if self.folder is not None:
                    steps.callback(self._finish_dataset, self.folder)
                    steps.callback(self.growth.records.finish, self.folder)
                    for position in range(self.plan.num_positions):
                        steps.callback(self.growth.finish_file, self.folder, position)
            self.finished = True
        self._check_lost()

    def _need_own_folder(self, folder: Path) -> None:
        if self._progress is not None and not self._progress.is_in(folder):
            if self.writer.closed:  # else frames may come, and are safe where it is now
                self._release()
                self.finished = True
            raise FileNotFoundError(
                errno.ENOENT,
                "The dataset was removed, or replaced by another: it is left as it is",
                str(folder),
            )

    def disown(self) -> None:
        """In a forked child: leave everything to the parent."""
        self.growth.disown()
        # Threads that are not here may have held them.
        self._saving, self._lock = threading.Lock(), threading.RLock()
        self.finished = self._disowned = True
        self._release()

    def _release(self) -> None:
        if self._progress is not None:
            self._progress.release()
        self._close_files()

    def _close_files(self) -> None:
        while self._fds:
            os.close(self._fds.popitem()[1])

    def _finish_dataset(self, folder: Path) -> None:
        if not self.growth.is_saved():
            return  # what failed is told; until it is done this is no whole dataset
        if self._progress is None:
            self._publish(folder)
        # The manifest is exact at any time; to write another one a full disk has no room.
        self._close_files()
        if self._is_durable:
            with suppress(DeviceError):  # told at the end of all
                self._sync(folder)
        if self._progress is not None:
            if self._append_times is not None:
                self._append_times.store(self.writer.measured())
            self._progress.mark_closed()
        if self._is_durable:
            sync_file(folder / PROGRESS)
