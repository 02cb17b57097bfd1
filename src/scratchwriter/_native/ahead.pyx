"""The thread ahead of the writer: makes ready what the next frames will need.

It walks the same odometer as the writer, a window of bytes ahead of the frame cursor, and
prepares the slots that it comes to: pages in memory are populated; a file is allocated,
filled with zeros and mapped. An append then takes no page fault and makes no system call.
(The idea of a pre-toucher is Chronicle Queue's.)

A second thread, for files only, writes back what is far behind the cursor, evenly, before
the kernel finds that too much of it waits, and stops the threads that fill pages. What is
much farther behind it drops from memory: the pages are used again at once, and the kernel
need not search for free ones when an acquisition is longer than memory. It runs when no
other thread wants to (with two cores it took them from the writer, measured). So it must
not hold what others need: the lock of the address space is for the first one, which
unmaps what the second is to write back.

Gate: in a file whose slots come in order, the bytes ahead are overwritten with zeros. The
writer therefore goes no further than `writable_nbytes`, which this thread stores when it
has done a piece. A writer that arrives there prepares the slot itself, by `prepare_now`.
Where faults make huge pages of a file (`makes_huge_pages`), no allocated bytes are
overwritten: the gate is open as far as they go, which is some way ahead of the pages, and a
writer that is faster than this thread populates pages beside it, by its stores. Slots that
come in another order are populated, which changes no bytes, and have no gate.

Records: what is known of frames besides their pixels is one more array, the last one, with
a record for each frame in acquisition order. It may come later than the others.

Locks: `working` guards the walk. It is held for one piece at a time, and never together
with the writer's mutex, or the GIL, taken after it.

GIL: the threads never take it. They touch C numbers and memory that the `AheadThread`
keeps alive; it joins them before it goes.

Idle: no frame wakes the thread, because that would be a system call in an append. It
looks by itself, every millisecond while frames come and ever more rarely while none do.
"""

cimport cython
from posix.unistd cimport getpid

from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free

from scratchwriter._core cimport Array, FrameWriter, Record
from scratchwriter._native.append_timer cimport NUM_BUCKETS, AppendTimer
from scratchwriter._native.odometer cimport MAX_AXES, Odometer, advance, jump
from scratchwriter._region.platform cimport (
    sw_add,
    sw_alarm,
    sw_alarm_destroy,
    sw_alarm_init,
    sw_alarm_ring,
    sw_alarm_wait,
    sw_load_acquire,
    sw_mutex,
    sw_mutex_destroy,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_unlock,
    sw_now_ns,
    sw_store_release,
    sw_thread,
    sw_thread_join,
    sw_thread_start,
    sw_thread_waits_its_turn,
    sw_thread_yields_to_others,
    sw_yield,
)
from scratchwriter._region.mapped cimport (
    MappedRegion,
    Mapping,
    drop_cached,
    make_readable,
    populate,
    makes_huge_pages,
    prepare,
    reserve_blocks,
    unmap,
    write_back,
)

cdef enum:
    PIECE_NBYTES = 2 << 20            # prepared at a time
    NAP_NS = 500_000                  # while frames come
    LONGEST_NAP_NS = 20_000_000       # while none do
    SHOW_NS = 100_000_000             # between looks at how long appends took
    WRITEBACK_NBYTES = 16 << 20       # written back at a time, over all positions ...
    WRITEBACK_PART_NBYTES = 16 << 10  # ... or so much of each, if there are very many

