from collections.abc import Sequence
from typing import Protocol, final

from scratchwriter._core import FrameWriter, _Plan
from scratchwriter._region.mapped import MappedRegion

class _OrderedPlan(_Plan, Protocol):
    @property
    def step_nbytes(self) -> int: ...
    @property
    def is_in_order(self) -> bool: ...

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
    @property
    def frames_ahead(self) -> int:
        """Frames that have been prepared and have not come yet."""

    @property
    def frames_written_back(self) -> int:
        """Frames that the disk has, with all before them."""

    @property
    def lost(self) -> tuple[int, int] | None:
        """Errno and position of the first failure to write back; the data may be lost."""

    def start_writeback(self, backlog_nbytes: int, cached_nbytes: int) -> None:
        """Begin to write back what is more than so many bytes behind the frames.

        What is more than `cached_nbytes` behind that need not stay in memory.
        """

    def prepare_now(self, position: int, stop_nbytes: int) -> int:
        """Prepare the slot before `stop_nbytes`; return 0, an errno, or -1 past the end."""

    def add_records(self, region: MappedRegion) -> None:
        """Prepare the records of frames, too, from now on. Again: of no effect."""

    def show_times(self, address: int, owner: object) -> None:
        """Keep a record of `append_times.RECORD` at an address up to date, roughly."""

    def stop(self) -> None:
        """End the threads; in a forked child, which has none, do nothing."""
