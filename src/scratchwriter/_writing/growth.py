"""The arrays of an acquisition: how they are made, and made longer while frames come.

In memory they grow by grants: the machine is asked for many frames at a time. When a
limit is reached the `Storage` is told, and the array goes on in a file. Files grow ahead
of the frames on a thread of their own (`AheadThread`), or, with portable regions, in
steps when a frame arrives at the end.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, cast

from scratchwriter._core import FrameWriter
from scratchwriter._files.layout import array_name
from scratchwriter._files.metadata import encode_frame_metadata
from scratchwriter._region import (
    Region,
    allocate_most,
    make_region,
    make_ring,
    moves_when_it_grows,
)
from scratchwriter._writing import policy
from scratchwriter._writing.record_array import RecordArray
from scratchwriter.errors import disk_error
from scratchwriter.plan import FramePlan
from scratchwriter.settings import ScratchFormat

if TYPE_CHECKING:
    from scratchwriter._native.ahead import AheadThread
    from scratchwriter._region.mapped import MappedRegion

# How far ahead of the frames memory and files are made ready, over all positions.
_MEMORY_WINDOW_NBYTES = 64 << 20
_FILE_WINDOW_NBYTES = 256 << 20
# The least for which the machine is asked at a time, over all positions.
_GRANT_NBYTES = 256 << 20
# How many steps arrays are made longer at least when frames are skipped.
_SKIP_STEPS = 16
# Memory of one position from which on huge pages (2 MiB) are no waste.
_HUGE_FROM_NBYTES = 4 << 20
# Of a ring, which has no end.
_MOST_STEPS = 1 << 40


class Growth:
    """The arrays of an acquisition, and the writer that fills them.

    Parameters
    ----------
    plan : FramePlan
        Counts, strides and sizes.
    fmt : ScratchFormat
        Limits of memory, and casting.
    folder : pathlib.Path or None
        Where to make files; None for memory.
    leave_memory : callable(position, step, limit)
        Told that a step of a position would cross a limit (in words) of memory; lets the
        array go on in a file (`continue_in_file`), or raises.

    Attributes
    ----------
    writer : FrameWriter
    regions : list of Region
        One per position.
    records : RecordArray
        What is known of frames besides.

    Raises
    ------
    MemoryError, OSError
        If there is no room for them.
    """

    def __init__(
        self,
        plan: FramePlan,
        fmt: ScratchFormat,
        folder: Path | None,
        leave_memory: Callable[[int, int, str], None],
    ) -> None:
        self._plan, self._format = plan, fmt
        self._leave_memory = leave_memory
        self._writable_steps = [0] * plan.num_positions  # in memory, or portable
        self._leaves_memory = [folder is None] * plan.num_positions  # some time
        self._memory_frames = 0  # those before this one may be in memory for good
        self._limit = ""  # of memory, that has been reached
        self._granted_steps = 0  # what the machine was asked for
        self._ahead: AheadThread | None = None
        self._closing = threading.Lock()  # several threads may close
        self.regions: list[Region] = []
        self.writer = FrameWriter(
            plan,
            fmt.casting,
            self._make_room,
            self._make_steps,
            encode_frame_metadata,
            disk_error,
            # Without a file they can only be wanted for a later one.
            keep_metadata=plan.is_unbounded and fmt.spill_to_disk and not plan.ring_steps,
            takes_time=fmt.timestamps,
        )
        self.records = RecordArray(plan, self.writer)
        try:
            self._make_arrays(folder)
            if fmt.timestamps:
                self.records.make(folder)
        except BaseException:
            self.writer.close()  # it refers to self: break the circle
            raise

    def _make_arrays(self, folder: Path | None) -> None:
        plan = self._plan
        reserve_nbytes = huge_from_nbytes = plan.step_nbytes
        if plan.is_unbounded:
            most_nbytes = max(policy.reserve_nbytes(), 2 * plan.total_nbytes)
            reserve_nbytes = most_nbytes // plan.num_positions
            # As far ahead of the frames memory is made ready in any case.
            huge_from_nbytes = _MEMORY_WINDOW_NBYTES // plan.num_positions
        huge_pages = huge_from_nbytes >= _HUGE_FROM_NBYTES
        if plan.ring_steps:
            self._make_rings(folder)
            return
        for position in range(plan.num_positions):
            path = folder and folder / array_name(position)
            region = make_region(
                reserve_nbytes, path, huge_pages=huge_pages, least_nbytes=plan.step_nbytes
            )
            self.regions.append(region)
            if plan.is_unbounded:
                region.extend(plan.step_nbytes)
                if folder is not None or self._memory_shortage(position, 1) is not None:
                    self._attach(position, 0)
            else:
                region.allocate(0, plan.step_nbytes)
                # In files the thread ahead opens slot by slot, if it can.
                gated = folder and plan.is_in_order and not moves_when_it_grows(region)
                self._attach(position, 0 if gated else 1)

    def _make_rings(self, folder: Path | None) -> None:
        for position in range(self._plan.num_positions):
            path = folder and folder / array_name(position)
            self.regions.append(
                make_ring(self._plan.ring_steps * self._plan.step_nbytes, path)
            )
            self._attach(position, self._plan.ring_steps)
        self.writer.set_readable_steps(_MOST_STEPS)

    def show_append_times(self, address: int, owner: object) -> None:
        """Have it seen how long appends take, where there is a thread that can do that."""
        if self._ahead is not None:
            self._ahead.show_times(address, owner)

    def start_ahead(self) -> None:
        """Begin to make memory and files ready ahead of the frames."""
        plan, fmt = self._plan, self._format
        if plan.ring_steps:
            return  # all is ready
        if any(map(moves_when_it_grows, self.regions)):
            return
        from scratchwriter._native.ahead import AheadThread  # is not built everywhere

        path = self.regions[0].path
        window_nbytes = _MEMORY_WINDOW_NBYTES
        if path is not None:
            window_nbytes = policy.file_window_nbytes(path.parent, _FILE_WINDOW_NBYTES)
        memory_stops = [0] * plan.num_positions
        if plan.is_unbounded and path is None:
            reserved_nbytes = policy.reserve_nbytes() // plan.num_positions
            for position, region in enumerate(self.regions):
                stop = policy.memory_steps(plan, fmt, position) * plan.step_nbytes
                memory_stops[position] = min(stop, reserved_nbytes)
                # All at once: what is opened bit by bit makes the frames wait for it.
                with suppress(MemoryError):  # it may also be opened bit by bit
                    region.extend(memory_stops[position])
        self._ahead = AheadThread(
            plan,
            self.writer,
            cast("list[MappedRegion]", self.regions),
            memory_stops,
            window_nbytes,
        )
        self.records.be_prepared_by(self._ahead)
        if path is not None:
            self._ahead.start_writeback(
                policy.backlog_nbytes(_FILE_WINDOW_NBYTES), policy.cached_nbytes()
            )

    def close(self) -> None:
        """Refuse frames, and end what runs ahead of them. The arrays stay."""
        self.writer.close()
        self._leave_memory = _stay  # it refers to who has this: break the circle
        with self._closing:
            if self._ahead is not None:
                self._ahead.stop()

    def disown(self) -> None:
        """In a forked child: all this is the parent's."""
        self.writer.disown()
        self._closing = threading.Lock()  # a thread that is not here may have held it

    # ------------------------------------------------------- asked for by the writer

    def _make_room(self, position: int, stop_nbytes: int) -> None:
        """Make a slot writable. Called by the writer when it has arrived at the end."""
        self.writer.exclusively(lambda: self._grow(position, stop_nbytes))

    def _grow(self, position: int, stop_nbytes: int) -> None:
        if self.writer.closed:
            return  # by another thread; the writer will say so
        if position == self._plan.num_positions:
            path = self.regions[0].path if self.is_in_files() else None
            self.records.make(path and path.parent)
            self.records.grow(stop_nbytes)
            return
        step = -(-stop_nbytes // self._plan.step_nbytes)
        if step <= self._writable_steps[position] or self.writer.has_open_slots:
            # Another thread was here before; or it opened slots, which must not move: the
            # writer waits until it has left them.
            return
        if self._leaves_memory[position]:
            if self.regions[position].path is None:
                limit = self._memory_shortage(position, step)
                if limit is None:
                    return
                self._limit = limit
            self._leave_memory(position, step, self._limit)
            self._leaves_memory[position] = False  # last: an interrupt may come before
        self._grow_file(position, step, stop_nbytes)

    def _grow_file(self, position: int, step: int, stop_nbytes: int) -> None:
        if self._ahead is None:
            self._allocate(position, step, step - 1 + self._steps_in(_MEMORY_WINDOW_NBYTES))
            return
        code = self._ahead.prepare_now(position, stop_nbytes)
        if code in (-1, errno.ENOMEM):
            raise MemoryError(
                f"The addresses reserved for an array end at {stop_nbytes} bytes. Raise "
                "the limit of addresses (ulimit -v), or begin a new dataset."
            )
        if code != 0:
            path = cast("Path", self.regions[position].path)
            raise disk_error(code, path, self._plan.frame_nbytes)

    def _memory_shortage(self, position: int, step: int) -> str | None:
        """Grow in memory, or say which limit that would cross."""
        most = policy.memory_steps(self._plan, self._format, position)
        if step > most:
            return policy.memory_limit(self._format)
        if step > self._granted_steps:
            # Asking takes a millisecond: once for half of what there is, besides what is
            # made ready ahead of the frames whether it was asked for or not.
            ahead_nbytes = max(_MEMORY_WINDOW_NBYTES, self._plan.frame_nbytes)
            available = policy.available_nbytes() - ahead_nbytes
            if self._steps_in(_GRANT_NBYTES) * self._plan.total_nbytes > available:
                return policy.machine_limit(available + ahead_nbytes)
            most_nbytes = max(available // 2, _GRANT_NBYTES)
            self._granted_steps = step - 1 + self._steps_in(most_nbytes)
        try:
            self._allocate(position, step, min(self._granted_steps, most))
        except MemoryError as error:
            return f"the system gives ({error})"
        return None

    def _steps_in(self, nbytes: int) -> int:
        return max(nbytes // self._plan.total_nbytes, 1)

    def _allocate(self, position: int, step: int, last: int) -> None:
        """Make a step writable, and more up to `last` if there is room for it."""
        unit = self._plan.step_nbytes
        stop = allocate_most(
            self.regions[position], (step - 1) * unit, step * unit, last * unit, unit
        )
        self._attach(position, stop // unit)

    def _attach(self, position: int, writable_steps: int) -> None:
        writable_nbytes = writable_steps * self._plan.step_nbytes
        self.writer.attach(position, self.regions[position], writable_nbytes)
        self._writable_steps[position] = writable_steps

    def _make_steps(self, steps: int) -> None:
        """Make all arrays readable up to `steps`. Called by the writer for a long skip."""
        self.writer.exclusively(lambda: self._extend(steps))

    def _extend(self, steps: int) -> None:
        if self.writer.closed or self.writer.has_open_slots:  # as in `_grow`
            return
        plan, fmt = self._plan, self._format
        if plan.ring_steps:
            raise MemoryError(f"No acquisition has {steps} steps: skip fewer frames.")
        for position, region in enumerate(self.regions):
            most = policy.memory_steps(plan, fmt, position)
            if region.path is None and steps > most and not fmt.spill_to_disk:
                needed_nbytes = steps * plan.total_nbytes
                raise policy.memory_error(needed_nbytes, policy.memory_limit(fmt))
        # Some more than is asked for, so that many skips do not extend many arrays each.
        for length in (steps + max(steps // 4, _SKIP_STEPS), steps):
            try:
                self._make_readable(length)
            except (MemoryError, OSError):
                if length == steps:
                    raise
            else:
                return

    def _make_readable(self, steps: int) -> None:
        for position, region in enumerate(self.regions):
            region.extend(steps * self._plan.step_nbytes)
            if moves_when_it_grows(region):
                self._attach(position, self._writable_steps[position])
        self.writer.set_readable_steps(steps)

    # -------------------------------------------------------- asked for by the storage

    def continue_in_file(self, folder: Path, position: int) -> None:
        """Let an array go on in a file, behind what it has in memory."""
        region, steps = self.regions[position], self._writable_steps[position]
        if region.path is None:
            path = folder / array_name(position)
            region.continue_in_file(path, steps * self._plan.step_nbytes)
        frames = steps * self._plan.step_frames
        self._memory_frames = max(self._memory_frames, frames)
        self._attach(position, steps)
        if self.is_in_files():
            self.records.continue_in_file(folder)
        if self._ahead is not None:
            self._ahead.start_writeback(
                policy.backlog_nbytes(_FILE_WINDOW_NBYTES), policy.cached_nbytes()
            )

    def finish_file(self, folder: Path, position: int) -> None:
        """Give an array's file its exact size, and what it lacks. After `close`."""
        region = self.regions[position]
        nbytes = self._plan.file_nbytes(position, self.writer.frames_written)
        if region.path is None:
            region.continue_in_file(folder / array_name(position), nbytes)
        region.trim(nbytes)  # first: it gives back room on the disk
        region.save()

    def all_regions(self) -> list[Region]:
        """Return those of the positions, and of the records if there are any."""
        records = self.records.region
        return self.regions if records is None else [*self.regions, records]

    def is_saved(self) -> bool:
        """Tell whether the files have all of the arrays."""
        return self.is_in_files() and all(r.is_saved for r in self.all_regions())

    def is_in_files(self) -> bool:
        """Tell whether all arrays go on in files."""
        return all(region.path is not None for region in self.regions)

    def is_past_memory(self) -> bool:
        """Tell whether no frame comes to the part in memory any more.

        Arrays go on in files before the frames of a batch, or those of open slots, are in
        the memory before.
        """
        writer = self.writer
        has_come = writer.closed or writer.frames_written >= self._memory_frames
        return has_come and self.is_in_files()

    def check_written_back(self) -> None:
        """Raise OSError if the disk has failed to take what was written back."""
        if self._ahead is not None and self._ahead.lost is not None:
            code, position = self._ahead.lost
            raise disk_error(code, cast("Path", self.regions[position].path))

    # --------------------------------------------------------------------------- stats

    def populated_ahead_nbytes(self) -> int:
        """Bytes ahead of the frames that can be stored to without a page fault."""
        if self._ahead is None or self.writer.closed:
            return 0
        return self._ahead.frames_ahead * self._plan.frame_nbytes

    def allocated_ahead_nbytes(self, cursor: int) -> int:
        """Bytes ahead of the frames that have memory granted, or blocks on the disk."""
        if self.writer.closed:
            return 0
        frames = self._plan.num_frames
        if frames is None:
            frames = min(self._writable_steps) * self._plan.step_frames
        ahead_nbytes = max(frames - cursor, 0) * self._plan.frame_nbytes
        return max(ahead_nbytes, self.populated_ahead_nbytes())

    def unwritten_nbytes(self, cursor: int, synced: int) -> int:
        """Bytes in files that may not be on the disk; `synced` frames are for certain."""
        if not self.is_in_files():
            return 0
        written_back = 0 if self._ahead is None else self._ahead.frames_written_back
        return max(cursor - max(written_back, synced), 0) * self._plan.frame_nbytes


def _stay(position: int, step: int, limit: str) -> None:
    """Do nothing: after `close` nothing grows."""
