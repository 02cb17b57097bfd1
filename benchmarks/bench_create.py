"""What does it cost before the first frame?"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from asv_common import Fresh

LIBRARIES = {"scratchwriter": "scratchwriter", "ome-writers": "ome_writers"}
POSITIONS = [1, 96, 1536]
SHAPE = (100, 64, 64)


def stream_maker(library: Any, positions: int, path: Path | None) -> Callable[[], Any]:
    names = [f"P{i}" for i in range(positions)]
    sizes = {"p": names, "t": SHAPE[0], "y": SHAPE[1], "x": SHAPE[2]}
    settings = library.AcquisitionSettings(
        root_path=str(path or ""),
        dimensions=library.dims_from_standard_axes(sizes),
        dtype="uint16",
        format="scratch",
    )
    return lambda: library.create_stream(settings)


def array_maker(positions: int, folder: Path | None) -> Callable[[], list[Any]]:
    if folder is None:
        return lambda: [np.zeros(SHAPE, np.uint16) for _ in range(positions)]
    paths = [folder / f"pos_{i}.dat" for i in range(positions)]
    return lambda: [np.memmap(path, np.uint16, mode="w+", shape=SHAPE) for path in paths]


class Create(Fresh):
    """A bounded stream of many positions, from its settings on."""

    params = (["scratchwriter", "ome-writers", "numpy"], POSITIONS, ["memory", "disk"])
    param_names = ("writer", "positions", "storage")
    # numpy.memmap keeps a file open for each: more than the usual limit of 1,024.
    skip_params = list(product(["ome-writers", "numpy"], [1536], ["disk"]))  # noqa: RUF012

    def setup(self, writer: str, positions: int, storage: str) -> None:
        super().setup()
        on_disk = storage == "disk"
        if writer == "numpy":
            self.make = array_maker(positions, self.folder if on_disk else None)
            return
        library = import_module(LIBRARIES[writer])
        path = self.folder / "dataset" if on_disk else None
        self.make = stream_maker(library, positions, path)

    def time_create(self, *_: object) -> None:
        self.made = self.make()
        if hasattr(self.made, "close"):
            self.at_end(self.made.close)

    def time_create_and_close(self, *_: object) -> None:
        made = self.make()
        if hasattr(made, "close"):
            made.close()


class Import:
    """`import` in a new Python; numpy and pydantic are what scratchwriter needs."""

    params = (["scratchwriter", "ome_writers", "numpy, pydantic"],)
    param_names = ("modules",)
    number = 1
    repeat = (3, 10, 10.0)
    warmup_time = 0.0

    def timeraw_import(self, modules: str) -> str:
        return f"import {modules}"
