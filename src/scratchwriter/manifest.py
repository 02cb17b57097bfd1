"""The files beside the arrays: manifest.json, progress.bin and skips.bin.

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
12     uint32 state: 1 recording, 2 closed, 3 recovered after the machine was restarted
16     uint64 process id of the writer
24     36s    boot id: which start of the machine it ran in
64     int64  cursor: frames appended and skipped so far
72     int64  frames that are on the device, whatever happens to the machine
80     int64  frame numbers that were missing between those that came
====== ====== =====================================================

skips.bin has two int64 per range of frames that were skipped: the first, and the one
behind the last.

Everything read here may have been written by anybody.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import re
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from scratchwriter._region import view_file
from scratchwriter._region.system import (
    boot_id,
    errors_name,
    hold,
    is_lock_free,
    lock_file,
    open_regular,
    process_lives,
    sync_file,
    unlock,
)
from scratchwriter._version import __version__
from scratchwriter.errors import DatasetError
from scratchwriter.plan import FramePlan, Skips
from scratchwriter.settings import EVERY_FIELD, WITHOUT_WARNINGS, AcquisitionSettings

MANIFEST = "manifest.json"
PROGRESS = "progress.bin"
SKIPS = "skips.bin"
RECORDS = "frame_records.bin"
APPEND_TIMES = "append_times.bin"
FRAME_METADATA = "frame_metadata.jsonl"

_MOST_NBYTES = 1 << 24  # of a manifest: five times what ten thousand positions need
_SKIPS_NBYTES = 1 << 16  # read at a time
_DIGITS = 16  # width of a length that is renewed in place, and its alignment
_PROGRESS_NBYTES = 4096
_PROGRESS_HEADER = np.dtype(
    {
        "names": [
            *("magic", "version", "state", "pid"),
            *("boot_id", "cursor", "synced", "dropped", "recording_id"),
        ],
        "formats": ["S8", "u4", "u4", "u8", "S36", "i8", "i8", "i8", "V16"],
        "offsets": [0, 8, 12, 16, 24, 64, 72, 80, 88],
        "itemsize": _PROGRESS_NBYTES,
    }
)
# Restarted: recovered after the machine was started anew, which may have lost frames.
_RECORDING, _CLOSED, _RESTARTED = 1, 2, 3
_DATASET_FILE = re.compile(
    r"manifest\.json|\.manifest\.json\.\d+|progress\.bin|skips\.bin|frame_metadata\.jsonl"
    r"|frame_records\.bin|append_times\.bin"
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

    Attributes
    ----------
    file : MappedFile
        It, mapped.
    is_locked : bool
        False where the file system has no locks.

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
        header["boot_id"] = boot_id().encode()
        header["recording_id"] = np.void(os.urandom(16))
        self._path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, 0o666)
        hold(self._fd)
        with ExitStack() as undo:
            undo.callback(self.release)
            with errors_name(path, _PROGRESS_NBYTES):
                is_locked = lock_file(self._fd)
                if is_locked is False:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                self.is_locked = is_locked is True
                os.write(self._fd, header.tobytes())  # of one page: whole, or not at all
                status = os.fstat(self._fd)
                self.file = MappedFile(path)
            undo.pop_all()
        self._identity = status.st_dev, status.st_ino

    @property
    def cursor_address(self) -> int:
        return self._address_of("cursor")

    @property
    def dropped_address(self) -> int:
        return self._address_of("dropped")

    def _address_of(self, name: str) -> int:
        offset: int = _PROGRESS_HEADER.fields[name][1]  # type: ignore[index]
        return self.file.address + offset

    def mark_synced(self, frames: int) -> None:
        """Tell that so many frames are on the device, and have that there, too."""
        self.file.record(_PROGRESS_HEADER)["synced"] = frames
        sync_file(self._path)

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
        fd, self._fd = self._fd, -1
        unlock(fd)


@contextmanager
def locked(folder: Path) -> Iterator[int | None]:
    """Hold the lock of a dataset, or yield the process id of its writer.

    Where there are no locks, a writer is who has not closed, if there is such a process.

    Raises
    ------
    DatasetError
        If what holds the lock is not a regular file.
    """
    path = folder / PROGRESS
    if not os.path.lexists(path):
        yield None
        return
    with faults_of(path):
        try:
            file = open_regular(path, writable=True)  # as NFS wants it for such a lock
        except OSError:
            file = open_regular(path)
    with file:
        with faults_of(path):
            is_free = lock_file(file.fileno())
        data = file.read(_PROGRESS_NBYTES).ljust(_PROGRESS_NBYTES, b"\0")
        header = np.frombuffer(data, _PROGRESS_HEADER)
        pid = int(header["pid"][0])
        is_open = header["state"][0] == _RECORDING and header["boot_id"][0] in (
            b"",
            boot_id().encode(),
        )
        if is_free is False or (is_free is None and is_open and process_lives(pid)):
            yield pid
        else:
            yield None


class ProgressView:
    """progress.bin as a reader sees it, while its writer goes on.

    Raises
    ------
    DatasetError
        If it is none.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / PROGRESS
        with faults_of(path):
            with open_regular(path) as file:
                # Kept: it is asked for the lock, whatever becomes of the name.
                self._fd = os.dup(file.fileno())
            weakref.finalize(self, os.close, self._fd)
            data = view_file(path)
            if len(data) != _PROGRESS_NBYTES:
                raise ValueError(f"it has {len(data)} bytes, not {_PROGRESS_NBYTES}")
            self._header = np.frombuffer(data, _PROGRESS_HEADER)
            if (
                self._header["magic"][0] != b"scratchw"
                or self._header["version"][0] != 1
                or self._header["state"][0] not in (_RECORDING, _CLOSED, _RESTARTED)
                or self._header["cursor"][0] < 0
            ):
                raise ValueError("it is not the progress of a scratch dataset")
        self._path = path
        self.num_frames: int | None = (
            None  # the most that the dataset has, if it has an end
        )

    @property
    def cursor(self) -> int:
        """Frames appended and skipped so far.

        Raises
        ------
        DatasetError
            If that cannot be.
        """
        cursor = int(self._header["cursor"][0])
        self.check(cursor)
        return cursor

    def check(self, cursor: int) -> None:
        """Check a cursor that was just read: what is written there is believed never."""
        if cursor < 0 or (self.num_frames is not None and cursor > self.num_frames):
            most = "" if self.num_frames is None else f" of {self.num_frames}"
            raise DatasetError(f"{self._path}: it tells of {cursor} frames{most}")

    @property
    def cursor_array(self) -> npt.NDArray[np.int64]:
        """The same as an array of one, where the writer stores it."""
        cursor: npt.NDArray[np.int64] = self._header["cursor"]
        return cursor

    @property
    def synced(self) -> int:
        """Frames that are certain to be on the device."""
        return min(max(int(self._header["synced"][0]), 0), self.cursor)

    @property
    def dropped(self) -> int:
        """Frame numbers that were missing so far, those of overwritten frames included."""
        return max(int(self._header["dropped"][0]), 0)

    @property
    def is_closed(self) -> bool:
        """Whether the writer has finished the dataset, or `recover` has."""
        return bool(self._header["state"][0] != _RECORDING)

    @property
    def has_writer(self) -> bool | None:
        """Whether somebody records it, told by the lock; None where there are no locks."""
        with faults_of(self._path):
            is_free = is_lock_free(self._fd)
        return None if is_free is None else not is_free

    def is_in(self, folder: Path) -> bool:
        """Tell whether it is still the one in its folder."""
        try:
            there = (folder / PROGRESS).lstat()
        except OSError:
            return False
        here = os.fstat(self._fd)
        return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)

    def need_in(self, folder: Path) -> None:
        """Check that what is in its folder is still of its recording.

        Raises
        ------
        DatasetError
            If it is not.
        """
        if not self.is_in(folder):
            raise DatasetError(
                f"{folder}: the dataset was removed or replaced by another since it "
                "was opened. Open it again."
            )

    @property
    def recording_id(self) -> str:
        """What no other recording has; empty before there was such a thing."""
        told = self._header["recording_id"][0].tobytes()
        return str(told.hex()) if any(told) else ""

    @property
    def writer_pid(self) -> int:
        """Process id of the writer."""
        return int(self._header["pid"][0])

    @property
    def may_lack_frames(self) -> bool:
        """Whether the machine was started anew before the dataset was closed."""
        if self._header["state"][0] == _RECORDING:
            return self._header["boot_id"][0] not in (b"", boot_id().encode())
        return bool(self._header["state"][0] == _RESTARTED)


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
        settings_fields: Mapping[str, Any],
        plan: FramePlan,
        cursor: int,
        global_metadata: Mapping[str, Any],
        *,
        durable: bool = False,
    ) -> None:
        text, offsets = _manifest_text(settings_fields, plan, cursor, global_metadata)
        if len(text) > _MOST_NBYTES:
            raise ValueError(
                f"The manifest would have {len(text):,} bytes, the most is "
                f"{_MOST_NBYTES:,}. Keep less in the metadata, or have fewer positions."
            )
        self._folder = folder
        self._path = draft_path(folder)
        try:
            with errors_name(self._path, len(text)):
                write_draft(self._path, text)
                if durable:
                    sync_file(self._path)
                status = self._path.lstat()
            self.file = MappedFile(self._path)
        except BaseException:
            self.discard()
            raise
        self._identity = status.st_dev, status.st_ino
        self.length_addresses = [self.file.address + offset for offset in offsets]

    def replace(self) -> None:
        """Put it in place of the manifest, atomically."""
        self._path.replace(self._folder / MANIFEST)

    @property
    def is_in_place(self) -> bool:
        """Whether it is the manifest now."""
        with suppress(OSError):
            status = (self._folder / MANIFEST).lstat()
            return (status.st_dev, status.st_ino) == self._identity
        return False

    def discard(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)


