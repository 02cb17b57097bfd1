"""OME-Zarr in parts: ranges of frames that share no chunk.

Each part is written by a stream of its own, which begins at the part's first frame. So a
part can be written on any machine, and finished parts are kept when an export ends early.
In the end the chunks of all parts are moved into one store.

    .NAME.partial/lock, export.json      see `unfinished`
    .NAME.partial/run                    the name of the current attempt
    .NAME.partial/work-RUN/START-STOP.ID what it writes
    .NAME.partial/parts/START-STOP       parts that are complete
    .NAME.partial/begun, whole           the store that they are moved into

A worker of an abandoned attempt (its scheduler died, say) may continue for a while. It
finds another name in `run`, and its folder is gone, so what it writes is never used.
"""

from __future__ import annotations

import json
import math
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scratchwriter.bridges.export.geometry import place_images
from scratchwriter.bridges.export.job import (
    Job,
    Run,
    copy_frames,
    copy_global_metadata,
    open_again,
)
from scratchwriter.bridges.export.streams import open_stream, start_at
from scratchwriter.bridges.export.unfinished import clear
from scratchwriter.errors import ExportCancelledError
from scratchwriter.plan import make_plan
from scratchwriter.reader import ScratchDataset

if TYPE_CHECKING:
    from distributed import Client, Future

PART_NBYTES = 256 << 20  # at least, unless fewer frames are left
MOST_PARTS = 1000
_WAIT_S = 0.2
_one_at_a_time = threading.Lock()  # ome-writers configures zarr for a whole process


def write(run: Run, client: Client | None) -> Path:
    """Write all missing parts, as their frames come, and join them."""
    work = _Work(run.folder, uuid.uuid4().hex)
    work.begin()
    try:
        if client is None:
            _write_here(run, work)
        else:
            _write_there(run, work, client)
    finally:
        work.end()
    return _join(run)


