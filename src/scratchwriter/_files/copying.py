"""Copies a dataset as it is at one moment, also while it is recorded.

A moment is a number of frames: the cursor. It is read first. Then the frames before it are
copied, their metadata, times and skips, which all are in the files by then; what came later
is left out. The copy is a finished dataset.

A ring is copied in passes, because old frames are overwritten meanwhile: the first pass
copies all that is kept, each later one what came during the pass before. What was
overwritten while it was read is no longer kept when the next pass begins. So the copy is
right when a pass ends before anything that it has read was overwritten.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np

from scratchwriter._files.faults import faults_of
from scratchwriter._files.folders import require_disk
from scratchwriter._files.layout import (
    APPEND_TIMES,
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORD,
    RECORDS,
    SKIP_PAIR,
    SKIPS,
    array_name,
    is_dataset_name,
)
from scratchwriter._files.manifest import manifest_with_shapes
from scratchwriter._files.ome_writers_source import NOT_COUNTED
from scratchwriter._files.recorded_source import RecordedSource
from scratchwriter._files.skips import BEFORE_ALL
from scratchwriter._files.source import Source
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import (
    descriptor_of_regular,
    errors_name,
    lock_folder,
    read_pieces,
    sync_file,
    write_all,
    write_all_at,
)
from scratchwriter.errors import DatasetError
from scratchwriter.plan import FramePlan, Skips

_MOST_PASSES = 20  # over a ring that is being recorded
_ZEROS = memoryview(bytes(1 << 20))
_NEW_FILE = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)


def copy_dataset(source: Source, out: Path) -> None:
    """Make a copy; see `ScratchDataset.copy`."""
    source.need_open()
    if not isinstance(source, RecordedSource):
        raise DatasetError(
            f"{source.path / MANIFEST}: {NOT_COUNTED}. Close it, then copy the folder by "
            "any program"
        )
    if out.resolve().is_relative_to(source.path.resolve()) and out != source.path:
        raise ValueError(f"{out} is inside of the dataset. Copy it to another folder.")
    if os.path.lexists(out):
        _refuse_existing(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with _made_beside(out) as folder:
        _Copy(source, folder).make()


@contextmanager
def _made_beside(out: Path) -> Iterator[Path]:
    """Make a hidden folder beside a path, which gets that name when the block has ended.

    If anything fails, it is removed. What a killed process has left of one is replaced.
    """
    folder = out.with_name(f".{out.name}.partial")
    with ExitStack() as unlock:
        while True:
            folder.mkdir(exist_ok=True)
            try:
                lock, is_free = lock_folder(folder)
            except FileNotFoundError:
                continue  # another process has just ended with it
            break
        if lock is not None:
            unlock.enter_context(lock)
        if is_free is False:
            raise BlockingIOError(
                errno.EAGAIN, "Another process makes the same copy, or export", str(out)
            )
        _empty(folder)
        try:
            yield folder
            _put_in_place(folder, out)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def _empty(folder: Path) -> None:
    """Remove what is left of an earlier copy; other files stay, and are an error."""
    names = [path.name for path in folder.iterdir()]
    if others := [name for name in names if not is_dataset_name(name)]:
        raise FileExistsError(
            errno.EEXIST,
            f"It holds what is not of a copy: {others[:5]}. Remove it, or copy to another "
            "name",
            str(folder),
        )
    for name in names:
        (folder / name).unlink()


def _put_in_place(folder: Path, out: Path) -> None:
    for path in (*folder.iterdir(), folder):
        sync_file(path)
    try:
        folder.rename(out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            _refuse_existing(out)
        raise
    sync_file(out.parent)


def _refuse_existing(out: Path) -> NoReturn:
    raise FileExistsError(
        errno.EEXIST, "It exists. Copy to another name, or remove it first", str(out)
    )


class _Copy:
    """Makes a copy in an empty folder.

    Parameters
    ----------
    source : RecordedSource
        The dataset.
    folder : pathlib.Path
        Where the copy is made.
    """

    def __init__(self, source: RecordedSource, folder: Path) -> None:
        self._source, self._plan, self._folder = source, source.plan, folder

    def make(self) -> None:
        cursor = self._source.frames_written
        skips = self._skips(cursor)
        self._require_disk(cursor, skips)
        if self._plan.ring_steps:
            cursor = self._copy_ring()
            skips = self._skips(cursor)
        else:
            for position in range(self._plan.num_positions):
                self._copy_frames(position, 0, cursor, skips)
            self._copy_file(RECORDS, 0, cursor * RECORD.itemsize)
        for position in range(self._plan.num_positions):
            nbytes = self._plan.file_nbytes(position, cursor)
            os.truncate(self._folder / array_name(position), nbytes)
        self._copy_file(FRAME_METADATA, 0, self._source.metadata_nbytes(cursor))
        self._write_skips(skips, cursor)
        self._write_small_files(cursor)
        self._source.need_same()  # after all was read

    def _skips(self, cursor: int) -> Skips:
        return self._source.frames.skips(BEFORE_ALL, cursor)

    def _require_disk(self, cursor: int, skips: Skips) -> None:
        frames = cursor - skips.num_between(0, cursor)
        if self._plan.ring_frames:
            frames = min(cursor, self._plan.ring_frames)
        require_disk(frames * self._plan.frame_nbytes, self._folder)

    def _copy_frames(self, position: int, first: int, cursor: int, skips: Skips) -> None:
        """Copy the frames of a position from one to before another, if they came."""
        path = self._folder / array_name(position)
        with self._source.array_bytes(position) as array, Descriptor(path, _NEW_FILE) as to:

            def put(start: int, data: memoryview) -> None:
                with errors_name(path):
                    write_all_at(to, start, data)

            for start, stop in skips.others(first, cursor):
                for low, high in _places(self._plan, position, start, stop):
                    array.copy(low, high, put)

    def _copy_ring(self) -> int:
        """Copy what is kept of a ring, and its records; return how many frames it has."""
        plan, done = self._plan, 0
        positions = range(plan.num_positions)
        for _ in range(_MOST_PASSES):
            cursor = self._source.frames_written
            oldest = min(plan.first_step(p, cursor) for p in positions)
            start = max(done, oldest * plan.step_frames)
            for position in positions:
                # Those that were skipped, too: there may be other frames in their places.
                self._copy_frames(position, start, cursor, Skips())
            self._copy_ring_records(start, cursor)
            if self._is_kept(start, cursor):
                self._clear_rest_of_step(cursor)
                return cursor
            done = cursor
        raise ValueError(
            f"{self._source.path}: with keep_last={plan.keep_steps}, frames are "
            "overwritten faster than they can be copied. Wait until it is closed."
        )

    def _is_kept(self, start: int, cursor: int) -> bool:
        """Return whether what was copied from one frame to before another is still kept."""
        now, step = self._source.frames_written, start // self._plan.step_frames
        return now == cursor or all(
            max(step, self._plan.first_step(position, cursor))
            >= self._plan.first_step(position, now)
            for position in range(self._plan.num_positions)
        )

    def _clear_rest_of_step(self, cursor: int) -> None:
        """Write zeros where the frames of the last step will not come."""
        stop = -(-cursor // self._plan.step_frames) * self._plan.step_frames
        for position in range(self._plan.num_positions):
            path = self._folder / array_name(position)
            with Descriptor(path, _NEW_FILE) as to, errors_name(path):
                for low, high in _places(self._plan, position, cursor, stop):
                    for at in range(low, high, len(_ZEROS)):
                        write_all_at(to, at, _ZEROS[: high - at])

    def _copy_ring_records(self, first: int, cursor: int) -> None:
        ring_frames = self._plan.ring_frames
        start, stop = first % ring_frames, first % ring_frames + cursor - first
        for low, high in ((start, min(stop, ring_frames)), (0, stop - ring_frames)):
            self._copy_file(RECORDS, low * RECORD.itemsize, high * RECORD.itemsize)
        if (self._folder / RECORDS).exists():
            os.truncate(self._folder / RECORDS, ring_frames * RECORD.itemsize)

    def _copy_file(self, name: str, start: int, stop: int) -> None:
        """Copy a range of the bytes of a file, if it exists and as far as it goes."""
        path, to_path = self._source.path / name, self._folder / name
        if not os.path.lexists(path):
            return
        with faults_of(path):
            file = descriptor_of_regular(path)
        with file, Descriptor(to_path, _NEW_FILE) as to:
            pieces = read_pieces(file, start, stop)
            while True:
                with faults_of(path):
                    at, data = next(pieces, (stop, b""))
                if not data:
                    return
                with errors_name(to_path):
                    write_all_at(to, at, memoryview(data))

    def _write_skips(self, skips: Skips, cursor: int) -> None:
        self._copy_file(SKIPS, 0, len(skips) * SKIP_PAIR.itemsize)
        if skips:  # more may have been skipped since, or not be counted
            last = np.array([skips[-1].start, min(skips[-1].stop, cursor)], np.int64)
            path, start = self._folder / SKIPS, (len(skips) - 1) * SKIP_PAIR.itemsize
            with Descriptor(path, _NEW_FILE) as file, errors_name(path):
                write_all_at(file, start, memoryview(last.tobytes()))

    def _write_small_files(self, cursor: int) -> None:
        self._copy_file(APPEND_TIMES, 0, 1 << 20)
        source, plan = self._source, self._plan
        shapes = [plan.file_shape(p, cursor) for p in range(plan.num_positions)]
        for name, data in (
            (MANIFEST, manifest_with_shapes(source.path, shapes)),
            (PROGRESS, source.progress_of_copy(cursor)),
        ):
            path = self._folder / name
            with Descriptor(path, _NEW_FILE) as file, errors_name(path):
                write_all(file, data)


def _places(
    plan: FramePlan, position: int, first: int, stop: int
) -> Iterator[tuple[int, int]]:
    """Yield the ranges of bytes where frames of a range are in a position's file.

    Of a ring: those that are kept when there are `stop` frames.
    """
    if plan.is_in_order and not plan.ring_steps:
        yield plan.filled_nbytes(position, first), plan.filled_nbytes(position, stop)
        return
    strides = [plan.strides_nbytes[axis] for axis in plan.file_axes]
    first_step = plan.first_step(position, stop)
    for frames, index in plan.slots(position, first, stop, first_step):
        offsets = np.zeros(len(frames), np.int64)
        for i, stride in zip(index, strides, strict=True):
            offsets += i * stride
        if plan.ring_steps:
            offsets += first_step * plan.step_nbytes
            offsets %= plan.ring_steps * plan.step_nbytes
        offsets.sort()
        # Neighbours are copied at once.
        ends = np.flatnonzero(np.diff(offsets) != plan.frame_nbytes)
        starts = offsets[np.concatenate([[0], ends + 1])] if len(offsets) else offsets
        stops = offsets[np.concatenate([ends, [-1]])] if len(offsets) else offsets
        yield from zip(starts.tolist(), (stops + plan.frame_nbytes).tolist(), strict=True)
