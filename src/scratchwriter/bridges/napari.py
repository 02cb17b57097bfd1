"""Datasets in napari: drop the folder on its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scratchwriter._files.folders import is_dataset
from scratchwriter.reader import open_scratch
from scratchwriter.views import StreamView

LayerData = tuple[StreamView, dict[str, Any], str]


def get_reader(path: str | Sequence[str]) -> Callable[[Any], list[LayerData]] | None:
    """Return the function that reads these folders, if all of them are datasets."""
    paths = [path] if isinstance(path, str) else path
    return read if all(is_dataset(Path(p)) for p in paths) else None


def read(path: str | Sequence[str]) -> list[LayerData]:
    """Open datasets, one layer each; nothing is read before it is shown."""
    paths = [path] if isinstance(path, str) else path
    return [_layer(Path(p)) for p in paths]


def _layer(path: Path) -> LayerData:
    view = open_scratch(path).view(dynamic_shape=False)
    scales = view.scales
    options = {
        "name": path.name,
        "axis_labels": view.dims,
        "scale": [scales.get(dim, 1.0) for dim in view.dims],
        "metadata": {"path": str(path)},
    }
    return view, options, "image"
