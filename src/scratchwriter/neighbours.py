"""Making ourselves known to neighbours that are in the house already."""

from __future__ import annotations

import sys
from importlib import import_module

_BRIDGES = {"ndv": "scratchwriter.bridges.ndv"}


def greet() -> None:
    """Load the bridges to libraries that this program has loaded, and to no others."""
    for name, bridge in _BRIDGES.items():
        if name in sys.modules and bridge not in sys.modules:
            import_module(bridge)
