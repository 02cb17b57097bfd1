"""Metadata of frames and acquisitions as JSON."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import to_jsonable_python

from scratchwriter._native.convert import plain_text
from scratchwriter._region.system import open_regular
from scratchwriter.errors import DatasetError

_CHUNK_NBYTES = 1 << 24
_MOST_LINE_NBYTES = 1 << 28
_MOST_TEXT_NBYTES = _MOST_LINE_NBYTES - 4096  # of what is given for a line
_MOST_DEPTH = 200  # of JSON, because parsers recurse
_MOST_PLAIN_DEPTH = 50  # of metadata of other libraries, which are within others

_MOST_INT_BITS = 14_000  # Python neither writes nor reads many more digits
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')

# Several times faster than json.
_pydantic_json = TypeAdapter(
    Any, config=ConfigDict(ser_json_inf_nan="constants")
).serializer.to_json

RESERVED_KEYS = ("_pos", "_idx")  # where a frame is; added by the writer
Places: TypeAlias = Sequence[tuple[int, tuple[int, ...]]]  # positions, and indices there


def encode_frame_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Return the metadata of a frame as a JSON object on one line.

    numpy scalars and arrays, dates, durations, paths, enums, sets, dataclasses, models of
    pydantic and the like become their natural JSON, quantities ``{"value": ..., "unit":
    ...}``. A key whose value has none is left out, with a warning, and so are the reserved
    keys. The result is empty if there is nothing to write.

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
    with suppress(_NotJsonError):
        with _errors_of_others():
            keys = list(metadata)
        if all(type(key) is str and key not in RESERVED_KEYS for key in keys):
            return _to_json(metadata) if keys else b""
    return _to_json(_writable(metadata))


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
        return _to_json(metadata)
    except _NotJsonError as error:
        raise TypeError(
            f"metadata of namespace {namespace!r} cannot be written as JSON: {error}. "
            f"{_REMEDY}"
        ) from None


def plain_metadata(
    value: Any, most_items: int, leave_out: Callable[[str, str], object], name: str = ""
) -> Any:
    """Return metadata of another library as plain values, without what JSON cannot hold.

    Where `encode_frame_metadata` leaves out a key of the frame, this leaves out only the
    key that holds the value, however deep it is; an item of a list becomes None.

    Parameters
    ----------
    value : object
        Mappings, lists, models of pydantic, arrays, numbers, texts, and so on.
    most_items : int
        An array or a list of more is left out.
    leave_out : callable(name, why)
        Called with the name of each value that is left out, as "event.metadata.mask".
    name : str
        Of `value` itself.
    """
    try:
        return _PlainValues(most_items, leave_out).of(value, name, ())
    except _NotJsonError as error:
        leave_out(name, str(error))
        return None


class _PlainValues:
    def __init__(self, most_items: int, leave_out: Callable[[str, str], object]) -> None:
        self._most_items, self._leave_out = most_items, leave_out
        self._num_listed = 0  # items of the outermost list, and of lists within it

    def of(self, value: Any, name: str, within: tuple[Any, ...]) -> Any:
        """Return a plain value; `within` are those that hold it, the outermost first."""
        if type(value) in (str, float, bool, type(None)):
            return value
        if type(value) is int:
            if value.bit_length() > _MOST_INT_BITS:
                raise _NotJsonError("it has thousands of digits")
            return value
        if any(value is outer for outer in within):
            raise _NotJsonError("it contains itself")
        if len(within) > _MOST_PLAIN_DEPTH:
            raise _NotJsonError(f"it is nested more than {_MOST_PLAIN_DEPTH} levels deep")
        within = (*within, value)
        with _errors_of_others():
            if isinstance(value, np.ndarray) and value.size > self._most_items:
                raise _TooLongError(value.size, self._most_items)
            value = _opened(value)
            if not isinstance(value, Mapping | list | tuple):
                return self.of(_natural(value), name, within)
            parts = list(value)
        part_of = self._mapping if isinstance(value, Mapping) else self._list
        return part_of(value, parts, name, within)

    def _mapping(
        self, value: Any, keys: list[Any], name: str, within: tuple[Any, ...]
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key in keys:
            path = type(key).__name__
            try:
                with _errors_of_others():
                    text = _name_of(key)
                    path = f"{name}.{text}" if name else text
                    item = value[key]
                if text in found:
                    raise _NotJsonError("another key has the same name")
                found[text] = self.of(item, path, within)
            except _NotJsonError as error:
                self._leave_out(path, str(error))
        return found

    def _list(
        self, value: Any, items: list[Any], name: str, within: tuple[Any, ...]
    ) -> list[Any]:
        if not any(isinstance(outer, list | tuple) for outer in within[:-1]):
            self._num_listed = 0
        self._num_listed += sum(not isinstance(item, list | tuple) for item in items)
        if self._num_listed > self._most_items:
            raise _TooLongError(self._num_listed, self._most_items)
        found = []
        for item in items:
            try:
                found.append(self.of(item, name, within))
            except _TooLongError:
                raise
            except _NotJsonError as error:
                self._leave_out(name, str(error))
                found.append(None)
        return found


def _opened(value: Any) -> Any:
    """Return what a model, a dataclass or a set holds; others as they are."""
    if isinstance(value, BaseModel):
        return _fields_of(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, set | frozenset):
        return _in_order(value)
    return value


def _fields_of(model: BaseModel) -> Mapping[str, Any]:
    # The defaults of useq are known, and they are many.
    is_of_useq = type(model).__module__.partition(".")[0] == "useq"
    try:
        if _comes_again(model, set(), set()):  # pydantic would repeat it to any depth
            raise ValueError
        # As Python values: in JSON, NaN would be null.
        return model.model_dump(
            exclude_defaults=is_of_useq, by_alias=not is_of_useq, warnings=False
        )
    except Exception:  # of any kind: what a field does is its library's
        known = type(model).model_fields
        given = [name for name in known if name in model.model_fields_set]
        return {
            known[name].serialization_alias or name: getattr(model, name)
            for name in (given if is_of_useq else known)
            if not known[name].exclude
        }


def _comes_again(value: Any, above: set[int], seen: set[int]) -> bool:
    """Return whether a model is within itself, or something in it is."""
    if isinstance(value, BaseModel):
        parts: Iterable[Any] = vars(value).values()
    elif type(value) is dict:
        parts = value.values()
    elif type(value) in (list, tuple):
        parts = value
    else:
        return False
    if id(value) in above:
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    above.add(id(value))
    found = any(_comes_again(part, above, seen) for part in parts)
    above.remove(id(value))
    return found


def _in_order(values: Iterable[Any]) -> list[Any]:
    with suppress(TypeError):
        return sorted(values)
    return list(values)


def _name_of(key: Any) -> str:
    """Return the name that JSON has for a key."""
    key = key.value if isinstance(key, Enum) else key
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


_NOT_JSON = (TypeError, ValueError, RecursionError)  # of text that is read
_REMEDY = "Give str(value), or model_dump(mode='json') of a model."


class _NotJsonError(Exception):
    """A value cannot be written as JSON."""


class _TooLongError(_NotJsonError):
    def __init__(self, count: int, most_items: int) -> None:
        super().__init__(f"it has {count:,} items, more than {most_items:,}")


@contextmanager
def _errors_of_others() -> Iterator[None]:
    """Turn what the methods of a value raise, whatever it is, into `_NotJsonError`."""
    try:
        yield
    except (_NotJsonError, MemoryError):
        raise
    except Exception as error:
        raise _NotJsonError(f"{type(error).__name__}: {error}") from error


def _to_json(value: Mapping[Any, Any]) -> bytes:
    """Return JSON that a reader takes."""
    with _errors_of_others():
        # NaN and infinity are kept, as Python's own json reads them.
        text = json.dumps(value, default=_natural).encode("ascii")
    if len(text) > _MOST_TEXT_NBYTES:
        raise _NotJsonError(f"it has {len(text):,} bytes, more than {_MOST_TEXT_NBYTES:,}")
    if text.count(b"[") + text.count(b"{") > _MOST_DEPTH and _depth(text) > _MOST_DEPTH:
        raise _NotJsonError(f"it is nested more than {_MOST_DEPTH} levels deep")
    return text


def _depth(text: bytes) -> int:
    """Return the depth of JSON."""
    steps = np.frombuffer(_JSON_STRING.sub(b"", text), np.uint8)
    opens = (steps == ord("[")) | (steps == ord("{"))
    closes = (steps == ord("]")) | (steps == ord("}"))
    return int(np.cumsum(opens.astype(np.int64) - closes).max(initial=0))


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
    if (unit := _unit_of(value)) is not None:
        number = value.magnitude if hasattr(value, "magnitude") else np.asarray(value)
        return {"value": number, "unit": str(unit)}
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, np.ndarray | np.generic):
        # Dates and durations become text, because numbers would lose their unit.
        if value.dtype.kind == "m":
            return _map_items(str, value)
        return value.astype(str).tolist() if value.dtype.kind == "M" else value.tolist()
    if isinstance(value, Iterator):  # it may have no end
        raise TypeError(f"{type(value).__name__} has no natural JSON")
    if isinstance(value, set | frozenset):
        return _in_order(value)
    # Models, dataclasses, UUID, Decimal, timedelta, bytes of UTF-8, ...
    return to_jsonable_python(value, fallback=partial(_natural_within, value))


def _natural_within(outer: Any, value: Any) -> Any:
    if value is outer:  # nobody knows it
        raise TypeError(f"{type(value).__name__} has no natural JSON")
    return _natural(value)


def _unit_of(value: Any) -> Any:
    """Return the unit of a quantity of pint, astropy, unyt or quantities; or None."""
    if not (isinstance(value, np.ndarray) or hasattr(value, "magnitude")):
        return None
    return getattr(value, "units", getattr(value, "unit", None))


def _map_items(to_text: Callable[[Any], str], array: Any) -> Any:
    """Return nested lists of texts, as `tolist` does of items."""
    return to_text(array) if array.ndim == 0 else [_map_items(to_text, a) for a in array]


def _writable(metadata: Mapping[Any, Any]) -> dict[str, Any]:
    """Return metadata without what cannot be written."""
    found: dict[str, Any] = {}
    try:
        with _errors_of_others():
            keys = list(metadata)
    except _NotJsonError as error:
        warnings.warn(
            f"frame_metadata is not stored: its names cannot be read ({error}). The frame "
            "is stored.",
            stacklevel=4,
        )
        return found
    nbytes = 0
    for key in keys:
        name = key.value if isinstance(key, Enum) else key
        if not isinstance(name, str | int | float | None):
            _warn(key, f"{type(key).__name__} is not a name")
            continue
        try:
            with _errors_of_others():
                value = metadata[key]
            # Encoded once only: reading a value may use it up, as an iterator.
            text = _to_json({name: value})
            if nbytes + len(text) > _MOST_TEXT_NBYTES:
                _warn(key, f"together they have more than {_MOST_TEXT_NBYTES:,} bytes")
                continue
            (name, value), *_ = json.loads(text).items()
        except _NotJsonError as error:
            _warn(key, f"its value cannot be written as JSON ({error}). {_REMEDY}")
            continue
        if name in RESERVED_KEYS:
            _warn(key, f"the name is reserved ({', '.join(RESERVED_KEYS)})")
            continue
        nbytes += len(text)
        found[name] = value
    return found


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
    index_names : sequence of str
        Names of the axes of `_idx`.
    known : callable(list of (position, index)) -> list of dict
        Returns what is known of frames besides: "timestamp_ns", "frame_id".
    may_lack_lines : bool
        Whether the lines end before the first NUL, which is no text: after a power cut the
        file may be longer than what has reached the disk of it.

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
        index_names: Sequence[str] = (),
        known: Callable[[Places], list[dict[str, int]]] = lambda places: [
            {} for _ in places
        ],
        may_lack_lines: bool = False,
    ) -> None:
        self._path, self._is_counted, self._need_same = path, is_counted, need_same
        self._may_lack_lines = may_lack_lines
        self._index_names, self._known = index_names, known
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

        Numbers are bool, int64 or float64; where a frame has none, the column is float64
        and has NaN there: integers are exact to 2**53 then, and times and ids always in
        `ScratchDataset.timestamps` and `frame_ids`. Text is str, and None where a frame has
        none. Anything else (lists, dicts, values of several kinds) is JSON text. `_pos` and
        `_idx_NAME`, of each axis, say where the frame is; `timestamp_ns` and `frame_id` are
        those that came with the frames. They come before what frame metadata has under
        these names.
        """
        rows = list(self)
        with self._faults():
            places = [where(row) for row in rows]
            known = self._known(places)
        for row, (position, index), more in zip(rows, places, known, strict=True):
            del row["_pos"], row["_idx"]
            names = self._index_names or [str(axis) for axis in range(len(index))]
            at = {f"_idx_{name}": i for name, i in zip(names, index, strict=False)}
            row |= more | {"_pos": position} | at
        names = sorted(
            dict.fromkeys(name for row in rows for name in row),
            key=lambda name: not name.startswith(RESERVED_KEYS),
        )
        columns = {_text(name): [row.get(name) for row in rows] for name in names}
        return {name: _column(values) for name, values in columns.items()}

    def _scan(self) -> None:
        """Find the lines that came since the last scan; half a line does not count."""
        if not os.path.lexists(self._path):
            return
        with self._faults(), open_regular(self._path) as file:
            self._need_same()  # after it was opened
            starts = [self._starts]
            start = at = file.seek(int(self._starts[-1]))
            while data := file.read(_CHUNK_NBYTES):
                if self._may_lack_lines:
                    data = data.split(b"\0", 1)[0]
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
        except (OSError, IndexError, *_NOT_JSON) as error:
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
    kinds = {type(value) for value in values}
    with suppress(OverflowError):  # a number of hundreds of digits is text
        for types, dtype in (({bool}, np.bool_), ({int}, np.int64)):
            if kinds <= types:
                with suppress(OverflowError):
                    return np.array(values, dtype)
        if kinds <= {bool, int, float, type(None)}:
            return np.array([np.nan if v is None else v for v in values], float)
    if not kinds <= {str, type(None)}:
        values = [None if value is None else json.dumps(value) for value in values]
    column = np.empty(len(values), object)
    column[:] = [value and _text(value) for value in values]
    return column


def _text(text: str) -> str:
    """Return a text without lone surrogates, which tables of others refuse."""
    return text.encode("utf-8", "replace").decode()
