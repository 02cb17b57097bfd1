"""Metadata of frames and acquisitions as JSON."""

from __future__ import annotations

import datetime
import json
import os
import threading
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter

from scratchwriter._native.convert import plain_text
from scratchwriter._region.system import open_regular
from scratchwriter.errors import DatasetError

_CHUNK_NBYTES = 1 << 24
_MOST_LINE_NBYTES = 1 << 28
_MOST_DEPTH = 200  # of JSON, because parsers recurse

# Several times faster than json.
_pydantic_json = TypeAdapter(
    Any, config=ConfigDict(ser_json_inf_nan="constants")
).serializer.to_json

RESERVED_KEYS = ("_pos", "_idx")  # where a frame is; added by the writer


def encode_frame_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Return the metadata of a frame as a JSON object on one line.

    numpy scalars and arrays, dates, paths and enums become their natural JSON. A key
    whose value has none is left out, with a warning, and so are the reserved keys. The
    result is empty if there is nothing to write.

    Raises
    ------
    TypeError
        If `metadata` is not a mapping.
    """
    if type(metadata) is dict and (text := plain_text(metadata)):
        if not metadata:
            return b""
        if "_pos" not in metadata and "_idx" not in metadata:
            if text == "ascii":
                return _pydantic_json(metadata)  # faster than with ensure_ascii
            try:
                return _pydantic_json(metadata, ensure_ascii=True)
            except ValueError:
                return _to_json(metadata)  # with lone surrogates
    if not isinstance(metadata, Mapping):
        raise TypeError(
            f"frame_metadata must be a dict, got {type(metadata).__name__}: "
            "{'name': value, ...}."
        )
    if not metadata:
        return b""
    if all(type(key) is str and key not in RESERVED_KEYS for key in metadata):
        with suppress(*_NOT_JSON):
            return _to_json(metadata)
    return _to_json(dict(_writable_items(metadata)))  # without what cannot be written


def encode_global_metadata(namespace: str, metadata: Mapping[str, Any]) -> bytes:
    """Return acquisition-level metadata as a JSON object.

    Raises
    ------
    ValueError
        If the namespace is empty or reserved.
    TypeError
        If `metadata` is not a mapping, or holds what JSON cannot.
    """
    if not isinstance(namespace, str) or not namespace:
        raise ValueError(f"namespace must be a non-empty string, got {namespace!r}")
    if namespace in ("ome", "ome_writers"):
        raise ValueError(f"namespace {namespace!r} is reserved; choose another one.")
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata must be a mapping, got {type(metadata).__name__}.")
    try:
        return _to_json(dict(metadata))
    except _NOT_JSON as error:
        raise TypeError(
            f"metadata of namespace {namespace!r} cannot be written as JSON: {error}"
        ) from None


_NOT_JSON = (TypeError, ValueError, RecursionError)


def _to_json(value: Mapping[Any, Any]) -> bytes:
    # NaN and infinity are kept, as Python's own json reads them.
    text = json.dumps(value, default=_natural).encode("ascii")
    if text.count(b"[") + text.count(b"{") > _MOST_DEPTH and _depth(text) > _MOST_DEPTH:
        raise ValueError(f"it is nested more than {_MOST_DEPTH} levels deep")
    return text


def _depth(text: bytes) -> int:
    """Return an upper limit of the depth of JSON: brackets in strings count, too."""
    steps = np.frombuffer(text, np.uint8)
    opens = (steps == ord("[")) | (steps == ord("{"))
    closes = (steps == ord("]")) | (steps == ord("}"))
    return int(np.cumsum(opens.astype(np.int64) - closes).max())


def _natural(value: Any) -> Any:
    """Return a plain Python value for one that json does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, os.PathLike):  # also paths of another system
        return os.fspath(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, np.ndarray | np.generic):
        # Dates become text, because numbers would lose their unit.
        return value.astype(str).tolist() if value.dtype.kind == "M" else value.tolist()
    raise TypeError(f"{type(value).__name__} has no natural JSON")


