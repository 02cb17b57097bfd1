"""What it costs a camera loop to be watched, and how soon others see its frames.

    python benchmarks/watched.py

README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from paced import wait_until
from report import describe, exact_percentile, insert, markdown_table
from scratchwriter import (
    AcquisitionSettings,
    ScratchStream,
    create_stream,
    dims_from_standard_axes,
)
from session import add_session_options, describe_machine, wait_until_quiet

RATE_HZ, FRAMES, SIZES = 2000, 4000, (64, 512)
TINY_FRAMES = 200_000  # as fast as it can
READERS = 4
REDRAW_S = 1 / 30

# Another process: tells of each frame when it saw it, and when that was appended.
READER = """
import sys
import time
import numpy as np
from scratchwriter import open_scratch

dataset = open_scratch(sys.argv[1])
print("ready", flush=True)
took_ns = []
for frame in dataset.follow():
    seen_ns = time.perf_counter_ns()
    took_ns.append(seen_ns - int(frame.ravel()[:4].view("i8")[0]))
np.array(took_ns).tofile(sys.argv[2])
"""


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        text = "\n".join(
            [
                describe(describe_machine(Path(folder)), {}),
                "",
                *(
                    line
                    for size in SIZES
                    for line in [*appends(Path(folder), size, options), ""]
                ),
                *tiny(options.repetitions),
            ]
        )
    print(text)
    if options.into:
        insert(text, options.into, "watched")


# ------------------------------------------------------------------------- who watches


@contextmanager
def nobody(stream: ScratchStream, folder: Path) -> Iterator[list[Path]]:
    yield []


@contextmanager
def every_frame(stream: ScratchStream, folder: Path) -> Iterator[list[Path]]:
    with stream.on("coords_changed", lambda update: None):
        yield []


@contextmanager
def every_extent(stream: ScratchStream, folder: Path) -> Iterator[list[Path]]:
    with stream.on("coords_expanded", lambda update: None):
        yield []


@contextmanager
def viewer(stream: ScratchStream, folder: Path) -> Iterator[list[Path]]:
    """A thread of this process that shows the newest frame, as often as a screen does."""
    is_over = threading.Event()

    def show() -> None:
        view = stream.view()
        while not is_over.wait(REDRAW_S):
            if len(view):
                np.array(view[-1])  # what a viewer would upload

    thread = threading.Thread(target=show)
    thread.start()
    try:
        yield []
    finally:
        is_over.set()
        thread.join()


@contextmanager
def readers(stream: ScratchStream, folder: Path) -> Iterator[list[Path]]:
    """Other processes that follow; they end with the stream."""
    outs = [folder / f"seen_{i}" for i in range(READERS)]
    with ExitStack() as stack:
        processes = []
        for out in outs:
            command = [sys.executable, "-c", READER, str(stream.path), str(out)]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            processes.append(stack.enter_context(process))
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield outs
        stream.close()


WATCHERS = {
    "nobody": nobody,
    "a listener of every frame": every_frame,
    "a listener of every extent": every_extent,
    "a viewer, 30 times per second": viewer,
    f"{READERS} other processes": readers,
}


# --------------------------------------------------------------------------- measuring


def open_stream(size: int, folder: Path | None) -> ScratchStream:
    settings = AcquisitionSettings(
        root_path=folder or "",
        dimensions=dims_from_standard_axes({"t": None, "y": size, "x": size}),
        dtype="uint16",
    )
    return create_stream(settings)


def record(stream: ScratchStream, size: int) -> npt.NDArray[np.float64]:
    """Append at a camera's pace, each frame with its time; return µs inside append."""
    frame = np.zeros((size, size), np.uint16)
    stamp = frame.ravel()[:4].view(np.int64)
    took_ns = np.ones(FRAMES, np.int64)
    append, now_ns = stream.append, time.perf_counter_ns
    period_ns = 10**9 // RATE_HZ
    gc.collect()
    gc.disable()
    start_ns = now_ns() + 50_000_000
    for i in range(FRAMES):
        wait_until(start_ns + i * period_ns)
        stamp[0] = before_ns = now_ns()
        append(frame)
        took_ns[i] = now_ns() - before_ns
    gc.enable()
    return took_ns / 1e3


def appends(folder: Path, size: int, options: argparse.Namespace) -> list[str]:
    took: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in WATCHERS}
    seen: list[npt.NDArray[np.int64]] = []
    for _ in range(options.repetitions):
        for name, watch in WATCHERS.items():
            os.sync()  # the files of those before are none of its business
            wait_until_quiet(options.patience)
            with tempfile.TemporaryDirectory(dir=folder) as made:
                stream = open_stream(size, Path(made) / "data")
                with stream, watch(stream, Path(made)) as outs:
                    took[name].append(record(stream, size))
                seen += [np.fromfile(out, np.int64) for out in outs]
    rows = [[name, *percentiles(runs)] for name, runs in took.items()]
    seen_us = [one / 1e3 for one in seen]
    assert all(len(one) == FRAMES for one in seen_us), "a reader missed frames"
    heads = ["p50", "p99", "p99.9", "max"]
    return [
        f"{size}x{size} uint16, {RATE_HZ:,} Hz, {FRAMES:,} frames:",
        "",
        *markdown_table([f"µs inside append, watched by {'':8}", *heads], rows),
        "",
        *markdown_table(
            ["µs from append to seen", *heads],
            [["in another process, one of 4", *percentiles(seen_us)]],
        ),
    ]


def percentiles(runs: list[npt.NDArray[np.float64]]) -> list[str]:
    found = [[exact_percentile(run, q) for q in (50, 99, 99.9, 100)] for run in runs]
    return [f"{value:,.1f}" for value in np.median(found, axis=0)]


def tiny(repetitions: int) -> list[str]:
    """Time appends of 8x8, as fast as it can, in memory: what a listener costs each."""

    def timed(stream: ScratchStream) -> float:
        frame, append = np.zeros((8, 8), np.uint16), stream.append
        start_ns = time.perf_counter_ns()
        for _ in range(TINY_FRAMES):
            append(frame)
        return (time.perf_counter_ns() - start_ns) / TINY_FRAMES

    def run(watch: Callable[..., object]) -> float:
        with open_stream(8, None) as stream, watch(stream, Path()):  # type: ignore[attr-defined]
            return timed(stream)

    names = list(WATCHERS)[:3]
    costs = {name: [] for name in names}  # type: dict[str, list[float]]
    for _ in range(repetitions):
        for name in names:
            costs[name].append(run(WATCHERS[name]))
    rows = [[name, f"{np.median(runs):.0f}"] for name, runs in costs.items()]
    return markdown_table(["ns per append of 8x8, watched by", "mean"], rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_session_options(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
