"""The suite: the work and the bars that are checked, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from report import Measurement, number
from session import Camera, device_rate_gb_per_s
from writers import LIMIT, Work

OURS, PEER = "scratchwriter", "ome-writers"
ALL = (OURS, PEER, "numpy", "numpy.memmap", LIMIT)
LONG_NBYTES = 30e9


@dataclass(frozen=True)
class Bar:
    """A number that is to be at most, or at least, so much."""

    what: str
    limit: float
    measured: Callable[[Measurement], float]
    at_least: bool = False
    against: str = OURS

    def is_measured(self, measurement: Measurement) -> bool:
        return {OURS, self.against} <= set(measurement.figures)

    def judge(self, measurement: Measurement) -> list[str]:
        value = self.measured(measurement)
        met = value >= self.limit if self.at_least else value <= self.limit
        sign = "≥" if self.at_least else "≤"
        bar = f"{self.what} {sign} {number(self.limit)}"
        return [str(measurement.camera), bar, number(value), "yes" if met else "NO"]


@dataclass(frozen=True)
class Row:
    """Cameras, who writes their frames, and what is expected of it."""

    cameras: Callable[[Path], Sequence[Camera]]  # of the folder, whose disk may matter
    writers: Sequence[str]
    bars: Callable[[Camera], Sequence[Bar]]


# ------------------------------------------------------------------------- numbers


def inside(percentile: str, writer: str = OURS) -> Callable[[Measurement], float]:
    return lambda m: m.figures[writer].inside.percentile(percentile)


def worst(m: Measurement) -> float:
    return m.figures[OURS].inside.worst


def late(m: Measurement) -> float:
    return m.figures[OURS].inside.late


def times_better(percentile: str, times: float) -> Bar:
    ours, theirs = inside(percentile), inside(percentile, PEER)
    what = f"{percentile} of {PEER} / ours"
    return Bar(what, times, lambda m: theirs(m) / ours(m), True, PEER)


def times_the_rate(of: str, times: float) -> Bar:
    def measured(m: Measurement) -> float:
        return m.figures[OURS].gb_per_s / m.figures[of].gb_per_s

    return Bar(f"GB/s of ours / {of}", times, measured, True, of)


# ---------------------------------------------------------------------------- rows


def camera(size: int, rate_hz: float, frames: int, *where: str, batch: int = 1) -> Camera:
    work = Work(size, size, frames, "disk" in where, "unbounded" not in where)
    return Camera(replace(work, with_metadata="metadata" in where), rate_hz, batch)


def tiny_cameras(_: Path) -> list[Camera]:
    return [
        camera(8, 0, 1_000_000, "memory", length, batch=1000)
        for length in ("bounded", "unbounded")
    ]


def tiny_bars(_: Camera) -> list[Bar]:
    return [
        Bar("p50, ns", 60, lambda m: 1e3 * inside("p50")(m)),
        times_better("p50", 25),
    ]


def fast_cameras(_: Path) -> list[Camera]:
    return [
        camera(512, 2000, 4000, where, length)
        for where in ("memory", "disk")
        for length in ("bounded", "unbounded")
    ]


def fast_bars(c: Camera) -> list[Bar]:
    return [
        Bar("late", 0, late),
        Bar("p99.9, µs", 250 if c.work.on_disk else 150, inside("p99.9")),
        times_better("p99.9", 50),
    ]


def large_cameras(_: Path) -> list[Camera]:
    return [camera(2048, 100, 400, where) for where in ("memory", "disk")]


def large_bars(_: Camera) -> list[Bar]:
    return [Bar("p99 / p50", 2.5, lambda m: inside("p99")(m) / inside("p50")(m))]


def swift_cameras(_: Path) -> list[Camera]:
    return [camera(64, 20_000, 200_000, "memory", "unbounded")]


def swift_bars(_: Camera) -> list[Bar]:
    return [
        Bar("p50, µs", 0.5, inside("p50")),
        Bar("p99.9, µs", 10, inside("p99.9")),
        Bar("p99.99, µs", 25, inside("p99.99")),
        Bar("worst max, µs", 1000, worst),
    ]


def flood_cameras(where: str) -> Callable[[Path], list[Camera]]:
    return lambda _: [
        camera(size, 0, 2 * 2**30 // (2 * size * size), where, length)
        for size in (2048, 512)
        for length in ("bounded", "unbounded")
    ]


def flood_bars(c: Camera) -> list[Bar]:
    bars = [times_the_rate(LIMIT, 0.85)]
    return [*bars, times_the_rate(PEER, 3)] if c.work.on_disk else bars


def long_cameras(folder: Path) -> list[Camera]:
    frames = round(LONG_NBYTES / (2 * 2048 * 2048))
    rate_hz = 0.6 * device_rate_gb_per_s(folder) * 1e9 / (2 * 2048 * 2048)
    return [camera(2048, rate_hz, frames, "disk")]


def long_bars(_: Camera) -> list[Bar]:
    return [Bar("worst max, µs", 5000, worst)]


def metadata_cameras(_: Path) -> list[Camera]:
    return [
        camera(8, 0, 200_000, "disk", "unbounded", *also, batch=1000)
        for also in ((), ("metadata",))
    ]


def metadata_bars(c: Camera) -> list[Bar]:
    return [Bar("p50, µs", 2, inside("p50"))] if c.work.with_metadata else []


ROWS = {
    "tiny": Row(tiny_cameras, ALL, tiny_bars),
    "fast": Row(fast_cameras, ALL, fast_bars),
    "large": Row(large_cameras, ALL, large_bars),
    "swift": Row(swift_cameras, ALL, swift_bars),
    "flood-memory": Row(flood_cameras("memory"), ALL, flood_bars),
    "flood-disk": Row(flood_cameras("disk"), ALL, flood_bars),
    "metadata": Row(metadata_cameras, (OURS, PEER), metadata_bars),
    "long": Row(long_cameras, (OURS, PEER, LIMIT), long_bars),
}
