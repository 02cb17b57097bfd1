"""What does metadata cost an append?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from asv_common import Fresh, make_frame
from writers import WRITERS, Target, Work, make_records

NUM_FRAMES = 1000
PLAIN = make_records()[0]
RECORDS = {
    "none": None,
    "four plain values": PLAIN,
    "four numpy values": {
        "index": np.int64(0),
        "exposure_ms": np.float32(5),
        "stage_um": np.zeros(3),
        "saturated": np.bool_(False),
    },
}


def open_plain(work: Work, folder: Path) -> Target:
    """Open what one writes without a library; as safe: a line is written at once."""
    array = np.memmap(folder / "frames.dat", np.uint16, mode="w+", shape=work.shape)
    log = (folder / "metadata.jsonl").open("w", buffering=1)
    return Target(
        "for i, (frame, metadata) in enumerate(zip(frames, records), first)",
        "array[i] = frame; log.write(dumps(metadata) + '\\n')",
        {"array": array, "log": log, "dumps": json.dumps},
        log.close,
        lambda: array,
    )


class Metadata(Fresh):
    """A thousand appends of 8x8 frames to a bounded stream on disk.

    ome-writers takes plain values only, and keeps its lines in a buffer that is lost with
    the process; scratchwriter and numpy do not.
    """

    params = (["scratchwriter", "ome-writers", "numpy", "memcpy"], list(RECORDS))
    param_names = ("writer", "metadata")
    skip_params = [  # noqa: RUF012
        ("ome-writers", "four numpy values"),
        ("numpy", "four numpy values"),
        ("memcpy", "four plain values"),
        ("memcpy", "four numpy values"),
    ]

    def setup(self, writer: str, metadata: str) -> None:
        super().setup()
        frame, record = make_frame(8), RECORDS[metadata]
        work = Work(8, 8, NUM_FRAMES, on_disk=True, with_metadata=record is not None)
        if writer == "memcpy":
            self.append_all: Any = self.floor(frame, NUM_FRAMES)
            return
        if writer != "numpy":
            target = WRITERS[writer].open(work, self.folder)
        elif record is None:
            target = WRITERS["numpy.memmap"].open(work, self.folder)
        else:
            target = open_plain(work, self.folder)
        self.at_end(target.close)
        store = target.compile()
        frames, records = [frame] * NUM_FRAMES, [record] * NUM_FRAMES
        self.append_all = lambda: store(frames, records, 0)

    def time_1000_appends(self, *_: str) -> None:
        self.append_all()
