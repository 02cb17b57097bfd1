"""Datasets in napari: drop the folder on its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scratchwriter._files.folders import is_dataset
from scratchwriter.dimensions import Channel, Dimension
from scratchwriter.reader import open_scratch
from scratchwriter.views import StreamView

LayerData = tuple[Any, dict[str, Any], str]
_PERCENTILES = 0.1, 99.9  # of a frame: what its contrast limits leave out


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """Return the function that reads these folders, if all of them are datasets."""
    paths = [path] if isinstance(path, str) else path
    return read if all(is_dataset(Path(p)) for p in paths) else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Open datasets, a layer for each channel; nothing is read before it is shown."""
    paths = [path] if isinstance(path, str) else path
    return [layer for p in paths for layer in _layers(Path(p))]


class ChannelView:
    """One channel of a view, as napari takes an array: read where it is indexed."""

    def __init__(self, view: StreamView, axis: int, channel: int) -> None:
        self._view, self._axis, self._channel = view, axis, channel
        self.shape = view.shape[:axis] + view.shape[axis + 1 :]
        self.dtype, self.ndim = view.dtype, len(self.shape)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        if not all(map(_is_basic, keys)) or sum(k is ... for k in keys) > 1:
            # An index array changes the order of axes, depending on where others are.
            array: npt.NDArray[Any] = self[...][key]
            return array
        if (at := next((i for i, k in enumerate(keys) if k is ...), None)) is not None:
            left = self.ndim - len(keys) + 1
            keys = (*keys[:at], *[slice(None)] * left, *keys[at + 1 :])
        keys += (slice(None),) * (self.ndim - len(keys))
        array = self._view[(*keys[: self._axis], self._channel, *keys[self._axis :])]
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self[...], dtype, copy=copy)


def _is_basic(key: Any) -> bool:
    is_number = isinstance(key, int | np.integer) and not isinstance(key, bool)
    return is_number or isinstance(key, slice) or key is ...


def _layers(path: Path) -> list[LayerData]:
    dataset = open_scratch(path)
    view = dataset.view(dynamic_shape=False)
    dims = dataset.settings.dimensions
    options = {"name": path.name, **_geometry(dims), "metadata": {"path": str(path)}}
    axis = next((i for i, dim in enumerate(dims) if dim.type == "channel"), None)
    if axis is None or dims[axis].coords is None:
        return [(view, options | _contrast(view), "image")]
    others = [dim for dim in dims if dim is not dims[axis]]
    layers: list[LayerData] = []
    for number, channel in enumerate(dims[axis].coords or ()):
        if number == view.shape[axis]:
            break  # this one, and those after it, have not come yet
        data = ChannelView(view, axis, number)
        own = {"name": str(channel), "blending": "additive", **_geometry(others)}
        if isinstance(channel, Channel):
            own["name"] = channel.name
            own["colormap"] = channel.color.as_hex("long")[:7] if channel.color else "gray"
        layers.append((data, options | own | _contrast(data), "image"))
    return layers


def _geometry(dims: Sequence[Dimension]) -> dict[str, Any]:
    scale, translate, units = zip(*map(_axis, dims), strict=True)
    names = tuple(dim.name for dim in dims)
    return {"axis_labels": names, "scale": scale, "translate": translate, "units": units}


def _axis(dim: Dimension) -> tuple[float, float, str]:
    """Return scale, place and unit; without a scale it counts elements."""
    if not dim.scale or dim.coords is not None:
        return 1.0, 0.0, "pixel"
    unit = dim.unit if dim.type in ("time", "space") else None
    return dim.scale, dim.translation or 0.0, unit or "pixel"


def _contrast(data: Any) -> dict[str, Any]:
    """Return contrast limits from the frame in the middle, if it has come."""
    if 0 in data.shape:
        return {}
    frame = np.asarray(data[tuple(n // 2 for n in data.shape[:-2])])
    if frame.dtype.kind not in "iuf":
        return {}
    frame = frame[np.isfinite(frame)]
    if not frame.size:
        return {}
    low, high = (float(at) for at in np.percentile(frame, _PERCENTILES))
    return {"contrast_limits": (low, high)} if low < high else {}
