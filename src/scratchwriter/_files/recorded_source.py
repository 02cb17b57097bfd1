"""Datasets of this library: closed, killed, or still being recorded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.array_utils import byte_bounds

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import (
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORD,
    RECORDS,
    STAGING,
    array_name,
)
from scratchwriter._files.live import FixedProgress, LiveProgress
from scratchwriter._files.manifest import read_manifest
from scratchwriter._files.metadata import FrameMetadata, Places
from scratchwriter._files.progress import ProgressView
from scratchwriter._files.records import arrange, count_dropped, known, known_times_ns
from scratchwriter._files.skips import BEFORE_ALL, read_intact_skips
from scratchwriter._files.source import (
    Description,
    MakeReady,
    RecordName,
    Source,
    State,
    is_ready,
    need_nbytes,
    shape_text,
)
from scratchwriter._files.staged import ArrayBytes, StagedArray, StagingReader, is_staged
from scratchwriter._region import view_file, view_ring
from scratchwriter.errors import DatasetError
from scratchwriter.plan import FramePlan, least_ring_steps

_IF_COPIED = "Only `scratchwriter copy` copies a dataset that is being recorded"


def state_of(progress: ProgressView) -> State:
    """Return the state of a dataset; see `ScratchDataset.state`."""
    has_writer = progress.has_writer  # first: a writer that closes frees its lock last
    if progress.is_closed:
        return "closed"
    return "killed" if has_writer is False else "recording"


class RecordedSource(Source):
    """A dataset whose frame cursor counts its frames.

    Parameters
    ----------
    path, description
        See `Source`.
    progress : ProgressView
        That of the dataset in that folder.
    was_closed : bool
        Whether it was closed before the manifest was read, which is then final.

    Raises
    ------
    DatasetError
        If its files contradict each other.
    """

    counts_frames = True
    _may_lack_ends = False  # whether files may end in what never reached the disk

    def __init__(
        self,
        path: Path,
        description: Description,
        progress: ProgressView,
        *,
        was_closed: bool,
    ) -> None:
        super().__init__(path, description._replace(plan=_plan_of_files(path, description)))
        self._progress = progress
        self._staging = StagingReader(path)
        self._staged: dict[int, StagedArray] = {}
        progress.num_frames = self.plan.num_frames
        self._check(is_exact=was_closed)
        self.frames = LiveProgress(path, progress)
        self.frame_metadata = self._metadata(lambda: progress.cursor)

    def _metadata(self, cursor: Callable[[], int]) -> FrameMetadata:
        # These functions do not refer to this source, so that it goes with its last user.
        return FrameMetadata(
            self.path / FRAME_METADATA,
            partial(_is_counted, self.path, self.plan, cursor),
            need_same := partial(self._progress.need_in, self.path),
            [self.settings.dimensions[axis].name for axis in self.plan.file_axes],
            partial(_known, self.path, self.plan, cursor, need_same),
            may_lack_lines=self._may_lack_ends,
        )

    def _check(self, *, is_exact: bool) -> None:
        plan, cursor = self.plan, self.frames_written
        for position, shape in enumerate(self.manifest.position_shapes):
            found = plan.file_shape(position, cursor)
            with faults_of(self.path / MANIFEST):
                if shape[1:] != found[1:] or (is_exact and shape != found):
                    raise ValueError(
                        f"position {position} has shape {shape_text(shape)}, {found} is "
                        f"expected by {PROGRESS}"
                    )
            nbytes = plan.file_nbytes(position, cursor)
            needed_by = f"{PROGRESS}. {_IF_COPIED}"
            need_nbytes(self.path / array_name(position), nbytes, needed_by)

    @property
    def state(self) -> State:
        return state_of(self._progress)

    @property
    def recording_id(self) -> str:
        if self._progress.recording_id:
            return self._progress.recording_id
        path = self.path / array_name(0)
        with faults_of(path):
            return f"{path.lstat().st_ino}-0"

    @property
    def frames_written(self) -> int:
        return self._progress.cursor

    @property
    def frames_synced(self) -> int:
        return self._progress.synced

    @property
    def may_lack_frames(self) -> bool:
        return self._progress.may_lack_frames

    @property
    def has_staged(self) -> bool:
        return self._progress.in_files >= 0

    @property
    def is_staged(self) -> bool:
        if self.state == "closed" or not self.has_staged:
            return False
        found = is_staged(self.path)  # first: it goes when all is in the files
        in_files, cursor = self._progress.in_files, self.frames_written
        if not found and in_files < cursor:
            raise DatasetError(
                f"{self.path / STAGING} is missing: it had the newest "
                f"{cursor - in_files} of {cursor} frames"
            )
        return found

    @property
    def frames_in_files(self) -> int:
        return self._progress.in_files if self.is_staged else self.frames_written

    @property
    def skipped(self) -> list[range]:
        cursor = self.frames_written
        skips = self.frames.skips(BEFORE_ALL, cursor)
        # A killed writer may have recorded a skip that it did not commit.
        return [range(skip.start, min(skip.stop, cursor)) for skip in skips]

    @property
    def dropped(self) -> int:
        if self.plan.ring_frames or self.state == "recording":
            # In a ring the records of most frames are overwritten, and reading all of them
            # takes long while a camera runs.
            return self._progress.dropped
        return count_dropped(self.records(self.frames_written))

    def need_same(self) -> None:
        self._progress.need_in(self.path)

    def written(self, position: int) -> npt.NDArray[np.bool_]:
        frames, plan = self.frames_written, self.plan
        with faults_of(self.path / PROGRESS):  # which may claim any number
            written = plan.written(position, frames, self.skipped)
        return written.transpose(plan.storage_axes[:-2])

    def records(self, cursor: int) -> npt.NDArray[np.void] | None:
        return _records(self.path, self.plan, cursor, self.need_same)

    def record_values(self, name: RecordName) -> tuple[npt.NDArray[np.int64], ...]:
        cursor = self.frames_written
        records = self.records(cursor)
        with faults_of(self.path / PROGRESS):  # which may claim any number
            return tuple(
                arrange(self.plan, position, records, cursor, name)
                for position in range(self.plan.num_positions)
            )

    def frame_times_ns(self) -> npt.NDArray[np.int64]:
        cursor, ring_frames = self.frames_written, self.plan.ring_frames
        records = self.records(cursor)
        with faults_of(self.path / RECORDS):
            if records is not None and ring_frames:
                first = max(cursor - ring_frames, 0)
                records = records[np.arange(first, cursor) % ring_frames]
            return known_times_ns(records)

    @property
    def global_metadata(self) -> dict[str, Any]:
        if self.is_released:
            return super().global_metadata
        manifest, _ = read_manifest(self.path)  # it may have been replaced
        self.need_same()
        return manifest.global_metadata

    def file_shape(self, position: int, cursor: int | None = None) -> tuple[int, ...]:
        frames = self.frames_written if cursor is None else cursor
        return self.plan.file_shape(position, frames)

    def file_nbytes(self, position: int) -> int:
        return self.plan.file_nbytes(position, self.frames_written)

    @property
    def records_nbytes(self) -> int:
        return (self.plan.ring_frames or self.frames_written) * RECORD.itemsize

    @property
    def storage_axes(self) -> tuple[int, ...]:
        return self.plan.storage_axes

    @property
    def _may_be_staged(self) -> bool:
        return self.has_staged and self.state != "closed" and not self.may_lack_frames

    def _bytes(
        self, position: int, nbytes: int, cursor: int
    ) -> tuple[memoryview, MakeReady]:
        if self._may_be_staged:
            return self._staged_bytes(position, nbytes, cursor)
        if not self.plan.ring_steps:
            return super()._bytes(position, nbytes, cursor)
        path, ring_nbytes = (
            self.path / array_name(position),
            self.plan.file_nbytes(position, 0),
        )
        need_nbytes(path, ring_nbytes, PROGRESS)
        with faults_of(path):
            data = view_ring(path, ring_nbytes)  # or, where it cannot be mapped so, a copy
            if len(data) < 2 * ring_nbytes:  # it has become shorter since
                raise ValueError(f"it has {len(data) // 2} bytes, not {ring_nbytes}")
        self.need_same()  # after it was opened
        return data, is_ready

    def _staged_bytes(
        self, position: int, nbytes: int, cursor: int
    ) -> tuple[memoryview, MakeReady]:
        plan = self.plan
        filled_nbytes = plan.filled_nbytes(position, cursor)

        def in_file_nbytes() -> int:
            return plan.filled_nbytes(position, progress.in_files)

        progress = self._progress
        need_nbytes(self.path / array_name(position), in_file_nbytes(), PROGRESS)
        staged = self._staged.get(position)
        if staged is None or staged.most_nbytes < nbytes:
            need_same = partial(progress.need_in, self.path)
            staged = StagedArray(self._staging, position, nbytes, in_file_nbytes, need_same)
            # One that was there before lives as long as arrays that were made of it.
            self._staged[position] = staged
        data = staged.view(nbytes, filled_nbytes)
        base = np.frombuffer(data, np.uint8).ctypes.data if nbytes else 0

        def make_ready(array: npt.NDArray[Any]) -> None:
            if array.size:
                first, stop = (address - base for address in byte_bounds(array))
                staged.make_ready(first, min(stop, filled_nbytes))

        return data, make_ready

    # What a copy needs, which has the first `cursor` frames.

    def array_bytes(self, position: int) -> ArrayBytes:
        """Return what copies the bytes of a position from wherever they are."""
        if not self._may_be_staged:
            return ArrayBytes(self._staging, position)
        progress, plan = self._progress, self.plan
        return ArrayBytes(
            self._staging,
            position,
            lambda: plan.filled_nbytes(position, progress.in_files),
        )

    def metadata_nbytes(self, cursor: int) -> int:
        """Return the size of the lines of the first frames in frame_metadata.jsonl."""
        return self._metadata(lambda: cursor).nbytes

    def progress_of_copy(self, cursor: int) -> bytes:
        """Return the progress.bin of a copy."""
        return self._progress.of_copy(cursor, may_lack_frames=self.may_lack_frames)

    def release(self) -> None:
        super().release()
        self._progress.release()
        while self._staged:
            self._staged.popitem()[1].close()


class RestartedSource(RecordedSource):
    """A dataset of which not all was synced before the machine was restarted.

    A power cut may leave the page with the cursor on the device, but not the length of the
    array files. So only as many frames count as the files have space for. Of one that was
    closed all has reached the disk if there was no power cut just then; else its files
    contradict each other, as a rule.
    """

    _may_lack_ends = True

    def __init__(
        self, path: Path, description: Description, progress: ProgressView
    ) -> None:
        plan = description.plan
        # A ring has all its space from the beginning.
        most_frames = progress.cursor if plan.ring_steps else _frames_in_files(path, plan)
        if progress.in_files >= 0:  # nobody knows what else has reached the disk
            most_frames = min(most_frames, progress.in_files)
        self._most_frames = max(most_frames, progress.synced)
        super().__init__(path, description, progress, was_closed=False)
        frames = self.frames_written
        self.frames = FixedProgress(frames, read_intact_skips(path).between)
        self.frame_metadata = self._metadata(lambda: frames)
        self._may_lack_frames = progress.may_lack_frames or not self._is_as_closed()

    def _is_as_closed(self) -> bool:
        """Return whether the files are as a writer leaves them that closes."""
        positions = range(self.plan.num_positions)
        sizes = [(self.path / array_name(p)).lstat().st_size for p in positions]
        return (
            self.frames_written == self._progress.cursor
            and self.manifest_shapes == self.file_shapes
            and sizes == [self.file_nbytes(p) for p in positions]
        )

    @property
    def frames_written(self) -> int:
        return min(self._progress.cursor, self._most_frames)

    @property
    def frames_in_files(self) -> int:
        return self.frames_synced if self._may_lack_frames else self.frames_written

    @property
    def may_lack_frames(self) -> bool:
        return self._may_lack_frames

    @property
    def is_staged(self) -> bool:
        # Pages of staging.bin reach the device at any time, if at all: no slot can be
        # believed. What counts is in the files.
        return False


def _plan_of_files(path: Path, description: Description) -> FramePlan:
    """Return the plan with as many steps in a ring as its files have.

    How many that are depends on the pages of the machine that wrote it.
    """
    plan = description.plan
    if plan.keep_steps is None:
        return plan
    sizes = []
    for position in range(plan.num_positions):
        array_path = path / array_name(position)
        need_nbytes(array_path, plan.step_nbytes, MANIFEST)
        with faults_of(array_path):
            sizes.append(array_path.lstat().st_size)
    steps, rest_nbytes = divmod(sizes[0], plan.step_nbytes)
    least = least_ring_steps(
        plan.keep_steps, is_frame=plan.step_nbytes == plan.frame_nbytes
    )
    with faults_of(path / array_name(0)):
        if rest_nbytes or steps < least or len(set(sizes)) > 1:
            raise ValueError(f"a ring cannot have {sizes[0]} bytes")
    return replace(plan, ring_steps=steps)


def _frames_in_files(path: Path, plan: FramePlan) -> int:
    most = []
    for position in range(plan.num_positions):
        array_path = path / array_name(position)
        with faults_of(array_path):
            steps = array_path.lstat().st_size // plan.step_nbytes
        most.append(plan.most_frames(position, steps))
    return min(most)


def _records(
    path: Path, plan: FramePlan, cursor: int, need_same: Callable[[], object]
) -> npt.NDArray[np.void] | None:
    path = path / RECORDS
    if not os.path.lexists(path):
        return None
    with faults_of(path):
        need_nbytes(path, 0, PROGRESS)
        if path.lstat().st_size < RECORD.itemsize:
            return None
        data = view_file(path)
        need_same()  # after it was opened
        count = len(data) // RECORD.itemsize
        if count < plan.ring_frames:
            raise ValueError(f"it has {count} records of {plan.ring_frames}")
        # If it is shorter than that, the last frames have no record.
        count = min(plan.ring_frames or cursor, count)
        return np.frombuffer(data, RECORD, count) if count else None


def _known(
    path: Path,
    plan: FramePlan,
    cursor: Callable[[], int],
    need_same: Callable[[], object],
    places: Places,
) -> list[dict[str, int]]:
    """Return what is known of frames besides their metadata."""
    records = _records(path, plan, cursor(), need_same)
    if records is None:
        return [{} for _ in places]
    numbers = [plan.frame_number(position, index) for position, index in places]
    at = [n % plan.ring_frames if plan.ring_frames else n for n in numbers]
    return [known(records[n]) if n < len(records) else {} for n in at]


def _is_counted(
    path: Path,
    plan: FramePlan,
    cursor: Callable[[], int],
    position: int,
    index: Sequence[int],
) -> bool:
    with faults_of(path / FRAME_METADATA):
        return plan.frame_number(position, index) < cursor()
