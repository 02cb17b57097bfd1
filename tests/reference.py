"""A naive model of an acquisition: the oracle of the property tests.

It knows nothing of strides, odometers and cursors: it walks over all indices with
itertools and keeps every frame in a dict.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np

# Properties that settings derive from their fields.
PROPERTIES = [
    "output_path",
    "shape",
    "is_unbounded",
    "num_frames",
    "positions",
    "position_dimension_index",
    "frame_dimensions",
    "index_dimensions",
    "array_dimensions",
    "storage_index_dimensions",
    "storage_index_permutation",
    "array_storage_dimensions",
]


class Model:
    """What the arrays of an acquisition must hold, frame by frame."""

    def __init__(self, settings):
        self.dtype = np.dtype(settings.dtype)
        self.dims = settings.dimensions[:-2]
        self.frame_shape = tuple(d.count for d in settings.dimensions[-2:])
        self.num_positions = 1
        for dim in self.dims:
            if dim.type == "position":
                self.num_positions = dim.count
        names = [d.name for d in self.dims if d.type != "position"]
        self.storage_names = names
        if isinstance(settings.storage_order, list):
            self.storage_names = [n for n in settings.storage_order if n in names]
        # An unbounded axis is outermost in a file, whatever the storage order.
        self.file_names = sorted(
            self.storage_names, key=lambda n: self._count(n) is not None
        )
        ranges = [
            itertools.count() if d.count is None else range(d.count) for d in self.dims
        ]
        if ranges and self.dims[0].count is None:
            rest = list(itertools.product(*ranges[1:]))
            self._slots = ((i, *more) for i in ranges[0] for more in rest)
        else:
            self._slots = itertools.product(*ranges)
        self.visited = []  # (position, index by name) of every frame and skip, in order
        self.frames = {}  # the same, hashable -> frame

    def _count(self, name):
        return next(d.count for d in self.dims if d.name == name)

    def _next(self):
        slot = next(self._slots)
        index = {d.name: i for d, i in zip(self.dims, slot, strict=True)}
        position = next((index.pop(d.name) for d in self.dims if d.type == "position"), 0)
        self.visited.append((position, index))
        return position, index

    def append(self, frame):
        position, index = self._next()
        self.frames[position, tuple(sorted(index.items()))] = np.array(frame, self.dtype)

    def skip(self, n):
        for _ in range(n):
            self._next()

    def left(self):
        """Frames that still fit, None if unbounded."""
        if any(d.count is None for d in self.dims):
            return None
        return int(np.prod([d.count for d in self.dims], dtype=int)) - len(self.visited)

    def array(self, position, *, order="storage"):
        """The array of a position, in storage order or as it is in the file."""
        names = self.storage_names if order == "storage" else self.file_names
        shape = []
        for name in names:
            count = self._count(name)
            if count is None:
                seen = [index[name] + 1 for p, index in self.visited if p == position]
                count = max(seen, default=1)
            shape.append(count)
        array = np.zeros((*shape, *self.frame_shape), self.dtype)
        for (p, index), frame in self.frames.items():
            if p == position:
                array[tuple(dict(index)[name] for name in names)] = frame
        return array

    def joint_array(self, *, is_dynamic=True):
        """All positions in acquisition order, as far as was seen or is planned."""
        slots = []
        for position, index in self.visited:
            named = {d.name: position for d in self.dims if d.type == "position"} | index
            slots.append([named[d.name] for d in self.dims])
        shape = [max(axis) + 1 for axis in zip(*slots, strict=True)] or [0] * len(self.dims)
        if not is_dynamic:
            shape = [
                n if d.count is None else d.count
                for n, d in zip(shape, self.dims, strict=True)
            ]
        array = np.zeros((*shape, *self.frame_shape), self.dtype)
        for slot, (position, index) in zip(slots, self.visited, strict=True):
            frame = self.frames.get((position, tuple(sorted(index.items()))))
            if frame is not None:
                array[tuple(slot)] = frame
        return array


def read_plain(folder):
    """Read every array of a dataset with numpy and json alone, as the README says."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return [
        np.memmap(
            Path(folder) / f"pos_{i}.dat",
            dtype=manifest["dtype"],
            mode="r",
            shape=tuple(shape),
        )
        for i, shape in enumerate(manifest["position_shapes"])
    ]


def read_lines(folder):
    """Read the frame metadata of a dataset."""
    with (Path(folder) / "frame_metadata.jsonl").open() as file:
        return [json.loads(line) for line in file]
