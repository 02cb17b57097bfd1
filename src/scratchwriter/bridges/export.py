"""The way out: OME-Zarr and OME-TIFF, written by ome-writers.

An export is made beside its goal, in a folder `.NAME.partial`, and appears when it is
complete. OME-Zarr is written in parts, runs of frames that have no chunk in common: each
by a stream of ome-writers of its own that skips what other parts have. So a part can be
written anywhere, and what was done stays done when an export ends early. In the end the
chunks of all parts are moved into one store. A TIFF is written in one go.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import ome_writers
from ome_writers._stream import AVAILABLE_BACKENDS

from scratchwriter._region.system import lock_folder, unlock
from scratchwriter.errors import DatasetError, ExportCancelledError
from scratchwriter.metadata import where
from scratchwriter.plan import make_plan, skip_of
from scratchwriter.reader import ScratchDataset, need_recording, open_scratch

if TYPE_CHECKING:
    from distributed import Client, Future

_PART_NBYTES = 256 << 20  # at least, if there is more
_MOST_PARTS = 1000
_WAIT_S = 0.2
_END_S = 10.0  # for a worker to end
_STOP = "stop"  # this file tells them to
_LINES = 1000  # read together
# These write the chunks of frames that they are given, and no others.
_SPARSE_BACKENDS = ("tensorstore", "zarr-python", "zarrs-python")
_COMPRESSIONS = {
    "ome-zarr": ("blosc-zstd", "blosc-lz4", "zstd", "none", None),
    "ome-tiff": ("lzw", "none", None),
}
_FORMATS = {".zarr": "ome-zarr", ".tif": "ome-tiff", ".tiff": "ome-tiff"}

Progress = Callable[[int, int | None], object]


class Flag(Protocol):
    """What tells whether to stop, as a `threading.Event` does."""

    def is_set(self) -> bool:
        """Tell it."""


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
    theirs = _their_format(out, format)
    has_parts = theirs.backend in _SPARSE_BACKENDS
    if client is not None and not has_parts:
        raise ValueError(
            f"{theirs.name} by {theirs.backend} is written by one process: leave out "
            "client, or export to .ome.zarr by tensorstore or zarr-python"
        )
    positions = len(dataset.settings.positions)
    goal, name = out, "data.ome.zarr"
    if theirs.name == "ome-tiff":  # which tells its own name
        goal = Path(theirs.get_output_path(str(out), num_positions=positions))
        name = out.name
    _need_apart(goal, dataset.path)
    goal.parent.mkdir(parents=True, exist_ok=True)
    with _locked(goal.with_name(f".{goal.name}.partial")) as folder:
        _restore(goal)
        _need_free(goal, overwrite)
        job = Job.of(dataset, name, theirs)
        _try_out(job, folder)
        _keep_what_is_of(job, folder)
        run = _Run(dataset, job, folder, progress or (lambda done, total: None), cancel)
        try:
            if has_parts:
                _write_parts(run, client)
                made = _join(run)
            else:
                made = _write_whole(run)
        except DatasetError:
            with open_again(job):  # that it was replaced says more
                raise
        with open_again(job):
            _appear(made, goal, overwrite)
        shutil.rmtree(folder)
    return goal


# ------------------------------------------------------------------------ what is to do


@dataclass(frozen=True)
class Job:
    """What is exported: the same for every part, and for who goes on with it later.

    Attributes
    ----------
    source : str
        Folder of the dataset.
    recording_id : str
        Of which recording; another may take its place.
    name : str
        File name of the output while it is made.
    settings : dict
        Of `ome_writers.AcquisitionSettings`, as JSON has it, but for the path.
    first : int
        Number of the first frame; those before are not kept any more.
    """

    source: str
    recording_id: str
    name: str
    settings: dict[str, Any]
    first: int

    @classmethod
    def of(cls, dataset: ScratchDataset, name: str, theirs: Any) -> Job:
        """Describe the export of a dataset."""
        ours = dataset.settings
        settings = ours.model_dump(
            mode="json", include={"dimensions", "dtype", "plate", "compression"}
        )
        order = ours.storage_order
        # Other orders are none of OME's.
        settings["storage_order"] = order if isinstance(order, str) else "ome"
        settings["format"] = theirs.model_dump(mode="json")
        if theirs.name == "ome-zarr":
            settings["format"]["suffix"] = ".ome.zarr"
        if settings["compression"] not in _COMPRESSIONS[theirs.name]:
            warnings.warn(
                f"{theirs.name} has no compression {settings['compression']!r}: it is "
                "written with the one of ome-writers' choice.",
                stacklevel=4,
            )
            settings["compression"] = None
        for dim in settings["dimensions"]:
            if dim["count"] is not None and dim["chunk_size"] is not None:
                dim["chunk_size"] = min(dim["chunk_size"], dim["count"])
            # Limits of contrast go with names, which ome-writers has for integers only.
            if dim["type"] == "channel" and np.dtype(ours.dtype).kind not in "iu":
                dim["coords"] = None
        identity = str(dataset.path), dataset.recording_id
        return cls(*identity, name, settings, dataset.first_frame)

    @property
    def chunks(self) -> list[int]:
        """How many elements of each of them are written together."""
        return [
            (dim["chunk_size"] or 1) * (dim["shard_size_chunks"] or 1)
            if dim["type"] != "position"
            else 1
            for dim in self.settings["dimensions"][:-2]
        ]

    @contextmanager
    def stream(self, folder: Path, steps: int | None) -> Iterator[ome_writers.OMEStream]:
        """Make a stream of ome-writers for all of it, in a folder, and close it.

        Parameters
        ----------
        folder : pathlib.Path
            Where; what is there is replaced.
        steps : int or None
            Length of the unbounded dimension, if there is one and it is known.
        """
        settings: dict[str, Any] = json.loads(json.dumps(self.settings))
        first = settings["dimensions"][0]
        if first["count"] is None:
            first["count"] = steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # the dataset's own were told
            stream = ome_writers.create_stream(
                ome_writers.AcquisitionSettings(
                    root_path=str(folder / self.name), overwrite=True, **settings
                )
            )
        try:
            yield stream
        finally:
            stream.close()
            # 0.3.2 does not wait for chunks that it begins to write while it closes: those
            # that tensorstore is to write, and in which frames are missing.
            for future in getattr(stream._backend, "_futures", ()):
                future.result()


class _Run:
    """One try of a job."""

    def __init__(
        self,
        dataset: ScratchDataset,
        job: Job,
        folder: Path,
        progress: Progress,
        cancel: Flag | None,
    ) -> None:
        self.dataset, self.job, self.folder = dataset, job, folder
        self._progress, self._cancel = progress, cancel
        self.plan = make_plan(dataset.settings)
        self.look()

    def look(self) -> None:
        """Find out how many frames there are, and whether that is all."""
        self.is_over = self.dataset.state != "recording"  # first: more may come after
        self.stop = self.dataset.frames_written
        total = self.stop - self.job.first
        self._total = total if self.is_over else self.plan.num_frames

    @property
    def steps(self) -> int | None:
        """How many steps an unbounded dimension has, if that is known."""
        if not self.is_over:
            return None
        return max(-(-(self.stop - self.job.first) // self.plan.step_frames), 1)

    def wait(self) -> None:
        """Sleep until more frames have come, but not for long."""
        self.dataset.wait(frames=self.stop + 1, timeout_s=_WAIT_S)
        self.check()

    def tell(self, stop: int) -> None:
        """Tell that all frames before are done; stop if that is asked for."""
        self._progress(stop - self.job.first, self._total)
        self.check()

    def check(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise ExportCancelledError("cancelled: it goes on, or begins anew")


def _their_format(out: Path, asked: Any) -> Any:
    """Return the format of ome-writers, with the backend that it would choose."""
    asked = _FORMATS.get(out.suffix.lower()) if asked is None else asked
    if asked is None:
        raise ValueError(
            f"{out.name}: in what format? Let it end in .ome.zarr, .ome.tiff or .npy"
        )
    made = ome_writers.AcquisitionSettings(root_path=str(out), format=asked).format
    if made.name == "scratch":
        raise ValueError("It is a scratch dataset already: copy its folder.")
    able = [name for name, b in AVAILABLE_BACKENDS.items() if b.format == made.name]
    if made.backend == "auto" and able:
        made = made.model_copy(update={"backend": able[0]})
    if made.backend not in able:
        raise ImportError(
            f"ome-writers lacks what it writes {made.name} with: "
            "pip install 'scratchwriter[export]'"
        )
    return made


# --------------------------------------------------------------------- what is unfinished


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Have the folder of an unfinished export to oneself."""
    folder.mkdir(exist_ok=True)
    fd, is_free = lock_folder(folder)
    try:
        if is_free is False:
            raise BlockingIOError(f"{folder}: another process makes this export now.")
        yield folder
    finally:
        unlock(fd)
        with suppress(OSError):
            folder.rmdir()  # if nothing was begun


