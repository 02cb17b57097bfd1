from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, final

import numpy.typing as npt

from scratchwriter._core import FrameWriter

@final
class Appender:
    """The way in: whoever holds it, or its `append`, keeps the acquisition going.

    Parameters
    ----------
    writer : FrameWriter
        Where the frames go.
    """

    def __new__(cls, writer: FrameWriter) -> Appender: ...
    def append(
        self,
        frame: Any,
        *,
        frame_metadata: Mapping[str, Any] | None = None,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
    ) -> None:
        """Store the next frame; see `ScratchStream.append`."""

    def extend(
        self,
        frames: npt.NDArray[Any] | Iterable[Any],
        *,
        frame_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        timestamps_ns: npt.ArrayLike | None = None,
        frame_ids: npt.ArrayLike | None = None,
    ) -> None:
        """Store the next frames; see `ScratchStream.extend`."""

    def slot(
        self,
        *,
        frame_metadata: Mapping[str, Any] | None = None,
        timestamp_ns: int | None = None,
        frame_id: int | None = None,
    ) -> Slot:
        """Reserve the next frame; see `ScratchStream.slot`."""

    def slots(
        self,
        n: int,
        *,
        frame_metadata: Sequence[Mapping[str, Any] | None] | None = None,
        timestamps_ns: npt.ArrayLike | None = None,
        frame_ids: npt.ArrayLike | None = None,
    ) -> Slot:
        """Reserve the next frames; see `ScratchStream.slots`."""

    @property
    def capsule(self) -> object:
        """A PyCapsule; see `ScratchStream.capsule`."""

@final
class Slot:
    """The memory of the next frame, or frames, open to be filled in place.

    A context manager, to be used once; made by `ScratchStream.slot` and
    `ScratchStream.slots`. What is set before its block is left is kept with the frames.

    Attributes
    ----------
    frame_metadata, timestamp_ns, frame_id
        As `append` takes them; of several frames, a sequence with one for each (of which
        `timestamps_ns` and `frame_ids` are other names, those that `slots` has).
    num_filled : int or None
        How many were filled; the others are given back. None: all.
    """

    frame_metadata: Any
    timestamp_ns: Any
    frame_id: Any
    timestamps_ns: Any
    frame_ids: Any
    num_filled: int | None

    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def __array__(self, dtype: Any = ..., copy: Any = ...) -> NoReturn: ...
    def __getitem__(self, key: Any, /) -> NoReturn: ...
    def __setitem__(self, key: Any, value: Any, /) -> None: ...
    def __enter__(self) -> npt.NDArray[Any]: ...
    def __exit__(
        self, exc_type: object, exc_value: object, traceback: object, /
    ) -> bool: ...
