"""The files beside the arrays: manifest.json and progress.bin.

manifest.json describes the dataset for any reader. While an unbounded dataset is being
recorded, the length of each array stands in it as digits of fixed width, right-aligned in
white space, which the writer renews in place: what the file says is exact at any moment,
also after the writer was killed.

progress.bin is one mapped page with the frame cursor:

====== ====== =====================================================
offset type   meaning
====== ====== =====================================================
0      8s     magic, b"scratchw"
8      uint32 version, 1 (in native byte order, as all that follows)
12     uint32 state: 1 recording, 2 closed
16     uint64 process id of the writer
64     int64  cursor: frames appended and skipped so far
====== ====== =====================================================
"""

from __future__ import annotations

import errno
import json
import math
import mmap
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from scratchwriter._region.system import errors_name, lock_file
from scratchwriter._version import __version__
from scratchwriter.plan import FramePlan
from scratchwriter.settings import EVERY_FIELD, PIXEL_KINDS, AcquisitionSettings

MANIFEST = "manifest.json"
PROGRESS = "progress.bin"
FRAME_METADATA = "frame_metadata.jsonl"

_DIGITS = 16  # width of a length that is renewed in place, and its alignment
_PROGRESS_NBYTES = 4096
_PROGRESS_HEADER = np.dtype(
    {
        "names": ["magic", "version", "state", "pid", "cursor"],
        "formats": ["S8", "u4", "u4", "u8", "i8"],
        "offsets": [0, 8, 12, 16, 64],
        "itemsize": _PROGRESS_NBYTES,
    }
)
_RECORDING, _CLOSED = 1, 2
_DATASET_FILE = re.compile(
    r"manifest\.json|\.manifest\.json\.\d+|progress\.bin|frame_metadata\.jsonl"
    r"|pos_\d+\.dat"
)


def array_name(position: int) -> str:
    """Return the name of a position's file."""
    return f"pos_{position}.dat"


