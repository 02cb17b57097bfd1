from pathlib import Path
from typing import final

from scratchwriter._region.descriptor import Descriptor

def map_file(path: Path) -> memoryview:
    """See `view_file`; keeps no file open."""

def map_open_file(file: Descriptor, writable: bool = False) -> memoryview:
    """See `view_open_file`; keeps no file open."""

@final
class OverlaidFile:
    """The first bytes of a file, mapped, and behind them copies: see `_region`.

    Parameters
    ----------
    nbytes : int
        Addresses; it cannot outgrow them.
    """

    @property
    def reserved_nbytes(self) -> int: ...
    @property
    def mapped_nbytes(self) -> int: ...
    def __new__(cls, nbytes: int) -> OverlaidFile: ...
    def map_file(self, file: Descriptor, stop: int) -> None: ...
    def put(self, start: int, data: bytes | memoryview) -> None: ...
    def view(self, nbytes: int) -> memoryview: ...
