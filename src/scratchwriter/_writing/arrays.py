"""The arrays of an acquisition: how they are made, and made longer while frames come.

How far an array can be used is said by four numbers, each with one owner:

=================== ================= =====================================================
number              owner             meaning
=================== ================= =====================================================
`nbytes`            its `Region`      can be read
`memory_nbytes`     its `Region`      of those, are in memory; the rest is in its file
`writable_nbytes`   the `FrameWriter` frames may be stored up to here (the gate)
`granted_steps`     `MemoryBudget`    the machine was asked for, in memory
=================== ================= =====================================================

In memory arrays grow by grants: many steps are opened at a time. Files grow ahead of the
frames on a thread of their own (`AheadThread`), which moves the gate, too, and keeps its
own account of what it has prepared; with portable regions they grow when a frame arrives at
the end.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from scratchwriter._core import FrameWriter
from scratchwriter._files.layout import RECORD, RECORDS, array_name
from scratchwriter._region import Region, allocate_most, make_region, make_ring
from scratchwriter._writing import policy
from scratchwriter._writing.policy import MemoryBudget, Placement, Writeback
from scratchwriter.errors import device_error, disk_error
from scratchwriter.plan import FramePlan

if TYPE_CHECKING:
    from scratchwriter._native.ahead import AheadThread
    from scratchwriter._region.mapped import MappedRegion

# How many steps arrays are made longer at least when frames are skipped.
_SKIP_STEPS = 16
# Of a ring, which has no end.
_MOST_STEPS = 1 << 40
# Records are opened for two million frames at a time where nothing is made ready ahead, or
# for 45 million where that takes no memory yet (asking means that C needs the GIL).
_RECORDS_GRANT_NBYTES = 48 << 20
_RESERVED_RECORDS_GRANT_NBYTES = 1 << 30


class GrowingArray:
    """An array of frames, or of records, that the writer fills.

    Parameters
    ----------
    writer : FrameWriter
        Knows it by its number.
    number : int
        Of the position; the one behind the last position is that of the records.
    file_name : str
        Of its file, if it has one or gets one.
    unit_nbytes : int
        What it grows by: a step of frames, or a record.
    region : Region
        Where its bytes are.
    """

    def __init__(
        self,
        writer: FrameWriter,
        number: int,
        file_name: str,
        unit_nbytes: int,
        region: Region,
    ) -> None:
        self._writer, self._number, self._file_name = writer, number, file_name
        self._has_ended = False
        self.unit_nbytes, self.region = unit_nbytes, region

    @property
    def is_in_file(self) -> bool:
        """Whether it has a file, or continues in one."""
        return self.region.path is not None

    @property
    def writable_nbytes(self) -> int:
        """How far frames may be stored."""
        return self._writer.writable_nbytes(self._number)

    def attach(self, writable_nbytes: int) -> None:
        """Have the writer store up to here, and no further."""
        self._writer.attach(self._number, self.region, writable_nbytes)

    def grow(self, start: int, stop: int, most_stop: int) -> None:
        """Let bytes be stored to, and those behind them up to `most_stop` if they fit.

        Raises
        ------
        MemoryError, OSError
            If there is not even room up to `stop`.
        """
        unit = self.unit_nbytes
        stop = -(-stop // unit) * unit
        most_stop = max(stop, most_stop)
        self.attach(allocate_most(self.region, start, stop, most_stop, unit))

    def extend(self, nbytes: int) -> None:
        """Let the first bytes be read.

        Raises
        ------
        MemoryError, OSError
            If there is no room for them.
        """
        self.region.extend(nbytes)
        if self.region.moves:
            self.attach(self.writable_nbytes)

    def spill(self, folder: Path, start: int) -> None:
        """Continue in a file; nothing is stored behind `start`. Again: of no effect.

        Raises
        ------
        MemoryError, OSError
            If the file cannot be made; all is as it was then.
        """
        if self.is_in_file:
            return
        # First: behind it the file has no blocks yet that could be stored to.
        self.attach(min(start, self.writable_nbytes))
        self.region.extend(max(start, 1))
        self.region.spill(folder / self._file_name, start)
        self.attach(self.writable_nbytes)

    def save(self) -> None:
        """Write what is in memory into its file.

        Raises
        ------
        OSError
            If that fails.
        """
        self.region.save()

    def end(self, nbytes: int) -> None:
        """Keep the first bytes only, when the writer is closed.

        Raises
        ------
        MemoryError
            If there is none to put in place of a file whose memory is lent out.
        """
        self.region.end(nbytes, self._writer.lent_stop_nbytes(self._number))
        self._has_ended = True

    def finish(self, folder: Path, nbytes: int) -> None:
        """Have a file with exactly these bytes, after `end`; before it, do nothing.

        Raises
        ------
        MemoryError, OSError
            If that fails; the next call tries again.
        """
        if not self._has_ended:
            return  # memory behind the end of the file may still be in use
        if not self.is_in_file:
            self.region.save_as(folder / self._file_name, nbytes)
        self.region.trim(nbytes)  # before more is written: it gives back disk space
        self.region.save()


class ArraySet:
    """All arrays of an acquisition, and the thread ahead of the writer that fills them.

    Parameters
    ----------
    plan : FramePlan
        Counts, strides and sizes.
    placement : Placement
        Where they are, and their limits.
    writer : FrameWriter
        That fills them.

    Attributes
    ----------
    positions : list of GrowingArray
    records : GrowingArray or None
        What is known of frames besides their pixels; None before the first.
    """

    def __init__(self, plan: FramePlan, placement: Placement, writer: FrameWriter) -> None:
        self._plan, self._placement, self._writer = plan, placement, writer
        self._budget = MemoryBudget(placement, plan)
        self._ahead: AheadThread | None = None
        self.positions: list[GrowingArray] = []
        self.records: GrowingArray | None = None

    # -------------------------------------------------------------------------- begin

    def make(self, folder: Path | None) -> None:
        """Make the arrays of all positions, in a folder or in memory.

        Raises
        ------
        MemoryError, OSError
            If there is no room for them.
        """
        plan = self._plan
        for position in range(plan.num_positions):
            name = array_name(position)
            region = self._make_region(folder and folder / name)
            array = GrowingArray(self._writer, position, name, plan.step_nbytes, region)
            self.positions.append(array)
            if plan.ring_steps:
                array.attach(plan.ring_steps * plan.step_nbytes)
            elif plan.is_unbounded:
                region.extend(plan.step_nbytes)
                if folder is not None or self.grow_in_memory(position, 1) is not None:
                    array.attach(0)
            else:
                region.allocate(0, plan.step_nbytes)
                # In files the thread ahead opens slot by slot, if it can.
                is_gated = folder is not None and plan.is_in_order and not region.moves
                array.attach(0 if is_gated else plan.step_nbytes)
        if plan.ring_steps:
            self._writer.set_readable_steps(_MOST_STEPS)

    def _make_region(self, path: Path | None) -> Region:
        plan, placement = self._plan, self._placement
        if plan.ring_steps:
            return make_ring(plan.ring_steps * plan.step_nbytes, path)
        return make_region(
            placement.reserve_nbytes,
            path,
            huge_pages=placement.huge_pages,
            least_nbytes=plan.step_nbytes,
        )

    def start_ahead(self) -> None:
        """Begin to make memory and files ready ahead of the frames."""
        plan, placement = self._plan, self._placement
        if plan.ring_steps or any(array.region.moves for array in self.positions):
            return  # all is ready, or nothing can be
        from scratchwriter._native.ahead import AheadThread  # is not built everywhere

        memory_stops = [0] * plan.num_positions
        if plan.is_unbounded and placement.kind == "memory":
            for position, array in enumerate(self.positions):
                stop = placement.memory_steps[position] * plan.step_nbytes
                memory_stops[position] = min(stop, placement.reserve_nbytes)
                # All at once: what is opened bit by bit makes the frames wait for it.
                with suppress(MemoryError):  # it may also be opened bit by bit
                    array.region.extend(memory_stops[position])
        self._ahead = AheadThread(
            plan,
            self._writer,
            [cast("MappedRegion", array.region) for array in self.positions],
            memory_stops,
            placement.window_nbytes,
        )
        self._prepare_records()
        self.start_writeback(placement.writeback)

    def start_writeback(self, writeback: Writeback | None) -> None:
        """Begin to write files to the disk behind the frames. Again: of no effect."""
        if self._ahead is not None and writeback is not None:
            self._ahead.start_writeback(writeback.backlog_nbytes, writeback.cached_nbytes)

    def show_append_times(self, address: int, owner: object) -> None:
        """Keep the times of appends up to date there, if there is a thread for it."""
        if self._ahead is not None:
            self._ahead.show_times(address, owner)

    def stop_ahead(self) -> None:
        """End what runs ahead of the frames."""
        if self._ahead is not None:
            self._ahead.stop()

    # ------------------------------------------------------------------------- growth

    def grow_in_memory(self, position: int, step: int) -> str | None:
        """Make a step writable in memory, or name the limit that it would cross."""
        limit = self._budget.shortage(position, step)
        if limit is not None:
            return limit
        unit = self._plan.step_nbytes
        most_stop = self._budget.granted_steps(position) * unit
        try:
            self.positions[position].grow((step - 1) * unit, step * unit, most_stop)
        except MemoryError as error:
            return f"the system gives ({error})"
        return None

    def grow_in_file(self, position: int, stop_nbytes: int) -> None:
        """Make a slot in a file writable.

        Raises
        ------
        MemoryError, OSError
            If there is no room for it.
        """
        array, unit = self.positions[position], self._plan.step_nbytes
        if self._ahead is None:
            step = -(-stop_nbytes // unit)
            last = step - 1 + self._placement.growth_steps
            array.grow((step - 1) * unit, step * unit, last * unit)
            return
        self._prepare_now(array, position, stop_nbytes, self._plan.frame_nbytes)

    def grow_records(self, stop_nbytes: int, folder: Path | None) -> None:
        """Make records writable, in a folder or in memory. The first call makes the array.

        Raises
        ------
        MemoryError, OSError
            If there is no room.
        """
        self.make_records(folder)
        array = self.records
        if array is None or stop_nbytes <= array.writable_nbytes:
            return
        start = self._writer.frames_written * RECORD.itemsize
        if self._ahead is not None and array.is_in_file:
            number = self._plan.num_positions
            self._prepare_now(array, number, stop_nbytes, stop_nbytes - start)
            return
        grant_nbytes = (
            _RECORDS_GRANT_NBYTES if array.region.moves else _RESERVED_RECORDS_GRANT_NBYTES
        )
        most_stop = max(stop_nbytes, array.writable_nbytes + grant_nbytes)
        if self._plan.num_frames is not None:
            most_stop = min(most_stop, self._plan.num_frames * RECORD.itemsize)
        array.grow(min(start, array.writable_nbytes), stop_nbytes, most_stop)

    def _prepare_now(
        self, array: GrowingArray, number: int, stop_nbytes: int, needed_nbytes: int
    ) -> None:
        """Have the thread ahead make a slot ready, before anything else that it does."""
        assert self._ahead is not None
        code = self._ahead.prepare_now(number, stop_nbytes)
        if code in (-1, errno.ENOMEM):
            raise MemoryError(
                f"The addresses reserved for an array end at {stop_nbytes} bytes. Raise "
                "the limit of addresses (ulimit -v), or begin a new dataset."
            )
        if code != 0:
            raise disk_error(code, cast("Path", array.region.path), needed_nbytes)

    def make_records(self, folder: Path | None) -> None:
        """Begin the array of the records, in a folder or in memory. Again: of no effect.

        Raises
        ------
        MemoryError, OSError
            If there is no room for it.
        """
        path = folder and folder / RECORDS
        if self.records is None:
            try:
                self.records = self._new_records(path)
            except FileExistsError:
                raise  # it is not ours
            except BaseException:
                if path is not None:
                    path.unlink(missing_ok=True)
                raise
        array = self.records
        frames = self._plan.ring_frames or self._plan.num_frames
        # Where a thread makes them ready it opens the gate, too.
        is_gated = array.is_in_file and not (array.region.moves or self._plan.ring_frames)
        first = 0 if frames is None or is_gated else frames * array.unit_nbytes
        array.attach(max(first, array.writable_nbytes))
        self._prepare_records()

    def _new_records(self, path: Path | None) -> GrowingArray:
        plan, unit = self._plan, RECORD.itemsize
        frames = plan.ring_frames or plan.num_frames
        reserve_nbytes = self._placement.records_reserve_nbytes
        nbytes = reserve_nbytes if frames is None else frames * unit
        least_nbytes = _RECORDS_GRANT_NBYTES if frames is None else nbytes
        region = make_region(nbytes, path, least_nbytes=least_nbytes)
        if frames is not None:
            region.allocate(0, nbytes)
        return GrowingArray(self._writer, plan.num_positions, RECORDS, unit, region)

    def _prepare_records(self) -> None:
        if self._ahead is not None and self.records is not None:
            self._ahead.add_records(cast("MappedRegion", self.records.region))

    def extend_to(self, steps: int) -> None:
        """Let all arrays be read up to `steps`, and some more.

        Raises
        ------
        MemoryError, OSError
            If arrays of that length cannot be made.
        """
        if self._plan.ring_steps:
            raise MemoryError(f"No acquisition has {steps} steps: skip fewer frames.")
        for array, most in zip(self.positions, self._placement.memory_steps, strict=True):
            if not (array.is_in_file or steps <= most or self._placement.spills):
                limit = policy.limit_text(self._placement.max_memory_bytes)
                raise policy.memory_error(steps * self._plan.total_nbytes, limit)
        # Some more than is asked for, so that many skips do not extend many arrays each.
        for length in (steps + max(steps // 4, _SKIP_STEPS), steps):
            try:
                for array in self.positions:
                    array.extend(length * array.unit_nbytes)
            except BaseException as error:
                for array in self.positions:  # those that have moved, too
                    array.attach(array.writable_nbytes)
                if length == steps or not isinstance(error, MemoryError | OSError):
                    raise
            else:
                self._writer.set_readable_steps(length)
                return

    # ------------------------------------------------------------------ out of memory

    def spill(self, position: int, folder: Path) -> None:
        """Let a position continue in a file, behind what it has in memory."""
        array = self.positions[position]
        array.spill(folder, array.writable_nbytes)

    def spill_records(self, folder: Path) -> None:
        """Let the records continue in a file, as all positions do."""
        if self.records is not None:
            self.records.spill(folder, self._writer.frames_written * RECORD.itemsize)

    @property
    def all(self) -> list[GrowingArray]:
        """Those of the positions, and of the records if there are any."""
        return self.positions if self.records is None else [*self.positions, self.records]

    @property
    def are_in_files(self) -> bool:
        """Whether the arrays of all positions have files, or continue in them."""
        return all(array.is_in_file for array in self.positions)

    @property
    def are_saved(self) -> bool:
        """Whether files have all that is in the arrays."""
        return all(array.region.is_saved for array in self.all)

    @property
    def are_past_memory(self) -> bool:
        """Whether no frame comes any more to what is in memory, and not in a file.

        Arrays spill before the frames of a batch, or those of a lease, are in the memory
        that they had before.
        """
        if not self.are_in_files:
            return False
        nbytes = max(array.region.memory_nbytes for array in self.positions)
        frames = -(-nbytes // self._plan.step_nbytes) * self._plan.step_frames
        return self._writer.closed or self._writer.frames_written >= frames

    def sizes(self, cursor: int) -> list[tuple[GrowingArray, int]]:
        """Return each array, and the bytes that it has after so many frames."""
        sizes = [
            (array, self._plan.file_nbytes(position, cursor))
            for position, array in enumerate(self.positions)
        ]
        if self.records is not None:
            count = self._plan.ring_frames or cursor
            sizes.append((self.records, count * self.records.unit_nbytes))
        return sizes

    # --------------------------------------------------------------------------- data

    def array(
        self, position: int, shape: tuple[int, ...], start_nbytes: int
    ) -> npt.NDArray[np.generic]:
        """Return an array of a position's frames, from a byte on, read-only."""
        region = self.positions[position].region
        return region.array(self._plan.dtype, shape, start_nbytes)

    def record_array(self, cursor: int) -> npt.NDArray[np.void] | None:
        """Return the records of the first frames; fewer, if the last ones have none."""
        if self.records is None:
            return None
        region = self.records.region
        count = self._plan.ring_frames or cursor
        count = min(count, region.nbytes // RECORD.itemsize)
        return cast("npt.NDArray[np.void]", region.array(RECORD, (count,)))

    def check_written_back(self) -> None:
        """Raise DeviceError if the disk has failed to take what was written back."""
        if self._ahead is not None and self._ahead.lost is not None:
            code, number = self._ahead.lost
            path = cast("Path", self.positions[number].region.path)
            raise device_error(code, path)

    # -------------------------------------------------------------------------- stats

    def populated_ahead_nbytes(self) -> int:
        """Bytes ahead of the frames that can be stored to without a page fault."""
        if self._ahead is None or self._writer.closed:
            return 0
        return self._ahead.frames_ahead * self._plan.frame_nbytes

    def allocated_ahead_nbytes(self, cursor: int) -> int:
        """Bytes ahead of the frames that have memory granted, or blocks on the disk."""
        if self._writer.closed:
            return 0
        plan = self._plan
        frames = plan.num_frames
        if frames is None:
            nbytes = min(array.writable_nbytes for array in self.positions)
            frames = nbytes // plan.step_nbytes * plan.step_frames
        ahead_nbytes = max(frames - cursor, 0) * plan.frame_nbytes
        return max(ahead_nbytes, self.populated_ahead_nbytes())

    def unwritten_nbytes(self, cursor: int, synced: int) -> int:
        """Bytes in files that may not be on the disk; `synced` frames are for certain."""
        if not self.are_in_files:
            return 0
        written_back = 0 if self._ahead is None else self._ahead.frames_written_back
        return max(cursor - max(written_back, synced), 0) * self._plan.frame_nbytes
