"""The life of an acquisition: create_stream and the stream it returns."""

from __future__ import annotations

import atexit
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from scratchwriter._core import FrameWriter
from scratchwriter._files.records import arrange
from scratchwriter._integrations import register_loaded_integrations
from scratchwriter._native.appender import Appender, Slot
from scratchwriter._native.c_api import c_append_of
from scratchwriter._native.call_guard import run_all
from scratchwriter._native.turns import wait_for_frames
from scratchwriter._native.watch import wait_for_writer
from scratchwriter._writing.storage import Storage
from scratchwriter.coords import CoordSystem
from scratchwriter.events import Callback, EventName, Events, Listener
from scratchwriter.plan import Skips, make_plan
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stats import StreamStats, make_stats
from scratchwriter.views import ArrayView, LazyArray, StreamView

_CALLBACKS_TIMEOUT_S = 5.0  # of `close`, for the last callbacks


class CAppend(NamedTuple):
    """Addresses for calling `append` without Python; see `ScratchStream.c_append`."""

    function: int
    state: int


class ScratchStream:
    """A stream of frames into arrays; made by `create_stream`.

    Use it as a context manager, or call `close`. If a stream is garbage collected before
    that, its dataset is finished, too, with a warning if it had frames.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._writer = storage.writer
        self._appender = Appender(storage.writer)
        self._coords = CoordSystem(storage.settings, storage.plan)
        self._events = Events(self._coords, _StreamFrames(storage.writer))
        # The compiled methods directly: a Python method around them costs more.
        for name in ("append", "extend", "slot"):
            if getattr(type(self), name) is getattr(ScratchStream, name):
                setattr(self, name, getattr(self._appender, name))
        # Of the appender: code that keeps only `stream.append` keeps the stream open, too.
        self._finalizer = weakref.finalize(self._appender, _finish_unclosed, storage)
        self._finalizer.atexit = False  # see _finish_at_exit
        _open[storage] = self._finalizer
        _storages.add(storage)

    def append(
        self,
        frame: Any,
        *,
        frame_metadata: Mapping[str, Any] | None = None,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
    ) -> None:
        """Store the next frame in acquisition order.

        Parameters
        ----------
        frame : array_like or buffer
            2-D, of exactly the shape of the last two dimensions, and of a dtype that
            casts to the stream's by the rule `ScratchFormat.casting`. Any memory layout;
            C-contiguous arrays of the stream's dtype are fastest, and rows with gaps
            between them (a frame grabber's pitch) need no intermediate copy either. Also
            objects with `__array_interface__` or DLPack (on the CPU), and buffers (bytes,
            memoryview, ctypes, array.array) of exactly a frame's bytes or pixels. Lists
            of plain numbers have no dtype: they are accepted if the stream's dtype holds
            their values exactly.
        frame_metadata : mapping of str to anything JSON, optional
            Kept in `frame_metadata.jsonl` if the dataset is on disk. numpy scalars and
            arrays, dates, paths and enums become their natural JSON; a value without one
            is left out, with a warning.
        timestamp_ns : int, optional
            When the frame was taken, in nanoseconds of any clock, not negative: see
            `timestamps`.
        frame_id : int, optional
            The camera's number of the frame, not negative: see `frame_ids`.

        Raises
        ------
        ValueError
            If the shape or the dtype is wrong, the frame is in the memory of a GPU, or
            the stream is closed.
        IndexError
            If the frame would exceed the dimensions.
        TypeError
            If the metadata is not a mapping.
        RuntimeError
            If this thread has a slot open.
        MemoryError, OSError
            If memory or disk is full. As with all of these, nothing was stored then.
        """
        self._appender.append(
            frame,
            frame_metadata=frame_metadata,
            timestamp_ns=timestamp_ns,
            frame_id=frame_id,
        )

    def extend(
        self,
        frames: npt.NDArray[Any] | Iterable[Any],
        *,
        frame_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        timestamps_ns: npt.ArrayLike | None = None,
        frame_ids: npt.ArrayLike | None = None,
    ) -> None:
        """Store the next frames, all or none; readers see them all at once.

        Parameters
        ----------
        frames : numpy.ndarray of shape (n, y, x), or iterable of n frames
            Each as for `append`.
        frame_metadata : sequence of n mappings, optional
            None for a frame without metadata.
        timestamps_ns, frame_ids : array_like of n integers, optional
            As for `append`.

        Raises
        ------
        ValueError, IndexError, TypeError, RuntimeError, MemoryError, OSError
            As for `append`; nothing was stored then.
        """
        self._appender.extend(
            frames,
            frame_metadata=frame_metadata,
            timestamps_ns=timestamps_ns,
            frame_ids=frame_ids,
        )

    def slot(
        self,
        *,
        frame_metadata: Mapping[str, Any] | None = None,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
    ) -> Slot:
        """Reserve the memory of the next frame, to be filled in place.

        ``with stream.slot() as frame:`` gives a writable array of the frame's shape and
        dtype, which *is* where it is stored. Leaving the block stores the frame; if an
        exception leaves it, nothing is stored. After that the array is read-only. What it
        holds before it is filled is undefined. Meanwhile other threads that append wait.
        `close` does not wait: leaving the block is then an error.

        Parameters
        ----------
        frame_metadata, timestamp_ns, frame_id
            As for `append`. They can also be set as attributes of the slot, until the block
            is left: ``slot = stream.slot()``, ``with slot as frame: slot.frame_id = ...``.

        Raises
        ------
        ValueError, IndexError, RuntimeError, MemoryError, OSError
            When the block is entered, as for `append`.
        """
        return self._appender.slot(
            frame_metadata=frame_metadata, timestamp_ns=timestamp_ns, frame_id=frame_id
        )

    def slots(
        self,
        n: int,
        *,
        frame_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        timestamps_ns: npt.ArrayLike | None = None,
        frame_ids: npt.ArrayLike | None = None,
    ) -> Slot:
        """Reserve the memory of the next `n` frames, as an array of shape (n, y, x).

        For cameras that fill several at once; see `slot`. If fewer are filled, set the
        slot's `num_filled` before the block is left.

        Raises
        ------
        ValueError
            When the block is entered, if the frames are not contiguous: they belong to
            several positions, or have another storage order.
        IndexError, RuntimeError, MemoryError, OSError
            As for `append`.
        """
        return self._appender.slots(
            n,
            frame_metadata=frame_metadata,
            timestamps_ns=timestamps_ns,
            frame_ids=frame_ids,
        )

    @property
    def capsule(self) -> object:
        """A PyCapsule with a `scratchwriter_stream`, for C; see scratchwriter.h.

        It keeps the stream from being collected. Its functions may be called from any
        thread, also after `close`.
        """
        return self._appender.capsule

    @property
    def c_address(self) -> int:
        """Address of the stream's `scratchwriter_stream`, for ctypes, cffi, numba.

        It is valid for the life of the process, also after `close`, but it does not keep
        the stream from being collected and finished.
        """
        return self._writer.c_address

    @property
    def c_append(self) -> CAppend:
        """Address of the function that appends a frame, and of its first argument.

        ``int append(void *state, const void *frame)`` returns 0 on success. They are valid
        as long as `c_address` is.
        """
        return CAppend(*c_append_of(self._writer))

    @property
    def timestamps(self) -> tuple[npt.NDArray[np.int64], ...]:
        """When each frame was taken, one array per position.

        In nanoseconds of the clock of the given times. A frame without one has the time of
        this machine's monotonic clock (with `ScratchFormat.timestamps`), or -1. A copy, in
        the shape of `arrays` without the frame's axes.
        """
        return self._records("timestamp_ns")

    @property
    def frame_ids(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The camera's number of each frame, one array per position; -1: not known."""
        return self._records("frame_id")

    def _records(
        self, name: Literal["timestamp_ns", "frame_id"]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        storage, cursor = self._storage, self.frames_written
        records = storage.arrays.record_array(cursor)
        return tuple(
            arrange(storage.plan, position, records, cursor, name)
            for position in range(storage.plan.num_positions)
        )

    def skip(self, *, frames: int = 1) -> None:
        """Leave out the next frames: they read as zeros.

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
            If arrays of that length cannot be made. As with all of these, nothing was
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
        return [range(*pair) for pair in self._writer.skipped().tolist()]

    @property
    def arrays(self) -> tuple[ArrayView, ...]:
        """One live, read-only array per position, also after close."""
        return tuple(
            ArrayView(
                partial(_array, self._storage, position),
                partial(_shape, self._storage, position),
                self._storage.plan.dtype,
            )
            for position in range(self._storage.plan.num_positions)
        )

    def view(self, *, dynamic_shape: bool = True, strict: bool = False) -> StreamView:
        """Return all positions as one live, read-only array in acquisition order.

        Parameters
        ----------
        dynamic_shape : bool
            Whether it has the shape of what has come so far, or of what is planned (along
            an unbounded axis always of what has come).
        strict : bool
            Whether an integer index beyond that, but within what is planned, is an
            IndexError; otherwise it gives zeros.
        """
        register_loaded_integrations()
        return StreamView(
            self._storage.plan,
            self._coords,
            partial(getattr, self._writer, "frames_written"),
            partial(_array, self._storage),
            self._events,
            dynamic_shape=dynamic_shape,
            strict=strict,
        )

    def on(self, event: EventName, callback: Callback) -> Listener:
        """Call a callback for new frames, in order, in a thread of its own.

        It makes no append slower. A callback that is slower than the camera gets only the
        newest frame: "coords_expanded" when it is 50 ms late; "coords_changed" when it is a
        second late, which is logged, and the listener counts the frames left out. An
        exception of the callback is logged.

        Parameters
        ----------
        event : {'coords_changed', 'coords_expanded'}
            Every frame, and the last of each skipped range; or only the frames with a
            coordinate that no frame had before.
        callback : callable(CoordUpdate)
            `close` returns after it was called for the last frame, or after 5 s.

        Returns
        -------
        Listener
            Its `stop()` ends the calls, and so does leaving its `with` block.

        Raises
        ------
        ValueError
            If the event does not exist.
        """
        return self._events.on(event, callback)

    @property
    def settings(self) -> AcquisitionSettings:
        """The settings, as they were when the stream was made."""
        return self._storage.settings.model_copy(deep=True)

    @property
    def global_metadata(self) -> dict[str, Any]:
        """Metadata of the acquisition by namespace; see `set_global_metadata`."""
        return self._storage.global_metadata

    @property
    def path(self) -> Path | None:
        """Folder of the dataset, also of a temporary one; None in memory."""
        return self._storage.folder

    def stats(self) -> StreamStats:
        """Return rate, append times, memory ready ahead, and data not on the disk yet."""
        storage = self._storage
        frames = self.frames_written
        arrays = storage.arrays
        return make_stats(
            self._writer.measured(),
            frames,
            storage.plan.frame_nbytes,
            populated_ahead_nbytes=arrays.populated_ahead_nbytes(),
            allocated_ahead_nbytes=arrays.allocated_ahead_nbytes(frames),
            unwritten_nbytes=arrays.unwritten_nbytes(frames, storage.synced),
            disk_io=arrays.disk_io,
            why_not_direct=arrays.why_not_direct,
            disk=arrays.disk_stats(),
        )

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Attach metadata to the acquisition as a whole, also after close.

        Parameters
        ----------
        namespace : str
            Name to keep it under; a second call with the same name replaces the first.
        metadata : mapping
            Values as in the `frame_metadata` of `append`; kept in the manifest if the
            dataset is on disk. The manifest has 16 MiB at most.

        Raises
        ------
        ValueError
            If the namespace is empty or reserved ("ome", "ome_writers"), or the manifest
            would be too long.
        TypeError
            If the metadata is not a mapping, or cannot be written as JSON.
        OSError
            If the manifest cannot be written; it is unchanged then.
        """
        self._storage.set_global_metadata(namespace, metadata)

    def get_metadata(self) -> None:
        """Return None: this format has no OME metadata."""

    def update_metadata(self, metadata: Any) -> None:
        """Accept metadata for other formats; it has no effect on this one."""

    def flush(self) -> None:
        """Wait until everything so far is on the device, and outlives a power cut.

        Frames may come meanwhile. What is in memory stays there: without `root_path`, only
        a stream that has spilled into files has data to write.

        Raises
        ------
        OSError
            If the device does not store it.
        """
        self._storage.flush()

    @property
    def closed(self) -> bool:
        """Whether the stream is closed."""
        return self._writer.closed

    def close(self) -> None:
        """Finish the dataset; the arrays stay readable. Can be repeated.

        In a signal handler that interrupts another call of the same thread, the stream is
        closed when that call ends.

        Raises
        ------
        OSError
            If a file cannot be finished; the others are.
        """
        self._storage.finish(self._end)

    def _end(self) -> None:
        self._events.finish(_CALLBACKS_TIMEOUT_S)
        if self._storage.finished:
            _open.pop(self._storage, None)  # first: the finalizer would do it, too
            self._finalizer.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        where = self.path or "memory"
        state = "closed" if self.closed else "open"
        return f"<ScratchStream {state}, {self.frames_written} frames, in {where}>"

    def _repr_html_(self) -> str:
        from scratchwriter._showing.disk_texts import short_disk_text
        from scratchwriter._showing.html import (  # for notebooks only
            card,
            rate_text,
            shape_text,
        )

        view, stats = self.view(), self.stats()
        facts: dict[str, object] = {
            "state": "closed" if self.closed else "open",
            "shape": shape_text(view),
            "frames": f"{stats.frames}{rate_text(stats.frames_per_s)}",
            "dropped": stats.dropped,
            "in": self.path or "memory",
        }
        if stats.timed_appends:
            p50, most = stats.append_p50_us, stats.append_max_us
            facts["append"] = f"p50 {p50:.1f} µs, max {most:.1f} µs"
        if stats.disk is not None:
            facts["disk"] = short_disk_text(stats.disk)
        return card("ScratchStream", facts, view)


OMEStream = ScratchStream  # the name in ome-writers


def create_stream(
    settings: AcquisitionSettings,
    *,
    on_populate: Callable[[int, int], object] | None = None,
) -> ScratchStream:
    """Make a stream that stores frames as the settings say.

    With ``ScratchFormat(populate="all")`` it touches all memory of a bounded acquisition
    before it returns, which takes a while for many gigabytes. An interrupt, or an exception
    that `on_populate` raises, ends that; then everything is undone.

    Parameters
    ----------
    settings : AcquisitionSettings
        With dimensions and dtype. They are copied: later changes have no effect.
    on_populate : callable(done_nbytes, total_nbytes), optional
        Called by this thread while it touches all memory: a few times per second, and at
        the end, when both are equal. Without ``populate="all"``, and where that does the
        same as "ahead", it is not called.

    Returns
    -------
    ScratchStream

    Raises
    ------
    TypeError
        If `settings` is something else.
    ValueError
        If the dimensions or the dtype are missing, or the dtype does not hold pixels.
    FileExistsError
        If `root_path` exists, and `overwrite` is False or it is not a scratch dataset.
    OSError
        If the folder cannot be made, or the disk is too small.
    MemoryError
        If the arrays do not fit in memory and `spill_to_disk` is False, or the system
        refuses memory that is touched before the first frame.

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
            f"{type(settings).__module__}. Make them with AcquisitionSettings(...), or "
            "convert others with AcquisitionSettings.model_validate(others.model_dump())."
        )
    settings.validate_stream_ready()
    settings = settings.model_copy(deep=True)
    storage = Storage(settings, make_plan(settings))
    # First: it would finish, and not undo, what had begun without it.
    stream = ScratchStream(storage)
    try:
        storage.begin(on_populate)
        return stream
    except BaseException:
        storage.abandon()
        raise


class _StreamFrames:
    """The frames of a stream, as `events.Frames`."""

    def __init__(self, writer: FrameWriter) -> None:
        self._writer = writer
        self._given_up = np.zeros(1, np.int64)  # polled by the threads that wait

    def wait(self, seen: int, timeout_s: float, poll_s: float) -> int:
        wait = partial(wait_for_writer, self._writer, self._given_up, seen)
        return wait_for_frames(wait, seen, timeout_s, poll_s)

    def is_over(self) -> bool:
        return self._writer.closed

    def give_up(self) -> None:
        self._given_up[0] = 1

    def skips(self, first: int, stop: int) -> Skips:
        return Skips(self._writer.skipped(first))


def _array(storage: Storage, position: int, cursor: int | None = None) -> LazyArray:
    plan = storage.plan
    cursor = storage.writer.frames_written if cursor is None else cursor
    shape, start = plan.file_shape(position, cursor), plan.start_nbytes(position, cursor)
    array = storage.arrays.array(position, shape, start)
    return array.transpose(plan.storage_axes), _is_ready


def _shape(storage: Storage, position: int) -> tuple[int, ...]:
    plan = storage.plan
    shape = plan.file_shape(position, storage.writer.frames_written)
    return tuple(shape[axis] for axis in plan.storage_axes)


def _is_ready(array: npt.NDArray[Any]) -> None:
    """Do nothing: a stream's own arrays are."""


_open: dict[Storage, weakref.finalize[..., Any]] = {}  # what is not closed yet
_storages: weakref.WeakSet[Storage] = weakref.WeakSet()  # closed ones, too


def _finish_unclosed(storage: Storage) -> None:
    was_closed = storage.writer.closed
    storage.finish(partial(_forget_unclosed, storage, was_closed))


def _forget_unclosed(storage: Storage, was_closed: bool) -> None:
    if storage.finished:  # else it is tried again when Python exits
        _open.pop(storage, None)
    if storage.writer.frames_written and not was_closed:
        warnings.warn(
            f"A ScratchStream ({storage.folder or 'in memory'}) was garbage collected "
            "without being closed. Its dataset is finished; use `with "
            "create_stream(...)` or call close().",
            stacklevel=2,
        )


@atexit.register  # after the one of folders, so that it runs before folders are removed
def _finish_at_exit() -> None:
    # An interrupt ends one of them at most.
    run_all([partial(_finish_one_at_exit, storage) for storage in _open])


def _finish_one_at_exit(storage: Storage) -> None:
    try:
        storage.finish()
    except BaseException as error:
        warnings.warn(f"{storage.folder} is not finished: {error!r}", stacklevel=1)
    finally:
        finalizer = _open.pop(storage, None)
        if finalizer is not None:
            finalizer.detach()


def _disown_all() -> None:
    while _open:
        _open.popitem()[1].detach()
    for storage in _storages:
        storage.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_disown_all)
