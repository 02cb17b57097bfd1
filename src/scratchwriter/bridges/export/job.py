"""What is exported, one attempt at it, and the copying of its frames."""

from __future__ import annotations

import json
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scratchwriter._files.metadata import where
from scratchwriter.bridges.export.names import group_path, need_names, unique_names
from scratchwriter.dimensions import Position
from scratchwriter.errors import ExportCancelledError
from scratchwriter.plan import make_plan, skip_of
from scratchwriter.reader import ScratchDataset, need_recording, open_scratch

if TYPE_CHECKING:
    import ome_writers

_WAIT_S = 0.2
_LINES = 1000  # of metadata, read at a time
_COMPRESSIONS = {
    "ome-zarr": ("blosc-zstd", "blosc-lz4", "zstd", "none", None),
    "ome-tiff": ("lzw", "none", None),
}

Progress = Callable[[int, int | None], object]


class Flag(Protocol):
    """A request to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Return whether to stop."""


@dataclass(frozen=True)
class Job:
    """What is exported: the same for every part, and for an attempt that resumes it.

    Attributes
    ----------
    source : str
        Folder of the dataset.
    recording_id : str
        Id of the recording, because another may take its place.
    name : str
        File name of the output while it is made.
    settings : dict
        Those of `ome_writers.AcquisitionSettings` as JSON, without the path.
    groups : list of str
        Of an OME-Zarr: the path of each position's group in it.
    first : int
        Number of the first frame that is kept.
    """

    source: str
    recording_id: str
    name: str
    settings: dict[str, Any]
    groups: list[str]
    first: int

    @classmethod
    def of(cls, dataset: ScratchDataset, name: str, theirs: Any) -> Job:
        """Describe the export of a dataset.

        Raises
        ------
        ValueError
            If the name of a position would lead out of an OME-Zarr.
        """
        ours = dataset.settings
        settings = ours.model_dump(
            mode="json", include={"dimensions", "dtype", "plate", "compression"}
        )
        # OME-NGFF has no other order, and ome-writers no list of names.
        is_tiff = theirs.name == "ome-tiff" and ours.storage_order == "acquisition"
        settings["storage_order"] = "acquisition" if is_tiff else "ome"
        settings["format"] = theirs.model_dump(mode="json")
        _give_scales(settings, positive=theirs.name == "ome-tiff")
        groups: list[str] = []
        if theirs.name == "ome-zarr":
            settings["format"]["suffix"] = ".ome.zarr"
            need_names(ours.positions, on_plate=settings["plate"] is not None)
            groups = _give_unique_names(settings, ours.positions)
        where_xml_is = settings["format"].get("multi_file_metadata", "redundant")
        if where_xml_is != "redundant" and len(ours.positions) > 1:
            warnings.warn(
                "Frame metadata is kept only with multi_file_metadata='redundant', not "
                f"with {where_xml_is!r}.",
                stacklevel=5,
            )
        if settings["compression"] not in _COMPRESSIONS[theirs.name]:
            warnings.warn(
                f"{theirs.name} has no compression {settings['compression']!r}: it is "
                "written with the default of ome-writers.",
                stacklevel=5,
            )
            settings["compression"] = None
        for dim in settings["dimensions"]:
            if dim["count"] is not None and dim["chunk_size"] is not None:
                dim["chunk_size"] = min(dim["chunk_size"], dim["count"])
            # ome-writers writes names with contrast limits, which only integers have.
            if dim["type"] == "channel" and np.dtype(ours.dtype).kind not in "iu":
                dim["coords"] = None
        identity = str(dataset.path), dataset.recording_id
        return cls(*identity, name, settings, groups, dataset.first_frame)

    @property
    def chunks(self) -> list[int]:
        """How many elements along each dimension but a frame's are written together."""
        return [
            (dim["chunk_size"] or 1) * (dim["shard_size_chunks"] or 1)
            if dim["type"] != "position"
            else 1
            for dim in self.settings["dimensions"][:-2]
        ]

    @property
    def is_tiff(self) -> bool:
        """Whether its metadata becomes OME-XML."""
        return bool(self.settings["format"]["name"] == "ome-tiff")


def _give_scales(settings: dict[str, Any], *, positive: bool) -> None:
    """Leave out what is no number or scale, and the unit of an axis without a scale."""
    for dim in settings["dimensions"]:
        if dim["translation"] is not None and not math.isfinite(dim["translation"]):
            dim["translation"] = None
        if dim["scale"] is not None:
            scale = dim["scale"] if math.isfinite(dim["scale"]) else 0
            dim["scale"] = (abs(scale) if positive else scale) or None
        if dim["scale"] is None and dim["type"] in ("time", "space"):
            dim["unit"] = None


def _give_unique_names(
    settings: dict[str, Any], positions: Sequence[Position]
) -> list[str]:
    """Rename positions whose folders meet in an OME-Zarr; return the path of each."""
    on_plate = settings["plate"] is not None
    if len(positions) == 1 and not on_plate:
        return ["."]
    names = unique_names(positions, on_plate=on_plate)
    dim = next(dim for dim in settings["dimensions"] if dim["type"] == "position")
    for at, name in zip(dim["coords"], names, strict=True):
        at["name"] = name
    renamed = [name for at, name in zip(positions, names, strict=True) if name != at.name]
    if renamed:
        more = ", ..." if len(renamed) > 5 else ""
        warnings.warn(
            f"In an OME-Zarr a position is a folder, and some names cannot be those of "
            f"folders beside each other: {len(renamed)} have another name there "
            f"({', '.join(renamed[:5])}{more}).",
            stacklevel=6,
        )
    return [
        group_path(at, name, on_plate=on_plate)
        for at, name in zip(positions, names, strict=True)
    ]


