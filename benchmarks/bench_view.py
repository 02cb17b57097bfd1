"""What does a look at the frames cost while they arrive?"""

from __future__ import annotations

from typing import Any

import numpy as np

from asv_common import Fresh, make_frame
from writers import WRITERS, Work

NUM_LOOKS = 1000


class View(Fresh):
    """A thousand looks at an open stream of 64x64 frames in memory."""

    params = (
        ["scratchwriter", "ome-writers", "numpy"],
        [10, 10_000],
        ["bounded", "unbounded"],
    )
    param_names = ("writer", "frames", "length")
    skip_params = [("numpy", count, "unbounded") for count in (10, 10_000)]  # noqa: RUF012

    def setup(self, writer: str, num_frames: int, length: str) -> None:
        super().setup()
        frame = make_frame(64)
        work = Work(64, 64, num_frames, bounded=length == "bounded")
        target = WRITERS[writer].open(work, self.folder)
        self.appender(target, frame, num_frames)()
        self.view: Any = target.view()
        self.last = num_frames - 1

    def time_1000_shapes(self, *params: object) -> None:
        view = self.view
        for _ in range(NUM_LOOKS):
            view.shape  # noqa: B018

    def time_1000_latest_frames(self, *params: object) -> None:
        view, last = self.view, self.last
        for _ in range(NUM_LOOKS):
            view[last]

    def time_1000_latest_copied(self, *params: object) -> None:
        view, last = self.view, self.last
        for _ in range(NUM_LOOKS):
            np.array(view[last])

    def time_1000_slices(self, *params: object) -> None:
        view = self.view
        for _ in range(NUM_LOOKS):
            view[2:8, ::2, ::2]


class Floor(Fresh):
    """What a thousand copies of a frame cost at the least."""

    params = (["memcpy"],)
    param_names = ("writer",)

    def setup(self, _: str) -> None:
        super().setup()
        self.copy_all = self.floor(make_frame(64), NUM_LOOKS)

    def time_1000_latest_copied(self, _: str) -> None:
        self.copy_all()
