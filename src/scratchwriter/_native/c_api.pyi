from typing import Final

from scratchwriter._core import FrameWriter

__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

def c_append_of(writer: FrameWriter, /) -> tuple[int, int]:
    """Return the addresses of the C `append` and its state, for the life of the process."""
