"""The thread ahead of the writer: makes ready what the next frames will need.

It walks the same odometer as the writer, a window of bytes ahead of the frame cursor, and
prepares the slots that it comes to: pages in memory are populated; a file is allocated,
filled with zeros and mapped. An append then takes no page fault and makes no system call.
(The idea of a pre-toucher is Chronicle Queue's.)

A file is in the page cache at first. If it is to be staged (`stage_in`), from some byte on
pieces of the staging file are mapped over its array (see `_region/staging.pyx`). A second
thread then writes behind the camera what frames have filled, and lets others know how many
frames are in the files.

Gate: what is made ready in a file is zeroed. So the writer goes no further than
`writable_nbytes`, which this thread stores when it has done a piece. A writer that comes to
it prepares the slot itself, by `prepare_now`; if the disk is behind, that returns EAGAIN,
and the frame waits. Slots that come in another order are populated, which changes no bytes,
and have no gate.

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

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EAGAIN
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
    sw_raise,
    sw_store_release,
    sw_thread,
    sw_thread_join,
    sw_thread_start,
    sw_thread_waits_its_turn,
    sw_yield,
)
from scratchwriter._region.mapped cimport (
    MappedRegion,
    Mapping,
    make_readable,
    populate,
    prepare,
    reserve_blocks,
)
from scratchwriter._region.staging cimport (
    Piece,
    Staging,
    StagingFile,
    frames_in_files,
    give_back,
    may_be_cached,
    next_unwritten,
    stage,
    waiting_slots,
    write_out,
)

cdef enum:
    PIECE_NBYTES = 2 << 20            # prepared at a time
    NAP_NS = 500_000                  # while frames come
    LONGEST_NAP_NS = 20_000_000       # while none do
    SHOW_NS = 100_000_000             # between looks at how long appends took
    # A short acquisition is over by then: it does not pay for what it never uses
    WARM_UP_NS = 20_000_000
    FIRST_NBYTES = 4 << 20            # made ready until then, and four times what has come
    BEHIND_NAP_NS = 1_000_000         # of the thread behind, while frames come
    LAG_NS = 100_000_000              # after which what is no whole piece is written
    # What may be reported of the disk
    IS_BEHIND = 1
    IS_REFUSED = 2                    # staging.bin found no room
    RATE_NS = 2_000_000_000           # of a rate: older times count half, and less
    MOST_CODES = 4096                 # errno is less

cdef struct Rate:                     # over the last seconds; atomic
    int64_t nbytes
    int64_t ns

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
    int64_t start_ns
    int64_t staged_window_nbytes      # the same, where it is staged
    int64_t allocated_ahead_nbytes    # of blocks, there
    Staging* staging                  # NULL: all files are in the page cache
    int64_t has_staged                # a piece, so far; atomic
    int64_t has_slots                 # of staging.bin; atomic
    int64_t num_staged                # pieces
    int64_t most_slots                # that have been needed in a while
    int64_t slots_ns                  # when that while began
    int64_t kept_slots                # twice what was needed in the while before
    bint is_asked                     # by a writer, which waits for it
    void* writer
    void (*show_in_files)(void* writer, int64_t frames, bint has_staged) noexcept nogil
    int64_t in_files                  # frames, as shown; atomic
    int64_t wanted_in_files           # by a flush; atomic
    int64_t rounds                    # of writing behind that have begun; atomic
    int64_t stuck                     # the last round that has ended, and its errno; atomic
    Rate camera, disk                 # frames that come; pieces while they are written
    int64_t most_waiting_nbytes       # that may wait for the disk
    int64_t waited_frames             # for the disk, and how long; atomic
    int64_t waited_ns
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
    int64_t* allocated_nbytes         # per position: its file has blocks to here
    bint* in_file                     # per position: as noticed by `_notice_file`
    int64_t waiting_frame             # its number, that waits for the disk; -1: none
    int64_t known_round               # what failed in it, or before, is not its error
    int code                          # errno of what failed last

    # How long appends took: the writer's, and where others see it; guarded by `working`
    int64_t* longest_append_ns
    int64_t* first_append_ns
    int64_t* last_append_ns
    int64_t* append_counts
    int64_t* shown_times              # NULL: nowhere
    int64_t shown_ns                  # when
    int64_t shown_cursor              # with how many frames
    bint shown_waiting                # and some of them were waiting for the disk

    # The sleep
    sw_alarm alarm


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


cdef int _prepare_piece(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t step_nbytes
) noexcept nogil:
    cdef Mapping* mapping = walk.mappings[position]
    cdef int code
    if not walk.in_file[position]:
        # As it was noticed: a file that came since may have frames here.
        populate(mapping, start, stop)
        return 0
    code = _show_steps(walk, position, stop, step_nbytes)
    if code:
        return code
    return prepare(mapping, start, stop)


cdef void _show_in_files(Walk* walk) noexcept nogil:
    cdef int64_t frames = frames_in_files(walk.staging, _cursor(walk))
    walk.show_in_files(walk.writer, frames, sw_load_acquire(&walk.has_slots) != 0)
    sw_store_release(&walk.in_files, frames)


cdef void show_in_files(FrameWriter writer, int64_t frames, bint has_staged) noexcept nogil:
    writer.show_frames_in_files(frames, has_staged)


cdef void _count(Rate* rate, int64_t nbytes, int64_t ns) noexcept nogil:
    nbytes += rate.nbytes
    ns += rate.ns
    if ns > RATE_NS:
        nbytes, ns = nbytes // 2, ns // 2
    sw_store_release(&rate.nbytes, nbytes)
    sw_store_release(&rate.ns, ns)


cdef int64_t _nbytes_per_s(Rate* rate) noexcept nogil:
    cdef int64_t ns = sw_load_acquire(&rate.ns)
    return <int64_t>(sw_load_acquire(&rate.nbytes) * 1e9 / ns) if ns else 0


cdef int64_t _waiting_nbytes(Walk* walk, Staging* staging) noexcept nogil:
    """Bytes of frames that the disk has not got, whatever they are in."""
    cdef int64_t i, head, nbytes = 0, cursor = _cursor(walk)
    cdef Piece* piece
    if staging == NULL:
        return 0
    sw_mutex_lock(&staging.lock)
    for i in range(staging.num_used):
        piece = &staging.pieces[i]
        if piece.serial and not piece.is_written:
            head = min(_head_nbytes(walk, piece.position, cursor), piece.stop)
            nbytes += max(head - piece.written_nbytes, 0)
    sw_mutex_unlock(&staging.lock)
    return nbytes


cdef int _stuck_code(Walk* walk, int64_t known_round) noexcept nogil:
    """Return errno of what could not be written, in a round after a known one.

    Not of an earlier one: the reason may be gone. Such a round may still end after the
    call that wants to know has begun.
    """
    cdef int64_t stuck = sw_load_acquire(&walk.stuck)
    return stuck % MOST_CODES if stuck // MOST_CODES > known_round else 0


cdef bint _is_staged(Walk* walk, int64_t position, int64_t start) noexcept nogil:
    cdef Staging* staging = walk.staging
    if staging == NULL or position >= walk.num_positions or not walk.in_file[position]:
        return False
    start = max(start, walk.prepared_nbytes[position])
    return start // staging.piece_nbytes * staging.piece_nbytes >= max(
        staging.from_nbytes, walk.prepared_nbytes[position]
    )


cdef int _allocate_to(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t limit
) noexcept nogil:
    """Give a file blocks up to `stop`, and some more.

    Not for each piece: it waits for the direct write that is under way (measured: 5 ms).
    """
    cdef Mapping* mapping = walk.mappings[position]
    cdef int64_t step_nbytes = walk.step_nbytes
    cdef int64_t more = stop + walk.allocated_ahead_nbytes // walk.num_positions
    cdef int code
    if stop <= walk.allocated_nbytes[position]:
        return 0
    more = min((more + step_nbytes - 1) // step_nbytes * step_nbytes, limit)
    # Where there is no fallocate, blocks are zeros that are written.
    if mapping.no_fallocate or reserve_blocks(mapping, start, more) != 0:
        more = stop
        code = _show_steps(walk, position, stop, step_nbytes)
        if code == 0:
            code = reserve_blocks(mapping, start, stop)
        if code:
            return code
    walk.allocated_nbytes[position] = more
    return 0


cdef int _stage_to(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t limit
) noexcept nogil:
    """Stage what is not, up to `stop` at least."""
    cdef int64_t nbytes = walk.staging.piece_nbytes
    cdef int64_t first, last
    cdef int code, stuck_code
    while stop > walk.prepared_nbytes[position]:
        first = max(start // nbytes * nbytes, walk.prepared_nbytes[position])
        last = min(first // nbytes * nbytes + nbytes, limit)
        code = _allocate_to(walk, position, first, last, limit)
        if code == 0:
            code = stage(walk.staging, position, first, last)
        stuck_code = _stuck_code(walk, walk.known_round)
        if code == EAGAIN and walk.is_asked and stuck_code:
            code = stuck_code
        elif code == EAGAIN and walk.is_asked and may_be_cached(walk.staging) and (
            sw_load_acquire(&walk.in_files) >= _cursor(walk)
        ):
            # Nothing waits for the disk: a batch is larger than what may be staged.
            code = prepare(walk.mappings[position], first, last)
        if code:
            return code
        walk.num_staged += 1
        if not walk.has_staged or walk.has_slots != (walk.staging.num_slots > 0):
            # Before a frame can come there.
            sw_store_release(&walk.has_slots, walk.staging.num_slots > 0)
            _show_in_files(walk)
            sw_store_release(&walk.has_staged, 1)
        walk.prepared_nbytes[position] = last
        _open_gate(walk, position)
    return 0


cdef int64_t _piece_nbytes(Walk* walk, int64_t position, int64_t stop) noexcept nogil:
    """What is made ready at a time of a file that is in the page cache, or of memory."""
    cdef Staging* staging = walk.staging
    if staging == NULL or position >= walk.num_positions or not walk.in_file[position]:
        return walk.piece_nbytes
    if stop + staging.piece_nbytes <= staging.from_nbytes:
        return walk.piece_nbytes
    return staging.piece_nbytes  # so that staging begins with a whole one


cdef int _prepare_in_order(
    Walk* walk, int64_t position, int64_t start, int64_t stop, int64_t limit,
    int64_t step_nbytes,
) noexcept nogil:
    """Prepare what is not, to `stop` at least, and as far after it as a piece goes."""
    cdef int64_t piece_stop, piece_nbytes
    cdef int code
    if _is_staged(walk, position, start):
        return _stage_to(walk, position, start, stop, limit)
    if stop > walk.prepared_nbytes[position]:
        start = max(start, walk.prepared_nbytes[position])  # what was skipped stays a hole
        # Whole pieces, so that a file in order has huge pages (see mapped.pyx).
        piece_nbytes = _piece_nbytes(walk, position, stop)
        piece_stop = (stop + piece_nbytes - 1) // piece_nbytes * piece_nbytes
        piece_stop = max(stop, min(piece_stop, limit))
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
    """Prepare a piece; return whether more may be left to do. With `working` held.

    No more than one: a writer may be waiting.
    """
    cdef int64_t cursor = _cursor(walk)
    cdef int64_t window_nbytes = walk.window_nbytes
    cdef int64_t most
    cdef int64_t done_nbytes = 0, num_staged = walk.num_staged
    if cursor > walk.ahead:
        jump(&walk.next, cursor, walk.counts, walk.strides_nbytes, walk.num_axes)
        sw_store_release(&walk.ahead, cursor)
    if walk.has_staged:
        window_nbytes = walk.staged_window_nbytes
    if sw_now_ns() - walk.start_ns < WARM_UP_NS:
        window_nbytes = min(window_nbytes, FIRST_NBYTES + 4 * cursor * walk.frame_nbytes)
    most = window_nbytes // walk.frame_nbytes + 1
    while done_nbytes < walk.piece_nbytes and walk.num_staged == num_staged:
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
    return True


cdef int64_t _head_nbytes(Walk* walk, int64_t position, int64_t cursor) noexcept nogil:
    """Bytes of a position that the frames before the cursor fill, in order."""
    cdef int64_t round_frames = walk.visit_frames * walk.num_positions
    cdef int64_t rest = cursor % round_frames - position * walk.visit_frames
    rest = max(<int64_t>0, min(rest, walk.visit_frames))
    return (cursor // round_frames * walk.visit_frames + rest) * walk.frame_nbytes


cdef void _show_times(Walk* walk, int64_t cursor) noexcept nogil:
    """Let others see how long appends took, and how the disk does. With `working`.

    The writer does not do that. Nothing is new if no frame has come, and none waited.
    """
    cdef int64_t now_ns
    cdef int i
    if walk.shown_times == NULL or (cursor == walk.shown_cursor and not walk.shown_waiting):
        return
    now_ns = sw_now_ns()
    if now_ns - walk.shown_ns < SHOW_NS:
        return
    walk.shown_ns, walk.shown_cursor = now_ns, cursor
    walk.shown_waiting = _waiting_nbytes(walk, walk.staging) > 0
    walk.shown_times[0] = sw_load_acquire(walk.longest_append_ns)
    walk.shown_times[1] = sw_load_acquire(walk.first_append_ns)
    walk.shown_times[2] = sw_load_acquire(walk.last_append_ns)
    for i in range(NUM_BUCKETS):
        walk.shown_times[3 + i] = sw_load_acquire(&walk.append_counts[i])
    _show_disk(walk, walk.staging, walk.shown_times + 3 + NUM_BUCKETS)


cdef void _show_disk(Walk* walk, Staging* staging, int64_t* shown) noexcept nogil:
    """In the order of `layout.DISK_FIELDS`."""
    shown[0] = _nbytes_per_s(&walk.camera)
    shown[1] = _nbytes_per_s(&walk.disk)
    shown[2] = _waiting_nbytes(walk, staging)
    shown[3] = walk.most_waiting_nbytes if sw_load_acquire(&walk.has_staged) else 0
    shown[4] = sw_load_acquire(&walk.waited_frames)
    shown[5] = sw_load_acquire(&walk.waited_ns)


cdef void _give_back(Walk* walk) noexcept nogil:
    """Give a slot back that was not needed for a while. With `working`."""
    cdef Staging* staging = walk.staging
    cdef int64_t now_ns
    if staging == NULL or staging.num_slots == 0:
        return
    now_ns = sw_now_ns()
    walk.most_slots = max(walk.most_slots, waiting_slots(staging))
    if walk.slots_ns == 0:
        walk.slots_ns, walk.kept_slots = now_ns, staging.most_slots
    elif now_ns - walk.slots_ns > staging.keep_ns:
        walk.kept_slots, walk.most_slots, walk.slots_ns = 2 * walk.most_slots, 0, now_ns
    give_back(staging, max(walk.kept_slots, 2 * walk.most_slots))


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
            if not more:
                _give_back(walk)
            _show_times(walk, cursor)
            sw_mutex_unlock(&walk.working)
            if more and sw_alarm_wait(&walk.alarm, 0):
                return NULL
        nap_ns = NAP_NS if cursor != before else min(2 * nap_ns, LONGEST_NAP_NS)
        before = cursor
        if sw_alarm_wait(&walk.alarm, nap_ns):
            return NULL


cdef void* _run_behind(void* arg) noexcept nogil:
    """Write what frames have filled into the files."""
    cdef Walk* walk = <Walk*>arg
    cdef int64_t cursor, now_ns, in_files, seen = _cursor(walk)
    cdef int64_t seen_ns = sw_now_ns(), moved_ns = 0
    cdef int64_t nap_ns = BEHIND_NAP_NS
    cdef bint lags, all_of_it, has_written, is_idle
    sw_thread_waits_its_turn()
    while True:
        cursor, now_ns = _cursor(walk), sw_now_ns()
        is_idle = cursor == seen
        if not is_idle or now_ns - seen_ns > RATE_NS:
            _count(&walk.camera, (cursor - seen) * walk.frame_nbytes, now_ns - seen_ns)
            seen, seen_ns = cursor, now_ns
        in_files = sw_load_acquire(&walk.in_files)
        # What is no whole piece is written when the files have got nothing for a while.
        lags = cursor > walk.staging.exact_frames and in_files < cursor
        all_of_it = lags and (
            now_ns - moved_ns > LAG_NS
            or in_files < sw_load_acquire(&walk.wanted_in_files)
        )
        has_written = _write_behind(walk, cursor, all_of_it)
        if lags and (has_written or all_of_it):
            _show_in_files(walk)
            if sw_load_acquire(&walk.in_files) > in_files:
                moved_ns = now_ns
        nap_ns = min(2 * nap_ns, LONGEST_NAP_NS) if is_idle and not lags else BEHIND_NAP_NS
        if sw_alarm_wait(&walk.alarm, 0 if has_written else nap_ns):
            return NULL


cdef bint _write_behind(Walk* walk, int64_t cursor, bint all_of_it) noexcept nogil:
    """Write the next piece that is complete, or all that has come; return if any was."""
    cdef Staging* staging = walk.staging
    cdef int64_t round_frames = walk.visit_frames * walk.num_positions
    cdef int64_t visited = cursor % round_frames // walk.visit_frames
    cdef int64_t least_nbytes = staging.piece_nbytes // 8
    cdef int64_t head, nbytes, start_ns
    cdef bint is_due, has_written = False
    cdef int code, failed_code = 0
    cdef Piece piece
    sw_add(&walk.rounds, 1)
    piece.serial = 0
    while next_unwritten(staging, &piece):
        head = min(_head_nbytes(walk, piece.position, cursor), piece.stop)
        nbytes = head - piece.written_nbytes
        # A position that is not being visited gets no more frames for a while.
        is_due = head == piece.stop or piece.slot >= 0 and (
            all_of_it or (piece.position != visited and nbytes >= least_nbytes)
        )
        if not is_due or nbytes <= 0:
            continue
        start_ns = sw_now_ns()
        code = write_out(staging, &piece, head)
        if code:
            failed_code = code  # the disk is full, or does not take it: later again
            continue
        has_written = True
        _show_in_files(walk)
        if nbytes >= least_nbytes:  # small writes say nothing of the disk
            _count(&walk.disk, nbytes, sw_now_ns() - start_ns)
        if head == piece.stop and not all_of_it or sw_alarm_wait(&walk.alarm, 0):
            break
    sw_store_release(&walk.stuck, walk.rounds * MOST_CODES + failed_code)
    return has_written


cdef void _lock(Walk* walk) noexcept nogil:
    """Take `working` before the thread ahead does again."""
    sw_add(&walk.waiting, 1)
    sw_mutex_lock(&walk.working)
    sw_add(&walk.waiting, -1)


cdef int prepare_from_c(void* ahead, int64_t position, int64_t stop_nbytes) noexcept nogil:
    cdef Walk* walk = <Walk*>ahead
    cdef int64_t cursor = _cursor(walk)
    cdef int code
    _lock(walk)
    walk.is_asked = True
    if walk.waiting_frame != cursor:
        walk.known_round = sw_load_acquire(&walk.rounds)
    if position == walk.num_positions:
        code = _prepare_record(walk, stop_nbytes // <int64_t>sizeof(Record) - 1)
    else:
        _notice_file(walk, position)
        code = _prepare_slot(walk, position, stop_nbytes - walk.frame_nbytes)
    walk.is_asked = False
    walk.waiting_frame = cursor if code == EAGAIN else -1
    sw_mutex_unlock(&walk.working)
    return code


# --------------------------------------------------------------------------- class

@cython.final
@cython.no_gc_clear  # the threads use what it keeps until they are joined
cdef class AheadThread:
    """Prepares the slots ahead of a writer. See `ahead.pyi` for its methods."""

    cdef Walk walk
    cdef sw_thread ahead_thread, behind_thread
    cdef bint runs_ahead, runs_behind
    cdef StagingFile staging
    cdef int64_t staged_from          # frames before which none is
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
        walk.waiting_frame = -1
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
        walk.allocated_nbytes = <int64_t*>calloc(n, sizeof(int64_t))
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

    def start(self):
        self.walk.start_ns = sw_now_ns()
        self.runs_ahead = sw_thread_start(&self.ahead_thread, _run_ahead, &self.walk) == 0

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

    def stage_in(self, StagingFile staging not None, limits):
        cdef Walk* walk = &self.walk
        cdef int64_t window_nbytes = limits.window_nbytes
        cdef int64_t allocated_nbytes = limits.allocated_nbytes
        if self.staging is staging:
            return True
        with nogil:
            _lock(walk)
        self.staging, walk.staging = staging, &staging.staging
        walk.staged_window_nbytes = window_nbytes
        walk.allocated_ahead_nbytes = allocated_nbytes
        walk.most_waiting_nbytes = walk.staging.capacity * walk.staging.piece_nbytes
        # What came before is where it is.
        walk.staging.exact_frames = max(walk.staging.exact_frames, _cursor(walk))
        self.staged_from = walk.staging.exact_frames
        walk.writer = <void*>self.writer
        walk.show_in_files = <void (*)(void*, int64_t, bint) noexcept nogil>show_in_files
        self.runs_behind = sw_thread_start(&self.behind_thread, _run_behind, walk) == 0
        if self.runs_behind:
            sw_store_release(&self.writer._exact_frames, self.staged_from)
        else:
            self.staging, walk.staging = None, NULL
        sw_mutex_unlock(&walk.working)
        return bool(self.runs_behind)

    @property
    def is_staging(self):
        return sw_load_acquire(&self.walk.has_slots) != 0 and (
            _cursor(&self.walk) > self.staged_from or self.staged_from == 0
        )

    @property
    def refused_code(self):
        return 0 if self.staging is None else self.staging.refused_code

    @property
    def frames_before(self):
        return self.staged_from

    @property
    def disk(self):
        cdef int64_t[6] shown
        cdef StagingFile staging = self.staging  # kept until this ends
        if self.pid != getpid():
            staging = None  # a fork's copy: a thread may have held the lock
        _show_disk(&self.walk, NULL if staging is None else &staging.staging, shown)
        return [shown[i] for i in range(6)]

    def count_wait(self, frames, ns):
        sw_add(&self.walk.waited_frames, frames)
        sw_add(&self.walk.waited_ns, ns)

    def forget_wait(self):
        with nogil:
            _lock(&self.walk)
        self.walk.waiting_frame = -1
        sw_mutex_unlock(&self.walk.working)

    def wait_for_trouble(self, int known):
        cdef Walk* walk = &self.walk
        cdef StagingFile staging_file = self.staging  # kept until this ends
        cdef Staging* staging
        cdef int found = 0
        if staging_file is None:
            return 0
        staging = &staging_file.staging
        with nogil:
            while found == 0 and not sw_alarm_wait(&walk.alarm, LAG_NS):
                if _waiting_nbytes(walk, staging) > walk.most_waiting_nbytes // 2:
                    found |= IS_BEHIND
                if sw_load_acquire(&staging.refused_code):
                    found |= IS_REFUSED
                found &= ~known
        return found

    def bring_to_files(self, frames):
        cdef int64_t wanted = frames
        cdef int64_t code = 0
        cdef StagingFile staging_file = self.staging  # kept until this ends
        cdef int64_t known_round = sw_load_acquire(&self.walk.rounds)
        cdef bint has_ended = False
        if staging_file is None or not sw_load_acquire(&self.walk.has_staged):
            return 0
        sw_raise(&self.walk.wanted_in_files, wanted)
        while code == 0 and sw_load_acquire(&self.walk.in_files) < wanted:
            with nogil:
                has_ended = sw_alarm_wait(&self.walk.alarm, BEHIND_NAP_NS)
            if has_ended:
                return -1
            PyErr_CheckSignals()
            code = _stuck_code(&self.walk, known_round)
        return code

    def end_staging(self):
        # The threads have ended. Again: of no effect.
        if self.staging is None:
            return
        # If nothing was staged, that stays to be seen.
        if sw_load_acquire(&self.walk.has_staged) or _cursor(&self.walk) > self.staged_from:
            with nogil:
                _show_in_files(&self.walk)
        self.walk.staging = NULL
        self._end_times()
        self.staging = None

    def heads(self, frames):
        return [_head_nbytes(&self.walk, i, frames) for i in range(self.walk.num_positions)]

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
        self.times_owner = owner
        with nogil:  # to the end: nothing waits for the GIL with `working` held
            _lock(&self.walk)
            self.walk.shown_times = times
            sw_mutex_unlock(&self.walk.working)

    def stop(self):
        if self.pid == getpid():
            self._join()
            if self.staging is None:
                self._end_times()

    cdef void _end_times(self):
        if self.walk.shown_times != NULL:
            _show_disk(
                &self.walk, self.walk.staging, self.walk.shown_times + 3 + NUM_BUCKETS
            )
        self.walk.shown_times = NULL
        self.times_owner = None

    cdef void _join(self) noexcept:
        with nogil:
            sw_alarm_ring(&self.walk.alarm)
            if self.runs_ahead:
                sw_thread_join(self.ahead_thread)
            if self.runs_behind:
                sw_thread_join(self.behind_thread)
        self.runs_ahead = self.runs_behind = False
