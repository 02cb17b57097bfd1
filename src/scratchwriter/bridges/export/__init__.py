"""Exports to OME-Zarr and OME-TIFF, written by ome-writers.

An export is made beside its target, in a folder `.NAME.partial`, and appears when it is
complete (`unfinished`). OME-Zarr is written in parts (`parts`), a TIFF in one go (`whole`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ome_writers
from ome_writers._stream import AVAILABLE_BACKENDS
from pydantic import ValidationError

from scratchwriter.bridges.export import parts, whole
from scratchwriter.bridges.export.counted import need_all
from scratchwriter.bridges.export.job import Flag, Job, Progress, Run, open_again
from scratchwriter.bridges.export.streams import open_stream
from scratchwriter.bridges.export.unfinished import (
    appear,
    clear,
    keep_work_of,
    locked,
    need_apart,
    need_free,
    restore,
)
from scratchwriter.bridges.ome_writers import need_supported
from scratchwriter.errors import DatasetError
from scratchwriter.reader import ScratchDataset

if TYPE_CHECKING:
    from distributed import Client

# These write only the chunks of the frames that they are given.
_SPARSE_BACKENDS = ("tensorstore", "zarr-python", "zarrs-python")
_FORMATS = {".zarr": "ome-zarr", ".tif": "ome-tiff", ".tiff": "ome-tiff"}


def export(
    dataset: ScratchDataset,
    out: Path,
    *,
    overwrite: bool = False,
    format: Any = None,  # noqa: A002
    progress: Progress | None = None,
    cancel: Flag | None = None,
    client: Client | None = None,
) -> Path:
    """Export a dataset; see `ScratchDataset.export`."""
    need_supported()
    theirs = _their_format(out, format)
    positions = len(dataset.settings.positions)
    goal, name = out, "data.ome.zarr"
    if theirs.name == "ome-tiff":  # it chooses its own name
        goal = Path(theirs.get_output_path(str(out), num_positions=positions))
        if goal.resolve() == dataset.path.resolve():  # a folder, without the suffix
            goal = out
        name = out.name
    need_apart(goal, dataset.path)
    goal.parent.mkdir(parents=True, exist_ok=True)
    with locked(goal.with_name(f".{goal.name}.partial")) as folder:
        restore(goal)
        need_free(goal, overwrite)
        job = _choose(dataset, name, theirs, folder)
        has_parts = job.settings["format"]["backend"] in _SPARSE_BACKENDS
        if client is not None and not has_parts:
            raise ValueError(
                f"Only one process can write {theirs.name} by "
                f"{job.settings['format']['backend']}: leave out client, or export to "
                ".ome.zarr by tensorstore or zarr-python"
            )
        run = Run(dataset, job, folder, progress or (lambda done, total: None), cancel)
        keep_work_of(job, folder)
        try:
            made = parts.write(run, client) if has_parts else whole.write(run)
        except DatasetError:
            with open_again(job):  # if it was replaced, that error says more
                raise
        need_all(
            run, made / job.name if (made / job.name).exists() else next(made.iterdir())
        )
        with open_again(job):
            appear(made, goal, overwrite)
        clear(folder)
    return goal


def _their_format(out: Path, asked: Any) -> Any:
    """Return the format of ome-writers that is asked for, or that follows from the name."""
    asked = _FORMATS.get(out.suffix.lower()) if asked is None else asked
    if asked is None:
        raise ValueError(
            f"{out.name}: its name must end in .ome.zarr, .ome.tiff or .npy, or give format"
        )
    made = ome_writers.AcquisitionSettings(root_path=str(out), format=asked).format
    if made.name == "scratch":
        raise ValueError("The dataset is in the scratch format already: copy its folder.")
    return made


def _backends(theirs: Any) -> Iterator[str]:
    """Yield the backends that can write a format, first those that can resume."""
    able = [name for name, b in AVAILABLE_BACKENDS.items() if b.format == theirs.name]
    if theirs.backend != "auto":
        able = [name for name in able if name == theirs.backend]
    if not able:
        raise ImportError(
            f"ome-writers lacks the library that it writes {theirs.name} with: "
            "pip install 'scratchwriter[export]'"
        )
    yield from sorted(able, key=lambda name: name not in _SPARSE_BACKENDS)


def _choose(dataset: ScratchDataset, name: str, theirs: Any, folder: Path) -> Job:
    """Return the job for the first backend that can do it, before the first frame."""
    refused: list[Exception] = []
    for backend in _backends(theirs):
        job = Job.of(dataset, name, theirs.model_copy(update={"backend": backend}))
        trial = folder / "trial"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with open_stream(job.settings, trial / name, steps=1):
                    return job
        except (ValueError, NotImplementedError, TypeError) as error:
            refused.append(error)
        finally:
            clear(trial)
    raise ValueError(
        f"ome-writers cannot write this as {theirs.name}: {_reason(refused[0])}. Export to "
        "another format, or each position as .npy"
    ) from refused[0]


def _reason(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return str(error).rstrip(".")
    return "; ".join(found["msg"].removeprefix("Value error, ") for found in error.errors())
