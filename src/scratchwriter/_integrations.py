"""Neighbours: those that are in the house already, and those that are asked for."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_log = logging.getLogger(__name__)
_BRIDGES = {"ndv": "scratchwriter.bridges.ndv"}
_tried: set[str] = set()


def greet() -> None:
    """Load the bridges to libraries that this program has loaded, and to no others."""
    for name, bridge in _BRIDGES.items():
        if name in sys.modules and bridge not in _tried:
            _tried.add(bridge)
            try:
                import_module(bridge)
            except Exception:  # another version of it, say: no reason to record nothing
                _log.warning("%s cannot be used with this %s", bridge, name, exc_info=True)


def bridge(name: str, extra: str, *needed: str) -> Any:
    """Load a bridge that somebody asked for.

    Raises
    ------
    ImportError
        If a module that it needs is not installed; it names the extra that has it.
    """
    if missing := [module for module in needed if find_spec(module) is None]:
        raise ImportError(
            f"This needs {', '.join(missing)}: pip install 'scratchwriter[{extra}]'"
        )
    return import_module(f"scratchwriter.bridges.{name}")
