"""What do the ways in from Python cost?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from asv_common import Frame, Fresh, make_frame
from scratchwriter import (
    AcquisitionSettings,
    ScratchStream,
    create_stream,
    dims_from_standard_axes,
)

NUM_FRAMES = 1024
BATCH = 64
SIZES = {"32x32": 32, "512x512": 512}


def append(stream: ScratchStream, frame: Frame) -> None:
    for _ in range(NUM_FRAMES):
        stream.append(frame)


def append_with_time_and_number(stream: ScratchStream, frame: Frame) -> None:
    for i in range(NUM_FRAMES):
        stream.append(frame, timestamp_ns=i, frame_id=i)


def slot(stream: ScratchStream, frame: Frame) -> None:
    for _ in range(NUM_FRAMES):
        with stream.slot() as place:
            place[...] = frame


def slots(stream: ScratchStream, frame: Frame) -> None:
    for _ in range(NUM_FRAMES // BATCH):
        with stream.slots(BATCH) as places:
            places[...] = frame


def extend(stream: ScratchStream, frames: Frame) -> None:
    for _ in range(NUM_FRAMES // BATCH):
        stream.extend(frames)


WAYS: dict[str, Callable[[ScratchStream, Frame], None]] = {
    "append": append,
    "append, time and number": append_with_time_and_number,
    "slot": slot,
    "slots": slots,
    "extend": extend,
}


class WaysIn(Fresh):
    """A thousand frames into a new, bounded stream, by each way."""

    params = (list(WAYS), list(SIZES), ["memory", "disk"])
    param_names = ("way", "frame", "storage")

    def setup(self, way: str, size: str, storage: str) -> None:
        super().setup()
        height = width = SIZES[size]
        settings = AcquisitionSettings(
            root_path=self.folder / "data" if storage == "disk" else "",
            dimensions=dims_from_standard_axes({"t": NUM_FRAMES, "y": height, "x": width}),
            dtype="uint16",
        )
        self.stream = create_stream(settings)
        self.at_end(self.stream.close)
        frame = make_frame(height)
        self.frame = np.stack([frame] * BATCH) if way == "extend" else frame

    def time_1024_frames(self, way: str, *_: str) -> None:
        WAYS[way](self.stream, self.frame)
