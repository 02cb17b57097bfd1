"""What is wrong with a dataset, and what can be done for one whose writer was killed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from scratchwriter._files.faults import faults_of
from scratchwriter._files.folders import dataset_files, keep_spill_folder
from scratchwriter._files.layout import (
    FRAME_METADATA,
    MANIFEST,
    RECORDS,
    SKIPS,
    array_name,
    is_draft_name,
)
from scratchwriter._files.manifest import replace_shapes
from scratchwriter._files.metadata import where
from scratchwriter._files.progress import locked, mark_closed
from scratchwriter._region.system import open_regular
from scratchwriter.errors import DatasetError
from scratchwriter.reader import NOT_COUNTED, ScratchDataset

_RESTARTED = "the machine was started anew, there may be more frames than are counted"


def find_faults(dataset: ScratchDataset) -> list[str]:
    """Return what is wrong with a dataset that can be opened, one line each.

    Reads all frame metadata, and of the arrays no more than their sizes.
    """
    faults = []
    state = dataset.state
    if dataset.is_guessed:
        faults.append(f"{dataset.path / MANIFEST}: {NOT_COUNTED}, and did not close it")
    if dataset.may_lack_frames and state != "recording":
        faults.append(
            f"the machine was started anew before it was closed: only the first "
            f"{dataset.frames_synced} of its {dataset.frames_written} frames are certain"
        )
    if state == "killed":
        faults.append(
            f"its writer died before it closed; `scratchwriter recover` finishes it, with "
            f"{dataset.frames_written} frames"
        )
    if state != "recording":
        faults += _wrong_shapes(dataset)
    try:
        _check_frame_metadata(dataset)
        dataset.skipped  # noqa: B018
        dataset.dropped  # noqa: B018
    except DatasetError as error:
        faults.append(str(error))
    return faults


def _wrong_shapes(dataset: ScratchDataset) -> Iterator[str]:
    if not dataset.counts_frames:
        return  # ome-writers tells no more than that
    is_closed = dataset.state == "closed"
    shapes = zip(dataset.told_shapes, dataset.file_shapes, strict=True)
    for position, (told, found) in enumerate(shapes):
        path = dataset.path / array_name(position)
        nbytes = dataset.file_nbytes(position)
        # After a restart there may be more than is counted.
        is_exact = is_closed and not dataset.may_lack_frames
        if is_exact and path.lstat().st_size != nbytes:
            yield f"{path} has {path.lstat().st_size} bytes, {nbytes} are expected"
        # The manifest of a killed writer may be one frame ahead.
        if told[1:] != found[1:] or told[0] not in (found[0], found[0] + 1):
            path = dataset.path / MANIFEST
            yield f"{path}: position {position} has shape {told}, {found} is expected"


def _check_frame_metadata(dataset: ScratchDataset) -> None:
    before = -1
    for line in dataset.frame_metadata:
        if dataset.counts_frames:
            with faults_of(dataset.path / FRAME_METADATA):
                number = dataset.frame_number(*where(line))
            if not before < number < dataset.frames_written:
                path = dataset.path / FRAME_METADATA
                raise DatasetError(f"{path}: the line of frame {number} is out of order")
            before = number


def recover(path: Path) -> list[str]:
    """Finish a dataset whose writer was killed; return what was done, one line each.

    Exact shapes in the manifest, files of exactly that size, no half line of metadata,
    and marked as closed. The bytes of frames are not touched. If the machine was started
    anew since, nothing is cut from the arrays: there may be more than what is counted.

    Raises
    ------
    BlockingIOError
        If it is being recorded.
    DatasetError
        If it is damaged in another way.
    OSError
        If it cannot be written.
    """
    with locked(path) as writer_pid:
        if writer_pid is not None:
            raise BlockingIOError(
                errno.EAGAIN,
                f"The dataset is being recorded by process {writer_pid}",
                str(path),
            )
        with ScratchDataset(path, is_recorded=False) as dataset:  # the lock is ours
            if not dataset.counts_frames:
                raise DatasetError(
                    f"{path / MANIFEST}: {NOT_COUNTED}. open_scratch reads it as it is"
                )
            done = _finish(dataset)
        if keep_spill_folder(path):
            done.append(f"{path}: no temporary folder any more, it stays")
        return done


def _finish(dataset: ScratchDataset) -> list[str]:
    done = []
    folder, shapes = dataset.path, dataset.file_shapes
    # First: at no time does it tell of more than there is.
    told_shapes = dataset.told_shapes
    if told_shapes != shapes:
        replace_shapes(folder, shapes)
        done.append(f"{folder / MANIFEST}: shapes {told_shapes} -> {shapes}")
    for position in range(len(shapes)):
        path, nbytes = folder / array_name(position), dataset.file_nbytes(position)
        if not dataset.may_lack_frames:
            done += _trim(path, nbytes)
        elif path.lstat().st_size > nbytes:
            done.append(f"{path}: left longer than its {nbytes} bytes: {_RESTARTED}")
    if not dataset.may_lack_frames:
        done += _trim(folder / RECORDS, dataset.records_nbytes)
    # What is damaged in them stays as it is, and the frames are finished all the same.
    try:
        done += _trim(folder / FRAME_METADATA, dataset.frame_metadata.nbytes)
    except DatasetError as error:
        done.append(f"left as it is: {error}")
    try:
        skipped = np.array([(r.start, r.stop) for r in dataset.skipped], np.int64)
        done += _trim(folder / SKIPS, skipped.nbytes, tail=skipped[-1:].tobytes())
    except DatasetError as error:
        done.append(f"left as it is: {error}")
    for file in dataset_files(folder):
        if is_draft_name(file.name):
            file.unlink()
            done.append(f"{file}: removed")
    if mark_closed(folder):
        done.append(f"{folder}: marked as closed, with {dataset.frames_written} frames")
    return done


def _trim(path: Path, nbytes: int, tail: bytes = b"") -> list[str]:
    """Cut a file to its right size, and set its last bytes right."""
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
