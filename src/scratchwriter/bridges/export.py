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
from scratchwriter.errors import ExportCancelledError
from scratchwriter.manifest import array_name
from scratchwriter.metadata import where
from scratchwriter.plan import skip_of
from scratchwriter.reader import ScratchDataset, open_scratch

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
) -> list[Path]:
    """Export a dataset; see `ScratchDataset.export`."""
    out = out.expanduser().absolute()
    theirs = _their_format(out, format)
    has_parts = theirs.backend in _SPARSE_BACKENDS
    if client is not None and not has_parts:
        raise ValueError(
            f"{theirs.name} by {theirs.backend} is written by one process: leave out "
            "client, or export to .ome.zarr by tensorstore or zarr-python"
        )
    if dataset.settings.format.keep_last is not None and dataset.state == "recording":
        raise ValueError(
            f"{dataset.path}: with keep_last frames are overwritten while they are "
            "recorded. Export it when it is closed."
        )
    _need_free(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    job = Job.of(dataset, out.name, theirs)
    with _unfinished(out.with_name(f".{out.name}.partial"), job) as folder:
        run = _Run(dataset, job, folder, progress or (lambda done, total: None), cancel)
        if has_parts:
            _write_parts(run, client)
            made = _join(run)
        else:
            made = _write_whole(run)
        paths = _appear(made, out, overwrite)
        shutil.rmtree(folder)
    return paths


# ------------------------------------------------------------------------ what is to do


@dataclass(frozen=True)
class Job:
    """What is exported: the same for every part, and for who goes on with it later.

    Attributes
    ----------
    source : str
        Folder of the dataset.
    inode : int
        Of its first array: another recording at the same place has another one.
    name : str
        File name of the output.
    settings : dict
        Of `ome_writers.AcquisitionSettings`, as JSON has it, but for the path.
    first : int
        Number of the first frame; those before are not kept any more.
    """

    source: str
    inode: int
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
        inode = (dataset.path / array_name(0)).lstat().st_ino
        return cls(str(dataset.path), inode, name, settings, dataset.first_frame)

    @property
    def counts(self) -> list[int | None]:
        """Length of each dimension but a frame's."""
        return [dim["count"] for dim in self.settings["dimensions"][:-2]]

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


@dataclass(frozen=True)
class _Run:
    """One try of a job."""

    dataset: ScratchDataset
    job: Job
    folder: Path
    progress: Progress
    cancel: Flag | None

    @property
    def is_live(self) -> bool:
        return self.dataset.state == "recording"

    @property
    def steps(self) -> int:
        """How many steps an unbounded dimension has."""
        step_frames = math.prod(count or 1 for count in self.job.counts)
        return max(-(-(self.dataset.frames_written - self.job.first) // step_frames), 1)

    def tell(self, stop: int) -> None:
        """Tell that all frames before are done; stop if that is asked for."""
        total = self.dataset.settings.num_frames if self.is_live else None
        if not self.is_live:
            total = self.dataset.frames_written - self.job.first
        self.progress(stop - self.job.first, total)
        self.check()

    def check(self) -> None:
        if self.cancel is not None and self.cancel.is_set():
            raise ExportCancelledError(
                f"{self.job.name}: cancelled. The same export goes on where it was."
            )


def _their_format(out: Path, asked: Any) -> Any:
    """Return the format of ome-writers, with the backend that it would choose."""
    if asked is None and (asked := _FORMATS.get(out.suffix.lower())) is None:
        raise ValueError(
            f"{out.name}: in what format? Let it end in .ome.zarr or .ome.tiff"
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
def _unfinished(folder: Path, job: Job) -> Iterator[Path]:
    """Have the folder of an unfinished export to oneself.

    What was done of the same job is kept, and what is of another is removed.
    """
    folder.mkdir(exist_ok=True)
    fd, is_free = lock_folder(folder)
    try:
        if is_free is False:
            raise BlockingIOError(f"{folder}: another process makes this export now.")
        told, path = json.dumps(asdict(job), sort_keys=True), folder / "export.json"
        if not (path.is_file() and path.read_text() == told):
            for old in folder.iterdir():
                _remove(old)
            path.write_text(told)
        yield folder
    finally:
        unlock(fd)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _need_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite=True.")


def _appear(made: Path, out: Path, overwrite: bool) -> list[Path]:
    """Move what is complete to where it belongs, each file or folder at once."""
    pairs = [(path, out.with_name(path.name)) for path in sorted(made.iterdir())]
    for _, goal in pairs:
        _need_free(goal, overwrite)
    for path, goal in pairs:
        if goal.exists():
            replaced = made.with_name(f"replaced-{uuid.uuid4().hex}")
            goal.rename(replaced)  # quick, where to remove it is not
        path.rename(goal)
    return [goal for _, goal in pairs]


# ------------------------------------------------------------------------------- frames


def _copy(
    dataset: ScratchDataset, stream: ome_writers.OMEStream, start: int, stop: int
) -> Iterator[int]:
    """Hand frames on with their metadata; yield the number behind each."""
    view, skips = dataset.view(), dataset.skipped
    lines = _lines(dataset, start)
    line = next(lines, None)
    records = dataset.frame_records(start, stop)
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
    made, dataset, start = run.folder / "whole", run.dataset, run.job.first
    if made.exists():
        shutil.rmtree(made)
    made.mkdir()
    try:
        with run.job.stream(made, None if run.is_live else run.steps) as stream:
            for name, metadata in dataset.global_metadata.items():
                stream.set_global_metadata(name, metadata)
            while True:
                is_over = not run.is_live  # first: what comes after is no more
                stop = dataset.frames_written
                for done in _copy(dataset, stream, start, stop):
                    run.tell(done)
                start = stop
                if is_over:
                    break
                dataset.wait(frames=stop + 1, timeout_s=_WAIT_S)
                run.check()
            whole = run.steps * math.prod(count or 1 for count in run.job.counts)
            if start - run.job.first < whole:
                stream.skip(frames=whole - (start - run.job.first))
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    return made


# -------------------------------------------------------------------------------- parts


def _write_parts(run: _Run, client: Client | None) -> None:
    """Write all parts that are not there yet, as their frames come."""
    parts = run.folder / "parts"
    parts.mkdir(exist_ok=True)
    for unfinished in parts.glob("*.tmp"):
        shutil.rmtree(unfinished)
    stop_file = run.folder / _STOP
    stop_file.unlink(missing_ok=True)
    futures: list[Future] = []
    try:
        for start, stop in _missing_parts(run, parts):
            if client is None:
                for number in write_part(run.job, parts, start, stop):
                    run.tell(number)
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
        is_over = not run.is_live  # first: what comes after is no more
        available = run.dataset.frames_written
        if start in done:
            start = done[start]
            run.tell(start)
            continue
        stop = _part_stop(run.job, start, run.dataset.settings.num_frames or available)
        if is_over:
            stop = min(stop, available)
        if start < stop <= available:
            yield start, stop
            start = stop
        elif is_over:
            return
        else:
            run.dataset.wait(frames=available + 1, timeout_s=_WAIT_S)


def _part_stop(job: Job, start: int, total: int) -> int:
    """Return where a part ends that begins at a frame: no chunk reaches across."""
    height, width = (dim["count"] for dim in job.settings["dimensions"][-2:])
    frame_nbytes = height * width * np.dtype(job.settings["dtype"]).itemsize
    wanted = max(-(-_PART_NBYTES // frame_nbytes), -(-(total - job.first) // _MOST_PARTS))
    counts, chunks = job.counts, job.chunks
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


def write_part(job: Job, parts: Path, start: int, stop: int) -> Iterator[int]:
    """Write a part by a stream of its own; yield the number behind each frame.

    It is there, by its name, when it is complete.
    """
    part = parts / f"{start:020}-{stop:020}"
    made = parts / f"{part.name}-{uuid.uuid4().hex}.tmp"
    with open_quietly(job.source) as dataset:
        steps = None
        if dataset.state != "recording":
            steps = _Run(dataset, job, parts, lambda done, total: None, None).steps
        made.mkdir()
        with job.stream(made, steps) as stream:
            if start > job.first:
                stream.skip(frames=start - job.first)
            yield from _copy(dataset, stream, start, stop)
    if part.exists():
        shutil.rmtree(made)  # somebody else was faster
    else:
        made.rename(part)


def _write_part_there(job: Job, parts: Path, start: int, stop: int) -> int:
    """Write a part in a worker of a cluster, which has the same file system."""
    for _ in write_part(job, parts, start, stop):
        if (parts.parent / _STOP).exists():
            raise ExportCancelledError(f"{job.name}: cancelled.")
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
def open_quietly(path: str) -> Iterator[ScratchDataset]:
    """Open a dataset whose faults somebody has been warned of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dataset = open_scratch(path)
    with dataset:
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
            for namespace, metadata in run.dataset.global_metadata.items():
                stream.set_global_metadata(namespace, metadata)
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
