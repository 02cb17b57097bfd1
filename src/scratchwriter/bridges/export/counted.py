"""What an export has written, counted against the dataset before it appears."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from scratchwriter.bridges.export.job import Run


def need_all(run: Run, made: Path) -> None:
    """Check that an export has each position once, as long as it is, and all frames.

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
    for group in job.groups:
        image = _metadata(made / group)["attributes"]["ome"]["multiscales"][0]
        names = [axis["name"] for axis in image["axes"]]
        shape = _metadata(made / group / image["datasets"][0]["path"])["shape"]
        _need(f"elements in {group}", dict(zip(names, shape, strict=True)), counts)


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
