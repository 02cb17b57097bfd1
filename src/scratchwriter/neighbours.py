"""Making ourselves known to neighbours that are in the house already."""

from __future__ import annotations

import logging
import sys
from importlib import import_module

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