def dump_settings(settings: AcquisitionSettings) -> dict[str, Any]:
    """Return settings as a manifest has them: every field, plain JSON.

    Made once, before the first frame: pydantic turns a KeyboardInterrupt that arrives
    meanwhile into an error of its own.
    """
    return settings.model_dump(mode="json", context=EVERY_FIELD)


def draft_path(folder: Path) -> Path:
    """Return where this process writes what is to replace the manifest of a folder."""
    return folder / f".{MANIFEST}.{os.getpid()}"


def write_draft(path: Path, text: bytes) -> None:
    """Write a file that is new; a link that somebody has laid there is not followed."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(text)


def _manifest_text(
    settings_fields: Mapping[str, Any],
    plan: FramePlan,
    cursor: int,
    global_metadata: Mapping[str, Any],
) -> tuple[bytes, list[int]]:
    """Return the manifest, ASCII, and the offsets of the lengths that may grow."""
    fields = {
        "version": __version__,
        **settings_fields,
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


class Manifest(BaseModel):
    """What a reader needs of a manifest besides the settings, checked.

    Attributes
    ----------
    version : str
        Version of the library that wrote it.
    position_shapes : list of tuple of int
        Shape of each position's file.
    position_dims : list of tuple of str, or None
        Names of its axes; manifests of ome-writers have none.
    global_metadata : dict
        Metadata of the acquisition by namespace.
    """

    model_config = ConfigDict(defer_build=True)

    version: str
    position_shapes: list[tuple[NonNegativeInt, ...]]
    position_dims: list[tuple[str, ...]] | None = None
    global_metadata: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if self.position_dims is not None:
            lengths = [len(shape) for shape in self.position_shapes]
            if lengths != [len(dims) for dims in self.position_dims]:
                raise ValueError("position_dims does not fit position_shapes")
        return self


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """Have whatever is wrong with a file be told as one kind of error."""
    try:
        yield
    except DatasetError:
        raise
    except ValidationError as error:
        fault = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, fault["loc"])) or "content"
        raise DatasetError(f"{path}: {where}: {fault['msg']}") from None
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror or error}") from None
    except (
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        # The wording may be as long as what is wrong.
        raise DatasetError(f"{path}: {str(error)[:200] or type(error).__name__}") from None


def read_manifest(folder: Path) -> tuple[Manifest, AcquisitionSettings]:
    """Read the manifest of a scratch dataset, of this library or of ome-writers.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    DatasetError
        If it has none, or one that is not valid.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "There is no such folder", str(folder))
    if not folder.is_dir():
        raise DatasetError(f"{folder} is not a scratch dataset: it is not a folder")
    if not os.path.lexists(path):
        raise DatasetError(f"{folder} is not a scratch dataset: it has no {MANIFEST}")
    with faults_of(path):
        with open_regular(path) as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes > _MOST_NBYTES:
                raise ValueError(f"it has {nbytes} bytes, the most is {_MOST_NBYTES}")
            fields = json.loads(file.read())
        if not isinstance(fields, dict):
            raise ValueError("content: it is not a JSON object")
        manifest = Manifest.model_validate(fields)
        _check_position_counts(fields.get("dimensions"), len(manifest.position_shapes))
        settings = AcquisitionSettings.model_validate(
            {k: v for k, v in fields.items() if k in AcquisitionSettings.model_fields},
            context=WITHOUT_WARNINGS,  # told to who made the settings
        )
        settings.validate_stream_ready()
    return manifest, settings


