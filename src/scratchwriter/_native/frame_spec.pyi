"""What a frame of an acquisition has to be."""

from typing import Any, Protocol, final

import numpy as np

class _FramePlan(Protocol):
    @property
    def dtype(self) -> np.dtype[np.generic]: ...
    @property
    def frame_shape(self) -> tuple[int, int]: ...
    @property
    def file_axes(self) -> tuple[int, ...]: ...
    @property
    def file_dims(self) -> tuple[str, ...]: ...

@final
class FrameSpec:
    """Checks frames, and makes arrays of them that can be copied row by row.

    Parameters
    ----------
    plan : FramePlan
        dtype and shape of a frame.
    casting : {'safe', 'same_kind', 'unsafe'}
        Which conversions of a frame's dtype are accepted.
    """

    dtype: np.dtype[Any]
    height: int
    width: int

    def __new__(cls, plan: _FramePlan, casting: str) -> FrameSpec: ...
