"""What does it cost to open a dataset, and does it grow with the data?"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import numpy as np

from asv_common import Fresh
from bench_create import stream_maker

FRAMES = [100, 10_000, 100_000]


def open_plain(path: Path) -> object:
    manifest = json.loads((path / "manifest.json").read_text())
    shape = tuple(manifest["position_shapes"][0])
    return np.memmap(path / "pos_0.dat", manifest["dtype"], "r", shape=shape)


class Open(Fresh):
    """A dataset, until its arrays can be indexed; by numpy as the README's snippet does."""

    params = (["scratchwriter", "numpy"], FRAMES)
    param_names = ("reader", "frames")

    def setup(self, reader: str, frames: int) -> None:
        super().setup()
        library = import_module("scratchwriter")
        self.path = self.folder / "dataset"
        settings = library.AcquisitionSettings(
            root_path=str(self.path),
            dimensions=library.dims_from_standard_axes({"t": None, "y": 8, "x": 8}),
            dtype="uint16",
        )
        frame = np.ones((8, 8), "uint16")
        with library.create_stream(settings) as stream:
            for number in range(frames):
                stream.append(frame, frame_metadata={"number": number})
        self.open = library.open_scratch if reader == "scratchwriter" else open_plain

    def time_open(self, *_: object) -> None:
        opened = self.open(self.path)
        array = opened.arrays[0] if hasattr(opened, "arrays") else opened
        assert array[-1, 0, 0] == 1


class OpenMany(Fresh):
    """A dataset of many positions, without a look at them."""

    params = ([1, 96, 1536],)
    param_names = ("positions",)

    def setup(self, positions: int) -> None:
        super().setup()
        library = import_module("scratchwriter")
        self.path = self.folder / "dataset"
        stream_maker(library, positions, self.path)().close()
        self.open = library.open_scratch

    def time_open(self, *_: object) -> None:
        self.open(self.path).close()
