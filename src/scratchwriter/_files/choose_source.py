"""Finds the kind of source that a folder needs."""

from __future__ import annotations

import os
from pathlib import Path

from scratchwriter._files.layout import PROGRESS
from scratchwriter._files.ome_writers_source import OmeWritersSource
from scratchwriter._files.progress import ProgressView
from scratchwriter._files.recorded_source import RecordedSource, RestartedSource, state_of
from scratchwriter._files.source import Source, describe
from scratchwriter.errors import DatasetError


def open_source(path: Path, *, is_recorded: bool | None = None) -> Source:
    """Open the dataset in a folder. Its content is checked, not trusted.

    No frame is read before it is asked for.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    is_recorded : bool, optional
        Whether a process records it; by default its lock shows that.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    DatasetError
        If it is not a scratch dataset, or damaged; it names the file and the fault.
    """
    if not os.path.lexists(path / PROGRESS):
        description = describe(path)
        if description.manifest.position_dims is not None:
            raise DatasetError(f"{path / PROGRESS}: it is missing")
        return OmeWritersSource(path, description)
    progress = ProgressView(path)
    was_closed = progress.is_closed  # first: once it is closed, its manifest is final
    description = describe(path)
    progress.need_in(path)
    if is_recorded is None:
        is_recorded = state_of(progress) == "recording"
    # If the writer is alive (in a container, on another machine), no frames are lost.
    if progress.was_closed_before_restart or (progress.may_lack_frames and not is_recorded):
        return RestartedSource(path, description, progress)
    return RecordedSource(path, description, progress, was_closed=was_closed)
