"""Loads optional integrations: for libraries that are loaded already, and on request."""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Any

_log = logging.getLogger(__name__)
_INTEGRATIONS = {"ndv": "scratchwriter.bridges.ndv"}
_tried: set[str] = set()


def register_loaded_integrations() -> None:
    """Load the integrations with those libraries that this program has loaded."""
    for library, module in _INTEGRATIONS.items():
        if library in sys.modules and module not in _tried:
            _tried.add(module)
            try:
                import_module(module)
            except Exception:  # say, another version of it: recording must still work
                _log.warning(
                    "%s cannot be used with this %s", module, library, exc_info=True
                )


def load_integration(name: str, extra: str, *needed: str) -> Any:
    """Load an integration that the caller needs.

    Raises
    ------
    ImportError
        If a module that it needs is not installed; the message names the extra to install.
    """
    if missing := [module for module in needed if find_spec(module) is None]:
        raise ImportError(
            f"This needs {', '.join(missing)}: pip install 'scratchwriter[{extra}]'"
        )
    return import_module(f"scratchwriter.bridges.{name}")
