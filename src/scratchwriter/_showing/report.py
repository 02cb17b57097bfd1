"""A self-contained page about a dataset. Needs matplotlib and Pillow."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from scratchwriter._showing.disk_texts import disk_rate_text, waited_text, waiting_text
from scratchwriter._showing.pictures import contact_sheet, data_uri
from scratchwriter.errors import size_text
from scratchwriter.reader import ScratchDataset
from scratchwriter.stats import AppendTimes

_MOST_RANGES = 100  # of skipped frames that are listed
_MOST_POINTS = 20_000  # of a plot

_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.4 system-ui, sans-serif; max-width: 60em; margin: 2em auto;
  padding: 0 12px }}
th, td {{ text-align: left; padding: 2px 12px 2px 0; vertical-align: top }}
svg {{ max-width: 100%; height: auto }}
img {{ max-width: 100%; image-rendering: pixelated; background: black }}
</style>
<h1>{title}</h1>
{sections}
</html>
"""


def make_report(dataset: ScratchDataset) -> str:
    """Return an HTML page about what was recorded, and how well."""
    sections = "\n".join(
        f'<section id="{name.split()[0].lower()}"><h2>{name}</h2>{body}</section>'
        for name, body in _sections(dataset)
        if body
    )
    return _PAGE.format(title=escape(dataset.path.name), sections=sections)


def _sections(dataset: ScratchDataset) -> Iterator[tuple[str, str]]:
    yield "Frames", _table(_facts(dataset))
    yield "Thumbnails", _thumbnails(dataset)
    yield "Intervals between frames", _intervals(dataset)
    yield "Time inside append", _append_times(dataset.append_times)
    yield "Disk", _table(_disk_facts(dataset))
    yield "Skipped", _skipped(dataset)
    yield "Settings", _table(dataset.settings.model_dump(mode="json"))
    yield "Metadata", _table(dataset.global_metadata)


def _facts(dataset: ScratchDataset) -> dict[str, object]:
    view = dataset.view()
    expected = dataset.settings.num_frames
    nbytes = sum(array[...].nbytes for array in dataset.arrays)
    return {
        "state": dataset.state,
        "frames": f"{dataset.frames_written}" + (f" of {expected}" if expected else ""),
        "shape": ", ".join(f"{d} {n}" for d, n in zip(view.dims, view.shape, strict=True)),
        "pixels": f"{view.dtype}, {size_text(nbytes)}",
        "skipped": sum(map(len, dataset.skipped)),
        "dropped": dataset.dropped,
        "written by": (
            f"{'scratchwriter' if dataset.counts_frames else 'ome-writers'} "
            f"{dataset.version}"
        ),
        "folder": dataset.path,
    }


def _disk_facts(dataset: ScratchDataset) -> dict[str, object]:
    disk = dataset.disk_stats
    if disk is None:
        return {"written": dataset.disk_io} if dataset.disk_io else {}
    facts: dict[str, object] = {
        "written": dataset.disk_io,
        "rate of the disk": disk_rate_text(disk.disk_nbytes_per_s),
        "waited for it": waited_text(disk),
        "may wait": size_text(disk.max_staged_nbytes),
    }
    if dataset.state == "recording":
        facts |= {
            "rate of the camera": disk_rate_text(disk.camera_nbytes_per_s),
            "waits now": waiting_text(disk),
        }
    return facts


def _table(facts: Mapping[str, object]) -> str:
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(str(fact))}</td></tr>"
        for name, fact in facts.items()
    )
    return f"<table>{rows}</table>" if rows else ""


def _thumbnails(dataset: ScratchDataset) -> str:
    view = dataset.view()
    if view.newest is None:
        return ""
    return f'<img alt="contact sheet" src="{data_uri(contact_sheet(view))}">'


def _intervals(dataset: ScratchDataset) -> str:
    times_ns = dataset.frame_times_ns()
    if len(times_ns) < 2:
        return ""
    intervals_ms = np.diff(times_ns) / 1e6
    figure = Figure(figsize=(9, 3), layout="constrained")
    over_time, counted = figure.subplots(1, 2, width_ratios=(2, 1))
    # Of very many intervals, the longest of each group is shown.
    step = -(-len(intervals_ms) // _MOST_POINTS)
    at = np.arange(0, len(intervals_ms), step)
    over_time.plot(at, np.maximum.reduceat(intervals_ms, at), linewidth=0.7)
    over_time.set(xlabel="frame", ylabel="ms since the previous frame")
    counted.hist(intervals_ms, bins=60, log=True)
    counted.set(xlabel="ms", ylabel="frames")
    p50, p99, most = np.percentile(intervals_ms, (50, 99, 100))
    text = f"median {p50:.3f} ms, p99 {p99:.3f} ms, longest {most:.3f} ms"
    return f"<p>{text}</p>" + _svg(figure)


def _append_times(times: AppendTimes | None) -> str:
    if times is None or times.timed_appends == 0:
        return ""
    figure = Figure(figsize=(9, 3), layout="constrained")
    axes = figure.subplots()
    came = np.flatnonzero(times.counts)
    axes.stairs(
        times.counts[came[0] : came[-1] + 1],
        np.concatenate([[0.0], times.stops_us])[came[0] : came[-1] + 2],
        fill=True,
    )
    axes.set(xlabel="µs", ylabel="appends", xscale="log", yscale="log")
    return (
        f"<p>p50 {times.p50_us:.1f} µs, p99 {times.p99_us:.1f} µs, p99.9 "
        f"{times.p999_us:.1f} µs, longest {times.max_us:.1f} µs, of {times.timed_appends} "
        "timed appends</p>" + _svg(figure)
    )


def _skipped(dataset: ScratchDataset) -> str:
    skipped = dataset.skipped
    if not skipped:
        return ""
    shown = ", ".join(f"{r[0]}-{r[-1]}" for r in skipped[:_MOST_RANGES])
    more = len(skipped) - _MOST_RANGES
    return f"<p>frames {shown}{f' and {more} more ranges' if more > 0 else ''}</p>"


def _svg(figure: Any) -> str:
    """Return a figure as part of a page, without a date, so that it is reproducible."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
