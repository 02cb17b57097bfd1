"""Finds what is wrong with a dataset, and finishes one whose writer was killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from scratchwriter._files.choose_source import open_source
from scratchwriter._files.faults import faults_of
from scratchwriter._files.folders import dataset_files, kept_spill_folder
from scratchwriter._files.holes import frames_in_holes, zeros_at_end
from scratchwriter._files.layout import (
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORDS,
    SKIPS,
    STAGING,
    array_name,
    is_draft_name,
)
from scratchwriter._files.manifest import replace_shapes
from scratchwriter._files.metadata import where
from scratchwriter._files.ome_writers_source import NOT_COUNTED
from scratchwriter._files.progress import locked, mark_closed, mark_in_files
from scratchwriter._files.source import Source
from scratchwriter._files.staged import StagingReader, is_staged
from scratchwriter._region.system import (
    descriptor_of_regular,
    open_regular,
    sync_file,
    write_all_at,
)
from scratchwriter.errors import DatasetError

_RESTARTED = "the machine was restarted, the files may hold more frames than are counted"


def find_faults(source: Source) -> list[str]:
    """Return what is wrong with a dataset that can be opened, one line each.

    Reads all frame metadata, but of the arrays only the sizes, and where they have holes.
    """
    faults = []
    state = source.state
    if source.is_guessed:
        faults.append(f"{source.path / MANIFEST}: {NOT_COUNTED}, and did not close it")
    if source.may_lack_frames and state != "recording":
        faults.append(
            f"the machine was restarted before all of it was synced: only the first "
            f"{source.frames_synced} of its {source.frames_written} frames are certain"
        )
    if state == "killed":
        faults.append(
            f"its writer died before closing it; `scratchwriter recover` finishes it, with "
            f"{source.frames_written} frames"
        )
    try:
        if state != "recording":
            faults += _wrong_shapes(source)
        _check_frame_metadata(source)
        if state == "killed" and source.is_staged:
            _check_staged(source, StagingReader(source.path))
        source.skipped  # noqa: B018
        source.dropped  # noqa: B018
        if state != "recording":
            faults += frames_in_holes(source)
    except DatasetError as error:
        faults.append(str(error))
    return faults


def _wrong_shapes(source: Source) -> Iterator[str]:
    if not source.counts_frames:
        return  # ome-writers records no number to compare with
    is_closed = source.state == "closed"
    shapes = zip(source.manifest_shapes, source.file_shapes, strict=True)
    for position, (listed, found) in enumerate(shapes):
        path = source.path / array_name(position)
        nbytes = source.file_nbytes(position)
        # After a restart the file may hold more frames than are counted.
        is_exact = is_closed and not source.may_lack_frames
        with faults_of(path):
            found_nbytes = path.lstat().st_size
        if is_exact and found_nbytes != nbytes:
            yield f"{path} has {found_nbytes} bytes, {nbytes} are expected"
        # The lengths are renewed after the commit: a writer that was killed in between
        # leaves shapes without the frames of its last call. After a restart they may be of
        # another moment than the number of frames.
        is_other = listed[1:] == found[1:] and (
            listed[0] < found[0] or source.may_lack_frames
        )
        if listed != found and (is_exact or not is_other):
            path = source.path / MANIFEST
            yield f"{path}: position {position} has shape {listed}, {found} is expected"


def _check_frame_metadata(source: Source) -> None:
    before = -1
    for line in source.frame_metadata:
        if source.counts_frames:
            with faults_of(source.path / FRAME_METADATA):
                number = source.frame_number(*where(line))
            if not before < number < source.frames_written:
                path = source.path / FRAME_METADATA
                raise DatasetError(f"{path}: the line of frame {number} is out of order")
            before = number


def recover(path: Path) -> list[str]:
    """Finish a dataset whose writer was killed; return what was done, one line each.

    The manifest gets exact shapes, files get exactly that size, an incomplete line of
    metadata is cut, and the dataset is marked as closed. Staged frames are copied into the
    files of the arrays; no frame is changed. If the
    machine was restarted since, the arrays are not cut: they may hold more frames than are
    counted.

    Raises
    ------
    BlockingIOError
        If it is being recorded.
    DatasetError
        If it is damaged otherwise.
    OSError
        If it cannot be written.
    """
    return _mend(path, _finish)


def bring_to_files(path: Path) -> list[str]:
    """Copy staged frames of a killed writer into the files of the arrays, and no more.

    Returns and raises what `recover` does.
    """
    if not is_staged(path):
        return []
    return _mend(path, lambda source: _bring_to_files(source) if source.is_staged else [])


def _mend(path: Path, mend: Callable[[Source], list[str]]) -> list[str]:
    """Change a dataset that nobody else writes, also not meanwhile."""
    while True:
        with locked(path) as lock, kept_spill_folder(path) as was_temporary:
            if lock.writer_pid is not None:
                raise BlockingIOError(errno.EAGAIN, lock.use_text, str(path))
            source = open_source(path, is_recorded=False)  # the lock is ours
            try:
                if not source.counts_frames:
                    raise DatasetError(
                        f"{path / MANIFEST}: {NOT_COUNTED}. open_scratch reads it as it is"
                    )
                # If there was no file to lock, a new dataset may have begun since.
                if not lock.is_at(path / PROGRESS):
                    continue
                done = mend(source)
            finally:
                source.release()
        if was_temporary:
            done.append(f"{path}: no longer temporary, it stays")
        return done


def _bring_to_files(source: Source) -> list[str]:
    """Let the arrays' files have all frames, and then the manifest count them.

    What is staged is removed last: an interruption before leaves it to the next try.
    """
    if source.is_staged:
        _copy_staged(source)
    done, shapes = [], source.manifest_shapes
    if shapes != source.file_shapes:
        replace_shapes(source.path, source.file_shapes)
        done.append(f"{source.path / MANIFEST}: shapes {shapes} -> {source.file_shapes}")
    return done + _remove_staging(source)


def _finish(source: Source) -> list[str]:
    done = _bring_to_files(source)
    folder = source.path
    for position in range(source.plan.num_positions):
        path, nbytes = folder / array_name(position), source.file_nbytes(position)
        if not source.may_lack_frames:
            done += _trim(path, nbytes)
        elif path.lstat().st_size > nbytes:
            done.append(f"{path}: left longer than its {nbytes} bytes: {_RESTARTED}")
    if not source.may_lack_frames:
        done += _trim(folder / RECORDS, source.records_nbytes)
    # A damaged file beside the arrays stays unchanged; the frames are finished anyway.
    try:
        done += _trim(folder / FRAME_METADATA, source.frame_metadata.nbytes)
    except DatasetError as error:
        done.append(f"left unchanged: {error}")
    try:
        skipped = np.array([(r.start, r.stop) for r in source.skipped], np.int64)
        done += _trim(folder / SKIPS, skipped.nbytes, tail=skipped[-1:].tobytes())
    except DatasetError as error:
        done.append(f"left unchanged: {error}")
    for file in dataset_files(folder):
        if is_draft_name(file.name):
            file.unlink()
            done.append(f"{file}: removed")
    for position in range(source.plan.num_positions):
        sync_file(folder / array_name(position))  # before the mark reaches the device
    was_killed = mark_closed(folder, may_lack_frames=source.may_lack_frames)
    sync_file(folder / PROGRESS)
    if was_killed:
        done.append(f"{folder}: marked as closed, with {source.frames_written} frames")
    with suppress(DatasetError):  # that skips.bin is damaged was told
        done += frames_in_holes(source)
        done += zeros_at_end(source) if was_killed else []
    return done


def _copy_staged(source: Source) -> None:
    """Copy what is staged into the files of the arrays."""
    staging = StagingReader(source.path)
    _check_staged(source, staging)  # before anything is written
    for position in range(source.plan.num_positions):
        path = source.path / array_name(position)
        stop = source.plan.filled_nbytes(position, source.frames_written)
        with faults_of(path), descriptor_of_regular(path, writable=True) as file:
            staging.copy(position, 0, stop, partial(write_all_at, file))
        sync_file(path)  # before it is gone there


def _remove_staging(source: Source) -> list[str]:
    path = source.path / STAGING
    if not os.path.lexists(path):
        return []
    if source.may_lack_frames:  # some may have reached the disk, and be nowhere else
        return [f"{path}: kept, {_RESTARTED}"]
    was_staged = source.is_staged
    if was_staged:
        mark_in_files(source.path)
    with faults_of(path):  # it may be a folder
        path.unlink()
    if was_staged:
        return [f"{path}: its frames are in the files of the arrays, removed"]
    return [f"{path}: removed, none of its frames counts"]


def _check_staged(source: Source, staging: StagingReader) -> None:
    for position in range(source.plan.num_positions):
        staging.check(position)


def _trim(path: Path, nbytes: int, tail: bytes = b"") -> list[str]:
    """Cut a file to its right size, and correct its last bytes."""
    if not os.path.lexists(path):
        return []
    with faults_of(path), open_regular(path, writable=True) as file:
        before = os.fstat(file.fileno()).st_size
        if tail:
            file.seek(nbytes - len(tail))
            file.write(tail)
        if before <= nbytes:
            return []
        file.truncate(nbytes)
    return [f"{path}: {before} -> {nbytes} bytes"]
