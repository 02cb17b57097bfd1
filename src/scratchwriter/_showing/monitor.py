"""A page in the terminal: how a dataset is doing while it is recorded. Needs rich."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scratchwriter._showing.disk_texts import disk_rate_text, waited_text, waiting_text
from scratchwriter.errors import size_text
from scratchwriter.reader import ScratchDataset
from scratchwriter.stats import AppendTimes

_REFRESH_S = 0.5
_BAR = 40  # characters
_PER_DECADE = (3, 2, 1)  # bars of the histogram per factor of ten, as many as
_MOST_BARS = 11  # allow: all of the page fits in 24 lines


@dataclass(frozen=True, slots=True)
class Sample:
    """The progress of a dataset at one moment."""

    time_s: float
    frames: int


class Monitor:
    """The page about a dataset.

    Parameters
    ----------
    dataset : ScratchDataset
        Being recorded, or finished.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(
        self, dataset: ScratchDataset, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._dataset, self._clock = dataset, clock
        self._frame_nbytes = dataset.view().dtype.itemsize * int(
            np.prod([dim.count or 1 for dim in dataset.settings.frame_dimensions])
        )
        self._last = Sample(clock(), dataset.frames_written)

    def page(self) -> RenderableType:
        """Return the current page; the rate is that since the previous one."""
        dataset = self._dataset
        now = Sample(self._clock(), dataset.frames_written)
        elapsed_s = now.time_s - self._last.time_s
        rate = (now.frames - self._last.frames) / elapsed_s if elapsed_s > 0 else 0.0
        self._last = now
        free_nbytes = shutil.disk_usage(dataset.path).free
        nbytes_per_s = rate * self._frame_nbytes
        table = Table.grid(padding=(0, 2))
        for name, fact in {
            "dataset": str(dataset.path),
            "state": dataset.state,
            "frames": self._frames(now.frames),
            "rate": f"{rate:,.0f} frames/s, {size_text(round(nbytes_per_s))}/s",
            "skipped": f"{sum(map(len, dataset.skipped)):,}",
            "dropped": f"{dataset.dropped:,}",
            "disk left": size_text(free_nbytes) + _lasts(free_nbytes, nbytes_per_s),
        }.items():
            table.add_row(Text(name, style="bold"), Text(fact))
        self._add_disk(table)
        times = dataset.append_times
        if times is None or times.timed_appends == 0:
            return table
        return Group(table, Text(), histogram(times))

    def _add_disk(self, table: Table) -> None:
        """Add how the files are written; of those that are staged, how the disk does."""
        disk = self._dataset.disk_stats
        if disk is None:
            if self._dataset.disk_io:
                table.add_row(Text("written", style="bold"), Text(self._dataset.disk_io))
            return
        is_over = self._dataset.state != "recording"
        takes = disk_rate_text(disk.disk_nbytes_per_s)
        camera = disk_rate_text(disk.camera_nbytes_per_s)
        style = "bold yellow" if disk.waited_frames else ""
        rows = {
            "disk took": Text(f"{takes}, the camera gave {camera}"),
            "waited": Text(waited_text(disk), style=style),
        }
        if not is_over:
            rows = {
                "disk takes": Text(f"{takes}, the camera gives {camera}"),
                "waiting": Text(waiting_text(disk)),
                "waited": rows["waited"],
            }
        for name, fact in rows.items():
            table.add_row(Text(name, style="bold"), fact)

    def _frames(self, frames: int) -> str:
        expected = self._dataset.settings.num_frames
        return f"{frames:,}" + (f" of {expected:,}" if expected else "")


def histogram(times: AppendTimes) -> RenderableType:
    """Return bars of how long appends took, and their percentiles."""
    came = np.flatnonzero(times.counts)
    decades = np.log10(times.stops_us)
    for per_decade in _PER_DECADE:
        lowest, highest = decades[came[[0, -1]]] * per_decade
        edges = np.arange(np.floor(lowest), np.floor(highest) + 2)
        if len(edges) <= _MOST_BARS:
            break
    place = np.floor(decades * per_decade) - edges[0]
    counts = np.bincount(
        place.clip(0, len(edges) - 1).astype(int), times.counts, len(edges)
    )
    table = Table.grid(padding=(0, 2))
    for edge, count in zip(edges, counts, strict=True):
        # Logarithmic, so that the few slow appends are visible beside the many fast ones.
        length = round(_BAR * np.log1p(count) / np.log1p(counts.max()))
        table.add_row(
            Text(f"{10 ** (edge / per_decade):,.1f} µs", justify="right"),
            Text("█" * length, style="cyan"),
            Text(f"{count:,.0f}"),
        )
    # Below it, as beside the bars it would be too wide.
    percentiles = (
        f"  p50 {times.p50_us:,.1f}  p99 {times.p99_us:,.1f}  "
        f"p99.9 {times.p999_us:,.1f}  max {times.max_us:,.1f} µs"
    )
    return Group(table, Text.assemble(("append", "bold"), percentiles))


def _lasts(free_nbytes: int, nbytes_per_s: float) -> str:
    if nbytes_per_s <= 0:
        return ""
    return f", for {free_nbytes / nbytes_per_s / 60:,.0f} minutes at this rate"


def monitor(dataset: ScratchDataset, *, once: bool) -> None:
    """Show how a dataset is doing until it is closed, or once."""
    console, page = Console(), Monitor(dataset)
    if once or not console.is_terminal:
        time.sleep(_REFRESH_S)
        console.print(page.page())
        return
    with Live(page.page(), console=console, auto_refresh=False) as live:
        while dataset.state == "recording":
            time.sleep(_REFRESH_S)
            live.update(page.page(), refresh=True)
        live.update(page.page(), refresh=True)
