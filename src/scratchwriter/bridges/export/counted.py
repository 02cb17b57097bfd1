"""What an export has written, counted against the dataset before it appears."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scratchwriter.bridges.export.job import Run


def need_all(run: Run, made: Path) -> None:
    """Check that an export has each position once, as long as it is, and all frames.

    A chunk of an OME-Zarr whose pixels are zeros may be missing, because zeros are its fill
    value. What is within a file is not read: an OME-TIFF is counted by its pages, an
    OME-Zarr by its chunks, or shards.

    Parameters
    ----------
    run : Run
        The attempt that has ended.
    made : pathlib.Path
        The store, the file, or the folder of files that it made.

    Raises
    ------
    OSError
        If something is missing; nothing appears then.
    """
    job, stop = run.job, run.stop
    _need("frames", run.num_done, stop - job.first)
    steps = run.steps_until(stop)
    counts = {
        dim["name"]: steps if dim["count"] is None else dim["count"]
        for dim in job.settings["dimensions"]
        if dim["type"] != "position"
    }
    _need(
        "positions",
        len(set(job.groups) or _files(made)),
        len(run.dataset.settings.positions),
    )
    if job.is_tiff:
        _need_pages(made, counts)
        return
    for position, group in enumerate(job.groups):
        image = _metadata(made / group)["attributes"]["ome"]["multiscales"][0]
        names = [axis["name"] for axis in image["axes"]]
        array = made / group / image["datasets"][0]["path"]
        shape = _metadata(array)["shape"]
        _need(f"elements in {group}", dict(zip(names, shape, strict=True)), counts)
        has_pixels = _Pixels(run, position, names).are_in
        lost = 0
        for chunk in _missing_chunks(array):
            run.check()
            lost += has_pixels(chunk)
        _need(f"chunks in {group} too few", lost, 0)


def _missing_chunks(array: Path) -> Iterator[list[slice]]:
    """Yield where chunks (shards, if it has some) are missing: ranges of elements.

    Their names follow from the array's metadata:
    https://zarr-specs.readthedocs.io/en/latest/v3/core/index.html#chunk-key-encoding
    """
    document = _metadata(array)
    chunk = document["chunk_grid"]["configuration"]["chunk_shape"]
    grid = [math.ceil(n / size) for n, size in zip(document["shape"], chunk, strict=True)]
    encoding = document["chunk_key_encoding"].get("configuration", {})
    separator = encoding.get("separator", "/")
    found = {
        path.relative_to(array).as_posix()
        for path in array.rglob("*")
        if path.is_file() and path.stat().st_size
    }
    for index in np.ndindex(*grid):
        if separator.join(["c", *map(str, index)]) not in found:
            starts = [i * size for i, size in zip(index, chunk, strict=True)]
            yield [slice(n, n + size) for n, size in zip(starts, chunk, strict=True)]


class _Pixels:
    """The pixels of a position that are not zero, which have to be stored."""

    def __init__(self, run: Run, position: int, names: list[str]) -> None:
        dataset, settings = run.dataset, run.dataset.settings
        self._view, self._position, self._names = dataset.view(), position, names
        self._dims = [dim.name for dim in settings.dimensions]
        # Which frames came, so that nobody looks at the pixels of others.
        self._came: npt.NDArray[np.bool_] | None = None
        if dataset.counts_frames and not run.plan.keep_steps:
            self._came = dataset.written(position)
            self._came_dims = [dim.name for dim in settings.storage_index_dimensions]

    def are_in(self, chunk: list[slice]) -> bool:
        """Return whether a chunk has some."""
        at: dict[str, Any] = dict(zip(self._names, chunk, strict=True))
        if self._came is not None:
            came = self._came[tuple(at[name] for name in self._came_dims)]
            if not came.any():
                return False
        index = tuple(at.get(name, self._position) for name in self._dims)
        return bool(np.any(self._view[index]))


def _need_pages(made: Path, counts: dict[str, int]) -> None:
    import tifffile

    *index, height, width = counts.values()
    frames = math.prod(index)
    for path in _files(made):
        with tifffile.TiffFile(path) as tiff:
            _need(f"pages in {path.name}", len(tiff.pages), frames)
            _need(f"pixels in {path.name}", tiff.pages.first.shape, (height, width))


def _files(made: Path) -> list[Path]:
    if not made.is_dir():
        return [made]
    return [path for path in made.iterdir() if path.suffix.lower() in (".tif", ".tiff")]


def _metadata(group: Path) -> Any:
    return json.loads((group / "zarr.json").read_text())


def _need(what: str, found: object, expected: object) -> None:
    if found != expected:
        raise OSError(
            f"ome-writers has written {found} {what}, and {expected} were expected: the "
            "export does not appear. The dataset is unchanged; please report this, with "
            "its manifest.json."
        )
