"""Which source a folder has."""

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
    """Open the dataset in a folder. What is in it is checked, not believed.

    Nothing of its frames is read before it is asked for.

    Parameters
    ----------
    path : pathlib.Path
        The folder.
    is_recorded : bool, optional
        Whether somebody records it; by default its lock says so.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    DatasetError
        If it is no scratch dataset, or a damaged one; it names the file and the fault.
    """
    if not os.path.lexists(path / PROGRESS):
        description = describe(path)
        if description.manifest.position_dims is not None:
            raise DatasetError(f"{path / PROGRESS}: it is missing")
        return OmeWritersSource(path, description)
    progress = ProgressView(path)
    was_closed = progress.is_closed  # first: what is closed has its last manifest
    description = describe(path)
    progress.need_in(path)
    if is_recorded is None:
        is_recorded = state_of(progress) == "recording"
    # A writer that lives (in a container, on another machine) lacks no frames.
    if progress.may_lack_frames and not is_recorded:
        return RestartedSource(path, description, progress)
    return RecordedSource(path, description, progress, was_closed=was_closed)
