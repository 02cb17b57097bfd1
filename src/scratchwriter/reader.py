"""open_scratch: datasets as they are on disk, closed, killed, or still being recorded."""

from __future__ import annotations

import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from scratchwriter._files.choose_source import open_source
from scratchwriter._files.copying import copy_dataset
from scratchwriter._files.metadata import FrameMetadata
from scratchwriter._files.records import known
from scratchwriter._files.source import Source, State
from scratchwriter._integrations import load_integration, register_loaded_integrations
from scratchwriter.coords import CoordSystem, newest_steps
from scratchwriter.errors import DatasetError
from scratchwriter.events import Callback, EventName, Events, Listener
from scratchwriter.following import Following, Frame
from scratchwriter.plan import skip_of
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stats import AppendTimes, DiskStats
from scratchwriter.views import ArrayView, StreamView

_CHECK_S, _POLL_S = 0.1, 0.0005  # how often to check the writer, and to poll for frames


class ScratchDataset:
    """A dataset on disk; made by `open_scratch`. A context manager.

    Its data is read on demand. While it is being recorded, it grows with the frames.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._plan = source.plan
        self._coords = CoordSystem(source.settings, source.plan)
        self._events = Events(self._coords, source.frames)
        # Once it is no longer referenced, its listeners end.
        weakref.finalize(self, source.frames.give_up)

    # ------------------------------------------------------------------- the dataset

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._source.path

    @property
    def recording_id(self) -> str:
        """An id that no other recording has, not even a later one in the same folder."""
        return self._source.recording_id

    @property
    def version(self) -> str:
        """Version of the library that wrote it."""
        return self._source.manifest.version

    @property
    def settings(self) -> AcquisitionSettings:
        """The settings that it was recorded with."""
        return self._source.settings.model_copy(deep=True)

    @property
    def state(self) -> State:
        """The state of the recording, by its writer's lock.

        "closed": it is finished. "recording": a process writes it. "killed": no process
        does, and it was not closed; it has all frames that came. On file systems without
        locks "recording" may also mean "killed". Datasets of ome-writers, which has no such
        record, count as closed.
        """
        return self._source.state

    @property
    def frames_written(self) -> int:
        """Frames appended and skipped; in those of ome-writers all in the arrays."""
        return self._source.frames_written

    @property
    def first_frame(self) -> int:
        """Number of the first frame that is kept: 0 without `keep_last`."""
        first = newest_steps(self._plan, self._plan.extents(self.frames_written)).start
        return first * self._plan.step_frames if self._plan.is_unbounded else 0

    @property
    def frames_synced(self) -> int:
        """How many of the first frames are certain to outlive a power cut."""
        return self._source.frames_synced

    @property
    def skipped(self) -> list[range]:
        """Which frames, numbered in acquisition order, were skipped."""
        return self._source.skipped

    @property
    def arrays(self) -> tuple[ArrayView, ...]:
        """One read-only array per position, growing while the dataset is recorded."""
        return tuple(
            ArrayView(
                partial(self._source.lazy_array, position),
                partial(self._source.shape, position),
                self._plan.dtype,
            )
            for position in range(self._plan.num_positions)
        )

    def written(self, position: int) -> npt.NDArray[np.bool_]:
        """Return which frames of a position came; the others read as zeros.

        Returns
        -------
        numpy.ndarray of bool
            In the shape of the array without the frame's axes.

        Raises
        ------
        DatasetError
            If ome-writers wrote it, which does not record that.
        """
        return self._source.written(range(self._plan.num_positions)[position])

    @property
    def timestamps(self) -> tuple[npt.NDArray[np.int64], ...]:
        """When each frame was taken, one array per position; see `ScratchStream`.

        Raises
        ------
        DatasetError
            If frame_records.bin is damaged.
        """
        return self._source.record_values("timestamp_ns")

    @property
    def frame_ids(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The camera's number of each frame, one array per position; -1: not known."""
        return self._source.record_values("frame_id")

    def frame_times_ns(self) -> npt.NDArray[np.int64]:
        """Return the times that are known, in acquisition order; in a ring the newest."""
        return self._source.frame_times_ns()

    @property
    def has_records(self) -> bool:
        """Whether times or numbers of frames were recorded."""
        return self._source.records(self.frames_written) is not None

    def frame_records(self, start: int, stop: int) -> dict[int, dict[str, int]]:
        """Return the times and numbers that are known of a range of frames.

        Returns
        -------
        dict of int to dict
            By the frame's number in acquisition order: "timestamp_ns", "frame_id", or both.
        """
        cursor = self.frames_written
        records, ring_frames = self._source.records(cursor), self._plan.ring_frames
        if records is None:
            return {}
        found = range(max(start, cursor - ring_frames) if ring_frames else start, stop)
        return {
            n: values
            for n in found
            if (at := n % ring_frames if ring_frames else n) < len(records)
            and (values := known(records[at]))
        }

    @property
    def dropped(self) -> int:
        """How many frame numbers are missing between those that came with the frames."""
        return self._source.dropped

    def view(self, *, dynamic_shape: bool = True, strict: bool = False) -> StreamView:
        """Return all positions as one array; see `ScratchStream.view`."""
        register_loaded_integrations()
        return StreamView(
            self._plan,
            self._coords,
            partial(self._source.frames.wait, -1, 0, 0),
            self._source.lazy_array,
            self._events,
            dynamic_shape=dynamic_shape,
            strict=strict,
            owner=self,
        )

    @property
    def append_times(self) -> AppendTimes | None:
        """How long appends took so far; None if the writer did not record it."""
        return self._source.append_times

    @property
    def disk_stats(self) -> DiskStats | None:
        """How well the disk keeps up; None unless the files are written directly."""
        return self._source.disk_stats

    @property
    def disk_io(self) -> str:
        """How the files are written, in words; empty if the writer did not record it."""
        manifest = self._source.manifest
        if manifest.disk_io == "page_cache":
            return f"page cache: {manifest.why_not_direct}"
        if manifest.disk_io == "direct" and not self._source.has_staged:
            return "page cache: nothing has been staged so far"  # small, or that failed
        return "staged, and directly" if manifest.disk_io else ""

    @property
    def frame_metadata(self) -> FrameMetadata:
        """The metadata of the frames that came with some."""
        return self._source.frame_metadata

    @property
    def global_metadata(self) -> dict[str, Any]:
        """Metadata of the acquisition by namespace."""
        return self._source.global_metadata

    # ------------------------------------------------------------- while it is recorded

    def wait(self, *, frames: int | None = None, timeout_s: float | None = None) -> bool:
        """Sleep until that many frames have come.

        Parameters
        ----------
        frames : int, optional
            How many altogether; by default one more than now.
        timeout_s : float, optional
            The longest wait; by default as long as the dataset is recorded.

        Returns
        -------
        bool
            Whether they have. If not, the time is up, or no more will come (see `state`).
        """
        wanted = self.frames_written + 1 if frames is None else frames
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            is_over = self._source.frames.is_over()
            left_s = max(deadline_s - time.monotonic(), 0)
            left_s = 0 if is_over else min(left_s, _CHECK_S)
            if self._source.frames.wait(wanted - 1, left_s, _POLL_S) >= wanted:
                return True
            if left_s == 0:
                return False

    def follow(self, *, start: int = 0, latest: bool = False) -> Following:
        """Iterate over the frames, including those that are yet to come.

        By `for`, or in a coroutine by `async for`, which does not block the loop while it
        waits. It ends after the last frame, once the dataset is closed or its writer has
        died (see `state`). Skipped frames are left out.

        Parameters
        ----------
        start : int
            Number of the first frame, in acquisition order.
        latest : bool
            Whether to go to the newest frame each time, and leave out those that came in
            between, as a display needs it.

        Returns
        -------
        iterator and asynchronous iterator of numpy.ndarray of shape (y, x)
            Read-only views of the stored frames. With `keep_last` copies, and a reader that
            is slower than the camera gets only the newer frames.
        """
        wait = partial(self._source.frames.wait, timeout_s=_CHECK_S, poll_s=_POLL_S)
        return Following(self._follow(start, latest), wait)

    def on(self, event: EventName, callback: Callback) -> Listener:
        """Call a callback for new frames; see `ScratchStream.on`."""
        return self._events.on(event, callback, self)

    # ------------------------------------------------------------------------ exports

    def export(
        self,
        out: str | os.PathLike[str],
        *,
        position: int | None = None,
        overwrite: bool = False,
        format: Any = None,  # noqa: A002
        progress: Callable[[int, int | None], object] | None = None,
        cancel: Any = None,
        client: Any = None,
    ) -> Path:
        """Write an OME-Zarr or an OME-TIFF, by ome-writers, with all metadata; or a .npy.

        It is made in a folder beside `out`, `.NAME.partial`, and appears when it is
        complete. If the export of an OME-Zarr ended early, for whatever reason, the same
        call resumes it. A dataset that is being recorded is followed to its end.

        Parameters
        ----------
        out : path-like
            What to write; its suffix, .ome.zarr, .ome.tiff or .npy, determines the format.
        position : int, optional
            For a .npy file, which holds the array of one position as it is now.
        overwrite : bool
            Replace an existing export.
        format : ome_writers.OmeZarrFormat, ome_writers.OmeTiffFormat or str, optional
            As of `ome_writers.AcquisitionSettings`, for other formats and backends.
        progress : callable(int, int or None), optional
            Called with the number of frames done, and the total if it is known.
        cancel : threading.Event, optional
            Set it to stop.
        client : distributed.Client, optional
            The cluster whose workers write; they need the same file system. OME-Zarr only.

        Returns
        -------
        pathlib.Path
            What was written: `out`, or for a TIFF of several positions the folder of them,
            named as `out` without its end.

        Raises
        ------
        ValueError
            If ome-writers cannot write it so, or an argument does not fit the format.
        FileExistsError
            If `out` exists already.
        BlockingIOError
            If another process makes the same export.
        DatasetError
            If the dataset was replaced by another meanwhile.
        ImportError
            If ome-writers or a library that it needs is not installed (extra `export`).
        ExportCancelledError
            If `cancel` was set.
        """
        self._need_still()
        out = Path(out).expanduser().absolute()
        common = {"overwrite": overwrite, "progress": progress, "cancel": cancel}
        if out.suffix.lower() == ".npy":
            if format is not None or client is not None:
                raise ValueError("A .npy file has neither format nor client.")
            saver = load_integration("npy", "", "numpy")
            saved: Path = saver.save_npy(self, out, position, **common)
            return saved
        if position is not None:
            raise ValueError("position is for .npy files: others hold all positions.")
        exporter = load_integration("export", "export", "ome_writers")
        made: Path = exporter.export(self, out, format=format, client=client, **common)
        return made

    def copy(self, out: str | os.PathLike[str]) -> Path:
        """Copy the dataset as it is now, also while it is recorded.

        The copy is a finished dataset: it has exactly the frames that had come when the
        call began, their metadata, times and skips. (With `keep_last`, while it is
        recorded: when the call ended.) It is made in a folder beside `out`,
        `.NAME.partial`, and appears when all of it is on the device. The dataset itself is
        not changed.

        Parameters
        ----------
        out : path-like
            The folder of the copy, which must not exist.

        Returns
        -------
        pathlib.Path
            That folder.

        Raises
        ------
        FileExistsError
            If `out` exists.
        ValueError
            If `out` is inside of the dataset, or frames of a ring (`keep_last`) are
            overwritten faster than they can be copied.
        BlockingIOError
            If another process makes the same copy.
        DatasetError
            If the dataset is damaged, was replaced by another meanwhile, or is one of
            ome-writers, which does not record how many frames came.
        OSError
            If the disk is too small, or fails.
        """
        out = Path(out).expanduser().absolute()
        copy_dataset(self._source, out)
        return out

    def to_xarray(self) -> Any:
        """Return an `xarray.DataArray` of all positions; see `bridges.xarray`.

        Raises
        ------
        ImportError
            If xarray or dask is not installed (extra `xarray`).
        """
        self._need_still()
        return load_integration("xarray", "xarray", "xarray", "dask").to_xarray(self)

    def to_dask(self) -> Any:
        """Return a `dask.array.Array` of all positions, chunked by frame, without a copy.

        In acquisition order, as `view` is.

        Raises
        ------
        ImportError
            If dask is not installed (extra `xarray`).
        """
        self._need_still()
        return load_integration("dask", "xarray", "dask").to_dask(self)

    # -------------------------------------------------------------------------- life

    def close(self) -> None:
        """Release the dataset's files; arrays that were taken from it stay readable."""
        self._source.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScratchDataset {self.state}, {self.frames_written} frames, {self.path}>"

    def _repr_html_(self) -> str | None:
        from scratchwriter._showing.html import (  # for notebooks only
            card,
            rate_text,
            shape_text,
        )

        if self._source.is_released:
            return None  # the other repr is shown
        view = self.view()
        facts = {
            "state": self.state,
            "shape": shape_text(view),
            "frames": f"{self.frames_written}{rate_text(self._frames_per_s())}",
            "dropped": self.dropped,
            "in": self.path,
        }
        return card("ScratchDataset", facts, view)

    # ------------------------------------------------------------- what its files hold

    @property
    def source(self) -> Source:
        """What its files hold, for code that checks them."""
        return self._source

    @property
    def counts_frames(self) -> bool:
        """Whether its writer counted the frames; ome-writers does not."""
        return self._source.counts_frames

    @property
    def may_lack_frames(self) -> bool:
        """Whether the machine was restarted before the dataset was closed.

        Only `frames_synced` frames are certain then, and the files may hold more than are
        counted.
        """
        return self._source.may_lack_frames

    def frame_number(self, position: int, index: Sequence[int]) -> int:
        """Return which frame, in acquisition order, has an index in a position's file."""
        return self._source.frame_number(position, index)

    # ------------------------------------------------------------------------ inside

    def _follow(self, seen: int, latest: bool) -> Iterator[Frame | int]:
        """Yield frames; and the number of the next one, as often as it has not come."""
        self._source.need_open()
        view = self.view()
        keep_frames = (self._plan.keep_steps or 0) * self._plan.step_frames
        while True:
            is_over = self._source.frames.is_over()
            stop = self._source.frames.wait(-1, 0, 0)
            if stop > seen:
                skips = self._source.frames.skips(seen, stop)
                if keep_frames:
                    seen = max(seen, stop - keep_frames)
                for number in _appended(seen, stop, skips, latest):
                    with suppress(IndexError):  # a ring has overwritten it
                        frame = view.frame(number)
                        if keep_frames:
                            frame = frame.copy()
                            view.frame(number)  # raises if it was overwritten meanwhile
                        yield frame
                seen = stop
            elif is_over:
                return
            else:
                yield seen

    def _frames_per_s(self) -> float:
        """Return the rate from the first append to the last that was timed."""
        times = self.append_times
        if times is None or times.elapsed_s <= 0:
            return math.nan
        return self.frames_written / times.elapsed_s

    def _need_still(self) -> None:
        """Check that no frames can be overwritten while they are read."""
        if self._plan.keep_steps is not None and self.state == "recording":
            raise ValueError(
                f"{self.path}: with keep_last, frames are overwritten during the "
                "recording. Wait until it is closed."
            )