cdef struct Walk:
    # The plan and what it is about: set once
    int64_t counts[MAX_AXES]
    int64_t strides_nbytes[MAX_AXES]
    int num_axes
    int position_axis
    int64_t num_positions
    int64_t num_frames                # -1: unbounded
    int64_t frame_nbytes
    int64_t step_nbytes               # of an array of frames
    int64_t visit_frames
    bint in_order                     # slots of a position come in the order of its bytes
    int64_t window_nbytes
    int64_t piece_nbytes
    int64_t backlog_nbytes            # behind the cursor, that may wait for the disk
    int64_t cached_nbytes             # behind that, that stay in memory too
    int64_t writes_back               # whether the second thread runs; atomic
    int64_t* memory_stop_nbytes       # per position: the most that may be in memory
    Array* arrays                     # the writer's
    int64_t* cursor                   # the writer's
    Mapping** mappings                # of the positions, and of the records (or NULL)

    # The walk: guarded by `working`
    sw_mutex working
    int64_t waiting                   # writers that want `working`; atomic
    int64_t ahead                     # frames ready, the next one's number; atomic
    Odometer next                     # its slot
    int64_t* prepared_nbytes          # per position: ready to here, or left to the writer
    int64_t* allocated_nbytes         # per position: to here, of whole huge pages or all
    bint* in_file                     # per position: as noticed by `_notice_file`
    bint is_disk_full                 # as far as more than a piece is asked for
    bint is_busy                      # it has not been far enough ahead for a while
    int64_t for_writer_nbytes         # left for the writer to populate: it has come there
    int code                          # errno of what failed last

    # How long appends took: the writer's, and where others see it; guarded by `working`
    int64_t* longest_append_ns
    int64_t* first_append_ns
    int64_t* last_append_ns
    int64_t* append_counts
    int64_t* shown_times              # NULL: nowhere
    int64_t shown_ns                  # when

    # The sleep
    sw_alarm alarm

    # Behind the frames
    int64_t unmapped                  # frames before which nothing is mapped; atomic
    int64_t written_back              # frames before which all is; atomic
    int64_t lost_code                 # errno of the first failure to write back; atomic
    int64_t lost_position             # where; written before


# ------------------------------------------------------------------- without the GIL

cdef int64_t _cursor(Walk* walk) noexcept nogil:
    return sw_load_acquire(walk.cursor)


cdef bint _in_file(Mapping* mapping) noexcept nogil:
    return sw_load_acquire(&mapping.file_start) != mapping.reserved_nbytes


cdef int64_t _position(Walk* walk) noexcept nogil:
    return walk.next.index[walk.position_axis] if walk.position_axis >= 0 else 0


cdef void _open_gate(Walk* walk, int64_t position) noexcept nogil:
    cdef int64_t* gate = &walk.arrays[position].writable_nbytes
    cdef int64_t stop = walk.prepared_nbytes[position]
    if makes_huge_pages(walk.mappings[position]):
        stop = max(stop, walk.allocated_nbytes[position])
    if walk.in_file[position] and sw_load_acquire(gate) < stop:
        sw_store_release(gate, stop)


