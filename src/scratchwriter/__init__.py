"""The fastest and safest place for a Python camera loop to put its frames.

The modules behind these names are imported on first use (as in SPEC 1 of Scientific
Python), so that `import scratchwriter` alone costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from scratchwriter._version import __version__

if TYPE_CHECKING:
    from scratchwriter._native import get_include
    from scratchwriter.bridges.useq import dims_from_useq, useq_to_acquisition_settings
    from scratchwriter.coords import CoordUpdate
    from scratchwriter.dimensions import (
        Channel,
        Dimension,
        Plate,
        Position,
        PositionDimension,
        StandardAxis,
        dims_from_standard_axes,
    )
    from scratchwriter.errors import DatasetError, ExportCancelledError
    from scratchwriter.reader import ScratchDataset, open_scratch
    from scratchwriter.settings import AcquisitionSettings, ScratchFormat
    from scratchwriter.stream import OMEStream, ScratchStream, create_stream
    from scratchwriter.views import StreamView

__all__ = [
    "AcquisitionSettings",
    "Channel",
    "CoordUpdate",
    "DatasetError",
    "Dimension",
    "ExportCancelledError",
    "OMEStream",
    "Plate",
    "Position",
    "PositionDimension",
    "ScratchDataset",
    "ScratchFormat",
    "ScratchStream",
    "StandardAxis",
    "StreamView",
    "__version__",
    "create_stream",
    "dims_from_standard_axes",
    "dims_from_useq",
    "get_include",
    "open_scratch",
    "useq_to_acquisition_settings",
]

# In the order in which they import each other.
_MODULES = (
    "_native",
    "dimensions",
    "settings",
    "coords",
    "errors",
    "views",
    "stream",
    "reader",
    "bridges.useq",
)


def __getattr__(name: str) -> object:
    for module_name in _MODULES if name in __all__ else ():
        module = import_module(f"scratchwriter.{module_name}")
        if hasattr(module, name):
            globals()[name] = value = getattr(module, name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
