"""Exports that one stream writes from beginning to end: OME-TIFF, acquire-zarr."""

from __future__ import annotations

from pathlib import Path

from scratchwriter.bridges.export.geometry import place_images
from scratchwriter.bridges.export.job import Run, copy_frames, copy_global_metadata
from scratchwriter.bridges.export.streams import (
    correct_files,
    open_stream,
    wait_for_backlog,
    wait_until_written,
)
from scratchwriter.bridges.export.unfinished import clear

_BACKLOG_NBYTES = 64 << 20  # given to ome-writers and not written yet


def write(run: Run) -> Path:
    """Write everything, following a dataset that is being recorded."""
    made = run.folder / "whole"
    clear(made)
    made.mkdir()
    try:
        _write(run, made)
    except BaseException:
        clear(made)
        raise
    return made


def _write(run: Run, made: Path) -> None:
    job, start, handed = run.job, run.job.first, 0
    files = len(run.dataset.settings.positions)
    most_frames = _BACKLOG_NBYTES // run.plan.frame_nbytes // files + 1
    steps = run.steps_until(run.stop) if run.is_over else None
    with open_stream(job.settings, made / job.name, steps=steps) as stream:
        while True:
            for count in copy_frames(run.dataset, job, stream, start, run.stop):
                handed += count
                if handed >= most_frames:
                    wait_for_backlog(stream, most_frames, run.check)
                    handed = 0
                run.report(count)
            start = run.stop
            if run.is_over:
                break
            run.wait()
            run.poll()
        steps = run.steps_until(start)
        frames = steps * run.plan.step_frames
        if rest := frames - (start - job.first):
            stream.skip(frames=rest)
        copy_global_metadata(run, stream)
        per_file = frames // files
        wait_until_written(stream, per_file, run.check)
    if job.is_tiff:
        length = None if run.plan.num_frames else steps
        correct_files(stream, length, per_file, run.dataset.settings)
    else:
        place_images(made / job.name, job, run.dataset.settings)