cdef int _show_steps(
    Walk* walk, int64_t position, int64_t stop, int64_t step_nbytes
) noexcept nogil:
    """Let a file be as long as whole steps are, as which an array is shown."""
    cdef Mapping* mapping = walk.mappings[position]
    if walk.num_frames >= 0 or not _in_file(mapping):
        return 0
    return make_readable(mapping, (stop + step_nbytes - 1) // step_nbytes * step_nbytes)


cdef void _allocate_ahead(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t limit,
    int64_t step_nbytes,
) noexcept nogil:
    """Allocate more than a piece, where the writer may store before it is populated."""
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t chunk_nbytes = walk.window_nbytes // (8 * walk.num_positions)
    cdef int64_t chunk_stop
    if (
        stop <= walk.allocated_nbytes[position]
        or not makes_huge_pages(mapping)
        or walk.is_disk_full
    ):
        return
    # Whole huge pages, so that no fault of the writer's lacks blocks.
    start = max(start // PIECE_NBYTES * PIECE_NBYTES, walk.allocated_nbytes[position])
    chunk_stop = min(stop + chunk_nbytes, limit) // PIECE_NBYTES * PIECE_NBYTES
    if chunk_stop < stop:
        return
    if (
        _show_steps(walk, position, chunk_stop, step_nbytes) == 0
        and reserve_blocks(mapping, start, chunk_stop) == 0
    ):
        walk.allocated_nbytes[position] = chunk_stop
    else:
        walk.is_disk_full = True  # what is left is for the next slot


cdef int _prepare_piece(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t step_nbytes
) noexcept nogil:
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t allocated_nbytes = walk.allocated_nbytes[position]
    cdef int64_t for_writer_nbytes
    cdef int code
    if not walk.in_file[position]:
        # As it was noticed: a file that came since may have frames here.
        populate(mapping, start, stop)
        return 0
    code = _show_steps(walk, position, stop, step_nbytes)
    if code:
        return code
    if (
        walk.for_writer_nbytes
        and position < walk.num_positions
        and stop <= allocated_nbytes
        and makes_huge_pages(mapping)
    ):
        for_writer_nbytes = min(walk.for_writer_nbytes, stop - start)
        walk.for_writer_nbytes -= for_writer_nbytes
        start += for_writer_nbytes
    return prepare(mapping, start, stop, allocated_nbytes)


cdef int _prepare_in_order(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t limit,
    int64_t step_nbytes,
) noexcept nogil:
    """Prepare what is not, to `stop` at least, and as far after it as a piece goes."""
    cdef int64_t piece_stop
    cdef int code
    if stop > walk.prepared_nbytes[position]:
        start = max(start, walk.prepared_nbytes[position])  # what was skipped stays a hole
        # Whole pieces, so that a file in order has huge pages (see mapped.pyx).
        piece_stop = (stop + walk.piece_nbytes - 1) // walk.piece_nbytes * walk.piece_nbytes
        piece_stop = max(stop, min(piece_stop, limit))
        _allocate_ahead(walk, position, start, piece_stop, limit, step_nbytes)
        code = _prepare_piece(walk, position, start, piece_stop, step_nbytes)
        if code and piece_stop > stop:
            piece_stop = stop  # a disk that is nearly full may have room for one more
            code = _prepare_piece(walk, position, start, stop, step_nbytes)
        if code:
            return code
        walk.prepared_nbytes[position] = piece_stop
    _open_gate(walk, position)
    return 0


cdef int _prepare_record(Walk* walk, int64_t frame) noexcept nogil:
    """Prepare the record of a frame, and what comes after it as far as a piece goes."""
    cdef int64_t position = walk.num_positions
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t record_nbytes = sizeof(Record)
    cdef int64_t limit
    if mapping == NULL:
        return -1  # there are none yet: not ours to decide
    _notice_file(walk, position)
    if walk.num_frames >= 0:
        limit = walk.num_frames * record_nbytes
    elif walk.in_file[position]:
        limit = mapping.reserved_nbytes // record_nbytes * record_nbytes
    else:
        limit = sw_load_acquire(&mapping.nbytes)  # memory is opened by the writer
    if (frame + 1) * record_nbytes > limit:
        return -1
    # From the cursor on: a batch asks for its last one.
    return _prepare_in_order(
        walk, position, min(frame, _cursor(walk)) * record_nbytes,
        (frame + 1) * record_nbytes, limit, record_nbytes,
    )


cdef void _notice_file(Walk* walk, int64_t position) noexcept nogil:
    """Start again at the frames, if an array has spilled since the last look.

    The walk was ahead of them in memory that is no more.
    """
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t cursor, gate, start
    if walk.in_file[position] or not _in_file(mapping):
        return
    walk.in_file[position] = True
    start = sw_load_acquire(&mapping.file_start)
    if position < walk.num_positions:
        # Up to its gate the writer may be at any time, also in the file's first page.
        gate = sw_load_acquire(&walk.arrays[position].writable_nbytes)
        walk.prepared_nbytes[position] = max(start, gate)
    else:
        walk.prepared_nbytes[position] = min(walk.prepared_nbytes[position], start)
    cursor = _cursor(walk)
    jump(&walk.next, cursor, walk.counts, walk.strides_nbytes, walk.num_axes)
    sw_store_release(&walk.ahead, cursor)


cdef int _reserve_step(
    Walk* walk, int64_t position, int64_t step, int64_t limit
) noexcept nogil:
    """Give a step blocks, with the rest of the huge pages that it is in.

    The kernel may have made such pages for a reader; a store needs all their blocks.
    """
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t start = step * walk.step_nbytes
    cdef int64_t stop = start + walk.step_nbytes
    cdef int code
    if walk.num_positions * PIECE_NBYTES <= walk.window_nbytes:  # else it is too much
        start = start // PIECE_NBYTES * PIECE_NBYTES
        stop = min((stop + PIECE_NBYTES - 1) // PIECE_NBYTES * PIECE_NBYTES, limit)
    # What was reserved before may have frames, and be overwritten with zeros.
    start = max(start, walk.prepared_nbytes[position])
    code = _show_steps(walk, position, stop, walk.step_nbytes)
    if code == 0:
        code = reserve_blocks(mapping, start, stop)
    if code == 0:
        walk.prepared_nbytes[position] = stop
    return code


cdef int _prepare_slot(Walk* walk, int64_t position, int64_t start) noexcept nogil:
    """Prepare the slot at `start`, and what comes after it as far as a piece goes."""
    cdef Mapping* mapping = walk.mappings[position]
    # As it was noticed, with what follows from it for the walk, and not as it is by now.
    cdef bint in_file = walk.in_file[position]
    cdef int64_t stop = start + walk.frame_nbytes
    cdef int64_t limit
    cdef int code
    if walk.num_frames >= 0:
        limit = walk.step_nbytes
    elif in_file:
        limit = mapping.reserved_nbytes // walk.step_nbytes * walk.step_nbytes
    else:
        # Where memory is opened bit by bit, no further than it is.
        limit = min(walk.memory_stop_nbytes[position], sw_load_acquire(&mapping.nbytes))
    if stop > limit:
        return -1  # not ours to decide
    if not walk.in_order:
        if in_file and stop > walk.prepared_nbytes[position]:
            code = _reserve_step(walk, position, start // walk.step_nbytes, limit)
            if code:
                return code
        _open_gate(walk, position)
        populate(mapping, start, stop)
        return 0
    return _prepare_in_order(walk, position, start, stop, limit, walk.step_nbytes)


cdef bint _walk_on(Walk* walk) noexcept nogil:
    """Prepare a piece; return whether more may be left to do. With `working` held."""
    cdef int64_t cursor = _cursor(walk)
    cdef int64_t most = walk.window_nbytes // walk.frame_nbytes + 1
    cdef int64_t done_nbytes = 0
    if cursor > walk.ahead:
        jump(&walk.next, cursor, walk.counts, walk.strides_nbytes, walk.num_axes)
        sw_store_release(&walk.ahead, cursor)
        # If the writer is faster: better to do the next page than the one it is at.
        walk.for_writer_nbytes = PIECE_NBYTES if walk.is_busy else 0
    walk.is_busy = False
    while done_nbytes < walk.piece_nbytes:
        if walk.ahead == walk.num_frames or walk.ahead - cursor >= most:
            return False
        _notice_file(walk, _position(walk))
        _prepare_record(walk, walk.ahead)  # if it fails, the writer meets the error itself
        walk.code = _prepare_slot(walk, _position(walk), walk.next.offset_nbytes)
        if walk.code:
            return False
        advance(&walk.next, walk.counts, walk.strides_nbytes, walk.num_axes)
        sw_store_release(&walk.ahead, walk.ahead + 1)
        done_nbytes += walk.frame_nbytes
    walk.is_busy = True
    return True


cdef int64_t _head_nbytes(Walk* walk, int64_t position, int64_t cursor) noexcept nogil:
    """Bytes of a position that the frames before the cursor fill, in order."""
    cdef int64_t round_frames = walk.visit_frames * walk.num_positions
    cdef int64_t rest = cursor % round_frames - position * walk.visit_frames
    rest = max(<int64_t>0, min(rest, walk.visit_frames))
    return (cursor // round_frames * walk.visit_frames + rest) * walk.frame_nbytes


cdef int64_t _complete_nbytes(Walk* walk, int64_t position, int64_t cursor) noexcept nogil:
    """Bytes of a position that no frame from the cursor on will change."""
    cdef int64_t head = _head_nbytes(walk, position, max(cursor, 0))
    return head if walk.in_order else head // walk.step_nbytes * walk.step_nbytes


cdef int64_t _piece_frames(Walk* walk) noexcept nogil:
    cdef int64_t nbytes = max(
        <int64_t>WRITEBACK_NBYTES, walk.num_positions * WRITEBACK_PART_NBYTES
    )
    return nbytes // walk.frame_nbytes + 1


cdef void _unmap_behind(Walk* walk, int64_t cursor) noexcept nogil:
    """Unmap the next piece that is to be written back, if it is whole."""
    cdef int64_t start = walk.unmapped
    cdef int64_t stop = start + _piece_frames(walk)
    cdef int64_t position
    if stop > cursor - walk.backlog_nbytes // walk.frame_nbytes:
        return
    for position in range(walk.num_positions):
        if _in_file(walk.mappings[position]):
            unmap(
                walk.mappings[position],
                _complete_nbytes(walk, position, start),
                _complete_nbytes(walk, position, stop),
            )
    sw_store_release(&walk.unmapped, stop)


cdef void _show_times(Walk* walk) noexcept nogil:
    """Let others see how long appends took: the writer does not do that. With `working`."""
    cdef int64_t now_ns
    cdef int i
    if walk.shown_times == NULL:
        return
    now_ns = sw_now_ns()
    if now_ns - walk.shown_ns < SHOW_NS:
        return
    walk.shown_ns = now_ns
    walk.shown_times[0] = sw_load_acquire(walk.longest_append_ns)
    walk.shown_times[1] = sw_load_acquire(walk.first_append_ns)
    walk.shown_times[2] = sw_load_acquire(walk.last_append_ns)
    for i in range(NUM_BUCKETS):
        walk.shown_times[3 + i] = sw_load_acquire(&walk.append_counts[i])


cdef void* _run_ahead(void* arg) noexcept nogil:
    cdef Walk* walk = <Walk*>arg
    cdef int64_t before = -1
    cdef int64_t nap_ns = NAP_NS
    cdef int64_t cursor
    cdef bint more
    sw_thread_waits_its_turn()
    while True:
        cursor = _cursor(walk)
        more = True
        while more:
            while sw_load_acquire(&walk.waiting):  # a writer goes first
                sw_yield()
            sw_mutex_lock(&walk.working)
            more = _walk_on(walk)
            if cursor != before:
                _show_times(walk)
            sw_mutex_unlock(&walk.working)
            if sw_load_acquire(&walk.writes_back):
                _unmap_behind(walk, _cursor(walk))
            if more and sw_alarm_wait(&walk.alarm, 0):
                return NULL
        nap_ns = NAP_NS if cursor != before else min(2 * nap_ns, LONGEST_NAP_NS)
        before = cursor
        if sw_alarm_wait(&walk.alarm, nap_ns):
            return NULL


cdef void* _run_writeback(void* arg) noexcept nogil:
    cdef Walk* walk = <Walk*>arg
    cdef int64_t cached_frames = walk.cached_nbytes // walk.frame_nbytes
    cdef int64_t start = 0
    cdef int64_t stop, position, step
    cdef int code
    cdef bint wait
    cdef Mapping* mapping
    sw_thread_yields_to_others()
    while True:
        if sw_load_acquire(&walk.unmapped) == start:
            if sw_alarm_wait(&walk.alarm, LONGEST_NAP_NS):
                return NULL
            continue
        # Piece by piece, so that the disk is never given much at once. Each position is
        # started before the first is waited for.
        stop = start + _piece_frames(walk)
        for step in range(2 * walk.num_positions):
            position = step % walk.num_positions
            wait = step >= walk.num_positions
            mapping = walk.mappings[position]
            if _in_file(mapping):
                code = write_back(
                    mapping,
                    _complete_nbytes(walk, position, start),
                    _complete_nbytes(walk, position, stop),
                    wait,
                )
                if code and not walk.lost_code:
                    walk.lost_position = position
                    sw_store_release(&walk.lost_code, code)
                if wait:
                    drop_cached(
                        mapping,
                        _complete_nbytes(walk, position, start - cached_frames),
                        _complete_nbytes(walk, position, stop - cached_frames),
                    )
            if sw_alarm_wait(&walk.alarm, 0):
                return NULL
        start = stop
        sw_store_release(&walk.written_back, start)


cdef void _lock(Walk* walk) noexcept nogil:
    """Take `working` before the thread ahead does again."""
    sw_add(&walk.waiting, 1)
    sw_mutex_lock(&walk.working)
    sw_add(&walk.waiting, -1)


cdef int prepare_from_c(void* ahead, int64_t position, int64_t stop_nbytes) noexcept nogil:
    cdef Walk* walk = <Walk*>ahead
    cdef int code
    _lock(walk)
    if position == walk.num_positions:
        code = _prepare_record(walk, stop_nbytes // <int64_t>sizeof(Record) - 1)
    else:
        _notice_file(walk, position)
        code = _prepare_slot(walk, position, stop_nbytes - walk.frame_nbytes)
    sw_mutex_unlock(&walk.working)
    return code


# --------------------------------------------------------------------------- class

@cython.final
@cython.no_gc_clear  # the threads use what it keeps until they are joined
cdef class AheadThread:
    """Prepares the slots ahead of a writer. See `ahead.pyi` for its methods."""

    cdef Walk walk
    cdef sw_thread ahead_thread, writeback_thread
    cdef bint runs_ahead, runs_writeback
    cdef int pid                      # of the process that has the threads; 0: none
    # Kept alive, as the threads use what is theirs
    cdef FrameWriter writer
    cdef AppendTimer timer
    cdef list regions
    cdef object times_owner           # of the memory that `show_times` was given

    def __cinit__(
        self, plan, FrameWriter writer, list regions, memory_stop_nbytes, window_nbytes
    ):
        cdef Walk* walk = &self.walk
        cdef int64_t position, n = plan.num_positions
        cdef int axis
        sw_mutex_init(&walk.working)
        sw_alarm_init(&walk.alarm)
        self.writer, self.timer, self.regions = writer, writer._timer, list(regions)
        walk.num_axes = len(plan.counts)
        for axis in range(walk.num_axes):
            walk.counts[axis] = plan.counts[axis] or 0
            walk.strides_nbytes[axis] = plan.strides_nbytes[axis]
        walk.position_axis = -1 if plan.position_axis is None else plan.position_axis
        walk.num_positions = n
        walk.num_frames = -1 if plan.is_unbounded else plan.num_frames
        walk.frame_nbytes = plan.frame_nbytes
        walk.step_nbytes = plan.step_nbytes
        walk.visit_frames = plan.visit_frames
        walk.in_order = plan.is_in_order
        walk.window_nbytes = window_nbytes
        walk.piece_nbytes = min(
            <int64_t>PIECE_NBYTES, max(walk.window_nbytes // (2 * n), walk.frame_nbytes)
        )
        walk.arrays = writer._arrays
        walk.cursor = &writer._cursor
        walk.longest_append_ns = &self.timer.longest_ns
        walk.first_append_ns = &self.timer.first_ns
        walk.last_append_ns = &self.timer.last_ns
        walk.append_counts = self.timer.counts
        walk.mappings = <Mapping**>calloc(n + 1, sizeof(Mapping*))
        walk.memory_stop_nbytes = <int64_t*>calloc(n, sizeof(int64_t))
        walk.prepared_nbytes = <int64_t*>calloc(n + 1, sizeof(int64_t))
        walk.allocated_nbytes = <int64_t*>calloc(n + 1, sizeof(int64_t))
        walk.in_file = <bint*>calloc(n + 1, sizeof(bint))
        if (
            walk.mappings == NULL or walk.memory_stop_nbytes == NULL
            or walk.prepared_nbytes == NULL or walk.allocated_nbytes == NULL
            or walk.in_file == NULL
        ):
            raise MemoryError(f"tables of {n} positions")
        for position in range(n):
            walk.mappings[position] = &(<MappedRegion?>regions[position]).mapping
            walk.memory_stop_nbytes[position] = memory_stop_nbytes[position]
            walk.in_file[position] = _in_file(walk.mappings[position])
            if walk.num_frames >= 0:
                walk.allocated_nbytes[position] = walk.step_nbytes
                if not walk.in_order:
                    walk.prepared_nbytes[position] = walk.step_nbytes  # it is open
        self.pid = getpid()
        writer._ahead = walk
        writer._prepare = prepare_from_c
        writer._frames_ahead = &walk.ahead
        self.runs_ahead = sw_thread_start(&self.ahead_thread, _run_ahead, walk) == 0

    def __dealloc__(self):
        if self.pid and self.pid != getpid():
            return  # a fork's copy: what the threads held is in no known state
        self._join()
        sw_alarm_destroy(&self.walk.alarm)
        sw_mutex_destroy(&self.walk.working)
        free(self.walk.mappings)
        free(self.walk.memory_stop_nbytes)
        free(self.walk.prepared_nbytes)
        free(self.walk.allocated_nbytes)
        free(self.walk.in_file)

    @property
    def frames_ahead(self):
        return max(
            sw_load_acquire(&self.walk.ahead) - _cursor(&self.walk), 0
        )

    @property
    def frames_written_back(self):
        return sw_load_acquire(&self.walk.written_back)

    @property
    def lost(self):
        cdef int64_t code = sw_load_acquire(&self.walk.lost_code)
        return (code, self.walk.lost_position) if code else None

    def start_writeback(self, backlog_nbytes, cached_nbytes):
        if self.runs_writeback or self.pid != getpid():
            return
        self.walk.backlog_nbytes = backlog_nbytes
        self.walk.cached_nbytes = cached_nbytes
        self.runs_writeback = (
            sw_thread_start(&self.writeback_thread, _run_writeback, &self.walk) == 0
        )
        sw_store_release(&self.walk.writes_back, self.runs_writeback)

    def prepare_now(self, position, stop_nbytes):
        cdef int64_t at = position, stop = stop_nbytes
        cdef int code
        with nogil:
            code = prepare_from_c(&self.walk, at, stop)
        return code

    def add_records(self, MappedRegion region not None):
        cdef int64_t at = self.walk.num_positions
        if self.walk.mappings[at] == &region.mapping:
            return
        self.regions.append(region)
        with nogil:
            _lock(&self.walk)
            self.walk.in_file[at] = _in_file(&region.mapping)
            self.walk.mappings[at] = &region.mapping
            sw_mutex_unlock(&self.walk.working)

    def show_times(self, address, owner):
        cdef int64_t* times = <int64_t*><uintptr_t>address
        if not self.runs_ahead:
            return
        self.times_owner = owner
        with nogil:  # to the end: nothing waits for the GIL with `working` held
            _lock(&self.walk)
            self.walk.shown_times = times
            sw_mutex_unlock(&self.walk.working)

    def stop(self):
        if self.pid == getpid():
            self._join()
            self.walk.shown_times = NULL
            self.times_owner = None

    cdef void _join(self) noexcept:
        with nogil:
            sw_alarm_ring(&self.walk.alarm)
            if self.runs_ahead:
                sw_thread_join(self.ahead_thread)
            if self.runs_writeback:
                sw_thread_join(self.writeback_thread)
        self.runs_ahead = self.runs_writeback = False
