"""Does an append of an unbounded stream pay for what is there already?"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter_ns

import numpy as np

from asv_common import Frame, Fresh, make_frame
from writers import WRITERS, Target, Work

NUM_FRAMES = 1000


class GrowingArray:
    """What one writes without a library: an array that grows by half, by copying."""

    def __init__(self, frame: Frame) -> None:
        self.array = np.zeros((1, *frame.shape), frame.dtype)
        self.count = 0

    def append(self, frame: Frame) -> None:
        if self.count == len(self.array):
            more = len(self.array) // 2 + 1
            grown = np.zeros((self.count + more, *frame.shape), frame.dtype)
            grown[: self.count] = self.array
            self.array = grown
        self.array[self.count] = frame
        self.count += 1


def open_unbounded(writer: str, frame: Frame, folder: Path) -> Target:
    if writer == "numpy":
        growing = GrowingArray(frame)
        return Target(
            "for frame in frames",
            "append(frame)",
            {"append": growing.append},
            lambda: None,
            lambda: growing.array,
        )
    height, width = frame.shape
    work = Work(height, width, NUM_FRAMES, bounded=False)
    return WRITERS[writer].open(work, folder)


class AfterMany(Fresh):
    """A thousand appends after many others, 8x8, in memory."""

    params = (
        ["scratchwriter", "ome-writers", "numpy", "memcpy"],
        [0, 100_000, 10_000_000],
    )
    param_names = ("writer", "frames before")
    skip_params = [  # noqa: RUF012
        ("ome-writers", 10_000_000),  # takes half a minute to get there
        *(("memcpy", count) for count in (100_000, 10_000_000)),  # has no state
    ]
    repeat = 3

    def setup(self, writer: str, frames_before: int) -> None:
        super().setup()
        frame = make_frame(8)
        if writer == "memcpy":
            self.append_all = self.floor(frame, NUM_FRAMES)
            return
        target = open_unbounded(writer, frame, self.folder)
        self.append_all = self.appender(target, frame, NUM_FRAMES)
        for _ in range(frames_before // NUM_FRAMES):
            self.append_all()

    def time_1000_appends(self, *params: object) -> None:
        self.append_all()


class FromNothing(Fresh):
    """512 MiB of 512x512 frames into an unbounded stream in memory."""

    params = (["scratchwriter", "ome-writers", "numpy", "memcpy"],)
    param_names = ("writer",)
    repeat = (3, 5, 5.0)
    unit = "µs"

    def setup(self, writer: str) -> None:
        super().setup()
        frame = self.frame = make_frame(512)
        if writer == "memcpy":
            self.append_all = self.floor(frame, NUM_FRAMES)
            self.append_one = self.floor(frame, 1)
            return
        target = open_unbounded(writer, frame, self.folder)
        self.append_all = self.appender(target, frame, NUM_FRAMES)
        append = target.names["append"]
        self.append_one = lambda: append(frame)

    def time_1000_appends(self, _: str) -> None:
        self.append_all()

    def track_longest_append(self, writer: str) -> float:
        longest_ns = 0
        for _ in range(NUM_FRAMES):
            start = perf_counter_ns()
            self.append_one()
            longest_ns = max(longest_ns, perf_counter_ns() - start)
        return longest_ns / 1e3
