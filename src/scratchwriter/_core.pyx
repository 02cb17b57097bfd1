# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot path: take the next slot, copy the frame, commit.

Memory: a `FrameWriter` owns its table of arrays and its metadata buffers; the bytes it
writes into (arrays, progress record, digits in the manifest) belong to the owner objects
it was given with their addresses, and it keeps those alive.

Locks: `_mutex` guards everything that moves with the frames. It is held while a frame is
copied, so that appends of several threads come whole, one after the other. It is not the
GIL: a thread that finds it taken waits without the GIL. No Python code runs under it but
what `exclusively` is given, and that may not append. While slots are open (`_slot_frames`)
it is free, and only those wait who want the next slot themselves.

GIL: everything from the taken mutex on is `noexcept nogil` and returns a `Status`;
`_raise` alone turns those into exceptions. Small frames are copied with the GIL held,
because to give it up and to take it back costs more than the copy.

Commit: `_cursor` is stored last, by a release-store. Who loads it by an acquire-load
finds the frames before it whole.

Ways in: `put` for one frame from Python; all others (_appender.pyx, _c_api.pyx) make a
table of `Frame` of what they are given, and call the same methods as it does.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cimport numpy as cnp

from scratchwriter._native.convert cimport as_array, as_stamp
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
    sw_append,
    sw_pwrite,
    sw_raise,
    sw_store_16,
    sw_store_release,
    sw_this_thread,
    sw_touch,
)

import numpy as np

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
    DIGITS = 16                # as in manifest.py: a number that is renewed in place
    LOG_BLOCK_NBYTES = 65000   # small enough for malloc to have it at hand
    PREFIX_NBYTES = 256        # more than '{"_pos": p, "_idx": [i, ...]' can take
    NAP_NS = 50_000            # between looks whether a slot is still open
    MOST_NAPS = 20             # of one that lets others go first
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


cdef inline int bucket_of(int64_t value) noexcept nogil:
    """Return the bucket that counts a value; `stats.bucket_stop` is the inverse."""
    cdef int shift = 0
    while value >> shift >= 2 << BUCKET_BITS:
        shift += 1
    return min((shift << BUCKET_BITS) + <int>(value >> shift), NUM_BUCKETS - 1)


cdef inline char* put_text(char* at, const char* text, size_t nbytes) noexcept nogil:
    memcpy(at, text, nbytes)
    return at + nbytes


cdef inline char* put_number(char* at, int64_t number) noexcept nogil:
    """Write a number that is not negative in decimal; return where it ends."""
    cdef char digits[20]
    cdef int i = 20
    while True:
        i -= 1
        digits[i] = <char>(c'0' + number % 10)
        number = number // 10
        if number == 0:
            return put_text(at, &digits[i], 20 - i)


# ------------------------------------------------------------------------- the GIL

cdef void* leave_python(void* state) noexcept nogil:
    """Give up the GIL, if this thread has it: who holds the mutex may need it."""
    if state == NULL and sw_has_gil():
        return PyEval_SaveThread()
    return state


cdef void return_to_python(void* state) noexcept nogil:
    if state != NULL:
        PyEval_RestoreThread(state)


# --------------------------------------------------------------------------- class

