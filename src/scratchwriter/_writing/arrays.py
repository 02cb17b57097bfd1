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
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from scratchwriter._core import FrameWriter
from scratchwriter._files.layout import RECORD, RECORDS, STAGING, array_name
from scratchwriter._region import Region, allocate_most, make_region, make_ring
from scratchwriter._writing import policy
from scratchwriter._writing.backlog import Backlog, disk_stats
from scratchwriter._writing.policy import MemoryBudget, Placement
from scratchwriter.errors import device_error, disk_error, size_text
from scratchwriter.plan import FramePlan
from scratchwriter.stats import DiskIO, DiskStats

if TYPE_CHECKING:
    from scratchwriter._native.ahead import AheadThread
    from scratchwriter._region.mapped import MappedRegion
    from scratchwriter._region.staging import StagingFile

# How many steps arrays are made longer at least when frames are skipped.
_SKIP_STEPS = 16
# Of a ring, which has no end.
_MOST_STEPS = 1 << 40
# Records are opened for two million frames at a time where nothing is made ready ahead, or
# for 45 million where that takes no memory yet (asking means that C needs the GIL).
_RECORDS_GRANT_NBYTES = 48 << 20
_RESERVED_RECORDS_GRANT_NBYTES = 1 << 30
# Touched between two looks for an interrupt, where all memory is made ready at the start:
# a moment even for a machine that has to find each page.
_POPULATE_NBYTES = 16 << 20
_TELL_S = 0.25  # at least, between two calls that tell how far that is


