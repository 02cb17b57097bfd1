import numpy as np
import numpy.typing as npt

from scratchwriter._core import FrameWriter

def wait_for_writer(
    writer: FrameWriter,
    stop: npt.NDArray[np.int64],
    seen: int,
    timeout_ns: int,
    poll_ns: int,
) -> int:
    """Return the writer's cursor: when it is past `seen`, at the latest after the timeout.

    Also when `stop` (an array of one) is not 0. The cursor is looked at every `poll_ns`;
    the GIL is released at least once.
    """

def wait_for_cursor(
    cursor: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    seen: int,
    timeout_ns: int,
    poll_ns: int,
) -> int:
    """Do the same with a cursor (an array of one) that is stored elsewhere."""