class MappedFile:
    """A small file mapped for stores from elsewhere; `address` is its first byte's."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._bytes: npt.NDArray[np.uint8] = np.frombuffer(
                mmap.mmap(file.fileno(), 0), np.uint8
            )

    @property
    def address(self) -> int:
        return self._bytes.ctypes.data

    def record(self, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """Return the beginning of the file as a record."""
        return self._bytes[: dtype.itemsize].view(dtype)


class Progress:
    """progress.bin of a dataset that is being recorded, locked while it is.

    Raises
    ------
    OSError
        If it exists or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        header = np.zeros(1, _PROGRESS_HEADER)
        header["magic"] = b"scratchw"
        header["version"] = 1
        header["state"] = _RECORDING
        header["pid"] = os.getpid()
        self._locked_file = path.open("xb", buffering=0)
        with ExitStack() as undo:
            undo.callback(self.release)
            with errors_name(path):
                lock_file(self._locked_file.fileno())
                self._locked_file.write(header.tobytes())
                status = os.fstat(self._locked_file.fileno())
                self.file = MappedFile(path)
            undo.pop_all()
        self._identity = status.st_dev, status.st_ino

    @property
    def cursor_address(self) -> int:
        return self.file.address + _PROGRESS_HEADER.fields["cursor"][1]  # type: ignore[index]

    def mark_closed(self) -> None:
        self.file.record(_PROGRESS_HEADER)["state"] = _CLOSED
        self.release()

    def is_in(self, folder: Path) -> bool:
        """Tell whether it is still the one in its folder."""
        try:
            status = (folder / PROGRESS).lstat()
        except OSError:
            return False
        # Its number is not given to another file while this one is mapped.
        return (status.st_dev, status.st_ino) == self._identity

    def release(self) -> None:
        """Give up the lock."""
        self._locked_file.close()


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold the lock of a dataset, or yield the process id of its writer."""
    try:
        file = (folder / PROGRESS).open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        if lock_file(file.fileno()):
            yield None
        else:
            header = np.frombuffer(file.read(_PROGRESS_NBYTES), _PROGRESS_HEADER)
            yield int(header["pid"][0])


class ManifestDraft:
    """A manifest written beside the one it is to replace.

    Attributes
    ----------
    file : MappedFile
        It, mapped.
    length_addresses : list of int
        Where the length of each position's array stands, if the plan is unbounded.
    """

    def __init__(
        self,
        folder: Path,
        settings: AcquisitionSettings,
        plan: FramePlan,
        cursor: int,
        global_metadata: Mapping[str, Any],
    ) -> None:
        text, offsets = _manifest_text(settings, plan, cursor, global_metadata)
        self._folder = folder
        self._path = folder / f".{MANIFEST}.{os.getpid()}"
        try:
            with errors_name(self._path):
                self._path.write_bytes(text)
            self.file = MappedFile(self._path)
        except BaseException:
            self.discard()
            raise
        self.length_addresses = [self.file.address + offset for offset in offsets]

    def replace(self) -> None:
        """Put it in place of the manifest, atomically."""
        self._path.replace(self._folder / MANIFEST)

    def discard(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)


def _manifest_text(
    settings: AcquisitionSettings,
    plan: FramePlan,
    cursor: int,
    global_metadata: Mapping[str, Any],
) -> tuple[bytes, list[int]]:
    """Return the manifest, ASCII, and the offsets of the lengths that may grow."""
    fields = {
        "version": __version__,
        **settings.model_dump(mode="json", context=EVERY_FIELD),
        "global_metadata": global_metadata,
        "position_dims": [plan.file_dims] * plan.num_positions,
    }
    text = "{\n"
    for name, value in fields.items():
        text += f"{json.dumps(name)}: {json.dumps(value)},\n"
    lines = [text + '"position_shapes": [']
    end, offsets = len(lines[0]), []
    for position in range(plan.num_positions):
        shape = plan.file_shape(position, cursor)
        line = "\n[" if position == 0 else ",\n["
        if plan.is_unbounded:
            line += " " * (-(end + len(line)) % _DIGITS)
            offsets.append(end + len(line))
            line += f"{shape[0]:{_DIGITS}d}, {json.dumps(shape[1:])[1:]}"
        else:
            line += json.dumps(shape)[1:]
        lines.append(line)
        end += len(line)
    lines.append("\n]\n}\n")
    return "".join(lines).encode("ascii"), offsets


def _pixel_dtype(name: str) -> str:
    try:
        dtype = np.dtype(name)
    except (TypeError, ValueError):
        raise ValueError(f"{name!r} is not a dtype") from None
    if dtype.kind not in PIXEL_KINDS:
        raise ValueError(f"{name!r} is not a dtype of pixels")
    return name


class Manifest(BaseModel):
    """What a reader needs of a manifest, checked; also of those of ome-writers.

    Attributes
    ----------
    version : str
        Version of the library that wrote it.
    dtype : str
        dtype of the pixels.
    position_shapes : list of tuple of int
        Shape of each position's file.
    position_dims : list of tuple of str, or None
        Names of its axes; manifests of ome-writers have none.
    dimensions : list of dict
        As in the settings.
    global_metadata : dict
        Metadata of the acquisition by namespace.
    """

    model_config = ConfigDict(defer_build=True)

    version: str
    dtype: Annotated[str, AfterValidator(_pixel_dtype)]
    position_shapes: list[tuple[NonNegativeInt, ...]]
    position_dims: list[tuple[str, ...]] | None = None
    dimensions: list[dict[str, Any]]
    global_metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.position_dims is not None:
            lengths = [len(shape) for shape in self.position_shapes]
            if lengths != [len(dims) for dims in self.position_dims]:
                raise ValueError("position_dims does not fit position_shapes")
        return self

    @property
    def nbytes(self) -> int:
        """Bytes of all positions together."""
        itemsize = np.dtype(self.dtype).itemsize
        return itemsize * sum(math.prod(shape) for shape in self.position_shapes)

    @property
    def position_names(self) -> list[str]:
        """Names of the positions; their numbers where it has none."""
        names = [str(i) for i in range(len(self.position_shapes))]
        for dim in self.dimensions:
            coords = dim.get("coords")
            if dim.get("type") == "position" and isinstance(coords, list):
                for i, coord in enumerate(coords[: len(names)]):
                    names[i] = str(coord.get("name") if isinstance(coord, dict) else coord)
        return names


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a scratch dataset, of this library or of ome-writers.

    Raises
    ------
    OSError
        If the folder has none, or it cannot be read.
    ValueError
        If it is not one, naming the file and the fault.
    """
    path = folder / MANIFEST
    if folder.is_dir() and not path.exists():
        raise FileNotFoundError(
            errno.ENOENT, "The folder is not a scratch dataset: no manifest", str(path)
        )
    try:
        return Manifest.model_validate_json(read_regular_file(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "content"
        raise ValueError(
            f"{path} is not the manifest of a scratch dataset: {where}: {fault['msg']}"
        ) from None


def read_cursor(folder: Path) -> tuple[int, bool] | None:
    """Return the frame cursor of a dataset and whether it was closed, None if unknown.

    Raises
    ------
    OSError, ValueError
        If there is a progress file that is none.
    """
    path = folder / PROGRESS
    if not path.exists():
        return None
    data = read_regular_file(path)
    if len(data) != _PROGRESS_NBYTES:
        raise ValueError(f"{path} has {len(data)} bytes, not {_PROGRESS_NBYTES}")
    header = np.frombuffer(data, _PROGRESS_HEADER)[0]
    if header["magic"] != b"scratchw" or header["version"] != 1 or header["cursor"] < 0:
        raise ValueError(f"{path} is not the progress of a scratch dataset")
    return int(header["cursor"]), bool(header["state"] == _CLOSED)


def read_regular_file(path: Path) -> bytes:
    """Read a file that somebody else made: no pipe and no device, which may never end.

    Raises
    ------
    OSError, ValueError
        If it cannot be read, or is something else.
    """
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    with open(fd, "rb") as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError(f"{path} is not a regular file")
        return file.read()


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder is a scratch dataset, of this library or of ome-writers."""
    try:
        read_manifest(folder)
    except (OSError, ValueError):
        return False
    return True


def dataset_files(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to a scratch dataset, by their names."""
    return [path for path in folder.iterdir() if _DATASET_FILE.fullmatch(path.name)]
