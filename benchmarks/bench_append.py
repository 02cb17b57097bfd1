"""What does an append cost?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from floor import Floor
from writers import WRITERS, Work, is_able

NUM_FRAMES = 1000
FRAMES = {"8x8": 8, "64x64": 64, "512x512": 512}


class Append:
    """A thousand frames into a new stream; what they cost together.

    Each time is that of one stream, from its first frame on: memory that a plain array
    touches for the first time, and a stream has made ready, is part of the question. The
    floor, memcpy, goes into memory in use.
    """

    params = (
        ["scratchwriter", "ome-writers", "numpy", "memcpy"],
        list(FRAMES),
        ["memory", "disk"],
    )
    param_names = ("writer", "frame", "storage")
    number = 1  # a stream takes its frames once
    repeat = (3, 20, 10.0)
    warmup_time = 0.0

    def setup(self, writer: str, frame: str, storage: str) -> None:
        size = FRAMES[frame]
        self.frame = np.random.default_rng(0).integers(0, 2**16, (size, size), np.uint16)
        self.work = Work(size, size, NUM_FRAMES, storage == "disk")
        self.folder = tempfile.TemporaryDirectory()
        self.frames = [self.frame] * NUM_FRAMES
        if writer == "memcpy":
            if storage == "disk":
                raise NotImplementedError("memcpy has no disk")
            self.floor = Floor(NUM_FRAMES, self.frame)
            self.close, self.append_all = self.floor.close, self.floor.run
            return
        if writer == "numpy" and storage == "disk":
            writer = "numpy.memmap"
        assert is_able(writer, self.work)
        target = WRITERS[writer].open(self.work, Path(self.folder.name))
        self.close = target.close
        self.append_all = compile_loop(target, self.frames)

    def teardown(self, *_: str) -> None:
        self.close()
        self.folder.cleanup()

    def time_1000_appends(self, *_: str) -> None:
        self.append_all()
