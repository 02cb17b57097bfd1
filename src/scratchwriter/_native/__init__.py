"""For compilers: where the C header of this library is."""

from __future__ import annotations

from pathlib import Path


def get_include() -> str:
    """Return the folder of scratchwriter.h, for the `include_dirs` of an extension."""
    return str(Path(__file__).parent.parent / "include")
