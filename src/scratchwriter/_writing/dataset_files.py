"""The small files of a dataset that is being recorded: progress, manifest, logs, times."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scratchwriter._core import FrameWriter
from scratchwriter._files.append_times import AppendTimesFile
from scratchwriter._files.layout import (
    APPEND_TIMES,
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORDS,
    SKIPS,
    array_name,
)
from scratchwriter._files.manifest import ManifestDraft
from scratchwriter._files.progress import Progress
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import sync_file
from scratchwriter.plan import FramePlan


class DatasetFiles:
    """See above. A dataset is complete for others when `publish` has made its manifest.

    Parameters
    ----------
    folder : pathlib.Path
        Of the dataset.
    plan : FramePlan
        Counts and sizes.
    settings_fields : mapping
        The settings as a manifest has them.
    syncs_manifest : bool
        Whether each manifest is brought to the device before it takes its place.

    Attributes
    ----------
    syncs_manifest : bool
        As the parameter.
    """

    def __init__(
        self,
        folder: Path,
        plan: FramePlan,
        settings_fields: Mapping[str, Any],
        *,
        syncs_manifest: bool,
    ) -> None:
        self.folder = folder
        self.syncs_manifest = syncs_manifest
        self._plan, self._settings_fields = plan, settings_fields
        self._progress: Progress | None = None
        self._append_times: AppendTimesFile | None = None
        self._logs: dict[str, Descriptor] = {}  # files that only grow, by name

    @property
    def is_published(self) -> bool:
        """Whether others find a dataset in the folder."""
        return self._progress is not None

    @property
    def is_locked(self) -> bool:
        """Whether others can see by a lock that the dataset is being recorded."""
        return self._progress is not None and self._progress.is_locked

    def copy_log(self, writer: FrameWriter) -> None:
        """Write what metadata there are so far into their file, while frames come.

        Raises
        ------
        OSError
            If that fails; the next call continues where this one ended.
        """
        writer.copy_log(*self._log(FRAME_METADATA))

    def publish(self, writer: FrameWriter, global_metadata: Mapping[str, Any]) -> None:
        """Make the dataset readable by others: progress, frame metadata, manifest.

        Raises
        ------
        OSError
            If a file cannot be made; the next call tries again.
        """
        with ExitStack() as undo:
            for name in (PROGRESS, APPEND_TIMES, MANIFEST):
                # Also now: an interrupt may have left what was made before.
                (self.folder / name).unlink(missing_ok=True)
                undo.callback((self.folder / name).unlink, missing_ok=True)
            progress = Progress(self.folder / PROGRESS)
            undo.callback(progress.release)
            append_times = AppendTimesFile(self.folder)
            log, skips = self._log(FRAME_METADATA), self._log(SKIPS)

            def write_there() -> None:
                writer.publish_progress(
                    progress.cursor_address,
                    progress.dropped_address,
                    progress.in_files_address,
                    progress.file,
                )
                writer.log_to(*log)
                writer.log_skips_to(*skips)

            writer.exclusively(write_there)
            # Last: a folder with a manifest is complete.
            self.write_manifest(writer, global_metadata)
            undo.pop_all()
            self._progress, self._append_times = progress, append_times

    def _log(self, name: str) -> tuple[int, Path]:
        path = self.folder / name
        if name not in self._logs:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                self._logs[name] = Descriptor(path, flags, closed_in_children=True)
            except OSError:
                raise  # if it exists, it is not ours
            except BaseException:
                if name not in self._logs:
                    path.unlink(missing_ok=True)
                raise
        return self._logs[name].fileno(), path

    @property
    def append_times(self) -> tuple[int, object] | None:
        """Address of append_times.bin, and what keeps it there."""
        if self._append_times is None:
            return None
        return self._append_times.file.address, self._append_times.file

    def need_own_folder(self) -> None:
        """Check that the dataset in the folder is still this one.

        Raises
        ------
        FileNotFoundError
            If it is not.
        """
        if self._progress is not None and not self._progress.is_in(self.folder):
            raise FileNotFoundError(
                errno.ENOENT,
                "The dataset was removed, or replaced by another: it is left as it is",
                str(self.folder),
            )

    def write_manifest(
        self, writer: FrameWriter, global_metadata: Mapping[str, Any]
    ) -> None:
        """Replace the manifest.

        Raises
        ------
        OSError, ValueError
            If that fails; the manifest is as it was.
        """
        draft = ManifestDraft(
            self.folder,
            self._settings_fields,
            self._plan,
            writer.frames_written,
            global_metadata,
            durable=self.syncs_manifest,
        )
        try:
            if self._plan.is_unbounded:
                # The lengths are renewed in both: frames need not wait for the disk. Those
                # that came since the draft was made are in it then, too.
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

    def sync(self) -> None:
        """Bring all files to the device.

        Raises
        ------
        DeviceError
            If the device does not take them.
        """
        for position in range(self._plan.num_positions):
            sync_file(self.folder / array_name(position))
        for name in (FRAME_METADATA, SKIPS, MANIFEST):
            sync_file(self.folder / name)
        if (self.folder / RECORDS).exists():
            sync_file(self.folder / RECORDS)
        sync_file(self.folder)

    def mark_synced(self, writer: FrameWriter, frames: int) -> None:
        """Let others know how many frames are on the device."""
        if self._append_times is not None:
            self._append_times.store(writer.measured())
        if self._progress is not None:
            self._progress.mark_synced(frames)

    def mark_closed(self, writer: FrameWriter) -> None:
        """Mark the dataset as closed, when all else is done."""
        if self._append_times is not None:
            self._append_times.store(writer.measured())
        if self._progress is not None:
            self._progress.mark_closed()

    def sync_end(self) -> None:
        """Bring the mark to the device, too."""
        sync_file(self.folder / PROGRESS)

    def close_logs(self) -> None:
        """Close the files that only grow; nothing is written to them any more."""
        while self._logs:
            self._logs.popitem()[1].close()

    def release(self) -> None:
        """Close everything, and give up the lock. Again: of no effect."""
        self.close_logs()
        self._append_times = None
        if self._progress is not None:
            self._progress.release()
