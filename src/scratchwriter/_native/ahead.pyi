from collections.abc import Sequence
from typing import Protocol, final

from scratchwriter._core import FrameWriter, _Plan
from scratchwriter._region.mapped import MappedRegion
from scratchwriter._region.staging import StagingFile

class _OrderedPlan(_Plan, Protocol):
    @property
    def step_nbytes(self) -> int: ...
    @property
    def is_in_order(self) -> bool: ...

class _Limits(Protocol):  # `policy.Staging`
    @property
    def window_nbytes(self) -> int: ...
    @property
    def allocated_nbytes(self) -> int: ...

@final
class AheadThread:
    """Prepares the slots ahead of a writer, on threads that never need the GIL.

    Parameters
    ----------
    plan : FramePlan
        The writer's.
    writer : FrameWriter
    regions : list of MappedRegion
        One per position.
    memory_stop_nbytes : sequence of int
        How much of each position's array may be in memory, if the plan is unbounded.
    window_nbytes : int
        How far to go ahead of the frames, over all positions.
    """

    def __new__(
        cls,
        plan: _OrderedPlan,
        writer: FrameWriter,
        regions: list[MappedRegion],
        memory_stop_nbytes: Sequence[int],
        window_nbytes: int,
    ) -> AheadThread: ...
    def start(self) -> None:
        """Begin to prepare what comes; before that, only what is asked for is prepared."""

    @property
    def frames_ahead(self) -> int:
        """Frames that have been prepared and have not come yet."""

    def stage_in(self, staging: StagingFile, limits: _Limits) -> bool:
        """Stage what comes to files from now on, within limits.

        Again: of no effect.

        False: the system gives no thread for it, and nothing is staged.
        """

    @property
    def is_staging(self) -> bool:
        """Whether frames are staged by now."""

    @property
    def refused_code(self) -> int:
        """Errno of the first try to make staging.bin, or a slot, that failed."""

    @property
    def frames_before(self) -> int:
        """How many frames came before any was staged: those are in the page cache."""

    @property
    def disk(self) -> list[int]:
        """What `layout.DISK_FIELDS` names."""

    def count_wait(self, frames: int, ns: int) -> None:
        """Count frames, and nanoseconds, that had to wait for the disk."""

    def forget_wait(self) -> None:
        """Note that a frame no longer waits for the disk: an interrupt ended its call."""

    def wait_for_trouble(self, known: int) -> int:
        """Wait, without the GIL, for what is worth a warning; 0 after `stop`.

        1 when half of what may wait for the disk does, 2 when staging.bin finds no room; or
        both. Not for what is known.
        """

    def heads(self, frames: int) -> list[int]:
        """Return how many bytes of each position so many frames fill, in order."""

    def bring_to_files(self, frames: int) -> int:
        """Wait until so many frames are in the files of the arrays; return 0, or an errno.

        That is the reason why it takes longer: the disk is full. -1: the thread has ended.
        """

    def end_staging(self) -> None:
        """Let others know that all frames are in the files of the arrays, after `stop`."""

    def prepare_now(self, position: int, stop_nbytes: int) -> int:
        """Prepare the slot before `stop_nbytes`; return 0, an errno, or -1 past the end.

        EAGAIN: when the disk has taken more of what waits for it.
        """

    def add_records(self, region: MappedRegion) -> None:
        """Prepare the records of frames, too, from now on. Again: of no effect."""

    def show_times(self, address: int, owner: object) -> None:
        """Keep a record of `append_times.RECORD` at an address up to date, roughly."""

    def stop(self) -> None:
        """End the threads; in a forked child, which has none, do nothing."""
