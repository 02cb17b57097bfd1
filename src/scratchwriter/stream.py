"""The life of an acquisition: create_stream and the stream it returns."""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from scratchwriter._core import Appender
from scratchwriter.plan import make_plan
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stats import StreamStats, make_stats
from scratchwriter.storage import Storage
from scratchwriter.views import ArrayView


class ScratchStream:
    """A stream of frames into arrays; made by `create_stream`.

    Use it as a context manager, or call `close`. A stream that is garbage collected
    before finishes its dataset all the same, with a warning if it had frames.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._writer = storage.writer
        self._appender = Appender(storage.writer)
        if type(self).append is ScratchStream.append:
            # The compiled method itself: a Python one around it costs more than it.
            self.append = self._appender.append  # type: ignore[method-assign]
        # Who has kept nothing but `stream.append` keeps the acquisition going, too.
        self._finalizer = weakref.finalize(self._appender, _finish_unclosed, storage)
        self._finalizer.atexit = False  # see _finish_at_exit
        _open[storage] = self._finalizer

    def append(
        self, frame: npt.ArrayLike, *, frame_metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Store the next frame in acquisition order.

        Parameters
        ----------
        frame : array_like
            2-D, of exactly the shape of the last two dimensions, and of a dtype that
            casts to the stream's by the rule `ScratchFormat.casting`. Any memory layout;
            C-contiguous arrays of the stream's dtype are fastest. Lists of plain numbers
            have no dtype: they are taken if the stream's holds their values exactly.
        frame_metadata : mapping of str to anything JSON, optional
            Kept in `frame_metadata.jsonl` if the dataset is on disk. numpy scalars and
            arrays, dates, paths and enums become their natural JSON; a value that has
            none is left out with a warning.

        Raises
        ------
        ValueError
            If the shape or the dtype is wrong, or the stream is closed.
        IndexError
            If the frame would exceed the dimensions.
        TypeError
            If the metadata is not a mapping.
        MemoryError, OSError
            If there is no room for it. As with all of them, nothing was stored then.
        """
        self._appender.append(frame, frame_metadata=frame_metadata)

    def skip(self, *, frames: int = 1) -> None:
        """Leave out the next frames: they are zeros, as far as they can be seen.

        Parameters
        ----------
        frames : int
            How many, positive.

        Raises
        ------
        ValueError
            If `frames` is not positive, or the stream is closed.
        IndexError
            If it would exceed the dimensions.
        MemoryError, OSError
            If arrays of that length cannot be made. As with all of them, nothing was
            skipped then.
        """
        self._writer.skip(frames=frames)

    @property
    def frames_written(self) -> int:
        """Frames appended and skipped so far."""
        return self._writer.frames_written

    @property
    def skipped(self) -> list[range]:
        """Which frames, numbered in acquisition order, were skipped."""
        return [range(start, stop) for start, stop in self._writer.skipped().tolist()]

    @property
    def arrays(self) -> tuple[ArrayView, ...]:
        """One live, read-only array per position, also after close."""
        return tuple(
            ArrayView(partial(_array, self._storage, position))
            for position in range(self._storage.plan.num_positions)
        )

    @property
    def settings(self) -> AcquisitionSettings:
        """The settings, as they were when the stream was made."""
        return self._storage.settings.model_copy(deep=True)

    @property
    def path(self) -> Path | None:
        """Folder of the dataset, also of a temporary one; None in memory."""
        return self._storage.folder

    def stats(self) -> StreamStats:
        """Return how the stream is doing: rate, append times, what is ahead and behind."""
        storage = self._storage
        frames = self.frames_written
        return make_stats(
            self._writer.measured(),
            frames,
            storage.plan.frame_nbytes,
            populated_ahead_nbytes=storage.growth.populated_ahead_nbytes(),
            allocated_ahead_nbytes=storage.growth.allocated_ahead_nbytes(frames),
            unwritten_nbytes=storage.growth.unwritten_nbytes(frames, storage.synced),
        )

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Attach metadata to the acquisition as a whole, also after close.

        Parameters
        ----------
        namespace : str
            Name to keep it under; a second call with the same name replaces the first.
        metadata : mapping
            Anything JSON; kept in the manifest if the dataset is on disk.

        Raises
        ------
        ValueError
            If the namespace is empty or reserved ("ome", "ome_writers").
        TypeError
            If the metadata is not a mapping, or cannot be written as JSON.
        OSError
            If the manifest cannot be written; it is as it was then.
        """
        self._storage.set_global_metadata(namespace, metadata)

    def get_metadata(self) -> None:
        """Return None: this format has no OME metadata."""

    def update_metadata(self, metadata: Any) -> None:
        """Accept metadata for other formats; of no effect on this one."""

    def flush(self) -> None:
        """Return when everything so far is on the device, and outlives a power cut.

        Frames may come meanwhile. What is in memory stays there: without `root_path`
        only a stream that has gone on in files has something to bring to a device.

        Raises
        ------
        OSError
            If the device does not take it.
        """
        self._storage.flush()

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._writer.closed

    def close(self) -> None:
        """Finish the dataset; the arrays stay readable. Again: of no effect.

        Raises
        ------
        OSError
            If a file cannot be finished; the others are.
        """
        self._storage.finish()
        self._finalizer.detach()
        _open.pop(self._storage, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = self.path or "memory"
        state = "closed" if self.closed else "open"
        return f"<ScratchStream {state}, {self.frames_written} frames, in {where}>"


OMEStream = ScratchStream  # the name in ome-writers


def create_stream(settings: AcquisitionSettings) -> ScratchStream:
    """Make a stream that stores frames as the settings say.

    Parameters
    ----------
    settings : AcquisitionSettings
        With dimensions and dtype. It is copied: what changes later changes nothing.

    Returns
    -------
    ScratchStream

    Raises
    ------
    TypeError
        If `settings` is something else.
    ValueError
        If the dimensions or the dtype are missing or not of pixels.
    FileExistsError
        If `root_path` exists, and `overwrite` is False or it is no scratch dataset.
    OSError
        If the folder cannot be made, or the disk is too small.
    MemoryError
        If the arrays do not fit in memory and `spill_to_disk` is False.

    Examples
    --------
    >>> import numpy as np
    >>> from scratchwriter import AcquisitionSettings, dims_from_standard_axes
    >>> settings = AcquisitionSettings(
    ...     dimensions=dims_from_standard_axes({"t": 3, "y": 4, "x": 5}), dtype="uint16"
    ... )
    >>> with create_stream(settings) as stream:
    ...     for i in range(3):
    ...         stream.append(np.full((4, 5), i, "uint16"))
    >>> stream.arrays[0][2, 0, 0]
    np.uint16(2)
    """
    if not isinstance(settings, AcquisitionSettings):
        raise TypeError(
            f"create_stream takes AcquisitionSettings, got {type(settings).__name__} of "
            f"{type(settings).__module__}. Make them with AcquisitionSettings(...), or of "
            "others' with AcquisitionSettings.model_validate(others.model_dump())."
        )
    settings.validate_stream_ready()
    settings = settings.model_copy(deep=True)
    return ScratchStream(Storage(settings, make_plan(settings)))


def _array(storage: Storage, position: int) -> npt.NDArray[np.generic]:
    plan = storage.plan
    shape = plan.file_shape(position, storage.writer.frames_written)
    array = storage.regions[position].array(plan.dtype, shape)
    return array.transpose(plan.storage_axes)


_open: dict[Storage, weakref.finalize[..., Any]] = {}  # what is not closed yet


def _finish_unclosed(storage: Storage) -> None:
    _open.pop(storage, None)
    if storage.writer.closed:
        return
    try:
        storage.finish()
    finally:
        if storage.writer.frames_written:
            warnings.warn(
                f"A ScratchStream ({storage.folder or 'in memory'}) was garbage collected "
                "without being closed. Its dataset is finished; use `with "
                "create_stream(...)` or call close().",
                stacklevel=2,
            )


@atexit.register  # after storage's: it runs before temporary folders are removed
def _finish_at_exit() -> None:
    while _open:
        storage, finalizer = _open.popitem()
        finalizer.detach()
        try:
            storage.finish()
        except Exception as error:
            warnings.warn(f"{storage.folder} is not finished: {error}", stacklevel=1)


def _disown_all() -> None:
    while _open:
        storage, finalizer = _open.popitem()
        finalizer.detach()
        storage.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