class DiskBehind(Exception):  # noqa: N818
    """More waits for the disk than may: a frame has to wait, too."""


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
        self._staging: StagingFile | None = None
        self._has_begun_to_stage = False
        self._why_not_staged = ""
        self._lost: tuple[int, int] | None = None  # errno and position
        self._is_populated = False  # as a whole
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

    def populate(self, on_populate: Callable[[int, int], object] | None) -> None:
        """Make all memory of the arrays ready, before the first frame.

        Parameters
        ----------
        on_populate : callable(done_nbytes, total_nbytes), optional
            Called now and then, and at the end. What it raises ends this.

        Raises
        ------
        MemoryError
            If the system refuses memory.
        """
        total_nbytes = sum(array.region.nbytes for array in self.all)
        done_nbytes, told_s = 0, monotonic()
        for array in self.all:
            nbytes = array.region.nbytes
            for start in range(0, nbytes, _POPULATE_NBYTES):
                stop = min(start + _POPULATE_NBYTES, nbytes)
                try:
                    array.region.populate(start, stop)
                except MemoryError as error:
                    raise policy.populate_error(total_nbytes, error) from None
                done_nbytes += stop - start
                is_due = done_nbytes == total_nbytes or monotonic() - told_s >= _TELL_S
                if on_populate is not None and is_due:
                    on_populate(done_nbytes, total_nbytes)
                    told_s = monotonic()
        self._is_populated = True

    def make_ahead(self) -> None:
        """Make what makes memory and files ready ahead of the frames; see `start_ahead`.

        Raises
        ------
        MemoryError, OSError
            If that fails.
        """
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
        if self.are_in_files:
            self.stage()

    def start_ahead(self) -> None:
        """Begin to make memory and files ready ahead of the frames, on threads."""
        if self._ahead is not None:
            self._ahead.start()

    def stage(self) -> None:
        """Begin to stage what comes to files, if that is to be. Again: of no effect.

        Raises
        ------
        MemoryError
            If there are no addresses for it.
        OSError
            If it was asked for, and the system has no thread or no descriptors for it.
        """
        staging = self._placement.staging
        if self._ahead is None or staging is None or self._has_begun_to_stage:
            return
        from scratchwriter._region.staging import StagingFile  # is not built everywhere

        try:
            if self._staging is None:  # else an interrupt came before the end of this
                regions = [cast("MappedRegion", array.region) for array in self.positions]
                path = cast("Path", regions[0].path).with_name(STAGING)
                # First: once frames may be staged, closing brings them into the files.
                self._staging = StagingFile(path, regions, self._plan, staging)
            if not self._ahead.stage_in(self._staging, staging):
                path = self._staging.path
                raise OSError(errno.EAGAIN, "The system gives no more threads", str(path))
        except (MemoryError, OSError) as error:
            self._staging = None
            if staging.is_required:
                raise
            self._why_not_staged = f"staging failed ({getattr(error, 'strerror', error)})"
        self._has_begun_to_stage = True

    def show_append_times(self, address: int, owner: object) -> None:
        """Keep the times of appends up to date there, if there is a thread for it."""
        if self._ahead is not None:
            self._ahead.show_times(address, owner)

    def bring_to_files(self) -> int:
        """Wait until all frames that have come are in the files; return how many.

        Raises
        ------
        OSError
            If the disk is full.
        """
        frames = self._writer.frames_written
        ahead, staging = self._ahead, self._staging
        if staging is not None and ahead is not None:
            code = ahead.bring_to_files(frames)
            if code < 0:  # the stream is closed, and some of them are not in the files yet
                self.stop_ahead()
            elif code:
                raise disk_error(code, staging.path.parent)
        return frames

    def disown(self) -> None:
        """In a forked child: read what the files have, and copies of what is staged."""
        staging, self._staging = self._staging, None
        if staging is not None:
            with suppress(MemoryError):
                staging.leave(copies=True)

    def stop_ahead(self) -> None:
        """End what runs ahead of the frames."""
        ahead, staging = self._ahead, self._staging
        if ahead is not None:
            ahead.stop()
        if staging is not None and ahead is not None:
            frames = self._writer.frames_written
            staging.finish(ahead.heads(frames))
            ahead.end_staging()
            staging.remove()
            self._lost, self._staging = staging.lost, None
        self._writer.end_lengths()

    def give_back(self) -> None:
        """Give up the arrays and their memory: the writer is closed and stays so.

        Not when they are collected: the traceback of an error may be kept for long.
        """
        if self._ahead is not None:
            self._ahead.stop()  # it maps pieces over their addresses
        arrays = self.all
        self.positions, self.records = [], None
        for array in arrays:
            array.end(0)

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
        if code == errno.EAGAIN:
            raise DiskBehind
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

    def check_written(self) -> None:
        """Raise DeviceError if the device has failed to take what was staged."""
        staging = self._staging
        lost = self._lost if staging is None else staging.lost
        if lost is not None:
            code, number = lost
            path = cast("Path", self.positions[number].region.path)
            raise device_error(code, path)

    # -------------------------------------------------------------------------- stats

    def populated_ahead_nbytes(self) -> int:
        """Bytes ahead of the frames that can be stored to without a page fault."""
        if self._writer.closed:
            return 0
        plan = self._plan
        if self._is_populated and plan.num_frames is not None:
            return (plan.num_frames - self._writer.frames_written) * plan.frame_nbytes
        if self._ahead is None:
            return 0
        return self._ahead.frames_ahead * plan.frame_nbytes

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
        ahead, disk, unsynced = self._ahead, self.disk_stats(), cursor - synced
        if disk is None or ahead is None:
            return max(unsynced * self._plan.frame_nbytes, 0)
        # What came before any was staged is in the page cache.
        before_nbytes = (ahead.frames_before - synced) * self._plan.frame_nbytes
        return max(before_nbytes, 0) + disk.staged_nbytes

    @property
    def disk_io(self) -> DiskIO:
        """Where frames go now."""
        if not self.are_in_files:
            return "memory"
        is_direct = self._ahead is not None and self._ahead.is_staging
        return "direct" if is_direct else "page_cache"

    @property
    def why_not_direct(self) -> str:
        """In words; empty if files are written directly."""
        staging = self._placement.staging
        if self.disk_io == "memory":
            return "it is in memory"
        if self._why_not_staged:
            return self._why_not_staged
        refused_code = 0 if self._ahead is None else self._ahead.refused_code
        if self.disk_io == "page_cache" and refused_code:
            return f"staging.bin cannot be made ({os.strerror(refused_code)})"
        if self.disk_io == "page_cache" and staging is not None:
            most_nbytes = staging.from_nbytes * self._plan.num_positions
            return f"it has no more than {size_text(most_nbytes)} so far"
        return self._placement.why_not_direct

    def disk_stats(self) -> DiskStats | None:
        """Return how the disk does; None unless files are written directly."""
        ahead = self._ahead
        if ahead is None or not ahead.is_staging:
            return None
        found = disk_stats(ahead)
        # A stream that could not be closed still has its staging.
        return found.at_end() if self._writer.closed and self._staging is None else found

    def watch_disk(self) -> Backlog | None:
        """Watch what waits for the disk, if files are staged."""
        ahead, staging = self._ahead, self._staging  # a close by others takes them away
        if ahead is None or staging is None:
            return None
        return Backlog(ahead, staging.path.parent)
