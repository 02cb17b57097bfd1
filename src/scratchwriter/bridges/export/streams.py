"""Streams of ome-writers, and what its version 0.3 leaves to its callers.

Much of what is used here is not public: `bridges.ome_writers` checks the version.
"""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import Empty
from typing import Any

import ome_writers

from scratchwriter.bridges.export.geometry import place_planes
from scratchwriter.settings import AcquisitionSettings

_PAUSE_S = 0.002
_JOIN_S = 0.2


@contextmanager
def open_stream(
    settings: dict[str, Any], path: Path, *, steps: int | None = None
) -> Iterator[ome_writers.OMEStream]:
    """Make a stream of ome-writers, and close it.

    Parameters
    ----------
    settings : dict
        Those of `ome_writers.AcquisitionSettings` as JSON, without the path.
    path : pathlib.Path
        Where to write; what exists there is replaced.
    steps : int or None
        Length of the unbounded dimension, if the settings have one and it is known.
    """
    settings = json.loads(json.dumps(settings))
    first = settings["dimensions"][0]
    if first["count"] is None and steps is not None:
        first["count"] = steps
        first["chunk_size"] = first["chunk_size"] and min(first["chunk_size"], steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the dataset's own were given before
        stream = ome_writers.create_stream(
            ome_writers.AcquisitionSettings(root_path=str(path), overwrite=True, **settings)
        )
    try:
        yield stream
    except BaseException:
        _drop_backlog(stream)
        with suppress(Exception):  # a TIFF without a frame, say
            stream.close()
        raise
    else:
        _drop_backlog(stream)
        stream.close()
        # close() does not wait for the chunks that it begins to write: those by tensorstore
        # in which frames are missing.
        for future in getattr(stream._backend, "_futures", ()):
            future.result()


def start_at(stream: ome_writers.OMEStream, indices: Sequence[int]) -> None:
    """Make the frame with these indices the next one; `skip` would take time for each."""
    router: Any = stream._iterator
    router._dim_indices[:] = indices


# ----------------------------------------------------------------------- threads of TIFF
#
# Each file has a thread that takes frames from an unlimited queue and reports errors only
# as warnings. Closing its stream waits for it no longer than five seconds.


def _threads(stream: ome_writers.OMEStream) -> list[Any]:
    managers = getattr(stream._backend, "_position_managers", {}).values()
    return [manager for manager in managers if manager.thread is not None]


def wait_for_backlog(
    stream: ome_writers.OMEStream, most_frames: int, check: Callable[[], None]
) -> None:
    """Wait until no file has more than that many frames still to write.

    Raises
    ------
    OSError
        If the thread of a file has ended.
    """
    for manager in _threads(stream):
        while manager.queue.qsize() > most_frames and manager.thread.is_alive():
            check()
            time.sleep(_PAUSE_S)
        if not manager.thread.is_alive():
            raise _not_written(manager)


def wait_until_written(
    stream: ome_writers.OMEStream, frames: int, check: Callable[[], None]
) -> None:
    """Wait until each file has that many frames, all that it was given.

    Raises
    ------
    OSError
        If a file has fewer at the end.
    """
    for manager in _threads(stream):
        manager.signal_stop()
    for manager in _threads(stream):
        while manager.thread.is_alive():
            check()
            manager.thread.join(_JOIN_S)
        if manager.thread.frames_written != frames:
            raise _not_written(manager)


def _not_written(manager: Any) -> OSError:
    path = Path(manager.file_path)
    return OSError(
        f"{path.name}: ome-writers stopped writing it after "
        f"{manager.thread.frames_written} frames; its warning says why. "
        f"{shutil.disk_usage(path.parent).free:,} bytes are free there."
    )


def _drop_backlog(stream: ome_writers.OMEStream) -> None:
    """End the threads, and drop the frames that still wait: the export failed."""
    for manager in _threads(stream):
        with suppress(Empty):
            while True:
                manager.queue.get_nowait()
        manager.signal_stop()
    for manager in _threads(stream):
        manager.thread.join()


def correct_files(
    stream: ome_writers.OMEStream,
    steps: int | None,
    frames: int,
    ours: AcquisitionSettings,
) -> None:
    """Correct lengths, places, and the references to each other, in files of a closed TIFF.

    ome-writers corrects only the first image, refers to files by the paths where they were
    made, and does not say where an image was taken.

    Parameters
    ----------
    stream : ome_writers.OMEStream
        The stream that wrote them.
    steps : int or None
        Length of the unbounded dimension, if the settings have one.
    frames : int
        Number of frames in each file.
    ours : AcquisitionSettings
        Of the dataset.
    """
    backend: Any = stream._backend
    metadata = stream.get_metadata()
    for model in metadata.values():
        if model.binary_only is not None:
            model.binary_only.metadata_file = Path(model.binary_only.metadata_file).name
        for image in model.images:
            if steps is not None:
                name = backend._storage_dims[0].name.lower()
                setattr(image.pixels, f"size_{name}", steps)
            for block in image.pixels.tiff_data_blocks:
                block.plane_count = frames
        if model.binary_only is None:
            place_planes(model, ours)
    stream.update_metadata(metadata)