class Run:
    """One attempt at a job."""

    def __init__(
        self,
        dataset: ScratchDataset,
        job: Job,
        folder: Path,
        progress: Progress,
        cancel: Flag | None,
    ) -> None:
        self.dataset, self.job, self.folder = dataset, job, folder
        self._progress, self._cancel, self._done = progress, cancel, 0
        self.plan = make_plan(dataset.settings)
        self.poll()

    @property
    def num_done(self) -> int:
        """Number of frames that are written, skipped ones included."""
        return self._done

    def poll(self) -> None:
        """Find out how many frames have come, and whether more can come.

        Raises
        ------
        ValueError
            If there will be no element along the first dimension, which no format has.
        """
        self.is_over = self.dataset.state != "recording"  # first: more may come after
        self.stop = self.dataset.frames_written
        total = self.stop - self.job.first
        self._total = total if self.is_over else self.plan.num_frames
        if self.is_over and total == 0 and self.plan.num_frames is None:
            raise ValueError(f"{self.job.source} has no frames, and an export needs one")

    def steps_until(self, stop: int) -> int:
        """Return how many steps of the first dimension the frames before `stop` reach."""
        return max(-(-(stop - self.job.first) // self.plan.step_frames), 1)

    def wait(self) -> None:
        """Sleep for a short time, or until more frames have come."""
        self.dataset.wait(frames=self.stop + 1, timeout_s=_WAIT_S)
        self.check()

    def report(self, frames: int) -> None:
        """Report that so many more frames are done; stop if requested."""
        self._done += frames
        self._progress(self._done, self._total)
        self.check()

    def check(self) -> None:
        """Stop if requested."""
        if self._cancel is not None and self._cancel.is_set():
            raise ExportCancelledError("cancelled; the same call resumes or restarts it")


@contextmanager
def open_again(job: Job) -> Iterator[ScratchDataset]:
    """Open the dataset of a job again, without repeating its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dataset = open_scratch(job.source)
    with dataset:
        need_recording(dataset, job.recording_id)
        yield dataset


# ------------------------------------------------------------------------------- frames


def copy_frames(
    dataset: ScratchDataset, job: Job, stream: ome_writers.OMEStream, start: int, stop: int
) -> Iterator[int]:
    """Copy frames with their metadata; yield how many each time."""
    view, skips = dataset.view(), dataset.skipped
    lines = _lines(dataset, start)
    line = next(lines, None)
    records = dataset.frame_records(start, stop)
    first = job.first
    began_ns = dataset.frame_records(first, first + 1).get(first, {}).get("timestamp_ns")
    number = start
    while number < stop:
        count = 1
        if (skip := skip_of(number, skips)) is not None:
            count = min(skip.stop, stop) - number
            stream.skip(frames=count)
        else:
            record = records.get(number, {})
            metadata: dict[str, Any] = dict(record)
            if began_ns is not None and "timestamp_ns" in record:
                metadata["delta_t"] = (record["timestamp_ns"] - began_ns) / 1e9
            if line is not None and line[0] == number:
                metadata |= line[1]
                line = next(lines, None)
            if job.is_tiff:
                metadata = dict(map(_as_xml_has_it, metadata.items()))
            else:
                metadata = _as_json_has_it(metadata)
            stream.append(view.frame(number), frame_metadata=metadata or None)
        number += count
        yield count


def _lines(dataset: ScratchDataset, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield numbers and metadata of the frames from `start` on that have metadata."""
    lines = dataset.frame_metadata

    def number(i: int) -> int:
        return dataset.frame_number(*where(lines[i]))

    count = len(lines)
    for i in range(bisect_left(range(count), start, key=number), count, _LINES):
        for line in lines[i : i + _LINES]:
            metadata = {k: v for k, v in line.items() if k not in ("_pos", "_idx")}
            yield dataset.frame_number(*where(line)), metadata


# Metadata that ome-writers turns into attributes of a plane, which are numbers.
_PLANE_KEYS = ("delta_t", "exposure_time", "position_x", "position_y", "position_z")


def _as_xml_has_it(item: tuple[str, Any]) -> tuple[str, Any]:
    """Return metadata as OME-XML has it: numbers, and text, which may be JSON."""
    key, value = item
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_number = is_number and math.isfinite(value)
    if key in _PLANE_KEYS and not is_number:
        key = f"{key}_as_given"
    return key, value if is_number or isinstance(value, str) else json.dumps(value)


def _as_json_has_it(value: Any) -> Any:
    """Return metadata without numbers that JSON lacks, which become text as in Zarr.

    https://zarr-specs.readthedocs.io/en/latest/v3/data-types/index.html#permitted-fill-values
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {name: _as_json_has_it(item) for name, item in value.items()}
    return [_as_json_has_it(item) for item in value] if isinstance(value, list) else value


def copy_global_metadata(run: Run, stream: ome_writers.OMEStream) -> None:
    """Copy the metadata of the acquisition, and coordinates that the format lacks."""
    for namespace, metadata in run.dataset.global_metadata.items():
        stream.set_global_metadata(namespace, _as_json_has_it(metadata))
    dims = run.dataset.settings.dimensions
    kept = {dim["name"]: dim["coords"] for dim in run.job.settings["dimensions"]}
    lost = {
        dim.name: dim.model_dump(mode="json")["coords"]
        for dim in dims
        # Of others than channels and positions, ome-writers writes none.
        if dim.coords and (not kept[dim.name] or dim.type not in ("channel", "position"))
    }
    if lost:
        stream.set_global_metadata("scratchwriter", {"coords": _as_json_has_it(lost)})
