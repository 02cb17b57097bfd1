from pathlib import Path

from scratchwriter._region.descriptor import Descriptor

def map_file(path: Path) -> memoryview:
    """See `view_file`; keeps no file open."""

def map_open_file(file: Descriptor, writable: bool = False) -> memoryview:
    """See `view_open_file`; keeps no file open."""