def _check_position_counts(dims: Any, most: int) -> None:
    """Check what would become a list as long as a number in the file says."""
    for dim in dims if isinstance(dims, list) else []:
        is_position = isinstance(dim, dict) and dim.get("type") == "position"
        if is_position and int(dim.get("count") or 0) > most:
            raise ValueError("position_shapes does not fit the dimensions")


def read_skips(folder: Path, cursor: int) -> list[range]:
    """Return which of the first `cursor` frames were skipped.

    Raises
    ------
    DatasetError
        If the file is damaged.
    """
    ranges = read_skips_between(folder, -(1 << 63), cursor)  # all are looked at
    # What a killed writer has recorded but not done does not count.
    return [range(skip.start, min(skip.stop, cursor)) for skip in ranges]


def read_skips_between(folder: Path, first: int, stop: int) -> Skips:
    """Return the skipped ranges that have a frame from `first` to before `stop`.

    In a time that does not grow with the ranges before.

    Raises
    ------
    DatasetError
        If the file is damaged there.
    """
    path = folder / SKIPS
    if not os.path.lexists(path):
        return Skips()
    found: list[npt.NDArray[np.int64]] = []
    before = -1
    with faults_of(path), open_regular(path) as file:
        low, high = 0, os.fstat(file.fileno()).st_size // 16
        while low < high:  # for the first range that ends behind it
            middle = (low + high) // 2
            file.seek(16 * middle + 8)
            if int.from_bytes(file.read(8), sys.byteorder, signed=True) <= first:
                low = middle + 1
            else:
                high = middle
        file.seek(16 * low)
        # In pieces: what is damaged is refused before it takes memory.
        while len(data := file.read(_SKIPS_NBYTES)) >= 16:
            # Half a pair is what a killed writer did not get to the end of.
            data = data[: len(data) // 16 * 16]
            pairs = np.frombuffer(data, np.int64).reshape(-1, 2)
            if (np.diff(pairs.ravel(), prepend=before) <= 0).any():
                raise ValueError("its ranges are not in order")
            wanted = pairs[pairs[:, 0] < stop]
            found.append(wanted)
            if len(wanted) < len(pairs):
                break
            before = int(pairs[-1, 1])
    return Skips(np.concatenate(found) if found else ())


def replace_shapes(folder: Path, shapes: Sequence[Sequence[int]]) -> None:
    """Put other shapes into a manifest that nobody else writes, atomically."""
    path = folder / MANIFEST
    with faults_of(path), open_regular(path) as file:
        fields = json.loads(file.read())
        text = json.dumps({**fields, "position_shapes": shapes}).encode("ascii")
        if len(text) > _MOST_NBYTES:  # the white space of others may have been shorter
            raise ValueError(f"it would have {len(text)} bytes, the most is {_MOST_NBYTES}")
    draft = draft_path(folder)
    try:
        write_draft(draft, text)
        sync_file(draft)
        draft.replace(path)
        sync_file(folder)
    finally:
        draft.unlink(missing_ok=True)


def mark_closed(folder: Path) -> bool:
    """Mark a dataset that nobody writes as closed; tell whether it was not."""
    progress = ProgressView(folder)
    if progress.is_closed:
        return False
    state = _RESTARTED if progress.may_lack_frames else _CLOSED
    with open_regular(folder / PROGRESS, writable=True) as file:
        file.seek(_PROGRESS_HEADER.fields["state"][1])  # type: ignore[index]
        file.write(np.uint32(state).tobytes())
    return True


def is_dataset(folder: Path) -> bool:
    """Tell whether a folder is a scratch dataset, of this library or of ome-writers."""
    try:
        read_manifest(folder)
    except (OSError, DatasetError):
        return False
    return True


def is_beginning(folder: Path) -> bool:
    """Tell whether a folder has no more than what a writer left that died as it began."""
    if not all(is_dataset_name(path.name) for path in folder.iterdir()):
        return False
    try:
        return ProgressView(folder).cursor == 0 and not (folder / MANIFEST).exists()
    except DatasetError:
        return False


def dataset_files(folder: Path) -> list[Path]:
    """Return the files in a folder that belong to a scratch dataset, by their names."""
    return [path for path in folder.iterdir() if is_dataset_name(path.name)]


def is_dataset_name(name: str) -> bool:
    """Tell whether a file of a scratch dataset may be called so."""
    return _DATASET_FILE.fullmatch(name) is not None


def is_draft_name(name: str) -> bool:
    """Tell whether a file is a manifest that was to replace the one there is."""
    return name.startswith(f".{MANIFEST}.")
