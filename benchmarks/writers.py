"""What is measured: the places to put frames, all behind one face."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_SOURCES = 5  # distinct frames, in rotation; as in limit.c
GIB = 2**30


@dataclass(frozen=True)
class Work:
    """What a camera gives, and where it is to go."""

    height: int
    width: int
    frames: int
    on_disk: bool = False
    bounded: bool = True
    with_metadata: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    @property
    def frame_nbytes(self) -> int:
        return 2 * self.height * self.width

    @property
    def nbytes(self) -> int:
        return self.frames * self.frame_nbytes

    def __str__(self) -> str:
        return ", ".join(
            [
                f"{self.height}x{self.width} uint16",
                "disk" if self.on_disk else "memory",
                "bounded" if self.bounded else "unbounded",
                *(["with metadata"] if self.with_metadata else []),
            ]
        )


@dataclass(frozen=True)
class Target:
    """An open place for frames.

    Attributes
    ----------
    each, statement : str
        Python source: the head of a loop over `frames` (and `records`, the metadata),
        the first of which is number `first`; and what is done for one of them. They are
        compiled into the measuring loop, so that nobody pays for a call that only the
        benchmark makes.
    names : dict
        What the statement refers to.
    close : callable
        Makes it complete for readers.
    view : callable
        Returns the frames, to be indexed by their number; also before `close`.
    read_metadata : callable
        Gives the metadata of all frames back, after `close`.
    """

    each: str
    statement: str
    names: dict[str, Any]
    close: Callable[[], object]
    view: Callable[[], Any]
    read_metadata: Callable[[], list[dict[str, Any]]] = list

    def compile(self) -> Callable[[list[Any], list[Any], int], None]:
        """Return a function of (frames, records, first) that stores all of them."""
        names = "".join(f", {name}={name}" for name in self.names)
        source = (
            f"def store(frames, records, first{names}):\n"
            f"    {self.each}:\n"
            f"        {self.statement}\n"
        )
        scope: dict[str, Any] = dict(self.names)
        exec(source, scope)
        return scope["store"]  # type: ignore[no-any-return]


def make_sources(work: Work) -> list[npt.NDArray[np.uint16]]:
    """Return the distinct frames; frame `i` is number `i % NUM_SOURCES` of them."""
    rng = np.random.default_rng(0)
    shape = (NUM_SOURCES, work.height, work.width)
    return list(rng.integers(0, 2**16, shape, np.uint16))


def make_records() -> list[dict[str, Any]]:
    """Return metadata as a camera has it: four plain values, different for each frame."""
    return [
        {"index": i, "exposure_ms": 5.0, "elapsed_s": i / 2000, "camera": "Camera-1"}
        for i in range(NUM_SOURCES)
    ]


@dataclass(frozen=True)
class Writer:
    """A place for frames that can be opened, and the package that it comes from."""

    open: Callable[[Work, Path], Target]
    modules: tuple[str, ...]  # imported before anything is measured
    distribution: str

    @property
    def is_installed(self) -> bool:
        return all(find_spec(module) for module in self.modules)

    @property
    def version(self) -> str:
        return version(self.distribution)


# ------------------------------------------------------------------------- streams


def _open_stream(library: ModuleType, work: Work, folder: Path, **options: Any) -> Target:
    sizes = {
        "t": work.frames if work.bounded else None,
        "y": work.height,
        "x": work.width,
    }
    path = folder / "dataset"
    stream = library.create_stream(
        library.AcquisitionSettings(
            root_path=str(path) if work.on_disk else "",
            dimensions=library.dims_from_standard_axes(sizes),
            dtype="uint16",
            format=library.ScratchFormat(
                # What is to be measured in memory is not to go on in files.
                max_memory_bytes=max(4 * GIB, 4 * work.nbytes),
                **options,
            ),
        )
    )

    def read_metadata() -> list[dict[str, Any]]:
        lines = (path / "frame_metadata.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    if work.with_metadata:
        each = "for frame, metadata in zip(frames, records)"
        statement = "append(frame, frame_metadata=metadata)"
    else:
        each, statement = "for frame in frames", "append(frame)"
    return Target(
        each,
        statement,
        {"append": stream.append},
        stream.close,
        stream.view,
        read_metadata,
    )


def open_scratchwriter(work: Work, folder: Path) -> Target:
    import scratchwriter

    return _open_stream(scratchwriter, work, folder)


def open_page_cache(work: Work, folder: Path) -> Target:
    import scratchwriter

    return _open_stream(scratchwriter, work, folder, disk_io="page_cache")


def open_direct(work: Work, folder: Path) -> Target:
    import scratchwriter

    return _open_stream(scratchwriter, work, folder, disk_io="direct")


def open_ome_writers(work: Work, folder: Path) -> Target:
    import ome_writers

    return _open_stream(ome_writers, work, folder)


# -------------------------------------------------------------------------- arrays


def assign_to(array: Any, close: Callable[[], object] = lambda: None) -> Target:
    """Return a target for anything that takes `array[i] = frame`."""
    return Target(
        "for i, frame in enumerate(frames, first)",
        "array[i] = frame",
        {"array": array},
        close,
        lambda: array,
    )


def open_numpy(work: Work, folder: Path) -> Target:
    return assign_to(np.empty(work.shape, np.uint16))


def open_memmap(work: Work, folder: Path) -> Target:
    path = folder / "frames.dat"
    return assign_to(np.memmap(path, np.uint16, mode="w+", shape=work.shape))


PAGE_CACHE, DIRECT = "scratchwriter-page-cache", "scratchwriter-direct"
WRITERS = {
    "scratchwriter": Writer(open_scratchwriter, ("scratchwriter",), "scratchwriter"),
    PAGE_CACHE: Writer(open_page_cache, ("scratchwriter",), "scratchwriter"),
    DIRECT: Writer(open_direct, ("scratchwriter",), "scratchwriter"),
    "ome-writers": Writer(open_ome_writers, ("ome_writers",), "ome-writers"),
    "numpy": Writer(open_numpy, ("numpy",), "numpy"),
    "numpy.memmap": Writer(open_memmap, ("numpy",), "numpy"),
}
LIMIT = "c-limit"  # no Python: see limit.c and session.py
ARRAYS = {"numpy": False, "numpy.memmap": True}  # whether it is on disk


def is_able(writer: str, work: Work) -> bool:
    """Whether a writer does this work: plain arrays cannot grow or keep metadata."""
    if writer == LIMIT:
        return not work.with_metadata
    if writer in ARRAYS:
        return work.bounded and not work.with_metadata and ARRAYS[writer] == work.on_disk
    if writer in (PAGE_CACHE, DIRECT):
        return work.on_disk
    return True
