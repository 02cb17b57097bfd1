# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot path: take the next slot, copy the frame, commit.

Memory: a `FrameWriter` owns its table of arrays; the bytes it writes into (arrays, progress
record, digits in the manifest) belong to the owner objects it was given with their
addresses, and it keeps those alive until it is closed. Memory of the next frames can be
lent out, to Python (a `Slot`) or to C. There is one lease at a time. `close` revokes it:
what is stored there from then on is no frame, but the memory stays until it is given back.

Locks: `_mutex` guards everything that moves with the frames. It is held while a frame is
copied, so that appends of several threads come whole, one after the other. It is not the
GIL: a thread that finds it taken waits without the GIL. No Python code runs under it but
what `exclusively` is given, and that may not append. While a lease is open (`_lease`) the
mutex is free, and only those threads wait that want the next slot themselves.

GIL: everything from the taken mutex on is `noexcept nogil` and returns a `Status`;
`_raise` alone turns those into exceptions. Small frames are copied with the GIL held,
because releasing and taking it costs more than the copy.

Commit: `_cursor` is stored by a release-store, when everything before it is in place. A
thread that loads it by an acquire-load finds the frames before it whole. The lengths in the
manifest are renewed after that: they never count a frame that is not committed.

Ways in: `put` for one frame from Python; all others (appender.pyx, c_api.pyx) make a table
of `Frame` of what they are given, and call the same methods as it does.

Elsewhere: what a frame has to be (frame_spec.pyx), the logs of metadata and skips
(logs.pyx), the times of appends (append_timer.pyx), the texts of errors (refusals.py).
"""

cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.errno cimport ENOMEM
from libc.stdint cimport INT64_MAX, int64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

cimport numpy as cnp

from scratchwriter._native.append_timer cimport NUM_BUCKETS, AppendTimer
from scratchwriter._native.convert cimport as_stamp
from scratchwriter._native.frame_spec cimport FrameSpec
from scratchwriter._native.logs cimport (
    PREFIX_NBYTES,
    SKIP_NBYTES,
    MetadataLog,
    SkipLog,
    put_line,
)
from scratchwriter._native.odometer cimport MAX_AXES, Odometer, advance, jump
from scratchwriter._region.platform cimport (
    SW_NO_THREAD,
    sw_add,
    sw_load_acquire,
    sw_mutex_destroy,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_try,
    sw_mutex_unlock,
    sw_nap,
    sw_now_ns,
    sw_store_16,
    sw_store_release,
    sw_this_thread,
    sw_touch,
)

from weakref import ref

import numpy as np

from scratchwriter._native import refusals
from scratchwriter.errors import disk_error

cnp.import_array()

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030D0000
    #define PyThreadState_GetUnchecked _PyThreadState_UncheckedGet
    #endif
    /* PyGILState_Check is always true once there was a sub-interpreter. */
    static int sw_has_gil(void) {
        PyThreadState *mine = PyGILState_GetThisThreadState();
        return mine != NULL && mine == PyThreadState_GetUnchecked();
    }
    """
    bint sw_has_gil() nogil

cdef extern from "Python.h":
    void* PyEval_SaveThread() nogil
    void PyEval_RestoreThread(void* state) nogil

cdef enum:
    # From here on a frame is copied without the GIL. To give it up and take it back costs
    # 0.3 us (it waits for the copy to leave the store buffer), or, if another thread takes
    # it meanwhile, up to that one's switch interval; others wait 4 us for it at the most.
    RELEASE_GIL_NBYTES = 65536
    DIGITS = 16                # of a length in the manifest, that is renewed in place
    NAP_NS = 50_000            # between looks whether a lease is still open, at first
    LONGEST_NAP_NS = 1_000_000
    MOST_NAPS = 20             # of a thread that lets others go first
    PAGE_NBYTES = 4096         # of memory, at least


# ------------------------------------------------------------------ index functions

cdef inline int64_t steps_after(
    int64_t cursor, int64_t position, int64_t step_frames, int64_t visit_frames
) noexcept nogil:
    """How far a position's unbounded axis reaches; the same as `FramePlan.steps`."""
    cdef int64_t steps = cursor // step_frames
    if cursor % step_frames > position * visit_frames:
        steps += 1
    return steps if steps > 1 else 1


# ------------------------------------------------------------------------- the GIL

cdef void* leave_python(void* state) noexcept nogil:
    """Release the GIL, if this thread has it: the thread with the mutex may need it."""
    if state == NULL and sw_has_gil():
        return PyEval_SaveThread()
    return state


cdef void return_to_python(void* state) noexcept nogil:
    if state != NULL:
        PyEval_RestoreThread(state)


# --------------------------------------------------------------------------- class

