"""Datasets in the scratch format of ome-writers, which has no frame cursor."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scratchwriter._files.faults import faults_of
from scratchwriter._files.layout import FRAME_METADATA, MANIFEST, UNKNOWN, array_name
from scratchwriter._files.live import FixedProgress
from scratchwriter._files.metadata import FrameMetadata
from scratchwriter._files.source import (
    Description,
    RecordName,
    Source,
    State,
    need_nbytes,
    shape_text,
)
from scratchwriter.errors import DatasetError
from scratchwriter.settings import AcquisitionSettings

# Why something is not known.
NOT_COUNTED = "ome-writers wrote it, which does not record how many frames came"


class OmeWritersSource(Source):
    """A dataset of ome-writers: all frames that its files have space for count as written.

    Raises
    ------
    DatasetError
        If its files contradict each other.

    Warns
    -----
    UserWarning
        If it was not closed.
    """

    counts_frames = False

    def __init__(self, path: Path, description: Description) -> None:
        super().__init__(path, description)
        self._shapes = _shapes_in_files(path, description)
        self.is_guessed = self._shapes != self.manifest.position_shapes
        self.frames = FixedProgress(self._num_steps() * self.plan.step_frames)
        self.frame_metadata = FrameMetadata(
            path / FRAME_METADATA, lambda position, index: True
        )

    def _num_steps(self) -> int:
        if not self.plan.is_unbounded:
            return 1
        dims = [dim.name for dim in self.settings.array_storage_dimensions]
        axis = dims.index(self.settings.dimensions[0].name)
        return max(shape[axis] for shape in self._shapes)

    @property
    def state(self) -> State:
        return "closed"

    @property
    def recording_id(self) -> str:
        status = (self.path / array_name(0)).lstat()
        return f"{status.st_ino}-{status.st_mtime_ns}"

    @property
    def frames_written(self) -> int:
        return sum(math.prod(shape[:-2]) for shape in self._shapes)

    @property
    def frames_synced(self) -> int:
        return 0

    @property
    def may_lack_frames(self) -> bool:
        return False

    @property
    def has_staged(self) -> bool:
        return False

    @property
    def skipped(self) -> list[range]:
        return []

    @property
    def dropped(self) -> int:
        return 0

    def need_same(self) -> None:
        """Check nothing: these datasets have no id that could be compared."""

    def written(self, position: int) -> npt.NDArray[np.bool_]:
        raise DatasetError(f"{self.path / MANIFEST}: {NOT_COUNTED}")

    def records(self, cursor: int) -> None:
        return None

    def record_values(self, name: RecordName) -> tuple[npt.NDArray[np.int64], ...]:
        return tuple(np.full(shape[:-2], UNKNOWN, np.int64) for shape in self._shapes)

    def frame_times_ns(self) -> npt.NDArray[np.int64]:
        return np.empty(0, np.int64)

    def file_shape(self, position: int, cursor: int | None = None) -> tuple[int, ...]:
        return self._shapes[position]

    def file_nbytes(self, position: int) -> int:
        return math.prod(self._shapes[position]) * self.plan.dtype.itemsize

    @property
    def records_nbytes(self) -> int:
        return 0


def _shapes_in_files(path: Path, description: Description) -> list[tuple[int, ...]]:
    """Return the shapes of files that ome-writers wrote.

    The manifest has the length of an unbounded axis once the dataset is closed. Before
    that, it follows from the file's size, which is larger than it needs to be.
    """
    manifest, settings, _ = description
    dims = settings.array_storage_dimensions
    itemsize = np.dtype(settings.dtype).itemsize
    shapes = []
    for position, shape in enumerate(manifest.position_shapes):
        array_path = path / array_name(position)
        with faults_of(path / MANIFEST):
            if len(shape) != len(dims) or any(
                dim.count not in (None, n) for dim, n in zip(dims, shape, strict=True)
            ):
                raise ValueError(f"shape {shape_text(shape)} does not fit the dimensions")
            _need_in_place(settings, shape)
        need_nbytes(array_path, math.prod(shape) * itemsize, MANIFEST)
        unit_nbytes = math.prod(dim.count or 1 for dim in dims) * itemsize
        length, rest = divmod(array_path.lstat().st_size, unit_nbytes)
        counts = [length if dim.count is None else dim.count for dim in dims]
        # A closed dataset may have a longer file, too, but its manifest does not say 1.
        unbounded = [n for dim, n in zip(dims, shape, strict=True) if dim.count is None]
        if unbounded == [1] and rest == 0 and length > 1:
            warnings.warn(
                f"{array_path}: ome-writers did not close this dataset. Its length of "
                f"{length} is what the file has space for, not how many frames came.",
                stacklevel=5,
            )
            shape = tuple(counts)
            with faults_of(path / MANIFEST):
                _need_in_place(settings, shape)
        shapes.append(shape)
    return shapes


def _need_in_place(settings: AcquisitionSettings, shape: tuple[int, ...]) -> None:
    """Check that frames stayed at their places when the file grew."""
    for axis, dim in enumerate(settings.array_storage_dimensions):
        if dim.count is None and axis > 0 and shape[axis] > 1:
            raise ValueError(
                f"storage_order puts the growing axis {dim.name!r} inside, and ome-writers "
                "leaves frames where they were before the file grew: they are mixed up, "
                "and which is where is not recorded. numpy.memmap reads the bytes"
            )
