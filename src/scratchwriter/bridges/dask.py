"""Datasets as dask arrays: a chunk per frame, read where it is computed."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import dask.array
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from scratchwriter.reader import ScratchDataset, need_recording, open_scratch


def to_dask(dataset: ScratchDataset) -> dask.array.Array:
    """Return all positions as one array; see `ScratchDataset.to_dask`."""
    view = dataset.view()
    frames = _Frames(str(dataset.path), dataset.recording_id, view.shape, view.dtype)
    return dask.array.from_array(
        frames,
        chunks=(1,) * (view.ndim - 2) + view.shape[-2:],
        name=f"scratch-{tokenize(frames, dataset.frames_written)}",
        asarray=False,
        fancy=False,  # a list of indices would make each chunk copy everything
        inline_array=True,
        meta=np.empty((0,) * view.ndim, view.dtype),
    )


class _Frames:
    """The source of dask's chunks. In another process it opens the dataset there."""

    def __init__(
        self, path: str, recording_id: str, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self.path, self.recording_id = path, recording_id
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)

    @cached_property
    def _view(self) -> Any:
        # The dataset may have grown since, but earlier frames stay in their places.
        dataset = open_scratch(self.path)
        need_recording(dataset, self.recording_id)
        return dataset.view()

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        chunk: npt.NDArray[Any] = self._view[key]
        return chunk

    def __reduce__(self) -> tuple[Any, ...]:
        return _Frames, (self.path, self.recording_id, self.shape, self.dtype)
