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
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from scratchwriter._files.append_times import read_append_times
from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import (
    FRAME_METADATA,
    MANIFEST,
    PROGRESS,
    RECORD,
    RECORDS,
    UNKNOWN,
    array_name,
)
from scratchwriter._files.live import FixedProgress, LiveProgress
from scratchwriter._files.manifest import Manifest, read_manifest
from scratchwriter._files.metadata import FrameMetadata
from scratchwriter._files.progress import ProgressView
from scratchwriter._files.records import arrange, count_dropped, known
from scratchwriter._files.skips import read_skips
from scratchwriter._integrations import bridge, greet
from scratchwriter._region import view_file, view_ring
from scratchwriter.coords import CoordSystem, newest_steps
from scratchwriter.errors import DatasetError
from scratchwriter.events import Callback, EventName, Events, Frames, Listener
from scratchwriter.plan import make_plan, skip_of
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stats import AppendTimes
from scratchwriter.views import ArrayView, StreamView

# Why something cannot be told.
NOT_COUNTED = "ome-writers wrote it, which does not tell how many frames came"

_CHECK_S, _POLL_S = 0.1, 0.0005  # how often to look for the writer, and for frames

State = Literal["closed", "recording", "killed"]


class ScratchDataset:
    """A dataset on disk; made by `open_scratch`. A context manager.

    Nothing of it is read before it is asked for. While it is being recorded, what it
    tells grows with the frames.
    """

    def __init__(self, path: Path, *, is_recorded: bool | None = None) -> None:
        self._path = path
        self._closed = False
        self._maps: dict[int, memoryview] = {}
        self._progress: ProgressView | None = None
        if os.path.lexists(path / PROGRESS):
            self._progress = ProgressView(path)
        # First: what is closed has its last manifest.
        was_closed = self._progress is not None and self._progress.is_closed
        self._manifest, self._settings = read_manifest(path)
        with faults_of(path / MANIFEST):
            self._plan = make_plan(self._settings)
            if self._progress is not None:
                self._progress.num_frames = self._plan.num_frames
            if len(self._manifest.position_shapes) != self._plan.num_positions:
                raise ValueError("position_shapes does not fit the dimensions")
        self._their_shapes: list[tuple[int, ...]] = []
        self._is_guessed = False
        self._most_frames: int | None = None  # that the files have room for, if that counts
        if self._progress is not None:
            # A writer that lives (in a container, on another machine) lacks none.
            if is_recorded is None:
                is_recorded = self.state == "recording"
            if self._progress.may_lack_frames and not is_recorded:
                self._most_frames = self._frames_in_files()
            is_exact = was_closed and self._most_frames is None
            self._check_ours(self._cursor, is_exact=is_exact)
        elif self._manifest.position_dims is not None:
            raise DatasetError(f"{path / PROGRESS}: it is missing")
        else:
            self._their_shapes = _shapes_of_ome_writers(
                path, self._manifest, self._settings
            )
            self._is_guessed = self._their_shapes != self._manifest.position_shapes
        self._frame_metadata = FrameMetadata(
            path / FRAME_METADATA, self._is_counted, self._need_same
        )
        self._coords = CoordSystem(self._settings, self._plan)
        self._frames = self._watch()
        self._events = Events(self._coords, self._frames)

    def _check_ours(self, cursor: int, *, is_exact: bool) -> None:
        plan = self._plan
        with faults_of(self._path / PROGRESS):
            if plan.num_frames is not None and cursor > plan.num_frames:
                raise ValueError(f"it tells of {cursor} frames of {plan.num_frames}")
        for position, told in enumerate(self._manifest.position_shapes):
            found = plan.file_shape(position, cursor)
            with faults_of(self._path / MANIFEST):
                if told[1:] != found[1:] or (is_exact and told != found):
                    raise ValueError(
                        f"position {position} has shape {_shown(told)}, {found} is "
                        f"expected by {PROGRESS}"
                    )
            nbytes = plan.file_nbytes(position, cursor)
            _need_nbytes(self._path / array_name(position), nbytes, PROGRESS)

    def _frames_in_files(self) -> int:
        """Return how many frames the files have room for, whatever their number says.

        A power cut may have brought a page with a number to the device, and not the length
        of the files that it counts in.
        """
        most = []
        for position in range(self._plan.num_positions):
            path = self._path / array_name(position)
            with faults_of(path):
                steps = path.lstat().st_size // self._plan.step_nbytes
            most.append(self._plan.most_frames(position, steps))
        synced = self._progress.synced if self._progress is not None else 0
        return max(min(most), synced)

    @property
    def _cursor(self) -> int:
        assert self._progress is not None
        cursor = self._progress.cursor
        return cursor if self._most_frames is None else min(cursor, self._most_frames)

    # ------------------------------------------------------------------- the dataset

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._path

    @property
    def recording_id(self) -> str:
        """What tells this recording from any other, also from a later one at its place."""
        if self._progress is not None and (told := self._progress.recording_id):
            return told
        status = (self._path / array_name(0)).lstat()
        return f"{status.st_ino}-{status.st_mtime_ns if self._progress is None else 0}"

    @property
    def version(self) -> str:
        """Version of the library that wrote it."""
        return self._manifest.version

    @property
    def settings(self) -> AcquisitionSettings:
        """The settings that it was recorded with."""
        return self._settings.model_copy(deep=True)

    @property
    def state(self) -> State:
        """What became of it, told by its writer's lock.

        "closed": it is finished. "recording": somebody writes it. "killed": nobody does,
        and it was not closed; all frames that came are there. On file systems without
        locks "recording" may also be "killed". Datasets of ome-writers, which has no
        such record, count as closed.
        """
        if self._progress is None:
            return "closed"
        has_writer = self._progress.has_writer  # first: who closes frees the lock after
        if self._progress.is_closed:
            return "closed"
        return "killed" if has_writer is False else "recording"

    @property
    def frames_written(self) -> int:
        """Frames appended and skipped; of ome-writers', all that the arrays have."""
        if self._progress is not None:
            return self._cursor
        shapes = (self._file_shape(i) for i in range(self._plan.num_positions))
        return sum(math.prod(shape[:-2]) for shape in shapes)

    @property
    def first_frame(self) -> int:
        """Number of the first frame that is kept: 0, but for `keep_last`."""
        first = newest_steps(self._plan, self._plan.extents(self.frames_written)).start
        return first * self._plan.step_frames if self._plan.is_unbounded else 0

    @property
    def frames_synced(self) -> int:
        """How many of the first frames are certain to outlive a power cut."""
        return 0 if self._progress is None else self._progress.synced

    @property
    def skipped(self) -> list[range]:
        """Which frames, numbered in acquisition order, were skipped."""
        if self._progress is None:
            return []
        skips = read_skips(self._path, self.frames_written)
        self._need_same()
        return skips

    @property
    def arrays(self) -> tuple[ArrayView, ...]:
        """One read-only array per position, growing while the dataset is recorded."""
        return tuple(
            ArrayView(partial(self._array, position))
            for position in range(self._plan.num_positions)
        )

    def written(self, position: int) -> npt.NDArray[np.bool_]:
        """Tell which frames of a position came; the others are zeros that nobody saw.

        Returns
        -------
        numpy.ndarray of bool
            In the shape of the array without the frame's axes.

        Raises
        ------
        DatasetError
            If ome-writers wrote it, which does not tell.
        """
        frames, plan = self.frames_written, self._plan
        position = range(plan.num_positions)[position]
        if self._progress is None:
            raise DatasetError(f"{self._path / MANIFEST}: {NOT_COUNTED}")
        written = plan.written(position, frames, self.skipped)
        return written.transpose(plan.storage_axes[:-2])

    @property
    def timestamps(self) -> tuple[npt.NDArray[np.int64], ...]:
        """When each frame was taken, one array per position; see `ScratchStream`.

        Raises
        ------
        DatasetError
            If frame_records.bin is damaged.
        """
        return self._records("timestamp_ns")

    @property
    def frame_ids(self) -> tuple[npt.NDArray[np.int64], ...]:
        """The camera's number of each frame, one array per position; -1: not known."""
        return self._records("frame_id")

    def frame_times_ns(self) -> npt.NDArray[np.int64]:
        """Return the times that are known, in acquisition order; of a ring, the newest."""
        cursor = self.frames_written
        records = self._read_records(cursor)
        if records is None:
            return np.empty(0, np.int64)
        if self._plan.ring_frames:
            first = max(cursor - self._plan.ring_frames, 0)
            records = records[np.arange(first, cursor) % self._plan.ring_frames]
        times: npt.NDArray[np.int64] = records["timestamp_ns"][records["known"] & 1 != 0]
        return times

    @property
    def has_records(self) -> bool:
        """Whether times or numbers of frames were recorded."""
        return self._read_records(self.frames_written) is not None

    def frame_records(self, start: int, stop: int) -> dict[int, dict[str, int]]:
        """Return what is known of the times and numbers of frames, of a range of them.

        Returns
        -------
        dict of int to dict
            By the frame's number in acquisition order: "timestamp_ns", "frame_id", or both.
        """
        cursor = self.frames_written
        records, ring_frames = self._read_records(cursor), self._plan.ring_frames
        if records is None:
            return {}
        found = range(max(start, cursor - ring_frames) if ring_frames else start, stop)
        return {
            n: told
            for n in found
            if (at := n % ring_frames if ring_frames else n) < len(records)
            and (told := known(records[at]))
        }

    @property
    def dropped(self) -> int:
        """How many frame numbers are missing between those that came with the frames."""
        if self._progress is not None and (
            self._plan.ring_frames or self.state == "recording"
        ):
            # Of a ring the records of most frames are overwritten; and to look at all of
            # them takes long, beside a camera.
            return self._progress.dropped
        return count_dropped(self._read_records(self.frames_written))

    def view(self, *, dynamic_shape: bool = True, strict: bool = False) -> StreamView:
        """Return all positions as one array; see `ScratchStream.view`."""
        greet()
        return StreamView(
            self._plan,
            self._coords,
            partial(self._frames.wait, -1, 0, 0),
            self._array,
            self._events,
            dynamic_shape=dynamic_shape,
            strict=strict,
        )

    @property
    def append_times(self) -> AppendTimes | None:
        """How long appends took, so far; None if the writer did not tell."""
        times = read_append_times(self._path)
        self._need_same()
        return times

    @property
    def frame_metadata(self) -> FrameMetadata:
        """The metadata of the frames that came with some."""
        return self._frame_metadata

    @property
    def global_metadata(self) -> dict[str, Any]:
        """Metadata of the acquisition by namespace."""
        manifest = self._manifest
        if self._progress is not None and not self._closed:
            manifest, _ = read_manifest(self._path)  # it may have been renewed
            self._need_same()
        return manifest.global_metadata

    # ------------------------------------------------------------- while it is recorded

    def wait(self, *, frames: int | None = None, timeout_s: float | None = None) -> bool:
        """Sleep until so many frames have come.

        Parameters
        ----------
        frames : int, optional
            How many altogether; by default one more than now.
        timeout_s : float, optional
            How long at the most; by default as long as somebody records the dataset.

        Returns
        -------
        bool
            Whether they have. If not, time is up or no more will come: `state` tells.
        """
        wanted = self.frames_written + 1 if frames is None else frames
        deadline_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while True:
            is_over = self._frames.is_over()
            left_s = max(deadline_s - time.monotonic(), 0)
            left_s = 0 if is_over else min(left_s, _CHECK_S)
            if self._frames.wait(wanted - 1, left_s, _POLL_S) >= wanted:
                return True
            if left_s == 0:
                return False

    def follow(
        self, *, start: int = 0, latest: bool = False
    ) -> Iterator[npt.NDArray[np.generic]]:
        """Iterate over the frames, those that are to come included.

        It ends when the dataset is closed, or its writer has died (`state` tells which)
        and all frames were given. Skipped ones are left out.

        Parameters
        ----------
        start : int
            Number of the first frame, in acquisition order.
        latest : bool
            Whether frames are left out for the newest one when they come faster than they
            are taken, as a display wants it.

        Yields
        ------
        numpy.ndarray of shape (y, x)
            A read-only view of the stored frame; with `keep_last` a copy, and who is slower
            than the camera is given the newer ones only.
        """
        seen, view = start, self.view()
        keep_frames = (self._plan.keep_steps or 0) * self._plan.step_frames
        while True:
            is_over = self._frames.is_over()
            stop = self._frames.wait(seen, 0 if is_over else _CHECK_S, _POLL_S)
            if stop > seen:
                skips = self._frames.skips(seen, stop)
                if keep_frames:
                    seen = max(seen, stop - keep_frames)
                for number in _appended(seen, stop, skips, latest):
                    with suppress(IndexError):  # a ring has dropped it meanwhile
                        frame = view.frame(number)
                        if keep_frames:
                            frame = frame.copy()
                            view.frame(number)  # it was there until it was copied
                        yield frame
                seen = stop
            elif is_over:
                return

    def on(self, event: EventName, callback: Callback) -> Listener:
        """Have a callback told of new frames; see `ScratchStream.on`."""
        return self._events.on(event, callback, self)

    # -------------------------------------------------------------------- the way out

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
        complete. An OME-Zarr whose export ended early, for whatever reason, is gone on with
        by the same call. A dataset that is being recorded is followed to its end.

        Parameters
        ----------
        out : path-like
            What to write; its end, .ome.zarr, .ome.tiff or .npy, tells the format.
        position : int, optional
            For a .npy file, which holds the array of one position as it is now.
        overwrite : bool
            Replace what is there.
        format : ome_writers.OmeZarrFormat, ome_writers.OmeTiffFormat or str, optional
            As of `ome_writers.AcquisitionSettings`, for other formats and backends.
        progress : callable(int, int or None), optional
            Called with how many frames are done, and of how many if that is known.
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
            If ome-writers cannot write it so, or an argument is none of the format's.
        FileExistsError
            If it is there already.
        BlockingIOError
            If another process makes the same export.
        DatasetError
            If the dataset was replaced by another meanwhile.
        ImportError
            If ome-writers or what it needs is not installed (extra `export`).
        ExportCancelledError
            If `cancel` was set.
        """
        self._need_still()
        out = Path(out).expanduser().absolute()
        common = {"overwrite": overwrite, "progress": progress, "cancel": cancel}
        if out.suffix.lower() == ".npy":
            if format is not None or client is not None:
                raise ValueError("A .npy file has neither format nor client.")
            saver = bridge("npy", "", "numpy")
            saved: Path = saver.save_npy(self, out, position, **common)
            return saved
        if position is not None:
            raise ValueError("position is for .npy files: others hold all positions.")
        exporter = bridge("export", "export", "ome_writers")
        made: Path = exporter.export(self, out, format=format, client=client, **common)
        return made

    def to_xarray(self) -> Any:
        """Return an `xarray.DataArray` of all positions; see `bridges.xarray`.

        Raises
        ------
        ImportError
            If xarray or dask is not installed (extra `xarray`).
        """
        self._need_still()
        return bridge("xarray", "xarray", "xarray", "dask").to_xarray(self)

    def to_dask(self) -> Any:
        """Return a `dask.array.Array` of all positions, chunked by frame, without a copy.

        In acquisition order, as `view` is.

        Raises
        ------
        ImportError
            If dask is not installed (extra `xarray`).
        """
        self._need_still()
        return bridge("dask", "xarray", "dask").to_dask(self)

    # -------------------------------------------------------------------------- life

    def close(self) -> None:
        """Give up the dataset; arrays that were taken from it stay readable."""
        self._closed = True
        self._frames.give_up()
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<ScratchDataset {self.state}, {self.frames_written} frames, {self._path}>"

    def _repr_html_(self) -> str | None:
        from scratchwriter._showing.html import (  # for notebooks only
            card,
            rate_text,
            shape_text,
        )

        if self._closed:
            return None  # the other repr is shown
        view = self.view()
        facts = {
            "state": self.state,
            "shape": shape_text(view),
            "frames": f"{self.frames_written}{rate_text(self._frames_per_s())}",
            "dropped": self.dropped,
            "in": self._path,
        }
        return card("ScratchDataset", facts, view)

    # ------------------------------------------------------- as it is told, and as it is

    @property
    def counts_frames(self) -> bool:
        """Whether its writer counted the frames; ome-writers does not."""
        return self._progress is not None

    @property
    def is_guessed(self) -> bool:
        """Whether the shapes are what files of ome-writers have room for."""
        return self._is_guessed

    @property
    def may_lack_frames(self) -> bool:
        """Whether the machine was started anew before the dataset was closed.

        Only `frames_synced` frames are certain then, and the files may have more than are
        counted.
        """
        return self._progress is not None and self._progress.may_lack_frames

    @property
    def told_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each position's file as the manifest has it."""
        manifest, _ = read_manifest(self._path)
        self._need_same()
        return manifest.position_shapes

    @property
    def file_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each position's file as the frames that came make it."""
        return [self._file_shape(i) for i in range(self._plan.num_positions)]

    def file_nbytes(self, position: int) -> int:
        """Return the size of a position's file as the frames that came make it."""
        return self._plan.file_nbytes(position, self._cursor)

    @property
    def records_nbytes(self) -> int:
        """Size of the records of those frames, if there are any."""
        return (self._plan.ring_frames or self._cursor) * RECORD.itemsize

    def frame_number(self, position: int, index: Sequence[int]) -> int:
        """Return which frame, in acquisition order, has an index in a position's file."""
        with faults_of(self._path / FRAME_METADATA):
            return self._plan.frame_number(position, index)

    # ------------------------------------------------------------------------ inside

    def _records(
        self, name: Literal["timestamp_ns", "frame_id"]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        cursor = self.frames_written
        records = self._read_records(cursor)
        if self._progress is None:
            shapes = (array.shape[:-2] for array in self.arrays)
            return tuple(np.full(shape, UNKNOWN, np.int64) for shape in shapes)
        return tuple(
            arrange(self._plan, position, records, cursor, name)
            for position in range(self._plan.num_positions)
        )

    def _read_records(self, cursor: int) -> npt.NDArray[np.void] | None:
        path = self._path / RECORDS
        if not os.path.lexists(path) or self._progress is None:
            return None
        self._need_same()
        with faults_of(path):
            _need_nbytes(path, 0, PROGRESS)
            # It may be shorter than that: the last frames have no record then.
            count = self._plan.ring_frames or cursor
            count = min(count, path.lstat().st_size // RECORD.itemsize)
            if count == 0:
                return None
            return np.frombuffer(view_file(path), RECORD, count)

    def _watch(self) -> Frames:
        if self._progress is None:
            shapes = [self._file_shape(i) for i in range(self._plan.num_positions)]
            steps = 1
            if self._plan.is_unbounded:
                name = self._settings.dimensions[0].name
                dims = [dim.name for dim in self._settings.array_storage_dimensions]
                steps = max(shape[dims.index(name)] for shape in shapes)
            return FixedProgress(steps * self._plan.step_frames)
        if self._most_frames is not None:
            return FixedProgress(self._cursor, self.skipped)
        frames = LiveProgress(self._path, self._progress)
        weakref.finalize(self, frames.give_up)  # who forgets it, listens no more
        return frames

    def _frames_per_s(self) -> float:
        """Return the rate from the first append to the last that is told of."""
        times = self.append_times
        if times is None or times.elapsed_s <= 0:
            return math.nan
        return self.frames_written / times.elapsed_s

    def _need_same(self) -> None:
        """Check that the files in the folder are still those of this dataset."""
        if self._progress is not None:
            self._progress.need_in(self._path)

    def _need_still(self) -> None:
        """Check that no frames are overwritten while somebody works on them."""
        if self._plan.keep_steps is not None and self.state == "recording":
            raise ValueError(
                f"{self._path}: with keep_last frames are overwritten while they are "
                "recorded. Wait until it is closed."
            )

    def _is_counted(self, position: int, index: Sequence[int]) -> bool:
        if self._progress is None:
            return True
        return self.frame_number(position, index) < self._cursor

    def _file_shape(self, position: int, cursor: int | None = None) -> tuple[int, ...]:
        if self._progress is None:
            return self._their_shapes[position]
        return self._plan.file_shape(position, self._cursor if cursor is None else cursor)

    def _array(self, position: int, cursor: int | None = None) -> npt.NDArray[Any]:
        if self._closed:
            raise ValueError(f"The dataset is closed: open_scratch({str(self._path)!r})")
        plan = self._plan
        if cursor is None:
            cursor = self._cursor if self._progress is not None else 0
        shape = self._file_shape(position, cursor)
        nbytes = math.prod(shape) * plan.dtype.itemsize
        data = self._maps.get(position)
        if data is None or len(data) < nbytes:
            path = self._path / array_name(position)
            _need_nbytes(path, nbytes, PROGRESS)
            with faults_of(path):
                if plan.ring_steps:  # as it is now, if it is a copy
                    data = view_ring(path, plan.file_nbytes(position, 0))
                else:
                    data = view_file(path)
            self._need_same()  # after it was opened
            if not plan.ring_steps:
                self._maps[position] = data
        start = plan.start_nbytes(position, cursor)
        array: npt.NDArray[Any] = np.ndarray(shape, plan.dtype, buffer=data, offset=start)
        return array if self._progress is None else array.transpose(plan.storage_axes)


def open_scratch(path: str | os.PathLike[str]) -> ScratchDataset:
    """Open a scratch dataset: closed, killed, or still being recorded.

    It takes no longer for more data. What is in the folder is checked, not believed.

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
        If there is no such folder.
    DatasetError
        If it is no scratch dataset, or a damaged one; it names the file and the fault.

    Warns
    -----
    UserWarning
        If it is one of ome-writers that was not closed: its shape is then what the
        files have room for. If the machine was started anew since the writer was killed:
        only `frames_synced` frames are certain then.
    """
    dataset = ScratchDataset(Path(path).expanduser().absolute())
    greet()
    _warn_of_restart(dataset)
    return dataset


def need_recording(dataset: ScratchDataset, recording_id: str) -> None:
    """Check that a dataset is the one that somebody had before.

    Raises
    ------
    DatasetError
        If it is another.
    """
    if dataset.recording_id != recording_id:
        raise DatasetError(
            f"{dataset.path}: another recording has taken its place since. Begin anew."
        )


def _appended(first: int, stop: int, skips: Sequence[range], latest: bool) -> Iterator[int]:
    """Yield which frames of a range were not skipped; or the last of them."""
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
        f"{dataset.path}: the machine was started anew before it was closed. Of its "
        f"{dataset.frames_written} frames the first {dataset.frames_synced} are certain to "
        "be whole; what came after may not have reached the disk.",
        stacklevel=3,
    )


def _shown(shape: tuple[int, ...]) -> str:
    """Return a shape for a message; one that may be as long as a file."""
    text = str(shape[:8])
    return text if len(text) < 80 else f"{text[:80]}..."


def _need_nbytes(path: Path, nbytes: int, told_by: str) -> None:
    """Check that a file is one, and long enough, without opening it."""
    with faults_of(path):
        status = path.lstat()
        if not path.is_file() or path.is_symlink():
            raise ValueError("not a regular file")
        if status.st_size < nbytes:
            raise ValueError(
                f"it has {status.st_size} bytes, {nbytes} are expected by {told_by}"
            )


def _shapes_of_ome_writers(
    folder: Path, manifest: Manifest, settings: AcquisitionSettings
) -> list[tuple[int, ...]]:
    """Return the shapes of files that ome-writers wrote.

    It tells the length of an unbounded axis when it closes; before that, the file's size
    does, which it makes larger than it needs.
    """
    dims = settings.array_storage_dimensions
    itemsize = np.dtype(settings.dtype).itemsize
    shapes = []
    for position, shape in enumerate(manifest.position_shapes):
        path = folder / array_name(position)
        with faults_of(folder / MANIFEST):
            if len(shape) != len(dims) or any(
                dim.count not in (None, n) for dim, n in zip(dims, shape, strict=True)
            ):
                raise ValueError(f"shape {_shown(shape)} does not fit the dimensions")
        _need_nbytes(path, math.prod(shape) * itemsize, MANIFEST)
        unit_nbytes = math.prod(dim.count or 1 for dim in dims) * itemsize
        length, rest = divmod(path.lstat().st_size, unit_nbytes)
        counts = [length if dim.count is None else dim.count for dim in dims]
        # A closed one may have a longer file, too; but it does not tell of one frame then.
        unbounded = [n for dim, n in zip(dims, shape, strict=True) if dim.count is None]
        if unbounded == [1] and rest == 0 and length > 1:
            warnings.warn(
                f"{path}: ome-writers did not close this dataset. Its length of {length} "
                f"is what the file has room for, not how many frames came.",
                stacklevel=4,
            )
            shape = tuple(counts)
        shapes.append(shape)
    return shapes