class _Work:
    """Where one attempt writes its parts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._run, self._name = folder / "run", name
        self._folder, self.parts = folder / f"work-{name}", folder / "parts"

    def begin(self) -> None:
        """Become the current attempt; what others write is discarded from now on."""
        self._run.write_text(self._name)
        for others in self._run.parent.glob("work-*"):
            clear(others)
        self._folder.mkdir()
        self.parts.mkdir(exist_ok=True)

    def end(self) -> None:
        """Stop all workers of this attempt."""
        with suppress(OSError):
            self._run.unlink()
            clear(self._folder)

    def need(self) -> None:
        """Check that this is still the current attempt."""
        with suppress(FileNotFoundError):
            if self._run.read_text() == self._name:
                return
        raise ExportCancelledError("another attempt writes this export now, or it ended")

    def write(
        self, dataset: ScratchDataset, job: Job, start: int, stop: int
    ) -> Iterator[int]:
        """Write a part; yield how many of its frames are done each time."""
        self.need()
        name = f"{start:020}-{stop:020}"
        made = self._folder / f"{name}.{uuid.uuid4().hex}"
        made.mkdir()
        plan = make_plan(dataset.settings)
        # As if the dataset ended here: the part shares no chunk with later frames.
        steps = -(-(stop - job.first) // plan.step_frames)
        with open_stream(job.settings, made / job.name, steps=steps) as stream:
            start_at(stream, plan.indices(start - job.first))
            for count in copy_frames(dataset, job, stream, start, stop):
                self.need()
                yield count
        self.need()
        try:
            made.rename(self.parts / name)
        except OSError:
            if not (self.parts / name).exists():
                raise  # else another worker had the same part, and was faster


def _write_here(run: Run, work: _Work) -> None:
    for part in _missing_parts(run, work.parts):
        if part is not None:
            for count in work.write(run.dataset, run.job, *part):
                run.report(count)


def _write_there(run: Run, work: _Work, client: Client) -> None:
    """Make the workers of a cluster write: no pixel passes through this process."""
    tasks: dict[Future, int] = {}
    try:
        for part in _missing_parts(run, work.parts):
            if part is not None:
                task = client.submit(_write_part, work, run.job, *part, pure=False)
                tasks[task] = part[1] - part[0]
            _take_done(run, tasks)
        while tasks:
            _wait_for_one(tasks)
            _take_done(run, tasks)
    except BaseException:
        work.end()  # running tasks cannot be cancelled, but they check for this
        if tasks:
            client.cancel(list(tasks))
        raise


def _take_done(run: Run, tasks: dict[Future, int]) -> None:
    run.check()
    for task in [task for task in tasks if task.done()]:
        task.result()  # raises its error
        run.report(tasks.pop(task))


def _wait_for_one(tasks: dict[Future, int]) -> None:
    from distributed import wait

    with suppress(TimeoutError):
        wait(list(tasks), timeout=_WAIT_S, return_when="FIRST_COMPLETED")


def _write_part(work: _Work, job: Job, start: int, stop: int) -> None:
    """Write a part in a worker of a cluster, which has the same file system."""
    with _one_at_a_time, open_again(job) as dataset:
        for _ in work.write(dataset, job, start, stop):
            pass


# ------------------------------------------------------------------------ what is a part


def _missing_parts(run: Run, parts: Path) -> Iterator[tuple[int, int] | None]:
    """Yield the parts that are to be written, first frame and stop, once they can be.

    None means that nothing can be written for now.
    """
    done = dict(map(_range_of, parts.iterdir()))
    start = run.job.first
    while True:
        run.check()
        run.poll()
        if start in done:
            run.report(done[start] - start)
            start = done[start]
            continue
        stop = _part_stop(run, start)
        if run.is_over:
            stop = min(stop, run.stop)
        # Finished parts may end elsewhere: their length follows from the number of frames
        # at that time.
        stop = min([stop, *(other for other in done if other > start)])
        if start < stop <= run.stop:
            yield start, stop
            start = stop
        elif run.is_over:
            return
        else:
            run.wait()
            yield None


def _part_stop(run: Run, start: int) -> int:
    """Return where a part that begins at a frame ends: between two chunks."""
    job, counts, chunks = run.job, run.plan.counts, run.job.chunks
    total = (run.plan.num_frames or run.stop) - job.first
    wanted = max(-(-PART_NBYTES // run.plan.frame_nbytes), -(-total // MOST_PARTS))
    # The outermost dimension whose elements share chunks.
    axis = next((i for i, chunk in enumerate(chunks) if chunk > 1), len(chunks) - 1)
    if axis < 0:
        return start + 1
    within = math.prod(count or 1 for count in counts[axis + 1 :])
    count = counts[axis]

    def cut(frame: int, least: int) -> int:
        """Return the last place to cut up to a frame, or the first one after `least`."""
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


# --------------------------------------------------------------------------------- joined


def _join(run: Run) -> Path:
    """Make one store of all parts; resumes if it was begun before."""
    made, begun, name = run.folder / "whole", run.folder / "begun", run.job.name
    parts = sorted((run.folder / "parts").iterdir())
    if not made.exists():
        if begun.exists():
            clear(begun)
        begun.mkdir()
        steps = run.steps_until(run.stop)
        with open_stream(run.job.settings, begun / name, steps=steps) as stream:
            copy_global_metadata(run, stream)
        for path in (begun / name).rglob("zarr.json"):
            _join_metadata(path, [p / name / path.relative_to(begun / name) for p in parts])
        place_images(begun / name, run.job, run.dataset.settings)
        begun.rename(made)
    for part in parts:
        _move_chunks(part / name, made / name)
    return made


def _join_metadata(path: Path, of_parts: Sequence[Path]) -> None:
    """Put the frame metadata of all parts, in their order, into a group's zarr.json."""
    group = json.loads(path.read_text())
    frames: list[Any] = []
    for part in filter(Path.exists, of_parts):
        found = json.loads(part.read_text()).get("attributes", {}).get("ome_writers")
        if found and found.get("frame_metadata"):
            frames += found["frame_metadata"]
            group["attributes"]["ome_writers"] = found
    if frames:
        group["attributes"]["ome_writers"]["frame_metadata"] = frames
        path.write_text(json.dumps(group))


def _move_chunks(source: Path, goal: Path) -> None:
    """Move everything but the metadata of the arrays, whole folders if possible."""
    for path in list(source.iterdir()):
        to = goal / path.name
        if path.is_dir() and to.exists():
            _move_chunks(path, to)
        elif path.name != "zarr.json":
            path.rename(to)
