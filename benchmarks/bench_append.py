"""What does an append cost?"""

from __future__ import annotations

from itertools import product

from asv_common import Fresh, make_frame
from writers import WRITERS, Work

NUM_FRAMES = 1000
SIZES = {"8x8": 8, "64x64": 64, "512x512": 512}


class Append(Fresh):
    """A thousand frames into a new, bounded stream: what they cost together.

    Memory or files that a plain array touches for the first time, and that a stream has
    made ready, are part of the question. The floor, memcpy, goes into memory in use.
    """

    params = (
        ["scratchwriter", "ome-writers", "numpy", "numpy.memmap", "memcpy"],
        list(SIZES),
        ["memory", "disk"],
    )
    param_names = ("writer", "frame", "storage")
    skip_params = [  # noqa: RUF012
        *product(["numpy.memmap"], SIZES, ["memory"]),
        *product(["numpy", "memcpy"], SIZES, ["disk"]),
    ]

    def setup(self, writer: str, size: str, storage: str) -> None:
        super().setup()
        height = width = SIZES[size]
        frame = make_frame(height)
        if writer == "memcpy":
            self.append_all = self.floor(frame, NUM_FRAMES)
            return
        work = Work(height, width, NUM_FRAMES, storage == "disk")
        target = WRITERS[writer].open(work, self.folder)
        self.append_all = self.appender(target, frame, NUM_FRAMES)

    def time_1000_appends(self, *_: str) -> None:
        self.append_all()
