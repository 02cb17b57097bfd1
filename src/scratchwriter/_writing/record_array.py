"""The array of the records: what is known of frames besides their pixels.

Made when the first frame comes with something to record, or at once (with
`ScratchFormat.timestamps`). It is where the arrays are, in memory or in a file, and goes on
in a file when the last of them does.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from scratchwriter._core import FrameWriter
from scratchwriter._files.layout import RECORD, RECORDS
from scratchwriter._region import (
    Region,
    allocate_most,
    make_region,
    moves_when_it_grows,
)
from scratchwriter._writing import policy
from scratchwriter.errors import disk_error
from scratchwriter.plan import FramePlan

if TYPE_CHECKING:
    from scratchwriter._native.ahead import AheadThread
    from scratchwriter._region.mapped import MappedRegion

# As much is asked for at a time, where nothing is made ready ahead: two million frames, or
# 45 million where that takes no memory yet (for a C thread asking means to need the GIL).
_GRANT_NBYTES = 48 << 20
_RESERVED_GRANT_NBYTES = 1 << 30


class RecordArray:
    """See above. All but `view` is called while no frames come.

    Parameters
    ----------
    plan : FramePlan
        How many there may be.
    writer : FrameWriter
        Writes them.

    Attributes
    ----------
    region : Region or None
        Where they are; None before the first.
    """

    def __init__(self, plan: FramePlan, writer: FrameWriter) -> None:
        self._plan, self._writer = plan, writer
        self._writable_nbytes = 0  # but what is opened by the thread ahead
        self._ahead: AheadThread | None = None
        self.region: Region | None = None

    def make(self, folder: Path | None) -> None:
        """Begin it, in a folder or in memory.

        Raises
        ------
        MemoryError, OSError
            If there is no room for it.
        """
        if self.region is not None:
            return
        frames = self._plan.ring_frames or self._plan.num_frames
        nbytes = policy.reserve_nbytes() if frames is None else frames * RECORD.itemsize
        least_nbytes = _GRANT_NBYTES if frames is None else nbytes
        region = make_region(nbytes, folder and folder / RECORDS, least_nbytes=least_nbytes)
        try:
            if frames is not None:
                region.allocate(0, nbytes)
            # Where a thread makes them ready it opens the gate, too.
            gated = folder is not None and not moves_when_it_grows(region)
            gated = gated and not self._plan.ring_frames
            self._attach(region, nbytes if frames is not None and not gated else 0)
        except BaseException:
            if folder is not None:
                (folder / RECORDS).unlink()
            raise
        self.region = region
        self.be_prepared_by(self._ahead)
        if frames is None and folder is None:
            self.grow(RECORD.itemsize)  # now, and not in the first append

    def be_prepared_by(self, ahead: AheadThread | None) -> None:
        """Let a thread make ready what the next frames need."""
        self._ahead = ahead
        if ahead is not None and self.region is not None:
            ahead.add_records(cast("MappedRegion", self.region))

    def grow(self, stop_nbytes: int) -> None:
        """Make it writable up to there.

        Raises
        ------
        MemoryError, OSError
            If there is no room.
        """
        region = self.region
        if region is None or stop_nbytes <= self._writable_nbytes:
            return
        if self._ahead is None or region.path is None:
            moves = moves_when_it_grows(region)
            grant_nbytes = _GRANT_NBYTES if moves else _RESERVED_GRANT_NBYTES
            stop = max(stop_nbytes, self._writable_nbytes + grant_nbytes)
            if self._plan.num_frames is not None:
                stop = min(stop, self._plan.num_frames * RECORD.itemsize)
            self._attach(
                region,
                allocate_most(
                    region, self._writable_nbytes, stop_nbytes, stop, RECORD.itemsize
                ),
            )
            return
        code = self._ahead.prepare_now(self._plan.num_positions, stop_nbytes)
        if code in (-1, errno.ENOMEM):
            raise MemoryError(
                f"The addresses reserved for the records of frames end at {stop_nbytes} "
                "bytes. Begin a new dataset."
            )
        if code != 0:
            start_nbytes = self._writer.frames_written * RECORD.itemsize
            raise disk_error(code, region.path, stop_nbytes - start_nbytes)

    def continue_in_file(self, folder: Path) -> None:
        """Let it go on in a file, behind what it has in memory."""
        region = self.region
        if region is None:
            return
        if region.path is None:
            start = self._writer.frames_written * RECORD.itemsize
            region.extend(max(start, 1))
            region.continue_in_file(folder / RECORDS, start)
            self._writable_nbytes = start
        self._attach(region, self._writable_nbytes)

    def finish(self, folder: Path) -> None:
        """Give its file the exact size, and what it lacks. After the last frame."""
        region = self.region
        if region is None:
            return
        nbytes = self._count() * RECORD.itemsize
        if region.path is None:
            region.continue_in_file(folder / RECORDS, nbytes)
        region.trim(nbytes)
        region.save()

    def view(self, cursor: int) -> npt.NDArray[np.void] | None:
        """Return the records of the first frames; fewer, if the last ones have none."""
        if self.region is None:
            return None
        count = self._plan.ring_frames or cursor
        count = min(count, self.region.nbytes // RECORD.itemsize)
        return cast("npt.NDArray[np.void]", self.region.array(RECORD, (count,)))

    def _count(self) -> int:
        return self._plan.ring_frames or self._writer.frames_written

    def _attach(self, region: Region, writable_nbytes: int) -> None:
        self._writer.attach(self._plan.num_positions, region, writable_nbytes)
        self._writable_nbytes = writable_nbytes
