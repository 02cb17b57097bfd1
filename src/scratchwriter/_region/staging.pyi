from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Protocol, final

from scratchwriter._region.mapped import MappedRegion

__pyx_capi__: Final[dict[str, object]]  # for the other compiled modules

class _Plan(Protocol):
    @property
    def visit_frames(self) -> int: ...
    @property
    def frame_nbytes(self) -> int: ...

class _Limits(Protocol):
    @property
    def piece_nbytes(self) -> int: ...
    @property
    def most_slots(self) -> int: ...
    @property
    def keep_ns(self) -> int: ...
    @property
    def most_cached_pieces(self) -> int: ...
    @property
    def from_nbytes(self) -> int: ...

def layout() -> dict[str, Any]:
    """Return what staging.bin has where."""

@final
class StagingFile:
    """staging.bin, and what of the arrays is in it.

    Parameters
    ----------
    path : pathlib.Path
        The file to make.
    regions : list of MappedRegion
        Of all positions, in files.
    plan : FramePlan
        The writer's.
    limits : policy.Staging
        Sizes, and how much may wait.

    Raises
    ------
    MemoryError, OSError
        If it cannot be made.
    """

    def __new__(
        cls, path: Path, regions: list[MappedRegion], plan: _Plan, limits: _Limits
    ) -> StagingFile: ...
    @property
    def path(self) -> Path:
        """The file."""

    @property
    def lost(self) -> tuple[int, int] | None:
        """Errno and position of the first page cache that a device has not taken."""

    @property
    def refused_code(self) -> int:
        """Errno of the first try to make the file, or a slot of it, that failed; or 0."""

    def leave(self, copies: bool = False) -> None:
        """Map the files in place of all pieces.

        A forked child does, with `copies` of the slots that are in no file yet: its parent
        uses the slots again.

        Raises
        ------
        MemoryError
            If that fails; the next call tries again.
        """

    def remove(self) -> None:
        """Remove the file, if it is still the one that was made. Again: of no effect.

        Raises
        ------
        OSError
            If that fails.
        """

    def finish(self, heads: Sequence[int]) -> None:
        """Bring everything before a byte of each array into the files, and leave these.

        Raises
        ------
        MemoryError, OSError
            If that fails; the next call tries again.
        """
