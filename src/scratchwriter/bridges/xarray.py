"""Datasets as xarray arrays: named dimensions, and coordinates with their units."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray

from scratchwriter.bridges.dask import to_dask
from scratchwriter.dimensions import Dimension
from scratchwriter.reader import ScratchDataset


def to_xarray(dataset: ScratchDataset) -> xarray.DataArray:
    """Return all positions as one lazy array.

    Names of channels and positions are coordinates, as are the labels of other dimensions.
    Dimensions with a scale have coordinates in their unit, which is in `attrs["units"]`.

    Returns
    -------
    xarray.DataArray
        In acquisition order, on a dask array with a chunk per frame.
    """
    data, view, dims = to_dask(dataset), dataset.view(), dataset.settings.dimensions
    coords = {
        dim.name: (dim.name, _values(dim, view.coords[dim.name])[:n], _attrs(dim))
        for dim, n in zip(dims, data.shape, strict=True)
    }
    return xarray.DataArray(
        data, coords, view.dims, name=dataset.path.name, attrs=dataset.global_metadata
    )


def _values(dim: Dimension, labels: Any) -> Any:
    if dim.coords is not None:
        return list(labels)
    at = np.asarray(labels)
    if dim.scale is None:
        return at
    return at * dim.scale + (dim.translation or 0.0)


def _attrs(dim: Dimension) -> dict[str, str]:
    return {} if dim.unit is None else {"units": dim.unit}
