"""What the files of a dataset hold, whichever library wrote them.

Each kind of dataset has a source (`choose_source.open_source` returns it): ours, ours after
a restart of the machine, and those of ome-writers. `ScratchDataset` is the public
interface.

Everything read here is untrusted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from scratchwriter._files.append_times import read_append_times, read_disk_stats
from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import FRAME_METADATA, MANIFEST, PROGRESS, array_name
from scratchwriter._files.live import FixedProgress, LiveProgress
from scratchwriter._files.manifest import Manifest, read_manifest
from scratchwriter._files.metadata import FrameMetadata
from scratchwriter._region import view_file
from scratchwriter.plan import FramePlan, make_plan
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stats import AppendTimes, DiskStats

State: TypeAlias = Literal["closed", "recording", "killed"]
RecordName: TypeAlias = Literal["timestamp_ns", "frame_id"]
MakeReady: TypeAlias = Callable[[npt.NDArray[Any]], None]


class Description(NamedTuple):
    """What the manifest says, checked."""

    manifest: Manifest
    settings: AcquisitionSettings
    plan: FramePlan


def describe(path: Path) -> Description:
    """Read the manifest in a folder.

    Raises
    ------
    FileNotFoundError
        If the folder does not exist.
    DatasetError
        If it is not a dataset, or damaged.
    """
    manifest, settings = read_manifest(path)
    with faults_of(path / MANIFEST):
        plan = make_plan(settings)
        if len(manifest.position_shapes) != plan.num_positions:
            raise ValueError("position_shapes does not match the dimensions")
    return Description(manifest, settings, plan)


class Source(ABC):
    """A dataset as its files describe it.

    Attributes
    ----------
    path : pathlib.Path
        Its folder.
    manifest, settings, plan
        See `Description`; as they were when it was opened.
    frames : FixedProgress or LiveProgress
        For threads that wait for frames (`events.Frames`).
    frame_metadata : FrameMetadata
        The lines of frame_metadata.jsonl.
    counts_frames : bool
        Whether its writer counted the frames; ome-writers does not.
    is_guessed : bool
        Whether the shapes are what files of ome-writers have space for.
    is_released : bool
        Whether `release` was called.
    """

    counts_frames: bool
    is_guessed = False
    frames: FixedProgress | LiveProgress
    frame_metadata: FrameMetadata

    def __init__(self, path: Path, description: Description) -> None:
        self.path = path
        self.manifest, self.settings, self.plan = description
        self.is_released = False
        self._mapped: dict[int, memoryview] = {}

    # --------------------------------------------------------------- how far, and whose

    @property
    @abstractmethod
    def state(self) -> State:
        """See `ScratchDataset.state`."""

    @property
    @abstractmethod
    def recording_id(self) -> str:
        """What distinguishes this recording from any other."""

    @property
    @abstractmethod
    def frames_written(self) -> int:
        """Frames appended and skipped; without a count, all that the arrays hold."""

    @property
    @abstractmethod
    def frames_synced(self) -> int:
        """How many of the first frames are certain to outlive a power cut."""

    @property
    @abstractmethod
    def may_lack_frames(self) -> bool:
        """Whether the machine was restarted before the dataset was closed.

        Only `frames_synced` frames are certain then, and the files may hold more than are
        counted.
        """

    @property
    @abstractmethod
    def has_staged(self) -> bool:
        """Whether frames were staged so far, and written directly."""

    @property
    def is_staged(self) -> bool:
        """Whether some frames may not be in the files of the arrays.

        Raises
        ------
        DatasetError
            If they are nowhere.
        """
        return False

    @property
    def frames_in_files(self) -> int:
        """How many of the first frames are in the files of the arrays for certain."""
        return self.frames_written

    @property
    @abstractmethod
    def skipped(self) -> list[range]:
        """Which frames, numbered in acquisition order, were skipped."""

    @property
    @abstractmethod
    def dropped(self) -> int:
        """How many frame numbers are missing between those that came."""

    @abstractmethod
    def need_same(self) -> None:
        """Check that the files in the folder are still those of this dataset.

        Call it after a file was opened by its name.

        Raises
        ------
        DatasetError
            If they are not.
        """

    @abstractmethod
    def written(self, position: int) -> npt.NDArray[np.bool_]:
        """Return which frames of a position came; see `ScratchDataset.written`."""

    # --------------------------------------------------------------------------- records

    @abstractmethod
    def records(self, cursor: int) -> npt.NDArray[np.void] | None:
        """Return the records of the first frames, of a ring all; None if it has none.

        There may be fewer records than frames.
        """

    @abstractmethod
    def record_values(self, name: RecordName) -> tuple[npt.NDArray[np.int64], ...]:
        """Return one number per frame, one array per position; see `records.arrange`."""

    @abstractmethod
    def frame_times_ns(self) -> npt.NDArray[np.int64]:
        """Return the times that are known, in acquisition order; in a ring the newest."""

    @property
    def append_times(self) -> AppendTimes | None:
        """How long appends took, so far; None if the writer did not report it."""
        times = read_append_times(self.path)
        self.need_same()
        return times

    @property
    def disk_stats(self) -> DiskStats | None:
        """How the disk does; None unless the files are written directly."""
        stats = read_disk_stats(self.path)
        self.need_same()
        return stats.at_end() if stats is not None and self.state == "closed" else stats

    @property
    def global_metadata(self) -> dict[str, Any]:
        """Metadata of the acquisition by namespace."""
        return self.manifest.global_metadata

    # ---------------------------------------------------------------------------- arrays

    @property
    def manifest_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each position's file as the manifest has it now."""
        manifest, _ = read_manifest(self.path)
        self.need_same()
        return manifest.position_shapes

    @property
    def file_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each position's file, by the number of frames that came."""
        return [self.file_shape(i) for i in range(self.plan.num_positions)]

    @abstractmethod
    def file_shape(self, position: int, cursor: int | None = None) -> tuple[int, ...]:
        """Return the shape of a position's file after `cursor` frames, by default all."""

    @abstractmethod
    def file_nbytes(self, position: int) -> int:
        """Return the size of a position's file, by the number of frames that came."""

    @property
    @abstractmethod
    def records_nbytes(self) -> int:
        """Size of the records of those frames, if they have records."""

    def frame_number(self, position: int, index: Sequence[int]) -> int:
        """Return which frame, in acquisition order, has an index in a position's file."""
        with faults_of(self.path / FRAME_METADATA):
            return self.plan.frame_number(position, index)

    def shape(self, position: int) -> tuple[int, ...]:
        """Return the shape of a position's array now.

        Raises
        ------
        ValueError
            If it is released.
        """
        self.need_open()
        shape = self.file_shape(position)
        return tuple(shape[axis] for axis in self.storage_axes)

    def array(self, position: int, cursor: int | None = None) -> npt.NDArray[Any]:
        """Return the array of a position after `cursor` frames, by default all.

        Raises
        ------
        ValueError
            If it is released.
        DatasetError
            If the file is too short, or now belongs to another dataset.
        """
        array, make_ready = self.lazy_array(position, cursor)
        make_ready(array)
        return array

    def lazy_array(
        self, position: int, cursor: int | None = None
    ) -> tuple[npt.NDArray[Any], MakeReady]:
        """Return the array, and what makes a view of it right before it is read.

        Raises
        ------
        ValueError, DatasetError
            As `array`; also later, when a view is made ready.
        """
        self.need_open()
        if cursor is None:
            cursor = self.frames_written
        shape = self.file_shape(position, cursor)
        nbytes = math.prod(shape) * self.plan.dtype.itemsize
        data, make_ready = self._bytes(position, nbytes, cursor)
        start = self.plan.start_nbytes(position, cursor)
        array = np.ndarray(shape, self.plan.dtype, buffer=data, offset=start)
        return array.transpose(self.storage_axes), make_ready

    @property
    def storage_axes(self) -> tuple[int, ...]:
        """Order of the file's axes that users see."""
        return tuple(range(len(self.plan.file_dims)))

    def _bytes(
        self, position: int, nbytes: int, cursor: int
    ) -> tuple[memoryview, MakeReady]:
        """Return the bytes of a position's file, at least that many."""
        data = self._mapped.get(position)
        if data is None or len(data) < nbytes:
            path = self.path / array_name(position)
            need_nbytes(path, nbytes, PROGRESS)
            with faults_of(path):
                data = view_file(path)
                if len(data) < nbytes:  # it has become shorter since
                    raise ValueError(f"it has {len(data)} bytes, not {nbytes}")
            self.need_same()  # after it was opened
            self._mapped[position] = data
        return data, is_ready

    # ------------------------------------------------------------------------------ life

    def need_open(self) -> None:
        """Raise ValueError if it is released."""
        if self.is_released:
            raise ValueError(f"The dataset is closed: open_scratch({str(self.path)!r})")

    def release(self) -> None:
        """Release all files; arrays that were taken stay readable."""
        self.is_released = True
        self.frames.give_up()
        self._mapped.clear()


def is_ready(array: npt.NDArray[Any]) -> None:
    """Do nothing: arrays that are mapped are ready."""


def need_nbytes(path: Path, nbytes: int, required_by: str) -> None:
    """Check that a path is a regular file of that length, without opening it."""
    with faults_of(path):
        status = path.lstat()
        if not path.is_file() or path.is_symlink():
            raise ValueError("not a regular file")
        if status.st_size < nbytes:
            raise ValueError(
                f"it has {status.st_size} bytes, {nbytes} are expected by {required_by}"
            )


def shape_text(shape: tuple[int, ...]) -> str:
    """Return a shape for a message, cut if it is long: a file may hold any."""
    text = str(shape[:8])
    return text if len(text) < 80 else f"{text[:80]}..."