@cython.final
@cython.no_gc_clear  # a lease, or a thread, may still use what it keeps
cdef class FrameWriter:
    """Writes frames into the slots of a plan. See `_core.pyi` for its methods."""

    def __cinit__(
        self, plan, casting, provider, encode_metadata, *, keep_metadata, takes_time=False,
    ):
        cdef int64_t position
        cdef int i
        sw_mutex_init(&self._mutex)
        sw_mutex_init(&self._lengths)
        sw_store_release(&self._exclusive_thread, SW_NO_THREAD)
        self._frames_in_files = NOT_STAGED
        self._exact_frames = INT64_MAX
        self._log = MetadataLog(keep_metadata)
        self._skips = SkipLog()
        self._timer = AppendTimer()
        self._spec = FrameSpec(plan, casting)

        self._dtype = self._spec.dtype
        self._height, self._width = self._spec.height, self._spec.width
        self._frame_nbytes = plan.frame_nbytes
        self._row_nbytes = self._width * self._dtype.itemsize
        self._takes_time = takes_time
        self._ring_nbytes = plan.ring_steps * plan.step_nbytes
        self._ring_frames = plan.ring_frames
        self._keep_steps = plan.keep_steps or 0
        self._clears_next = (
            self._ring_frames > 0 and plan.step_frames > plan.num_positions
        )
        self._slot_steps = 1 if self._clears_next else plan.ring_steps - self._keep_steps
        self._last_frame_id = UNKNOWN
        self._num_positions = plan.num_positions
        self._num_frames = -1 if plan.is_unbounded else plan.num_frames
        self._step_frames = plan.step_frames
        self._visit_frames = plan.visit_frames
        self._num_axes = len(plan.counts)
        self._num_file_axes = len(plan.file_axes)
        if self._num_axes > MAX_AXES:
            raise ValueError(f"{self._num_axes} axes, the most is {MAX_AXES}")
        self._position_axis = -1 if plan.position_axis is None else plan.position_axis
        for i in range(self._num_axes):
            self._counts[i] = plan.counts[i] or 0
            self._strides_nbytes[i] = plan.strides_nbytes[i]
        for i in range(self._num_file_axes):
            self._file_axes[i] = plan.file_axes[i]

        self._arrays = <Array*>calloc(self._num_positions + 1, sizeof(Array))
        if self._arrays == NULL:
            raise MemoryError(f"table of {self._num_positions} positions")
        for position in range(self._num_positions):
            self._arrays[position].steps = self._arrays[position].shown_steps = 1
        self._array_owners = [None] * (self._num_positions + 1)
        self._readable_steps = 1
        self._provider = ref(provider)
        self._encode_metadata = encode_metadata

    def __dealloc__(self):
        free(self._arrays)
        if self._lease.is_native:
            free(self._lease.copy)
        sw_mutex_destroy(&self._mutex)
        sw_mutex_destroy(&self._lengths)

    # ------------------------------------------------------------- for the camera loop

    cdef int put(
        self, object frame, object frame_metadata, object timestamp_ns, object frame_id
    ) except -1:
        cdef cnp.ndarray array
        cdef bytes body
        cdef Frame one
        cdef int64_t start_ns = self._start_ns(self._frame_nbytes)
        cdef int status
        cdef Request request

        if self._is_plain_frame(frame):
            array = <cnp.ndarray>frame
            one.pitch_nbytes = self._row_nbytes
        else:
            array = self._spec.as_frame(frame)
            one.pitch_nbytes = cnp.PyArray_STRIDE(array, 0)
        one.data = cnp.PyArray_BYTES(array)
        one.body = NULL
        one.body_nbytes = 0
        if frame_metadata is not None:
            body = self._encode_metadata(frame_metadata)
            one.body = PyBytes_AS_STRING(body)
            one.body_nbytes = PyBytes_GET_SIZE(body)
        one.timestamp_ns = one.frame_id = UNKNOWN
        if timestamp_ns is not None:
            one.timestamp_ns = as_stamp(timestamp_ns, "timestamp_ns")
        if frame_id is not None:
            one.frame_id = as_stamp(frame_id, "frame_id")

        while True:
            status = self._begin()
            if status == OK:
                if self._frame_nbytes >= RELEASE_GIL_NBYTES or one.body_nbytes:
                    with nogil:
                        status = self._put(&one, &request)
                        sw_mutex_unlock(&self._mutex)
                else:
                    status = self._put(&one, &request)
                    sw_mutex_unlock(&self._mutex)
                if status == OK:
                    if start_ns:
                        self._timer.count(start_ns)
                    return 0
            self._answer(<Status>status, "append", 1, &request)

    cdef int put_frames(
        self, str what, Frame* frames, int64_t count, int64_t serial
    ) except -1:
        """Store frames from anywhere, or (with a serial) those that are in open slots."""
        cdef int64_t start_ns = self._start_ns(count * self._frame_nbytes)
        # In slots they are where they belong, but where the arrays move.
        cdef bint is_copied = not serial or self._lends_copies
        cdef bint takes_long = is_copied and (
            count * self._frame_nbytes >= RELEASE_GIL_NBYTES
        )
        cdef int64_t i
        cdef int status
        cdef Request request
        for i in range(count):
            takes_long |= frames[i].body_nbytes != 0
        while True:
            status = self._acquire() if serial else self._begin()
            if status == OK:
                if takes_long:
                    with nogil:
                        status = self._store(frames, count, serial, &request)
                        sw_mutex_unlock(&self._mutex)
                else:
                    status = self._store(frames, count, serial, &request)
                    sw_mutex_unlock(&self._mutex)
                if status == OK:
                    if start_ns:
                        self._timer.count(start_ns)
                    return 0
            self._answer(<Status>status, what, count, &request)

    cdef object lend(self, int64_t count, char** address, int64_t* serial):
        """Lend the memory of the next slots; return what keeps it."""
        cdef char* copy = NULL
        cdef object owner = None
        cdef int status
        cdef Request request
        if self._lends_copies:
            owner = bytearray(count * self._frame_nbytes)
            copy = PyByteArray_AS_STRING(owner)
        self._let_others_go_first()
        while True:
            status = self._begin()
            if status == OK:
                if count * self._frame_nbytes >= RELEASE_GIL_NBYTES:
                    with nogil:  # it may take the page faults of many frames
                        status = self._lend(count, False, copy, address, &request)
                else:
                    status = self._lend(count, False, copy, address, &request)
                if status == OK:
                    serial[0] = self._lease.serial
                    if owner is None:
                        owner = self._array_owners[self._lease.position]
                sw_mutex_unlock(&self._mutex)
                if status == OK:
                    return owner
            self._answer(<Status>status, "reserve", count, &request)

    cdef void give_back(self, int64_t serial) noexcept nogil:
        """End a lease, if it has not ended: its slots are as if they were never lent."""
        cdef bint taken = self._lock()
        cdef bint was_revoked = False
        if serial == self._lease.serial:
            if self._lease.frames:
                self._commit(serial, NULL, 0, NULL)
            else:
                was_revoked = self._end_lease()
        self._unlock(taken)
        if was_revoked:
            with gil:
                self._lent = None

    def skip(self, *, frames=1):
        cdef int status
        cdef Request request
        cdef int64_t count
        wanted = PyNumber_Index(frames)
        if wanted <= 0:
            raise ValueError(f"skip(frames={wanted}): the number must be positive.")
        # No array reaches that far; the same answer as for any skip that is too long.
        count = min(wanted, 1 << 62)
        while True:
            status = self._begin()
            if status == OK:
                with nogil:  # in a ring it clears as many frames
                    status = self._skip(count, &request)
                    sw_mutex_unlock(&self._mutex)
                if status == OK:
                    return
            self._answer(<Status>status, "skip", wanted, &request)

    @property
    def frames_written(self):
        return sw_load_acquire(&self._cursor)

    @property
    def closed(self):
        return self._closed

    @property
    def has_lease(self):
        return self._lease.frames != 0 and self._lease.copy == NULL

    def lent_stop_nbytes(self, position):
        return self._arrays[<int64_t>position].lent_stop_nbytes

    def writable_nbytes(self, position):
        return sw_load_acquire(&self._arrays[<int64_t>position].writable_nbytes)

    def skipped(self, first=0):
        cdef cnp.ndarray ranges
        cdef int64_t start = first
        cdef int64_t count = 0
        cdef int64_t low
        cdef Status status
        cdef bint complete
        while True:
            ranges = np.empty((count, 2), np.int64)  # under the mutex nothing is made
            status = self._acquire()
            low = self._skips.first_after(start)
            complete = self._skips.count - low == count
            count = self._skips.count - low
            if complete and count:
                memcpy(
                    cnp.PyArray_DATA(ranges), &self._skips.ranges[2 * low],
                    SKIP_NBYTES * count,
                )
            if status == OK:
                sw_mutex_unlock(&self._mutex)
            if complete:
                return ranges

    def measured(self):
        return self._timer.measured() | {
            "num_appended": self.frames_written - sw_load_acquire(&self._skipped),
            "num_dropped": sw_load_acquire(&self._dropped),
        }

    # -------------------------------------------------------------- for the provider

    def exclusively(self, action):
        """Run `action()` while no frame is stored; it may call all that is below."""
        if self._is_exclusive() or self._acquire() == CLOSED:
            return action()  # nothing can be stored: nested, or after close
        sw_store_release(&self._exclusive_thread, sw_this_thread())
        try:
            return action()
        finally:
            sw_store_release(&self._exclusive_thread, SW_NO_THREAD)
            sw_mutex_unlock(&self._mutex)

    def attach(self, position, owner, writable_nbytes):
        cdef Array* array = &self._arrays[<int64_t>position]
        array.base = <char*><uintptr_t>owner.address
        sw_store_release(&array.writable_nbytes, <int64_t>writable_nbytes)
        self._array_owners[position] = owner.memory
        if position < self._num_positions:
            self._lends_copies = owner.moves

    def set_readable_steps(self, steps):
        self._readable_steps = steps

    def publish_progress(self, cursor_address, dropped_address, in_files_address, owner):
        cdef int64_t* cursor = <int64_t*><uintptr_t>cursor_address
        cdef int64_t* dropped = <int64_t*><uintptr_t>dropped_address
        cdef int64_t* in_files = <int64_t*><uintptr_t>in_files_address
        sw_mutex_lock(&self._lengths)
        sw_store_release(
            in_files, self._frames_in_files if self._has_staged else NOT_STAGED
        )
        if not self._has_final_lengths:
            self._in_files_owner, self._file_in_files = owner, in_files
        sw_mutex_unlock(&self._lengths)
        sw_store_release(dropped, self._dropped)
        sw_store_release(cursor, self._cursor)
        if not self._closed:  # else they stay as they are
            self._file_owner = owner
            self._file_cursor, self._file_dropped = cursor, dropped

    def publish_steps(self, addresses, owner):
        cdef list digits = [<uintptr_t>address for address in addresses]
        cdef int64_t position, frames
        cdef Array* array
        sw_mutex_lock(&self._lengths)  # nothing here can wait
        frames = max(self._exact_frames, self._frames_in_files)
        for position in range(self._num_positions):
            array = &self._arrays[position]
            array.new_digits = <char*><uintptr_t>digits[position]
            self._put_length(array, self._steps_of(position, frames))
        sw_mutex_unlock(&self._lengths)
        self._new_digits_owner = owner

    def settle_steps(self, is_replaced):
        cdef int64_t position
        if self._new_digits_owner is None:
            return
        is_replaced = is_replaced and not self._has_final_lengths
        sw_mutex_lock(&self._lengths)
        for position in range(self._num_positions):
            if is_replaced:
                self._arrays[position].shape_digits = self._arrays[position].new_digits
            self._arrays[position].new_digits = NULL
        sw_mutex_unlock(&self._lengths)
        if is_replaced:
            self._digits_owner = self._new_digits_owner
        self._new_digits_owner = None

    def copy_log(self, fd, path):
        cdef int file = fd
        cdef int code = 0
        cdef bint more = True
        with nogil:
            while code == 0:
                sw_mutex_lock(&self._mutex)
                # Lines are still written into the last block.
                more = self._log.first != self._log.last
                sw_mutex_unlock(&self._mutex)
                if not more:
                    break
                code = self._log.copy_first_block(file)
                if code == 0:
                    sw_mutex_lock(&self._mutex)
                    self._log.drop_first_block()
                    sw_mutex_unlock(&self._mutex)
        self._check(code, path, 0)

    def log_to(self, fd, path):
        while self._log.first != NULL:
            self._check(self._log.copy_first_block(fd), path, 0)
            self._log.drop_first_block()
        self._log.fd = fd
        self._log_path = path

    def log_skips_to(self, fd, path):
        self._check(self._skips.copy_to(fd), path, SKIP_NBYTES * self._skips.count)
        self._skips.fd = fd
        self._skips_path = path

    def close(self):
        """Refuse frames from now on; an append under way in another thread ends first."""
        cdef Status status = self._acquire()
        cdef list owners
        cdef object progress
        if status == CLOSED:
            return
        if status != OK:
            self._raise(status, "close", 0, NULL)
        if self._lease.frames:
            self._lent = self._array_owners[self._lease.position]
            self._lease.is_revoked = True
            self._commit(self._lease.serial, NULL, 0, NULL)
        self._closed = True
        self._ahead = NULL
        self._prepare = NULL
        self._frames_ahead = NULL
        # Nothing outside is written from here on, and its owners may go.
        self._file_cursor = self._file_dropped = NULL
        self._log.fd = self._skips.fd = -1
        # One by one: no object is made while the mutex is held, because that may collect
        # garbage, which may want the mutex.
        owners = self._array_owners
        progress = self._file_owner
        self._array_owners = None
        self._file_owner = None
        sw_mutex_unlock(&self._mutex)
        del owners, progress  # here, with the mutex free

    def end_lengths(self):
        """Leave the lengths in the manifest as they are: all frames are in files."""
        cdef object digits, new_digits, in_files
        sw_mutex_lock(&self._lengths)
        self._has_final_lengths = True
        self._file_in_files = NULL
        for position in range(self._num_positions):
            self._arrays[position].shape_digits = NULL
            self._arrays[position].new_digits = NULL
        digits = self._digits_owner
        new_digits = self._new_digits_owner
        in_files = self._in_files_owner
        self._digits_owner = None
        self._new_digits_owner = None
        self._in_files_owner = None
        sw_mutex_unlock(&self._lengths)
        del digits, new_digits, in_files

    def disown(self):
        """In a forked child: all this is the parent's."""
        sw_mutex_init(&self._mutex)  # a thread that is not here may have held it
        sw_store_release(&self._exclusive_thread, SW_NO_THREAD)
        self._lease.frames = 0
        self._ahead = NULL
        self._prepare = NULL
        self._frames_ahead = NULL
        self._file_cursor = self._file_dropped = NULL
        self._closed = self._disowned = True

    @property
    def c_address(self):
        """Address of the stream's `scratchwriter_stream`, for the life of the process."""
        if not self._is_immortal:
            self._is_immortal = True
            Py_INCREF(self)
        return <uintptr_t>&self._c_stream

    # ------------------------------------------------------------------------ inside

    cdef int64_t _start_ns(self, int64_t nbytes) noexcept nogil:
        """Return when an append of so many bytes begins, if it is to be timed; else 0."""
        if nbytes >= TIMED_NBYTES or sw_load_acquire(&self._cursor) % SAMPLED == 0:
            return sw_now_ns()
        return 0

    cdef bint _is_plain_frame(self, object frame) noexcept:
        return (
            cnp.PyArray_CheckExact(frame)
            and <PyObject*>cnp.PyArray_DESCR(<cnp.ndarray>frame) == <PyObject*>self._dtype
            and cnp.PyArray_NDIM(<cnp.ndarray>frame) == 2
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 0) == self._height
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 1) == self._width
            and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>frame)
        )

    cdef bint _is_exclusive(self) noexcept nogil:
        """Return whether this thread runs Python code under the mutex."""
        return sw_load_acquire(&self._exclusive_thread) == sw_this_thread()

    cdef Status _acquire(self) noexcept:
        """Take the mutex; without the GIL if that means to wait."""
        if not sw_mutex_try(&self._mutex):
            if self._is_exclusive():
                return BUSY
            with nogil:
                sw_mutex_lock(&self._mutex)
        if self._closed:
            sw_mutex_unlock(&self._mutex)
            return CLOSED
        return OK

    cdef int _begin(self) except -1:
        """Take the mutex when no lease is open, by `_acquire`; return a `Status`."""
        cdef Status status = self._acquire()
        if status != OK or self._lease.frames == 0:
            return status
        return self._wait_for_lease()

    cdef int _wait_for_lease(self) except -1:
        """Go on with `_begin` when a lease is open; with the mutex held."""
        cdef Status status
        cdef int64_t nap_ns = NAP_NS
        cdef bint is_mine = self._lease.thread == sw_this_thread()
        sw_mutex_unlock(&self._mutex)
        if is_mine:
            return SLOT_OPEN
        sw_add(&self._waiting, 1)
        try:
            while True:
                with nogil:
                    sw_nap(nap_ns)
                nap_ns = min(2 * nap_ns, <int64_t>LONGEST_NAP_NS)
                PyErr_CheckSignals()
                status = self._acquire()
                if status != OK or self._lease.frames == 0:
                    return status
                sw_mutex_unlock(&self._mutex)
        finally:
            sw_add(&self._waiting, -1)

    cdef Status _begin_native(self) noexcept nogil:
        """The same as `_begin` for C, whose thread may have the GIL or not."""
        cdef void* python = NULL
        cdef Status status
        cdef int64_t nap_ns = NAP_NS
        cdef bint waits = False
        while True:
            if not sw_mutex_try(&self._mutex):
                if self._is_exclusive():
                    status = BUSY
                    break
                python = leave_python(python)
                sw_mutex_lock(&self._mutex)
            status = CLOSED if self._closed else OK
            if status == OK and self._lease.frames == 0:
                break
            if status == OK and self._lease.thread == sw_this_thread():
                status = SLOT_OPEN
            sw_mutex_unlock(&self._mutex)
            if status != OK:
                break
            if not waits:
                sw_add(&self._waiting, 1)
                waits = True
            python = leave_python(python)
            sw_nap(nap_ns)
            nap_ns = min(2 * nap_ns, <int64_t>LONGEST_NAP_NS)
        if waits:
            sw_add(&self._waiting, -1)
        return_to_python(python)
        return status

    cdef void _let_others_go_first(self) noexcept nogil:
        """Before memory is lent: a thread that has it lent all the time keeps others out.

        Others look whether a lease is open only now and then; and in Python, when they have
        the GIL. So this waits for a while, not until they have had their turn.
        """
        cdef void* python = NULL
        cdef int naps = 0
        while naps < MOST_NAPS and sw_load_acquire(&self._waiting):
            python = leave_python(python)
            sw_nap(NAP_NS)
            naps += 1
        return_to_python(python)

    cdef bint _lock(self) noexcept nogil:
        """Take the mutex, whatever is open or closed; False if this thread has it."""
        cdef void* python = NULL
        if not sw_mutex_try(&self._mutex):
            if self._is_exclusive():
                return False
            python = leave_python(python)
            sw_mutex_lock(&self._mutex)
            return_to_python(python)
        return True

    cdef void _unlock(self, bint taken) noexcept nogil:
        if taken:
            sw_mutex_unlock(&self._mutex)

    cdef int _answer(
        self, Status status, str what, object frames, Request* request
    ) except -1:
        """See to what a call lacks, so that it can be tried again, or raise."""
        cdef object provider
        if status != NEED_ROOM and status != NEED_STEPS:
            self._raise(status, what, frames, request)
        provider = self._provider()
        if provider is None:
            self._raise(CLOSED, what, frames, request)
        if status == NEED_ROOM:
            provider.make_room(request.position, request.stop_nbytes)
        else:
            provider.make_steps(request.steps)
        return 0

    cdef int64_t _position(self, Odometer* slot) noexcept nogil:
        return slot.index[self._position_axis] if self._position_axis >= 0 else 0

    cdef void _advance(self, Odometer* slot) noexcept nogil:
        advance(slot, self._counts, self._strides_nbytes, self._num_axes)
        if self._ring_nbytes and slot.offset_nbytes >= self._ring_nbytes:
            slot.offset_nbytes -= self._ring_nbytes

    cdef void _move_cursor(self, int64_t frames) noexcept nogil:
        """Commit: so many frames have come. What they are is stored by now."""
        sw_store_release(&self._cursor, frames)
        if self._file_cursor != NULL:
            sw_store_release(self._file_cursor, frames)

    cdef void _clear(self, int64_t steps) noexcept nogil:
        """Clear the next slot of a ring, or the one that is some steps behind it."""
        cdef int64_t step_nbytes = self._strides_nbytes[0]
        cdef int64_t at = self._next.offset_nbytes + steps * step_nbytes
        memset(
            self._arrays[self._position(&self._next)].base + at % self._ring_nbytes, 0,
            self._frame_nbytes,
        )

    cdef Status _put(self, Frame* frame, Request* request) noexcept nogil:
        """Copy a frame into the next slot and commit it, with all that came with it."""
        cdef int64_t cursor = self._cursor
        cdef int64_t position = self._position(&self._next)
        cdef int64_t stop_nbytes
        cdef Array* array = &self._arrays[position]
        cdef bint has_record
        if cursor == self._num_frames:
            return FULL
        stop_nbytes = self._next.offset_nbytes + self._frame_nbytes
        if stop_nbytes > sw_load_acquire(&array.writable_nbytes):
            request.position = position
            request.stop_nbytes = stop_nbytes
            return NEED_ROOM

        # Both are UNKNOWN (negative) only if neither bit of the sign is clear.
        has_record = (frame.timestamp_ns & frame.frame_id) >= 0 or (
            self._arrays[self._num_positions].base != NULL
        )
        if has_record and self._look_for_record(cursor + 1, request) != OK:
            return NEED_ROOM

        # What may fail comes first: a frame that is refused leaves nothing in its slot.
        if frame.body_nbytes:
            request.errno_code = self._write_lines(frame, 1)
            if request.errno_code:
                request.needed_nbytes = PREFIX_NBYTES + frame.body_nbytes
                return LOG_FAILED
        sw_copy_rows(
            array.base + self._next.offset_nbytes, frame.data, self._height,
            self._row_nbytes, frame.pitch_nbytes,
        )
        if has_record:
            self._record(cursor, frame)
        if self._clears_next:
            # When the next step is shown, what it lacks is not what was there before.
            self._clear(1)
        if self._num_frames < 0 and self._next.index[0] >= array.steps:
            array.steps = self._next.index[0] + 1
        self._advance(&self._next)
        self._move_cursor(cursor + 1)
        if array.steps != array.shown_steps:
            self._show_steps(array)
        return OK

    cdef Status _store(
        self, Frame* frames, int64_t count, int64_t serial, Request* request
    ) noexcept nogil:
        if serial:
            return self._commit(serial, frames, count, request)
        return self._put_all(frames, count, request)

    cdef Status _put_all(
        self, Frame* frames, int64_t count, Request* request
    ) noexcept nogil:
        """Store many frames and commit them at once; those without data are in place.

        In a ring, where one frame takes the place of another, they come one by one.
        """
        cdef int64_t cursor = self._cursor
        cdef int64_t i, body_nbytes = 0
        cdef int64_t run_nbytes = 0  # frames that follow each other here and there
        cdef const char* run_data = NULL
        cdef char* run_to = NULL
        cdef char* to
        cdef bint has_records = self._arrays[self._num_positions].base != NULL
        cdef int64_t position
        cdef int64_t first_position = self._num_positions
        cdef int64_t last_position = -1
        cdef Array* array
        cdef Status status = self._look_ahead(count, False, request)
        if status != OK:
            return status
        for i in range(count):
            body_nbytes += frames[i].body_nbytes
            has_records |= (frames[i].timestamp_ns & frames[i].frame_id) >= 0
        if has_records and self._look_for_record(cursor + count, request) != OK:
            return NEED_ROOM
        if body_nbytes:
            request.errno_code = self._write_lines(frames, count)
            if request.errno_code:
                request.needed_nbytes = count * PREFIX_NBYTES + body_nbytes
                return LOG_FAILED
        for i in range(count):
            position = self._position(&self._next)
            array = &self._arrays[position]
            to = array.base + self._next.offset_nbytes
            if frames[i].data != NULL:
                if (
                    run_nbytes
                    and to == run_to + run_nbytes
                    and frames[i].data == run_data + run_nbytes
                    and frames[i].pitch_nbytes == self._row_nbytes
                ):
                    run_nbytes += self._frame_nbytes
                else:
                    if run_nbytes:
                        sw_copy(run_to, run_data, run_nbytes)
                    run_nbytes = 0
                    if frames[i].pitch_nbytes == self._row_nbytes and not self._ring_nbytes:
                        run_to, run_data = to, frames[i].data
                        run_nbytes = self._frame_nbytes
                    else:
                        sw_copy_rows(
                            to, frames[i].data, self._height, self._row_nbytes,
                            frames[i].pitch_nbytes,
                        )
            if has_records:
                self._record(cursor + i, &frames[i])
            if self._clears_next:
                self._clear(1)
            if self._num_frames < 0 and self._next.index[0] >= array.steps:
                array.steps = self._next.index[0] + 1
                first_position = min(first_position, position)
                last_position = max(last_position, position)
            self._advance(&self._next)
            if self._ring_nbytes:
                # The next one may be where a frame is that is shown until this is counted.
                self._move_cursor(cursor + i + 1)
        if run_nbytes:
            sw_copy(run_to, run_data, run_nbytes)
        self._move_cursor(cursor + count)
        for position in range(first_position, last_position + 1):
            self._show_steps(&self._arrays[position])
        return OK

    cdef Status _look_ahead(
        self, int64_t count, bint together, Request* request
    ) noexcept nogil:
        """See whether the next slots may be written, and lie one behind the other."""
        cdef int64_t cursor = self._cursor
        cdef Odometer slot = self._next
        cdef int64_t first = self._position(&slot)
        cdef int64_t i, position, stop_nbytes
        if self._num_frames >= 0 and count > self._num_frames - cursor:
            return FULL
        for i in range(count if together else 0):
            if (
                self._position(&slot) != first
                or slot.offset_nbytes != self._next.offset_nbytes + i * self._frame_nbytes
                or self._ring_nbytes and (
                    slot.index[0] - self._next.index[0] >= self._slot_steps
                )
            ):
                return SLOTS_APART
            self._advance(&slot)
        slot = self._next
        while count:
            position = self._position(&slot)
            stop_nbytes = slot.offset_nbytes + self._frame_nbytes
            if stop_nbytes > sw_load_acquire(&self._arrays[position].writable_nbytes):
                request.position = position
                request.stop_nbytes = stop_nbytes
                return NEED_ROOM
            self._advance(&slot)
            count -= 1
        return OK

    cdef Status _look_for_record(self, int64_t stop, Request* request) noexcept nogil:
        """See whether the records of the frames before `stop` may be written."""
        cdef int64_t stop_nbytes = sizeof(Record) * (
            stop if self._ring_frames == 0 else min(stop, self._ring_frames)
        )
        cdef int64_t* writable_nbytes = &self._arrays[self._num_positions].writable_nbytes
        if stop_nbytes <= sw_load_acquire(writable_nbytes):
            return OK
        request.position = self._num_positions
        request.stop_nbytes = stop_nbytes
        return NEED_ROOM

    cdef void _record(self, int64_t frame_number, Frame* frame) noexcept nogil:
        cdef Record* record = (
            <Record*>self._arrays[self._num_positions].base
            + (frame_number % self._ring_frames if self._ring_frames else frame_number)
        )
        cdef int64_t known = 0
        cdef int64_t missing
        if frame.timestamp_ns >= 0:
            record.timestamp_ns = frame.timestamp_ns
            known = KNOWS_TIME
        elif self._takes_time:
            record.timestamp_ns = sw_now_ns()
            known = KNOWS_TIME | IS_HOST_TIME
        elif self._ring_frames:
            record.timestamp_ns = 0
        if self._ring_frames:
            record.frame_id = 0
        if frame.frame_id >= 0:
            record.frame_id = frame.frame_id
            known |= KNOWS_ID
            # A smaller number than before: the camera has restarted its count.
            if self._last_frame_id >= 0 and frame.frame_id > self._last_frame_id:
                missing = frame.frame_id - self._last_frame_id - 1
                sw_store_release(
                    &self._dropped, self._dropped + min(missing, INT64_MAX - self._dropped)
                )
                if self._file_dropped != NULL:
                    sw_store_release(self._file_dropped, self._dropped)
            self._last_frame_id = frame.frame_id
        record.known = known

    cdef Status _lend(
        self, int64_t count, bint is_native, char* copy, char** address, Request* request
    ) noexcept nogil:
        """Open a lease on the next slots, for a caller that fills them in place.

        The memory is that of the arrays, or `copy`, which C's lease takes over.
        """
        cdef Lease* lease = &self._lease
        cdef Array* array
        cdef Status status = self._look_ahead(count, count > 1, request)
        if status != OK:
            return status
        lease.position = self._position(&self._next)
        lease.copy = address[0] = copy
        if copy == NULL:
            array = &self._arrays[lease.position]
            address[0] = array.base + self._next.offset_nbytes
            array.lent_stop_nbytes = max(
                array.lent_stop_nbytes,
                self._next.offset_nbytes + count * self._frame_nbytes,
            )
            if (
                self._frames_ahead == NULL
                or sw_load_acquire(self._frames_ahead) < self._cursor + count
            ):
                self._populate(address[0], count * self._frame_nbytes)
        lease.frames = count
        lease.serial += 1
        lease.thread = sw_this_thread()
        lease.is_native = is_native
        lease.is_revoked = False
        return OK

    cdef Status _commit(
        self, int64_t serial, Frame* frames, int64_t count, Request* request
    ) noexcept nogil:
        """Store the first frames of a lease and give the others back, which ends it."""
        cdef Lease* lease = &self._lease
        cdef int64_t rest = lease.frames - count
        cdef int64_t i
        cdef char* start
        cdef void* python = NULL
        cdef Status status = OK
        if lease.frames == 0 or serial != lease.serial:
            return CLOSED
        if lease.copy != NULL:
            for i in range(count):
                frames[i].data = lease.copy + i * self._frame_nbytes
                frames[i].pitch_nbytes = self._row_nbytes
        start = self._arrays[lease.position].base + self._next.offset_nbytes
        if count:
            status = self._put_all(frames, count, request)
            if status == NEED_ROOM:
                return status  # for records; the lease stays open for the next try
            if status != OK:
                rest += count
        # What is given back may be skipped, or never come: zeros, to a reader.
        if rest and lease.copy == NULL:
            if rest * self._frame_nbytes >= RELEASE_GIL_NBYTES:
                python = leave_python(NULL)
            memset(
                start + (lease.frames - rest) * self._frame_nbytes, 0,
                rest * self._frame_nbytes,
            )
            return_to_python(python)
        lease.frames = 0
        if not lease.is_revoked:
            self._end_lease()
        return status

    cdef bint _end_lease(self) noexcept nogil:
        """Forget what a lease has; return whether `_lent` is to be dropped after it."""
        cdef bint was_revoked = self._lease.is_revoked
        if self._lease.is_native:
            free(self._lease.copy)
        self._lease.copy = NULL
        self._lease.is_native = self._lease.is_revoked = False
        return was_revoked

    cdef void _populate(self, char* start, int64_t nbytes) noexcept nogil:
        """Take the page faults now that a camera's own thread would take later."""
        cdef char* at = start
        while at < start + nbytes:
            sw_touch(at)
            at += PAGE_NBYTES
        sw_touch(start + nbytes - 1)

    cdef Status _skip(self, int64_t frames, Request* request) noexcept nogil:
        """Commit frames that were never written; at most 2**62 at a time."""
        cdef int64_t cursor = self._cursor
        cdef int64_t position, steps
        if self._num_frames >= 0:
            if frames > self._num_frames - cursor:
                return FULL
        else:
            steps = (cursor + frames - 1) // self._step_frames + 1
            if steps > self._readable_steps:
                request.steps = steps
                return NEED_STEPS
        request.errno_code = self._skips.note(cursor, cursor + frames)
        if request.errno_code:
            request.needed_nbytes = SKIP_NBYTES
            return SKIP_FAILED
        sw_store_release(&self._skipped, self._skipped + frames)
        if self._ring_frames:
            self._skip_in_ring(cursor, frames)
        jump(
            &self._next, cursor + frames, self._counts, self._strides_nbytes,
            self._num_axes,
        )
        if self._ring_nbytes:
            self._next.offset_nbytes %= self._ring_nbytes
        self._move_cursor(cursor + frames)
        for position in range(self._num_positions if self._num_frames < 0 else 0):
            steps = steps_after(
                cursor + frames, position, self._step_frames, self._visit_frames
            )
            if steps > self._arrays[position].steps:
                self._arrays[position].steps = steps
                self._show_steps(&self._arrays[position])
        return OK

    cdef void _skip_in_ring(self, int64_t cursor, int64_t frames) noexcept nogil:
        """Clear what was in the slots before, and forget what was known of it."""
        cdef Record nothing
        cdef int64_t frame = cursor + max(frames - self._ring_frames, <int64_t>0)
        nothing.timestamp_ns = nothing.frame_id = nothing.known = 0
        jump(&self._next, frame, self._counts, self._strides_nbytes, self._num_axes)
        self._next.offset_nbytes %= self._ring_nbytes
        while frame < cursor + frames:
            self._clear(0)
            if self._clears_next:
                self._clear(1)
            if self._arrays[self._num_positions].base != NULL:
                (<Record*>self._arrays[self._num_positions].base)[
                    frame % self._ring_frames
                ] = nothing
            self._advance(&self._next)
            frame += 1

    cdef int _write_lines(self, Frame* frames, int64_t count) noexcept nogil:
        """Log the metadata of the next frames, all or none: 0, or an errno."""
        cdef Odometer slot = self._next
        cdef size_t needed_nbytes = 0
        cdef char* lines
        cdef char* at
        cdef int64_t i
        for i in range(count):
            needed_nbytes += PREFIX_NBYTES + frames[i].body_nbytes
        lines = at = self._log.reserve(needed_nbytes)
        if lines == NULL:
            return ENOMEM
        for i in range(count):
            if frames[i].body_nbytes:
                at = put_line(
                    at, self._position(&slot), slot.index, self._file_axes,
                    self._num_file_axes, frames[i].body, frames[i].body_nbytes,
                )
            if i + 1 < count:
                self._advance(&slot)
        return self._log.store(at - lines)

    cdef void _show_steps(self, Array* array) noexcept nogil:
        """Renew an array's length in the manifest, when its frames are committed."""
        array.shown_steps = array.steps
        if self._cursor <= sw_load_acquire(&self._exact_frames):
            self._put_length(array, array.steps)

    cdef int64_t _steps_of(self, int64_t position, int64_t frames) noexcept nogil:
        if self._cursor <= frames:
            return self._arrays[position].steps
        return steps_after(frames, position, self._step_frames, self._visit_frames)

    cdef void show_frames_in_files(self, int64_t frames, bint has_staged) noexcept nogil:
        """Let others know that so many frames are in the files of the arrays."""
        cdef int64_t position, steps
        sw_mutex_lock(&self._lengths)
        frames = max(frames, self._frames_in_files)  # another thread may know more
        sw_store_release(&self._frames_in_files, frames)
        self._has_staged = has_staged
        if self._num_frames < 0 and frames > self._exact_frames:
            for position in range(self._num_positions):
                steps = steps_after(
                    frames, position, self._step_frames, self._visit_frames
                )
                self._put_length(&self._arrays[position], steps)
        # Last: no length is behind this number.
        if self._file_in_files != NULL:
            sw_store_release(self._file_in_files, frames if has_staged else NOT_STAGED)
        sw_mutex_unlock(&self._lengths)

    cdef void _put_length(self, Array* array, int64_t steps) noexcept nogil:
        cdef char text[DIGITS]
        cdef int i = DIGITS
        if self._keep_steps and steps > self._keep_steps:
            steps = self._keep_steps
        if array.shape_digits == NULL and array.new_digits == NULL:
            return
        memset(text, c' ', DIGITS)
        while steps and i:
            i -= 1
            text[i] = <char>(c'0' + steps % 10)
            steps = steps // 10
        if array.shape_digits != NULL:
            sw_store_16(array.shape_digits, text)
        if array.new_digits != NULL:
            sw_store_16(array.new_digits, text)

    cdef int _raise(
        self, Status status, str what, object frames, Request* request
    ) except -1:
        """The one place where a `Status` becomes an exception."""
        if status == CLOSED:
            raise refusals.closed(what, is_fork=self._disowned)
        if status == BUSY:
            raise refusals.busy(what)
        if status == SLOT_OPEN:
            raise refusals.slot_open(what)
        if status == SLOTS_APART:
            raise refusals.slots_apart(frames, in_ring=self._ring_nbytes != 0)
        if status == FULL:
            raise refusals.full(what, frames, self._num_frames, self.frames_written)
        if request.errno_code == ENOMEM:
            raise refusals.no_memory(what)
        path = self._log_path if status == LOG_FAILED else self._skips_path
        self._check(request.errno_code, path, request.needed_nbytes)
        raise AssertionError(f"unknown status {status}")

    cdef int _check(self, int code, object path, int64_t needed_nbytes) except -1:
        if code != 0:
            raise disk_error(code, path, needed_nbytes)
        return 0


def layout():
    cdef Record record
    cdef char* start = <char*>&record
    return {
        "record_nbytes": sizeof(Record),
        "record_offsets": {
            "timestamp_ns": <char*>&record.timestamp_ns - start,
            "frame_id": <char*>&record.frame_id - start,
            "known": <char*>&record.known - start,
        },
        "digits": DIGITS,
        "num_buckets": NUM_BUCKETS,
        "knows_time": KNOWS_TIME,
        "knows_id": KNOWS_ID,
        "is_host_time": IS_HOST_TIME,
        "unknown": UNKNOWN,
        "skip_pair_nbytes": SKIP_NBYTES,
    }
