"""Metadata of frames and acquisitions as JSON."""

from __future__ import annotations

import datetime
import json
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from enum import Enum
from typing import Any

import numpy as np
from pydantic_core import PydanticSerializationError, to_json

from scratchwriter._core import is_plain

RESERVED_KEYS = ("_pos", "_idx")  # where a frame is; written by us


def encode_frame_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Return the metadata of a frame as a JSON object on one line.

    numpy scalars and arrays, dates, paths and enums become their natural JSON. A key
    whose value has none is left out, with a warning; so are the reserved keys. The
    result is empty where there is nothing to write.

    Raises
    ------
    TypeError
        If `metadata` is not a mapping.
    """
    if type(metadata) is dict and is_plain(metadata):
        if not metadata:
            return b""
        if "_pos" not in metadata and "_idx" not in metadata:
            try:
                return to_json(metadata, ensure_ascii=True)  # several times as fast as json
            except PydanticSerializationError:
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
        raise ValueError(f"namespace must be a string that is not empty: {namespace!r}")
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
    # NaN and infinity stay what they are, as Python's own json reads them.
    return json.dumps(value, default=_natural).encode("ascii")


def _natural(value: Any) -> Any:
    """Return plain Python values for what json does not know."""
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
        # Dates as text: as numbers their unit would be lost.
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
            # What it is as text in JSON; a value is read once, it may be used up by it.
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
        "are.",
        stacklevel=4,
    )
