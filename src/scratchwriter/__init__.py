"""The fastest and safest place for a Python camera loop to put its frames."""

from scratchwriter._version import __version__
from scratchwriter.dimensions import (
    Channel,
    Dimension,
    Plate,
    Position,
    StandardAxis,
    dims_from_standard_axes,
)
from scratchwriter.settings import AcquisitionSettings, ScratchFormat
from scratchwriter.stream import ScratchStream, create_stream

OMEStream = ScratchStream  # the name in ome-writers

__all__ = [
    "AcquisitionSettings",
    "Channel",
    "Dimension",
    "OMEStream",
    "Plate",
    "Position",
    "ScratchFormat",
    "ScratchStream",
    "StandardAxis",
    "__version__",
    "create_stream",
    "dims_from_standard_axes",
]