def open_scratch(path: str | os.PathLike[str]) -> ScratchDataset:
    """Open a scratch dataset: closed, killed, or still being recorded.

    The time that it takes does not grow with the data. The folder's content is checked, not
    trusted.

    Parameters
    ----------
    path : path-like
        Folder of a dataset, of scratchwriter or of ome-writers 0.3.

    Returns
    -------
    ScratchDataset

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    DatasetError
        If it is not a scratch dataset, or damaged; it names the file and the fault.

    Warns
    -----
    UserWarning
        If it is one of ome-writers that was not closed: its shape is then what the files
        have space for. If the machine was restarted since the writer was killed: only
        `frames_synced` frames are certain then.
    """
    dataset = ScratchDataset(open_source(Path(path).expanduser().absolute()))
    register_loaded_integrations()
    _warn_of_restart(dataset)
    return dataset


def need_recording(dataset: ScratchDataset, recording_id: str) -> None:
    """Check that a dataset still holds the same recording.

    Raises
    ------
    DatasetError
        If it holds another.
    """
    if dataset.recording_id != recording_id:
        raise DatasetError(
            f"{dataset.path}: another recording has taken its place since. Open it again."
        )


def _appended(first: int, stop: int, skips: Sequence[range], latest: bool) -> Iterator[int]:
    """Yield the frames of a range that were not skipped, or only the last of them."""
    if latest:
        skip = skip_of(stop - 1, skips)
        last = stop - 1 if skip is None else skip.start - 1
        first, stop = max(first, last), last + 1
    while first < stop:
        skip = skip_of(first, skips)
        if skip is None:
            yield first
        first = first + 1 if skip is None else skip.stop


def _warn_of_restart(dataset: ScratchDataset) -> None:
    if not dataset.may_lack_frames or dataset.state == "recording":
        return
    warnings.warn(
        f"{dataset.path}: the machine was restarted before all of it was synced. Of its "
        f"{dataset.frames_written} frames the first {dataset.frames_synced} are certain to "
        "be whole; later ones may not have reached the disk.",
        stacklevel=3,
    )
