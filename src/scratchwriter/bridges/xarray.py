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
    Where the stage was is in `x_coord`, `y_coord` and `z_coord` along the positions.

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
    for dim, n in zip(dims, data.shape, strict=True):
        if dim.type == "position":
            coords |= _stage_coords(dim, n)
    return xarray.DataArray(
        data, coords, view.dims, name=dataset.path.name, attrs=dataset.global_metadata
    )


def _stage_coords(dim: Dimension, count: int) -> dict[str, Any]:
    """Return where the stage was at the first positions; NaN where it is not known."""
    found = {
        name: np.array([getattr(at, name) for at in dim.coords or ()][:count], float)
        for name in ("x_coord", "y_coord", "z_coord")
    }
    return {
        name: (dim.name, values)
        for name, values in found.items()
        if not np.isnan(values).all()
    }


def _values(dim: Dimension, labels: Any) -> Any:
    if dim.coords is not None:
        return list(labels)
    at = np.asarray(labels)
    if not dim.scale:
        return at
    return at * dim.scale + (dim.translation or 0.0)


def _attrs(dim: Dimension) -> dict[str, str]:
    is_known = dim.unit is not None and (dim.scale or dim.coords is not None)
    return {"units": str(dim.unit)} if is_known else {}
