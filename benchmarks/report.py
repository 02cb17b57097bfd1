"""What the runs come to: figures, tables, JSON, a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from session import Camera, Run, Variant
from writers import DIRECT, LIMIT, PAGE_CACHE

BIN_S = 0.1  # of pictures over time
PERCENTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "p99.99": 99.99, "max": 100.0}
COLOURS = {
    "scratchwriter": "#0072b2",
    PAGE_CACHE: "#56b4e9",
    DIRECT: "#332288",
    "ome-writers": "#d55e00",
    "numpy": "#999999",
    "numpy.memmap": "#999999",
    "acquire-zarr": "#cc79a7",
    "tensorstore": "#e69f00",
    "h5py": "#8c564b",
    LIMIT: "#009e73",
}


@dataclass(frozen=True)
class Latency:
    """The latencies of the repetitions of one writer, in microseconds."""

    repetitions: list[npt.NDArray[np.float64]]
    period_us: float

    def percentile(self, name: str) -> float:
        """Median over the repetitions."""
        found = [exact_percentile(r, PERCENTILES[name]) for r in self.repetitions]
        return float(np.median(found))

    @property
    def worst(self) -> float:
        """Maximum over all repetitions."""
        return float(max(r.max() for r in self.repetitions))

    @property
    def late(self) -> int:
        """How many, in all repetitions, took longer than the period of the camera."""
        if not self.period_us:
            return 0
        return sum(int((r > self.period_us).sum()) for r in self.repetitions)

    def as_dict(self) -> dict[str, Any]:
        return {
            **{name: self.percentile(name) for name in PERCENTILES},
            "worst": self.worst,
            "late": self.late,
            "repetitions": [
                {name: exact_percentile(r, q) for name, q in PERCENTILES.items()}
                for r in self.repetitions
            ],
        }


def exact_percentile(values: npt.NDArray[np.float64], q: float) -> float:
    """Return the least value that at least `q` percent of the values do not exceed."""
    return float(np.percentile(values, q, method="inverted_cdf"))


@dataclass(frozen=True)
class Figures:
    """What one writer did."""

    inside: Latency
    since_due: Latency | None  # without a rate nothing is ever due
    frames_per_s: float
    gb_per_s: float
    gb_per_s_until_closed: float
    kernel_percent: float  # of one core: the writer's process
    machine_kernel_percent: float  # everything, the kernel's own threads too
    page_cache_gb: float  # by which it grew at the most
    facts: list[dict[str, Any]]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> Figures:
        camera = runs[0].camera
        period_us = camera.period_ns / 1e3
        since_due = [run.since_due_us for run in runs] if period_us else []
        return cls(
            Latency([run.inside_us for run in runs], period_us),
            Latency(since_due, period_us) if since_due else None,
            float(np.median([run.frames_per_s for run in runs])),
            float(np.median([run.gb_per_s for run in runs])),
            float(np.median([run.gb_per_s_until_closed for run in runs])),
            float(np.median([run.kernel_percent for run in runs])),
            float(np.median([run.facts["machine_kernel_percent"] for run in runs])),
            float(np.median([run.facts["page_cache_nbytes"] for run in runs])) / 1e9,
            [run.facts for run in runs],
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "inside_append_us": self.inside.as_dict(),
            "since_due_us": self.since_due and self.since_due.as_dict(),
            "frames_per_s": self.frames_per_s,
            "gb_per_s": self.gb_per_s,
            "gb_per_s_until_closed": self.gb_per_s_until_closed,
            "kernel_percent": self.kernel_percent,
            "machine_kernel_percent": self.machine_kernel_percent,
            "page_cache_gb": self.page_cache_gb,
            "runs": self.facts,
        }


@dataclass(frozen=True)
class Measurement:
    """Writers side by side at one camera."""

    camera: Camera
    figures: Mapping[str, Figures]
    variant: Variant | None

    @property
    def repetitions(self) -> int:
        return len(next(iter(self.figures.values())).facts)

    def as_dict(self) -> dict[str, Any]:
        return {
            "camera": asdict(self.camera),
            "limit": self.variant and str(self.variant),
            "repetitions": self.repetitions,
            "writers": {name: f.as_dict() for name, f in self.figures.items()},
        }

    def __str__(self) -> str:
        lines = [f"### {self.camera}; medians of {self.repetitions} repetitions", ""]
        times = {"inside append": {n: f.inside for n, f in self.figures.items()}}
        due = {n: f.since_due for n, f in self.figures.items() if f.since_due}
        if due:
            times["from due to done"] = due
        for title, latencies in times.items():
            lines += [*self._table(title, latencies), ""]
        if self.variant is not None:
            lines += [f"{LIMIT} is: {self.variant}.", ""]
        lines += [f"Disturbances: {self.disturbances()}.", ""]
        return "\n".join(lines)

    def disturbances(self) -> str:
        """Tell what was not the writers' doing: how quiet the machine was."""
        return "; ".join(
            f"{name} preempted {sum(f['preempted'] for f in figures.facts)} times, "
            f"{sum(f['stolen_s'] for f in figures.facts):.2f} s stolen by the host"
            for name, figures in self.figures.items()
        )

    def _table(self, title: str, latencies: Mapping[str, Latency]) -> list[str]:
        heads = [f"{title}, µs", *PERCENTILES, "worst max", "late", "frames/s", "GB/s"]
        rows = []
        for name, latency in latencies.items():
            figures = self.figures[name]
            late = f"{latency.late:,}" if latency.period_us else "-"
            rows.append(
                [
                    name,
                    *(number(latency.percentile(p)) for p in PERCENTILES),
                    number(latency.worst),
                    late,
                    f"{figures.frames_per_s:,.0f}",
                    f"{figures.gb_per_s:.2f}",
                ]
            )
        return markdown_table(heads, rows)