def _writable_items(metadata: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    items = []
    for key, value in metadata.items():
        name = key.value if isinstance(key, Enum) else key
        if not isinstance(name, str | int | float | None):
            _warn(key, f"{type(key).__name__} is not a name")
            continue
        try:
            # Encoded once only: reading a value may use it up, as an iterator.
            (name, value), *_ = json.loads(_to_json({name: value})).items()
        except _NOT_JSON as error:
            _warn(key, f"its value cannot be written as JSON ({error})")
            continue
        if name in RESERVED_KEYS:
            _warn(key, f"the name is reserved ({', '.join(RESERVED_KEYS)})")
            continue
        items.append((name, value))
    return items


def _warn(key: Any, why: str) -> None:
    warnings.warn(
        f"frame_metadata key {key!r} is not stored: {why}. The frame and the other keys "
        "are stored.",
        stacklevel=4,
    )


class FrameMetadata(Sequence[dict[str, Any]]):
    """The metadata of frames, one dict each in acquisition order, read on demand.

    Each has what `append` was given, and where its frame is: `_pos`, the number of the
    position, and `_idx`, the index in that position's file. Frames that came without
    metadata are left out. It grows while the dataset is recorded.

    Parameters
    ----------
    path : pathlib.Path
        frame_metadata.jsonl; a missing file counts as an empty one.
    is_counted : callable(position, index) -> bool
        Returns whether the frame of the last line was committed.
    need_same : callable
        Raises if the file now belongs to another recording.

    Raises
    ------
    DatasetError
        When a damaged line is read.
    """

    def __init__(
        self,
        path: Path,
        is_counted: Callable[[int, Sequence[int]], bool],
        need_same: Callable[[], object] = lambda: None,
    ) -> None:
        self._path, self._is_counted, self._need_same = path, is_counted, need_same
        self._starts: npt.NDArray[np.int64] = np.zeros(1, np.int64)  # of lines, and the end
        self._number_of: dict[tuple[int, tuple[int, ...]], int] = {}  # number of a line
        self._num_indexed = 0
        # Guards the results of reading. Re-entrant, because a signal handler may read while
        # its thread has the lock: it sees the state before, or a later one.
        self._lock = threading.RLock()

    def __len__(self) -> int:
        """Return the number of frames with metadata."""
        with self._lock:
            self._scan()
        count = len(self._starts) - 1
        # A line is written before its frame, so the last may be of a frame that did not
        # come; after a power cut several may.
        if count == 0 or self._counts(count - 1):
            return count
        return bisect_left(range(count - 1), True, key=lambda i: not self._counts(i))

    def _counts(self, number: int) -> bool:
        with self._faults():
            return self._is_counted(*where(self._line(number)))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._read(0, len(self))

    @overload
    def __getitem__(self, i: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, i: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, i: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Return the metadata of the i-th frame that has some."""
        numbers = range(len(self))[i]
        if isinstance(numbers, int):
            return self._line(numbers)
        if numbers.step == 1:
            return list(self._read(numbers.start, numbers.stop))
        return [self._line(number) for number in numbers]

    @property
    def nbytes(self) -> int:
        """Size of the complete lines of frames that came."""
        count = len(self)
        return int(self._starts[count])

    def at(self, position: int, *index: int) -> dict[str, Any] | None:
        """Return the metadata of the frame at an index of a position's file, or None."""
        count = len(self)
        with self._lock:
            first = self._num_indexed
            for line_number, line in enumerate(self._read(first, count), first):
                with self._faults():
                    self._number_of[where(line)] = line_number
                self._num_indexed = line_number + 1
        number = self._number_of.get((position, index))
        return None if number is None else self._line(number)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Return an array per key with one item per frame, as `pandas.DataFrame` takes it.

        Of bool, int64 or float64 if every frame has such a value, else of objects, with
        None where a frame has no value.
        """
        rows = list(self)
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: _column([row.get(name) for row in rows]) for name in names}

    def _scan(self) -> None:
        """Find the lines that came since the last scan; half a line does not count."""
        if not os.path.lexists(self._path):
            return
        with self._faults(), open_regular(self._path) as file:
            self._need_same()  # after it was opened
            starts = [self._starts]
            start = at = file.seek(int(self._starts[-1]))
            while data := file.read(_CHUNK_NBYTES):
                ends = np.flatnonzero(np.frombuffer(data, np.uint8) == ord("\n"))
                starts.append(at + ends + 1)
                if ends.size:
                    start = at + int(ends[-1]) + 1
                at += len(data)
                _need_line_nbytes(at - start)
            if len(starts) > 1:
                self._starts = np.concatenate(starts)

    def _line(self, number: int) -> dict[str, Any]:
        return next(self._read(number, number + 1))

    def _read(self, first: int, stop: int) -> Iterator[dict[str, Any]]:
        number = first
        while number < stop:
            start = int(self._starts[number])
            last = int(np.searchsorted(self._starts, start + _CHUNK_NBYTES, "right")) - 1
            last = min(max(last, number + 1), stop)
            end = int(self._starts[last])
            with self._faults():
                _need_line_nbytes(end - start)
                with open_regular(self._path) as file:
                    self._need_same()
                    data = os.pread(file.fileno(), end - start, start)
                lines = [json.loads(line) for line in data.decode().split("\n")[:-1]]
                if len(lines) != last - number:
                    raise ValueError("it has become shorter")
                if not all(isinstance(line, dict) for line in lines):
                    raise ValueError("a line is not a JSON object")
            yield from lines
            number = last

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except DatasetError:
            raise
        except (OSError, *_NOT_JSON) as error:
            raise DatasetError(f"{self._path}: {str(error)[:200]}") from None


def where(line: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Return the position of a line's frame, and its index in that position's file.

    Raises
    ------
    ValueError
        If the line does not have them.
    """
    position, index = line.get("_pos"), line.get("_idx")
    if not isinstance(index, list) or not all(type(n) is int for n in [position, *index]):
        raise ValueError("a line does not say which frame it belongs to")
    return cast("int", position), tuple(index)


def _need_line_nbytes(nbytes: int) -> None:
    if nbytes > _MOST_LINE_NBYTES:
        raise ValueError(f"a line has more than {_MOST_LINE_NBYTES} bytes")


def _column(values: list[Any]) -> npt.NDArray[Any]:
    for types, dtype in (({bool}, np.bool_), ({int}, np.int64), ({int, float}, np.float64)):
        if {type(value) for value in values} <= types:
            with suppress(OverflowError):
                return np.array(values, dtype)
    column = np.empty(len(values), object)
    column[:] = values
    return column
