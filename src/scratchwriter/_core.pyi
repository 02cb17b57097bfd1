from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt

_T = TypeVar("_T")
__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

class _Plan(Protocol):
    @property
    def dtype(self) -> np.dtype[np.generic]: ...
    @property
    def frame_shape(self) -> tuple[int, int]: ...
    @property
    def frame_nbytes(self) -> int: ...
    @property
    def counts(self) -> tuple[int | None, ...]: ...
    @property
    def strides_nbytes(self) -> tuple[int, ...]: ...
    @property
    def position_axis(self) -> int | None: ...
    @property
    def num_positions(self) -> int: ...
    @property
    def num_frames(self) -> int | None: ...
    @property
    def is_unbounded(self) -> bool: ...
    @property
    def step_frames(self) -> int: ...
    @property
    def visit_frames(self) -> int: ...
    @property
    def step_nbytes(self) -> int: ...
    @property
    def ring_steps(self) -> int: ...
    @property
    def ring_frames(self) -> int: ...
    @property
    def keep_steps(self) -> int | None: ...
    @property
    def file_axes(self) -> tuple[int, ...]: ...
    @property
    def file_dims(self) -> tuple[str, ...]: ...

class _Memory(Protocol):
    @property
    def address(self) -> int: ...
    @property
    def memory(self) -> object: ...
    @property
    def moves(self) -> bool: ...

class _Provider(Protocol):
    """Provides what a frame lacks. It is called with no lock held."""

    def make_room(self, position: int, stop_nbytes: int) -> None:
        """Make an array writable up to `stop_nbytes`, by `attach`, or raise.

        The one behind the last position is that of the records.
        """

    def make_steps(self, steps: int) -> None:
        """Make all arrays readable up to `steps`, by `set_readable_steps`, or raise."""

@final
class FrameWriter:
    """Writes frames into the slots of a plan.

    It knows numbers and addresses only. What a frame lacks it asks of its
    provider.

    Parameters
    ----------
    plan : FramePlan
        Counts, strides and sizes.
    casting : {'safe', 'same_kind', 'unsafe'}
        Which conversions of a frame's dtype are accepted.
    provider : Storage
        Provides what a frame lacks. It owns the writer, which keeps a weak reference.
    encode_metadata : callable(mapping) -> bytes
        Returns a JSON object on one line, or nothing.
    keep_metadata : bool
        Whether lines that come before `log_to` are kept for it.
    takes_time : bool
        Whether the time of frames that come without one is recorded.
    """

    def __new__(
        cls,
        plan: _Plan,
        casting: str,
        provider: _Provider,
        encode_metadata: Callable[[Mapping[str, Any]], bytes],
        *,
        keep_metadata: bool,
        takes_time: bool = False,
    ) -> FrameWriter: ...
    def skip(self, *, frames: int = 1) -> None:
        """Leave out the next slots; see `ScratchStream.skip`."""

    @property
    def frames_written(self) -> int:
        """Frames appended and skipped."""

    @property
    def closed(self) -> bool:
        """Whether frames are refused."""

    @property
    def has_lease(self) -> bool:
        """Whether memory of the arrays is lent out; asked by an action of `exclusively`."""

    def lent_stop_nbytes(self, position: int) -> int:
        """Return how far memory of an array has ever been lent out; 0: none was."""

    def writable_nbytes(self, position: int) -> int:
        """Return how far an array may be written: its gate."""

    def skipped(self, first: int = 0) -> npt.NDArray[np.int64]:
        """Return start and stop of the ranges of frames that were skipped, from one on."""

    def measured(self) -> dict[str, Any]:
        """Return the fields of `StreamStats` that the writer knows."""

    def exclusively(self, action: Callable[[], _T]) -> _T:
        """Run `action()` while no frame is stored; it may call all that is below."""

    def attach(self, position: int, owner: _Memory, writable_nbytes: int) -> None:
        """Take a position's array, or what has become of it after it has grown.

        The one behind the last position is that of the records.
        """

    def set_readable_steps(self, steps: int) -> None:
        """Allow skips as far as `steps`."""

    def publish_progress(
        self,
        cursor_address: int,
        dropped_address: int,
        in_files_address: int,
        owner: object,
    ) -> None:
        """Keep the frame cursor, dropped frames, and frames in files (int64) there, too."""

    def publish_steps(self, addresses: Sequence[int], owner: object) -> None:
        """Keep each array's length as 16 digits at an address, too, from now on."""

    def end_lengths(self) -> None:
        """Leave the lengths in the manifest as they are from now on."""

    def settle_steps(self, is_replaced: bool) -> None:
        """Keep the lengths in one place again: in the last one published, or as before."""

    def copy_log(self, fd: int, path: Path) -> None:
        """Write kept metadata lines to a file, but the last ones; frames may come."""

    def log_to(self, fd: int, path: Path) -> None:
        """Write metadata lines to a file from now on, and first those that are kept."""

    def log_skips_to(self, fd: int, path: Path) -> None:
        """Write what is skipped to a file from now on, and first what was."""

    def close(self) -> None:
        """Refuse frames from now on; an append under way in another thread ends first."""

    def disown(self) -> None:
        """Refuse everything: this process was forked from the one that writes."""

    @property
    def c_address(self) -> int:
        """Address of its `scratchwriter_stream`, for the life of the process."""

def layout() -> dict[str, Any]:
    """Return the sizes and constants that files have in common with `layout.py`."""