def number(value: float) -> str:
    """Write a number with three digits that count."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table whose columns are as wide as their cells."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (c.rjust(w) for c, w in zip(cells, widths, strict=True))
        return "| " + " | ".join([first.strip().ljust(widths[0]), *rest]) + " |"

    dashes = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return [line(heads), line(dashes), *map(line, rows)]


def describe(machine: Mapping[str, Any], versions: Mapping[str, str]) -> str:
    """Say where the numbers come from, in a line of each."""
    return "\n".join(
        ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items()) + "  "
        for facts in (machine, versions)
    )


def insert(text: str, path: Path, mark: str) -> None:
    """Replace what is between two marks (HTML comments) in a Markdown file."""
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    before, found, rest = path.read_text().partition(begin)
    _, found_end, after = rest.partition(end)
    if not found or not found_end:
        raise ValueError(f"{path} has no lines {begin!r} and {end!r}")
    path.write_text(f"{before}{begin}\n\n{text.strip()}\n\n{end}{after}")


# ------------------------------------------------------------------------ pictures


def draw(measurements: Sequence[Measurement], path: Path) -> None:
    """Draw latency against percentile, in the manner of HdrHistogram."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = min(len(measurements), 2)
    rows = -(-len(measurements) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(7 * columns, 4.5 * rows),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    for axis in axes.flat[len(measurements) :]:
        axis.remove()
    for measurement, axis in zip(measurements, axes.flat, strict=False):
        _draw_one(measurement, axis)
    axes[0, 0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw_one(measurement: Measurement, axis: Any) -> None:
    most = 0
    for name, figures in measurement.figures.items():
        colour = COLOURS.get(name)
        main = figures.since_due or figures.inside
        axis.plot(*_curve(main), color=colour, label=name, linewidth=1.8)
        if figures.since_due:
            axis.plot(*_curve(figures.inside), color=colour, linewidth=1, linestyle=":")
        most = max(most, sum(map(len, main.repetitions)))
    period_us = measurement.camera.period_ns / 1e3
    if period_us:
        axis.axhline(period_us, color="black", linewidth=0.8, linestyle="--")
        axis.annotate(
            "frame period", (1.1, period_us), xytext=(0, 3), textcoords="offset points"
        )
    axis.set(
        xscale="log",
        yscale="log",
        xlim=(1, most),
        xlabel="percentile",
        ylabel="latency, µs" + (" (dotted: inside append)" if period_us else ""),
        title=str(measurement.camera),
    )
    ticks = [10**n for n in range(len(str(most)))]
    # One frame in so many took longer: 1 in 100 is the percentile 99.
    axis.set_xticks(ticks, [f"{100 - 100 / t:.{max(len(str(t)) - 3, 0)}f}" for t in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _curve(latency: Latency) -> tuple[Any, Any]:
    """Return 1/(1 - rank) and latency, of all repetitions together."""
    values = np.sort(np.concatenate(latency.repetitions))
    rest = len(values) / np.arange(len(values), 0, -1)
    # More points than can be seen are left out, and never one of the tail.
    shown = np.unique(np.searchsorted(rest, np.geomspace(1, len(values), 2000)))
    shown = shown[shown < len(values)]
    return rest[shown], values[shown]


def draw_over_time(runs: Mapping[str, Sequence[Run]], path: Path) -> None:
    """Draw what became of latency while it went on, a panel for each writer.

    Of several repetitions the one whose p99.9 is in the middle is shown.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    columns = min(len(runs), 2)
    rows = -(-len(runs) // columns)
    # Letters that can be read in a picture of 400 pixels, too.
    with plt.rc_context({"font.size": 15, "axes.titlesize": 15}):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(8, 1.6 + 2.1 * rows),
            squeeze=False,
            sharex=True,
            sharey=True,
            layout="constrained",
        )
        for axis in axes.flat[len(runs) :]:
            axis.remove()
        for (writer, found), axis in zip(runs.items(), axes.flat, strict=False):
            _draw_one_over_time(writer, typical(found), axis)
        for axis in axes.flat[len(runs) - columns : len(runs)]:  # the last of each column
            axis.tick_params(labelbottom=True)
        axes[0, 0].set(yscale="log", xlim=(0, None))
        axes[0, 0].yaxis.set_major_locator(mpl.ticker.LogLocator(numticks=7))
        axes[0, 0].yaxis.set_major_formatter(lambda us, _: time_text(us))
        axes[0, 0].minorticks_off()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(
            handles,
            labels,
            title=str(next(iter(runs.values()))[0].camera),
            loc="outside upper center",
            ncols=3,
            frameon=False,
        )
        figure.supxlabel("since the first frame was due, s", fontsize=15)
        figure.supylabel("time inside append", fontsize=15)
        figure.savefig(path, dpi=160)
        plt.close(figure)


def _draw_one_over_time(writer: str, run: Run, axis: Any) -> None:
    seconds, medians_us, most_us = over_time(run)
    colour = COLOURS.get(writer, "#999999")
    axis.fill_between(seconds, medians_us, most_us, color=colour, alpha=0.3, linewidth=0)
    axis.plot(seconds, most_us, color=colour, linewidth=1, label=f"max per {BIN_S} s")
    axis.plot(seconds, medians_us, color=colour, linewidth=2.5, label="median")
    if run.camera.period_ns:
        period_us = run.camera.period_ns / 1e3
        axis.axhline(period_us, color="black", linewidth=1, linestyle="--", label="period")
    axis.set_title(f"{writer}\nmax {time_text(run.inside_us.max())}")
    axis.grid(alpha=0.3)


def typical(runs: Sequence[Run]) -> Run:
    """Return the run whose p99.9 is in the middle."""
    by_tail = sorted(runs, key=lambda run: exact_percentile(run.inside_us, 99.9))
    return by_tail[len(by_tail) // 2]


def over_time(run: Run) -> tuple[Any, Any, Any]:
    """Return seconds, and the median and the maximum of the frames from then on, in µs."""
    bins = (run.starts_ns - run.facts["t0_ns"]) // round(BIN_S * 1e9)
    numbers, first = np.unique(bins, return_index=True)
    parts = np.split(run.inside_us, first[1:])
    medians, most = (np.array([f(part) for part in parts]) for f in (np.median, np.max))
    return numbers * BIN_S, medians, most


def time_text(us: float) -> str:
    """Write a time in the unit that suits it."""
    for unit, size_us in (("s", 1e6), ("ms", 1e3)):
        if us >= size_us:
            return f"{us / size_us:.3g} {unit}"
    return f"{us:.3g} µs"
