"""Metadata of frames and acquisitions as JSON."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from pydantic_core import PydanticSerializationError, to_json

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
    if not isinstance(metadata, Mapping):
        raise TypeError(
            f"frame_metadata must be a dict, got {type(metadata).__name__}: "
            "{'name': value, ...}."
        )
    if not metadata:
        return b""
    for key in RESERVED_KEYS:
        if key in metadata:
            _warn(key, f"the name is reserved ({', '.join(RESERVED_KEYS)})")
            metadata = {k: v for k, v in metadata.items() if k != key}
    try:
        return _to_json(metadata)
    except (PydanticSerializationError, ValueError, TypeError, RecursionError):
        return _to_json(dict(_writable_items(metadata)))


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
        return _to_json(metadata)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise TypeError(
            f"metadata of namespace {namespace!r} cannot be written as JSON: {error}"
        ) from None


def _to_json(value: Any) -> bytes:
    # NaN and infinity stay what they are, as Python's own json writes and reads them.
    if not isinstance(value, dict):
        value = dict(value)
    return to_json(value, ensure_ascii=True, inf_nan_mode="constants", fallback=_natural)


def _natural(value: Any) -> Any:
    """Return plain Python values for what pydantic does not know."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):  # also paths of another system
        return os.fspath(value)
    if isinstance(value, np.longdouble):
        return float(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no natural JSON")


def _writable_items(metadata: Mapping[str, Any]) -> list[tuple[str, Any]]:
    items = []
    for key, value in metadata.items():
        try:
            _to_json({key: value})
        except (PydanticSerializationError, ValueError, TypeError, RecursionError) as e:
            _warn(key, f"its value cannot be written as JSON ({e})")
        else:
            items.append((key, value))
    return items


def _warn(key: str, why: str) -> None:
    warnings.warn(
        f"frame_metadata key {key!r} is not stored: {why}. The frame and the other keys "
        "are.",
        stacklevel=3,
    )