@cython.final
cdef class FrameWriter:
    """Writes frames into the slots of a plan. See `_core.pyi` for its methods."""

    def __cinit__(
        self, plan, casting, make_room, make_steps, encode_metadata, disk_error, *,
        keep_metadata, takes_time=False,
    ):
        cdef int64_t position
        cdef int i
        sw_mutex_init(&self._mutex)
        sw_store_release(&self._exclusive_thread, SW_NO_THREAD)
        self._log.fd = -1
        self._log.keep = keep_metadata
        self._skips.fd = -1

        self._dtype = plan.dtype
        self._casting = casting
        self._frame_dims = ", ".join(plan.file_dims[len(plan.file_axes):])
        self._height, self._width = plan.frame_shape
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
            self._arrays[position].steps = 1
        self._array_owners = [None] * (self._num_positions + 1)
        self._readable_steps = 1
        self._make_room = make_room
        self._make_steps = make_steps
        self._encode_metadata = encode_metadata
        self._disk_error = disk_error

    def __dealloc__(self):
        free(self._arrays)
        free(self._skips.ranges)
        while self._log.first != NULL:
            self._drop_first_block()
        free(self._log.lines)
        sw_mutex_destroy(&self._mutex)

    # ------------------------------------------------------------- for the camera loop

    cdef int put(
        self, object frame, object frame_metadata, object timestamp_ns, object frame_id
    ) except -1:
        cdef cnp.ndarray array
        cdef bytes body
        cdef Frame one
        cdef int64_t start_ns = 0
        cdef int status
        cdef Request request

        if (
            self._frame_nbytes >= TIMED_NBYTES
            or sw_load_acquire(&self._cursor) % SAMPLED == 0
        ):
            start_ns = sw_now_ns()
        if self._is_plain_frame(frame):
            array = <cnp.ndarray>frame
            one.pitch_nbytes = self._row_nbytes
        else:
            array = self._as_frame(frame)
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
                        self._count_append(start_ns)
                    return 0
            self._answer(<Status>status, "append", 1, &request)

    cdef int put_frames(
        self, str what, Frame* frames, int64_t count, int64_t serial
    ) except -1:
        """Store frames from anywhere, or (with a serial) those that are in open slots."""
        cdef int64_t start_ns = 0
        cdef int64_t copied_nbytes = 0 if serial else count * self._frame_nbytes
        cdef bint takes_long = copied_nbytes >= RELEASE_GIL_NBYTES
        cdef int64_t i
        cdef int status
        cdef Request request
        for i in range(count):
            takes_long |= frames[i].body_nbytes != 0
        if (
            count * self._frame_nbytes >= TIMED_NBYTES
            or sw_load_acquire(&self._cursor) % SAMPLED == 0
        ):
            start_ns = sw_now_ns()
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
                        self._count_append(start_ns)
                    return 0
            self._answer(<Status>status, what, count, &request)

    cdef int open_slots(self, int64_t count, char** address) except -1:
        """Reserve the next slots; return where they begin."""
        cdef int status
        cdef Request request
        self._let_others_go_first()
        while True:
            status = self._begin()
            if status == OK:
                status = self._reserve(count, address, &request)
                sw_mutex_unlock(&self._mutex)
                if status == OK:
                    return 0
            self._answer(<Status>status, "reserve", count, &request)

    cdef void give_back(self, int64_t serial) noexcept nogil:
        """Give open slots back: they are as if they had never been reserved."""
        self._lock()
        self._commit(serial, NULL, 0, NULL)
        sw_mutex_unlock(&self._mutex)

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
    def has_open_slots(self):
        return self._slot_frames != 0

    def skipped(self, first=0):
        cdef cnp.ndarray ranges
        cdef int64_t start = first
        cdef int64_t count = 0
        cdef int64_t low, high, middle
        cdef Status status
        cdef bint complete
        while True:
            ranges = np.empty((count, 2), np.int64)  # under the mutex nothing is made
            status = self._acquire()
            low, high = 0, self._skips.count
            while low < high:  # for the first range that ends behind it
                middle = (low + high) // 2
                if self._skips.ranges[2 * middle + 1] <= start:
                    low = middle + 1
                else:
                    high = middle
            complete = self._skips.count - low == count
            count = self._skips.count - low
            if complete and count:
                memcpy(cnp.PyArray_DATA(ranges), &self._skips.ranges[2 * low], 16 * count)
            if status == OK:
                sw_mutex_unlock(&self._mutex)
            if complete:
                return ranges

    def measured(self):
        cdef cnp.ndarray counts = np.empty(NUM_BUCKETS, np.int64)
        cdef int i
        for i in range(NUM_BUCKETS):
            (<int64_t*>cnp.PyArray_DATA(counts))[i] = sw_load_acquire(
                &self._append_counts[i]
            )
        return {
            "num_appended": self.frames_written - sw_load_acquire(&self._skipped),
            "first_append_ns": sw_load_acquire(&self._first_append_ns),
            "last_append_ns": sw_load_acquire(&self._last_append_ns),
            "append_counts": counts,
            "longest_append_ns": sw_load_acquire(&self._longest_append_ns),
            "num_dropped": sw_load_acquire(&self._dropped),
        }

    # --------------------------------------------------------------- for the storage

    def exclusively(self, action):
        """Run `action()` while nobody appends; it may call all that is below."""
        if self._is_exclusive() or self._acquire() == CLOSED:
            return action()  # no one else can append: nested, or for good
        sw_store_release(&self._exclusive_thread, <int64_t>sw_this_thread())
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

    def set_readable_steps(self, steps):
        self._readable_steps = steps

    def publish_progress(self, cursor_address, dropped_address, owner):
        self._file_owner = owner
        self._file_cursor = <int64_t*><uintptr_t>cursor_address
        self._file_dropped = <int64_t*><uintptr_t>dropped_address
        sw_store_release(self._file_dropped, self._dropped)
        sw_store_release(self._file_cursor, self._cursor)

    def publish_steps(self, addresses, owner):
        cdef int64_t position
        for position in range(self._num_positions):
            self._arrays[position].new_digits = <char*><uintptr_t>addresses[position]
            self._set_steps(&self._arrays[position], self._arrays[position].steps)
        self._new_digits_owner = owner

    def settle_steps(self, is_replaced):
        cdef int64_t position
        if self._new_digits_owner is None:
            return
        for position in range(self._num_positions):
            if is_replaced:
                self._arrays[position].shape_digits = self._arrays[position].new_digits
            self._arrays[position].new_digits = NULL
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
                more = self._log.first != self._log.last  # which is still written into
                sw_mutex_unlock(&self._mutex)
                if not more:
                    break
                code = self._copy_first_block(file)
                if code == 0:
                    sw_mutex_lock(&self._mutex)
                    self._drop_first_block()
                    sw_mutex_unlock(&self._mutex)
        self._check(code, path, 0)

    def log_to(self, fd, path):
        while self._log.first != NULL:
            self._check(self._copy_first_block(fd), path, 0)
            self._drop_first_block()
        self._log.fd = fd
        self._log_path = path

    def log_skips_to(self, fd, path):
        cdef int64_t nbytes = 16 * self._skips.count
        self._check(sw_append(fd, <char*>self._skips.ranges, nbytes, 0), path, nbytes)
        self._skips.fd = fd
        self._skips_path = path

    def close(self):
        """Refuse frames from now on; an append under way in another thread ends first."""
        cdef Status status = self._acquire()
        if status == CLOSED:
            return
        if status != OK:
            self._raise(status, "close", 0, NULL)
        # Whoever has slots open is told when he comes back.
        self._commit(self._slot_serial, NULL, 0, NULL)
        self._closed = True
        self._ahead = NULL
        self._prepare = NULL
        self._frames_ahead = NULL
        # Nothing outside is written from here on, and its owners may go.
        self._file_cursor = self._file_dropped = NULL
        for position in range(self._num_positions):
            self._arrays[position].shape_digits = NULL
            self._arrays[position].new_digits = NULL
        sw_mutex_unlock(&self._mutex)
        with cython.critical_section(self):  # without a GIL others may be about to use them
            self._digits_owner = self._new_digits_owner = self._file_owner = None
            self._make_room = self._make_steps = None
            self._array_owners = []

    def disown(self):
        """In a forked child: all this is the parent's."""
        sw_mutex_init(&self._mutex)  # a thread that is not here may have held it
        sw_store_release(&self._exclusive_thread, SW_NO_THREAD)
        self._slot_frames = 0
        self._ahead = NULL
        self._prepare = NULL
        self._closed = self._disowned = True

    @property
    def c_address(self):
        """Address of the stream's `scratchwriter_stream`, for the life of the process."""
        if not self._is_immortal:
            self._is_immortal = True
            Py_INCREF(self)
        return <uintptr_t>&self._c_stream

    # ------------------------------------------------------------------------ inside

    cdef bint _is_plain_frame(self, object frame) noexcept:
        return (
            cnp.PyArray_CheckExact(frame)
            and <PyObject*>cnp.PyArray_DESCR(<cnp.ndarray>frame) == <PyObject*>self._dtype
            and cnp.PyArray_NDIM(<cnp.ndarray>frame) == 2
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 0) == self._height
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 1) == self._width
            and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>frame)
        )

    cdef cnp.ndarray _as_frame(self, object frame):
        """Check a frame of any kind; return it with whole rows and the right dtype."""
        array = as_array(frame, self._dtype, (self._height, self._width))
        expected = (self._height, self._width)
        if array.ndim == 0:
            raise ValueError(
                f"Frame ({type(frame).__name__}) has shape (), expected {expected} "
                f"({self._frame_dims}): it is neither an array nor a buffer. Append a 2-D "
                "array of that shape; of what is at an address, "
                "numpy.ctypeslib.as_array(pointer, shape) or ffi.buffer(pointer)."
            )
        if array.shape != expected:
            raise ValueError(
                f"Frame ({type(frame).__name__}) has shape {array.shape}, expected "
                f"{expected} ({self._frame_dims}). Append a 2-D array of that shape, or "
                "set the count of these dimensions to the camera's."
            )
        return self._as_rows(array, frame)

    cdef cnp.ndarray _as_frames(self, object frames):
        """Check an array of frames; return it with whole rows and the right dtype."""
        array = frames
        expected = (self._height, self._width)
        if array.ndim != 3 or array.shape[1:] != expected:
            raise ValueError(
                f"The batch has shape {array.shape}, expected (n, {self._height}, "
                f"{self._width}) (n, {self._frame_dims}). Append a 3-D array of n frames "
                "of that shape, or a list of frames."
            )
        return self._as_rows(array, frames)

    def _as_rows(self, array, given):
        if array.dtype.kind not in "biufc":
            raise ValueError(
                f"Frame has dtype {array.dtype}, expected {self._dtype}: it holds no "
                "pixels. Convert it to a bool, integer, float or complex dtype."
            )
        if array.dtype != self._dtype and not np.can_cast(
            array.dtype, self._dtype, self._casting
        ):
            if isinstance(given, (list, tuple)):
                # Plain numbers have no dtype to respect: what counts is their values.
                with np.errstate(all="ignore"):
                    cast = array.astype(self._dtype)
                if np.array_equal(cast, array, equal_nan=array.dtype.kind in "fc"):
                    return cast
            raise ValueError(
                f"Frame has dtype {array.dtype}, which does not cast to the stream's "
                f"{self._dtype} by the rule {self._casting!r}. Convert the frame, set "
                f"the settings' dtype to {array.dtype.name!r}, or allow the cast with "
                "ScratchFormat(casting='same_kind' or 'unsafe')."
            )
        itemsize = self._dtype.itemsize
        if array.dtype == self._dtype and array.strides[array.ndim - 1] == itemsize:
            return array  # rows with gaps between them need no copy
        return np.ascontiguousarray(array, self._dtype)

    cdef void _count_append(self, int64_t start_ns) noexcept nogil:
        cdef int64_t end_ns = sw_now_ns()
        cdef int64_t took_ns = end_ns - start_ns
        sw_add(&self._append_counts[bucket_of(took_ns)], 1)
        sw_raise(&self._longest_append_ns, took_ns)
        if sw_load_acquire(&self._first_append_ns) == 0:
            sw_store_release(&self._first_append_ns, start_ns)
        sw_store_release(&self._last_append_ns, end_ns)

    cdef bint _is_exclusive(self) noexcept nogil:
        """Tell whether this thread runs Python code under the mutex."""
        return sw_load_acquire(&self._exclusive_thread) == <int64_t>sw_this_thread()

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
        """Take the mutex when no slot is open, by `_acquire`; return a `Status`."""
        cdef Status status = self._acquire()
        if status != OK or self._slot_frames == 0:
            return status
        return self._wait_for_slots()

    cdef int _wait_for_slots(self) except -1:
        """Go on with `_begin` when there are open slots; with the mutex held."""
        cdef Status status
        cdef bint is_mine = self._slot_thread == sw_this_thread()
        sw_mutex_unlock(&self._mutex)
        if is_mine:
            return SLOT_OPEN
        sw_add(&self._waiting, 1)
        try:
            while True:
                with nogil:
                    sw_nap(NAP_NS)
                PyErr_CheckSignals()
                status = self._acquire()
                if status != OK or self._slot_frames == 0:
                    return status
                sw_mutex_unlock(&self._mutex)
        finally:
            sw_add(&self._waiting, -1)

    cdef Status _begin_native(self) noexcept nogil:
        """The same as `_begin` for C, whose thread may have the GIL or not."""
        cdef void* python = NULL
        cdef Status status
        cdef bint waits = False
        while True:
            if not sw_mutex_try(&self._mutex):
                if self._is_exclusive():
                    status = BUSY
                    break
                python = leave_python(python)
                sw_mutex_lock(&self._mutex)
            status = CLOSED if self._closed else OK
            if status == OK and self._slot_frames == 0:
                break
            if status == OK and self._slot_thread == sw_this_thread():
                status = SLOT_OPEN
            sw_mutex_unlock(&self._mutex)
            if status != OK:
                break
            if not waits:
                sw_add(&self._waiting, 1)
                waits = True
            python = leave_python(python)
            sw_nap(NAP_NS)
        if waits:
            sw_add(&self._waiting, -1)
        return_to_python(python)
        return status

    cdef void _let_others_go_first(self) noexcept nogil:
        """Before slots are opened: who opens them all the time must not keep others out.

        Others look whether slots are open only now and then; and in Python, when they have
        the GIL. So this is for a while, not until they have been.
        """
        cdef void* python = NULL
        cdef int naps = 0
        while naps < MOST_NAPS and sw_load_acquire(&self._waiting):
            python = leave_python(python)
            sw_nap(NAP_NS)
            naps += 1
        return_to_python(python)

    cdef void _lock(self) noexcept nogil:
        """Take the mutex, whatever is open or closed."""
        cdef void* python = NULL
        if not sw_mutex_try(&self._mutex):
            python = leave_python(python)
            sw_mutex_lock(&self._mutex)
            return_to_python(python)

    cdef int _answer(
        self, Status status, str what, object frames, Request* request
    ) except -1:
        """See to what a call lacks, so that it can be tried again, or raise."""
        with cython.critical_section(self):
            make_room, make_steps = self._make_room, self._make_steps
        if status == NEED_ROOM:
            if make_room is not None:  # else it has been closed: the next try says so
                make_room(request.position, request.stop_nbytes)
        elif status == NEED_STEPS:
            if make_steps is not None:
                make_steps(request.steps)
        else:
            self._raise(status, what, frames, request)
        return 0

    cdef object _array_owner(self, int64_t position):
        """Return what keeps the memory of an array, None after `close`."""
        with cython.critical_section(self):
            owners = self._array_owners
        return owners[position] if owners else None

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
            self._set_steps(array, self._next.index[0] + 1)
        self._advance(&self._next)
        self._move_cursor(cursor + 1)
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
            array = &self._arrays[self._position(&self._next)]
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
                self._set_steps(array, self._next.index[0] + 1)
            self._advance(&self._next)
            if self._ring_nbytes:
                # The next one may be where a frame is that is shown until this is counted.
                self._move_cursor(cursor + i + 1)
        if run_nbytes:
            sw_copy(run_to, run_data, run_nbytes)
        self._move_cursor(cursor + count)
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
            # A smaller number than before: the camera has begun to count anew.
            if self._last_frame_id >= 0 and frame.frame_id > self._last_frame_id:
                sw_store_release(
                    &self._dropped,
                    self._dropped + frame.frame_id - self._last_frame_id - 1,
                )
                if self._file_dropped != NULL:
                    sw_store_release(self._file_dropped, self._dropped)
            self._last_frame_id = frame.frame_id
        record.known = known

    cdef Status _reserve(
        self, int64_t count, char** address, Request* request
    ) noexcept nogil:
        """Open the next slots for one who fills them in place."""
        cdef Status status = self._look_ahead(count, count > 1, request)
        if status != OK:
            return status
        address[0] = (
            self._arrays[self._position(&self._next)].base + self._next.offset_nbytes
        )
        if (
            self._frames_ahead == NULL
            or sw_load_acquire(self._frames_ahead) < self._cursor + count
        ):
            self._populate(address[0], count * self._frame_nbytes)
        self._slot_frames = count
        self._slot_serial += 1
        self._slot_thread = sw_this_thread()
        self._slot_is_native = False
        return OK

    cdef Status _commit(
        self, int64_t serial, Frame* frames, int64_t count, Request* request
    ) noexcept nogil:
        """Store the first frames that are in the open slots; give the others back."""
        cdef int64_t rest = self._slot_frames - count
        cdef char* start
        cdef Status status = OK
        if self._slot_frames == 0 or serial != self._slot_serial:
            return CLOSED
        start = self._arrays[self._position(&self._next)].base + self._next.offset_nbytes
        if count:
            status = self._put_all(frames, count, request)
            if status == NEED_ROOM:
                return status  # for records; the slots stay open for the next try
            if status != OK:
                rest += count
        # What is given back may be skipped, or never come: zeros, to a reader.
        if rest:
            memset(
                start + (self._slot_frames - rest) * self._frame_nbytes, 0,
                rest * self._frame_nbytes,
            )
        self._slot_frames = 0
        return status

    cdef void _populate(self, char* start, int64_t nbytes) noexcept nogil:
        """Take the page faults now, that a camera's own thread would take later."""
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
        request.errno_code = self._note_skip(cursor, cursor + frames)
        if request.errno_code:
            request.needed_nbytes = 16
            return SKIP_FAILED
        if self._num_frames < 0:
            for position in range(self._num_positions):
                steps = steps_after(
                    cursor + frames, position, self._step_frames, self._visit_frames
                )
                if steps > self._arrays[position].steps:
                    self._set_steps(&self._arrays[position], steps)
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
        cdef MetadataLog* log = &self._log
        cdef Odometer slot = self._next
        cdef size_t needed_nbytes = 0
        cdef char* memory
        cdef char* at
        cdef int64_t i
        cdef int code
        for i in range(count):
            needed_nbytes += PREFIX_NBYTES + frames[i].body_nbytes
        if needed_nbytes > log.lines_capacity_nbytes:
            memory = <char*>realloc(log.lines, 2 * needed_nbytes)
            if memory == NULL:
                return ENOMEM
            log.lines = memory
            log.lines_capacity_nbytes = 2 * needed_nbytes
        at = log.lines
        for i in range(count):
            if frames[i].body_nbytes:
                at = self._put_line(at, &slot, &frames[i])
            if i + 1 < count:
                self._advance(&slot)

        needed_nbytes = at - log.lines
        if log.fd >= 0:
            code = sw_append(log.fd, log.lines, needed_nbytes, log.nbytes)
            if code:
                return code
        elif log.keep:
            if not self._keep_lines(log.lines, needed_nbytes):
                return ENOMEM
        else:
            return 0
        log.nbytes += needed_nbytes
        return 0

    cdef char* _put_line(self, char* at, Odometer* slot, Frame* frame) noexcept nogil:
        """Write '{"_pos": p, "_idx": [...], ' and the rest of the body, a JSON object."""
        cdef int i
        at = put_number(put_text(at, b'{"_pos": ', 9), self._position(slot))
        at = put_text(at, b', "_idx": [', 11)
        for i in range(self._num_file_axes):
            if i:
                at = put_text(at, b', ', 2)
            at = put_number(at, slot.index[self._file_axes[i]])
        at = put_text(at, b']', 1)
        if frame.body_nbytes > 2:
            at = put_text(at, b', ', 2)
        at = put_text(at, frame.body + 1, frame.body_nbytes - 1)
        return put_text(at, b'\n', 1)

    cdef bint _keep_lines(self, const char* lines, size_t nbytes) noexcept nogil:
        """Keep lines in memory; blocks grow in number, so that none is ever copied."""
        cdef MetadataLog* log = &self._log
        cdef LogBlock* block = log.last
        cdef size_t capacity_nbytes
        if block == NULL or block.capacity_nbytes - block.nbytes < nbytes:
            capacity_nbytes = max(nbytes, <size_t>LOG_BLOCK_NBYTES)
            block = <LogBlock*>malloc(sizeof(LogBlock) + capacity_nbytes)
            if block == NULL:
                return False
            block.next = NULL
            block.nbytes = 0
            block.capacity_nbytes = capacity_nbytes
            if log.last == NULL:
                log.first = block
            else:
                log.last.next = block
            log.last = block
        memcpy(<char*>(block + 1) + block.nbytes, lines, nbytes)
        block.nbytes += nbytes
        return True

    cdef int _copy_first_block(self, int fd) noexcept nogil:
        cdef MetadataLog* log = &self._log
        cdef int64_t nbytes = log.first.nbytes
        cdef int code = sw_append(
            fd, <const char*>(log.first + 1), nbytes, log.copied_nbytes
        )
        if code == 0:
            log.copied_nbytes += nbytes
        return code

    cdef void _drop_first_block(self) noexcept nogil:
        cdef LogBlock* block = self._log.first
        self._log.first = block.next
        if block.next == NULL:
            self._log.last = NULL
        free(block)

    cdef int _note_skip(self, int64_t start, int64_t stop) noexcept nogil:
        """Record a range of frames that are skipped, or more of the range before."""
        cdef SkipLog* log = &self._skips
        cdef int64_t pair[2]
        cdef int64_t at = log.count
        cdef int64_t capacity = 2 * log.capacity + 64
        cdef int64_t* memory
        cdef int code
        pair[0], pair[1] = start, stop
        if at and log.ranges[2 * at - 1] == start:
            at -= 1
            pair[0] = log.ranges[2 * at]
        elif at == log.capacity:
            memory = <int64_t*>realloc(log.ranges, capacity * sizeof(pair))
            if memory == NULL:
                return ENOMEM
            log.ranges, log.capacity = memory, capacity
        if log.fd >= 0:
            # Half a pair, if it comes to that, is none to a reader.
            code = sw_pwrite(log.fd, <const char*>pair, sizeof(pair), at * sizeof(pair))
            if code:
                return code
        log.ranges[2 * at], log.ranges[2 * at + 1] = pair[0], pair[1]
        log.count = at + 1
        return 0

    cdef void _set_steps(self, Array* array, int64_t steps) noexcept nogil:
        """Note how far an array reaches, in the manifest too (before the commit)."""
        cdef char text[DIGITS]
        cdef int i = DIGITS
        array.steps = steps
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
        what = {"reserve": "open a slot", "commit": "store the slot"}.get(what, what)
        if status == CLOSED and self._disowned:
            raise ValueError(
                f"Cannot {what}: the stream belongs to the process that this one was "
                "forked from. Make one here with create_stream()."
            )
        if status == CLOSED:
            raise ValueError(
                f"Cannot {what}: the stream is closed. Make a new one with "
                "create_stream()."
            )
        if status == BUSY:
            raise RuntimeError(
                f"Cannot {what} while the stream is growing, from the thread that grows "
                "it (a signal handler, say): call it again later."
            )
        if status == SLOT_OPEN:
            raise RuntimeError(
                f"Cannot {what} while this thread has a slot open: leave its `with` block "
                "first."
            )
        if status == SLOTS_APART:
            why = (
                "they would take the place of frames that keep_last still shows, or do"
                if self._ring_nbytes else "they do"
            )
            raise ValueError(
                f"Cannot open {frames} slots together: {why} not lie one behind the other "
                "in one array. Open fewer (as many as the last dimension has left), one by "
                "one with slot(), or use storage_order='acquisition' with the positions "
                "first."
            )
        if status == FULL:
            raise IndexError(
                f"Cannot {what} ({frames} frame{'s' if frames > 1 else ''}): it would "
                f"exceed the {self._num_frames} frames of settings.dimensions, of which "
                f"{self._num_frames - self.frames_written} are left. Enlarge them, or "
                "make the first dimension unbounded (count=None)."
            )
        if request.errno_code == ENOMEM:
            raise MemoryError(f"no memory to note what came with {what}")
        path = self._log_path if status == LOG_FAILED else self._skips_path
        self._check(request.errno_code, path, request.needed_nbytes)
        raise AssertionError(f"unknown status {status}")

    cdef int _check(self, int code, object path, int64_t needed_nbytes) except -1:
        if code != 0:
            raise self._disk_error(code, path, needed_nbytes)
        return 0