def _try_out(job: Job, folder: Path) -> None:
    """Find out whether ome-writers can write it, before the first frame."""
    trial = folder / "trial"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with job.stream(trial, 1):
                pass
    except (ValueError, NotImplementedError, TypeError) as error:
        raise ValueError(f"ome-writers cannot write this: {error}") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _keep_what_is_of(job: Job, folder: Path) -> None:
    """Keep what was done of the same job; remove what is of another."""
    told, path = json.dumps(asdict(job), sort_keys=True), folder / "export.json"
    whole = folder / "whole"
    has_appeared = whole.is_dir() and not any(whole.iterdir())  # killed just after
    if path.is_file() and path.read_text() == told and not has_appeared:
        return
    for old in folder.iterdir():
        _remove(old)
    path.write_text(told)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _need_apart(goal: Path, source: Path) -> None:
    """Check that the dataset is not in the way."""
    goal, source = goal.resolve(), source.resolve()
    if goal == source or goal in source.parents or source in goal.parents:
        raise ValueError(
            f"{goal} is, has or is in the dataset {source}: choose another place."
        )


def _need_free(path: Path, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite=True.")


_REPLACED = ".{name}.replaced"


def _restore(goal: Path) -> None:
    """Put back what was to be replaced by somebody who was killed on the way."""
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(replaced):
        if os.path.lexists(goal):
            _remove(replaced)
        else:
            replaced.rename(goal)


def _appear(made: Path, goal: Path, overwrite: bool) -> None:
    """Move what is complete to where it belongs, at once."""
    (whole,) = made.iterdir()
    _need_free(goal, overwrite)
    replaced = goal.with_name(_REPLACED.format(name=goal.name))
    if os.path.lexists(goal):
        goal.rename(replaced)  # quick, where to remove it is not
    try:
        whole.rename(goal)
    except BaseException:
        _restore(goal)
        raise
    _restore(goal)


# ------------------------------------------------------------------------------- frames


def _copy(
    dataset: ScratchDataset, stream: ome_writers.OMEStream, start: int, stop: int
) -> Iterator[int]:
    """Hand frames on with their metadata; yield the number behind each."""
    view, skips = dataset.view(), dataset.skipped
    lines = _lines(dataset, start)
    line = next(lines, None)
    records = dataset.frame_records(start, stop)
    first = dataset.first_frame
    began_ns = dataset.frame_records(first, first + 1).get(first, {}).get("timestamp_ns")
    number = start
    while number < stop:
        if (skip := skip_of(number, skips)) is not None:
            end = min(skip.stop, stop)
            stream.skip(frames=end - number)
            number = end
        else:
            metadata: dict[str, Any] = {}
            if line is not None and line[0] == number:
                metadata = line[1]
                line = next(lines, None)
            metadata |= records.get(number, {})
            if began_ns is not None and "timestamp_ns" in metadata:
                since_ns = metadata["timestamp_ns"] - began_ns
                metadata.setdefault("delta_t", since_ns / 1e9)
            stream.append(view.frame(number), frame_metadata=metadata or None)
            number += 1
        yield number


def _lines(dataset: ScratchDataset, start: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the metadata of frames from a number on, each with its frame's number."""
    lines = dataset.frame_metadata

    def number(i: int) -> int:
        return dataset.frame_number(*where(lines[i]))

    count = len(lines)
    for i in range(bisect_left(range(count), start, key=number), count, _LINES):
        for line in lines[i : i + _LINES]:
            metadata = {k: v for k, v in line.items() if k not in ("_pos", "_idx")}
            yield dataset.frame_number(*where(line)), metadata


def _write_whole(run: _Run) -> Path:
    """Write everything by one stream, from the beginning."""
    made, start = run.folder / "whole", run.job.first
    if made.exists():
        shutil.rmtree(made)
    made.mkdir()
    try:
        with run.job.stream(made, run.steps) as stream:
            _hand_on_global_metadata(run, stream)
            while True:
                for done in _copy(run.dataset, stream, start, run.stop):
                    run.tell(done)
                start = run.stop
                if run.is_over:
                    break
                run.wait()
                run.look()
            rest = (run.steps or 1) * run.plan.step_frames - (start - run.job.first)
            if rest:
                stream.skip(frames=rest)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made


def _hand_on_global_metadata(run: _Run, stream: ome_writers.OMEStream) -> None:
    for namespace, metadata in run.dataset.global_metadata.items():
        stream.set_global_metadata(namespace, metadata)
    dims = run.dataset.settings.dimensions
    told = {dim["name"]: dim["coords"] for dim in run.job.settings["dimensions"]}
    lost = {
        dim.name: dim.model_dump(mode="json")["coords"]
        for dim in dims
        if dim.coords and not told[dim.name]
    }
    if lost:
        stream.set_global_metadata("scratchwriter", {"coords": lost})


# -------------------------------------------------------------------------------- parts


def _write_parts(run: _Run, client: Client | None) -> None:
    """Write all parts that are not there yet, as their frames come."""
    parts, stop_file = run.folder / "parts", run.folder / _STOP
    parts.mkdir(exist_ok=True)
    for unfinished in parts.glob("*.tmp"):
        shutil.rmtree(unfinished)
    stop_file.unlink(missing_ok=True)
    futures: list[Future] = []
    try:
        for start, stop in _missing_parts(run, parts):
            if client is None:
                for done in write_part(run.dataset, run.job, parts, start, stop):
                    run.tell(done)
            else:
                args = run.job, parts, start, stop
                futures.append(client.submit(_write_part_there, *args, pure=False))
        for future in futures:
            run.tell(_result(future, run))
    except BaseException:
        # A task that runs cannot be cancelled: it is told to end, and waited for, so that
        # nobody writes here when the same export goes on.
        stop_file.touch()
        for future in futures:
            with suppress(Exception):
                future.result(timeout=_END_S)
        raise


def _missing_parts(run: _Run, parts: Path) -> Iterator[tuple[int, int]]:
    """Yield what is to be written, from frame to frame, as soon as it can be."""
    done = dict(map(_range_of, parts.iterdir()))
    start = run.job.first
    while True:
        run.check()
        run.look()
        if start in done:
            start = done[start]
            run.tell(start)
            continue
        stop = _part_stop(run, start)
        if run.is_over:
            stop = min(stop, run.stop)
        if start < stop <= run.stop:
            yield start, stop
            start = stop
        elif run.is_over:
            return
        else:
            run.wait()


def _part_stop(run: _Run, start: int) -> int:
    """Return where a part ends that begins at a frame: no chunk reaches across."""
    job, counts, chunks = run.job, run.plan.counts, run.job.chunks
    total = (run.plan.num_frames or run.stop) - job.first
    wanted = max(-(-_PART_NBYTES // run.plan.frame_nbytes), -(-total // _MOST_PARTS))
    # The outermost dimension whose elements share chunks.
    axis = next((i for i, chunk in enumerate(chunks) if chunk > 1), len(chunks) - 1)
    if axis < 0:
        return start + 1
    within = math.prod(count or 1 for count in counts[axis + 1 :])
    count = counts[axis]

    def cut(frame: int, least: int) -> int:
        """Return the last place to cut before a frame, but not before another."""
        whole = 0 if count is None else frame // (count * within) * count * within
        piece = chunks[axis] * within
        at = whole + (frame - whole) // piece * piece
        if at > least:
            return at
        end = math.inf if count is None else whole + count * within
        return int(min(at + piece, end))

    first = start - job.first
    return job.first + cut(first + wanted, first)


def _range_of(part: Path) -> tuple[int, int]:
    start, stop = part.name.split("-")
    return int(start), int(stop)


def write_part(
    dataset: ScratchDataset, job: Job, parts: Path, start: int, stop: int
) -> Iterator[int]:
    """Write a part by a stream of its own; yield the number behind each frame.

    It is there, by its name, when it is complete.
    """
    part = parts / f"{start:020}-{stop:020}"
    made = parts / f"{part.name}-{uuid.uuid4().hex}.tmp"
    made.mkdir()
    with job.stream(made, None) as stream:
        # `skip` takes time and memory for each frame.
        router: Any = stream._iterator
        router._dim_indices[:] = make_plan(dataset.settings).indices(start - job.first)
        yield from _copy(dataset, stream, start, stop)
    if part.exists():
        shutil.rmtree(made)  # somebody else was faster
    else:
        made.rename(part)


def _write_part_there(job: Job, parts: Path, start: int, stop: int) -> int:
    """Write a part in a worker of a cluster, which has the same file system."""
    with open_again(job) as dataset:
        for _ in write_part(dataset, job, parts, start, stop):
            if (parts.parent / _STOP).exists():
                raise ExportCancelledError("cancelled")
    return stop


def _result(future: Future, run: _Run) -> int:
    while True:
        run.check()
        try:
            stop: int = future.result(timeout=_WAIT_S)
        except TimeoutError:
            if future.status == "error":
                raise
        else:
            return stop


@contextmanager
def open_again(job: Job) -> Iterator[ScratchDataset]:
    """Open the dataset of a job, whose faults somebody has been warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dataset = open_scratch(job.source)
    with dataset:
        need_recording(dataset, job.recording_id)
        yield dataset


def _join(run: _Run) -> Path:
    """Make one store of all parts; begun before, it goes on."""
    made, begun, name = run.folder / "whole", run.folder / "begun", run.job.name
    parts = sorted((run.folder / "parts").iterdir())
    if not made.exists():
        if begun.exists():
            shutil.rmtree(begun)
        begun.mkdir()
        with run.job.stream(begun, run.steps) as stream:
            _hand_on_global_metadata(run, stream)
        for path in (begun / name).rglob("zarr.json"):
            _join_metadata(path, [p / name / path.relative_to(begun / name) for p in parts])
        begun.rename(made)
    for part in parts:
        _move_chunks(part / name, made / name)
    return made


def _join_metadata(path: Path, of_parts: Sequence[Path]) -> None:
    """Put the frame metadata of all parts, in their order, into a group's zarr.json."""
    group = json.loads(path.read_text())
    frames: list[Any] = []
    for part in filter(Path.exists, of_parts):
        told = json.loads(part.read_text()).get("attributes", {}).get("ome_writers")
        if told and told.get("frame_metadata"):
            frames += told["frame_metadata"]
            group["attributes"]["ome_writers"] = told
    if frames:
        group["attributes"]["ome_writers"]["frame_metadata"] = frames
        path.write_text(json.dumps(group))


def _move_chunks(source: Path, goal: Path) -> None:
    """Move everything but what is told of the arrays, whole folders where it can be."""
    for path in list(source.iterdir()):
        to = goal / path.name
        if path.is_dir() and to.exists():
            _move_chunks(path, to)
        elif path.name != "zarr.json":
            path.rename(to)
