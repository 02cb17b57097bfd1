# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The hot path: take the next slot, copy the frame, commit.

Memory: a `FrameWriter` owns its table of arrays and its metadata buffers; the bytes it
writes into (arrays, progress record, digits in the manifest) belong to the owner objects
it was given with their addresses, and it keeps those alive.

Locks: `_mutex` guards everything that moves with the frames. It is held while a frame is
copied, so that appends of several threads come whole, one after the other. It is not the
GIL: a thread that finds it taken waits without the GIL. No Python code runs under it but
what `exclusively` is given, and that may not append.

GIL: everything from the taken mutex on is `noexcept nogil` and returns a `Status`;
`_raise` alone turns those into exceptions. Small frames are copied with the GIL held,
because to give it up and to take it back costs more than the copy.

Commit: `_cursor` is stored last, by a release-store. Who loads it by an acquire-load
finds the frames before it whole.
"""

cimport cython
from cpython.bool cimport PyBool_Check
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next
from cpython.float cimport PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

cimport numpy as cnp

from scratchwriter._odometer cimport MAX_AXES, advance, jump
from scratchwriter._platform cimport (
    SW_NO_THREAD,
    sw_add,
    sw_load_acquire,
    sw_mutex_destroy,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_try,
    sw_mutex_unlock,
    sw_now_ns,
    sw_append,
    sw_pwrite,
    sw_store_16,
    sw_store_pointer,
    sw_store_release,
    sw_this_thread,
)

import numpy as np

cnp.import_array()

cdef enum:
    # From here on a frame is copied without the GIL. To give it up and take it back costs
    # 0.3 us (it waits for the copy to leave the store buffer), or, if another thread takes
    # it meanwhile, up to that one's switch interval; others wait 4 us for it at the most.
    RELEASE_GIL_NBYTES = 65536
    DIGITS = 16                # as in manifest.py: a number that is renewed in place
    TIMED_NBYTES = 65536       # every append of larger frames is timed ...
    SAMPLED = 16               # ... and one in so many of smaller ones
    LOG_BLOCK_NBYTES = 65000   # small enough for malloc to have it at hand
    PREFIX_NBYTES = 256        # more than '{"_pos": p, "_idx": [i, ...]' can take


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


# --------------------------------------------------------------------- metadata

cdef inline bint fits_in_64_bits(object number) except -1:
    cdef int overflow = 0
    PyLong_AsLongLongAndOverflow(number, &overflow)
    return not overflow


def is_plain(dict metadata not None):
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t at = 0
    while PyDict_Next(metadata, &at, &key, &value):
        if not PyUnicode_CheckExact(<object>key):
            return False
        if not (
            PyUnicode_CheckExact(<object>value)
            or PyLong_CheckExact(<object>value) and fits_in_64_bits(<object>value)
            or PyFloat_CheckExact(<object>value)
            or PyBool_Check(<object>value)
            or <object>value is None
        ):
            return False
    return True


# --------------------------------------------------------------------------- class

@cython.final
cdef class FrameWriter:
    """Writes frames into the slots of a plan. See `_core.pyi` for its methods."""

    def __cinit__(
        self, plan, casting, make_room, make_steps, encode_metadata, disk_error, *,
        keep_metadata,
    ):
        cdef int64_t position
        cdef int i
        sw_mutex_init(&self._mutex)
        self._exclusive_thread = SW_NO_THREAD
        self._log.fd = -1
        self._log.keep = keep_metadata
        self._skips.fd = -1
        self._own_cursor = 0
        self._cursor = &self._own_cursor

        self._dtype = plan.dtype
        self._casting = casting
        self._frame_dims = ", ".join(plan.file_dims[len(plan.file_axes):])
        self._height, self._width = plan.frame_shape
        self._frame_nbytes = plan.frame_nbytes
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

        self._arrays = <Array*>calloc(self._num_positions, sizeof(Array))
        if self._arrays == NULL:
            raise MemoryError(f"table of {self._num_positions} positions")
        for position in range(self._num_positions):
            self._arrays[position].steps = 1
        self._array_owners = [None] * self._num_positions
        self._cursor_owners = []
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
        free(self._log.line)
        sw_mutex_destroy(&self._mutex)

    # ------------------------------------------------------------- for the camera loop

    cdef int put(self, object frame, object frame_metadata) except -1:
        cdef cnp.ndarray array
        cdef bytes body
        cdef const char* body_data = NULL
        cdef size_t body_nbytes = 0
        cdef int64_t start_ns = 0
        cdef Status status
        cdef Request request

        if (
            self._frame_nbytes >= TIMED_NBYTES
            or sw_load_acquire(self._cursor) % SAMPLED == 0
        ):
            start_ns = sw_now_ns()
        if (
            cnp.PyArray_CheckExact(frame)
            and <PyObject*>cnp.PyArray_DESCR(<cnp.ndarray>frame) == <PyObject*>self._dtype
            and cnp.PyArray_NDIM(<cnp.ndarray>frame) == 2
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 0) == self._height
            and cnp.PyArray_DIM(<cnp.ndarray>frame, 1) == self._width
            and cnp.PyArray_IS_C_CONTIGUOUS(<cnp.ndarray>frame)
        ):
            array = <cnp.ndarray>frame
        else:
            array = self._as_frame(frame)
        if frame_metadata is not None:
            body = self._encode_metadata(frame_metadata)
            body_data = PyBytes_AS_STRING(body)
            body_nbytes = PyBytes_GET_SIZE(body)

        while True:
            status = self._acquire()
            if status == OK:
                if self._frame_nbytes >= RELEASE_GIL_NBYTES or body_nbytes:
                    with nogil:
                        status = self._put(
                            cnp.PyArray_BYTES(array), body_data, body_nbytes, &request
                        )
                        sw_mutex_unlock(&self._mutex)
                else:
                    status = self._put(
                        cnp.PyArray_BYTES(array), body_data, body_nbytes, &request
                    )
                    sw_mutex_unlock(&self._mutex)
            if status == OK:
                if start_ns:
                    self._count_append(start_ns)
                return 0
            make_room = self._make_room
            if status == NEED_ROOM and make_room is not None:
                make_room(request.position, request.stop_nbytes)
            elif status != NEED_ROOM:
                self._raise(status, "append", 1, &request)

    def skip(self, *, frames=1):
        cdef Status status
        cdef Request request
        cdef int64_t count
        wanted = PyNumber_Index(frames)
        if wanted <= 0:
            raise ValueError(f"skip(frames={wanted}): the number must be positive.")
        # No array reaches that far; the same answer as for any skip that is too long.
        count = min(wanted, 1 << 62)
        while True:
            status = self._acquire()
            if status == OK:
                status = self._skip(count, &request)
                sw_mutex_unlock(&self._mutex)
            if status == OK:
                return
            make_steps = self._make_steps
            if status == NEED_STEPS and make_steps is not None:
                make_steps(request.steps)
            elif status != NEED_STEPS:
                self._raise(status, "skip", wanted, &request)

    @property
    def frames_written(self):
        return sw_load_acquire(self._cursor)

    @property
    def closed(self):
        return self._closed

    def skipped(self):
        cdef cnp.ndarray ranges
        cdef int64_t count
        cdef Status status
        cdef bint complete
        while True:
            count = self._skips.count
            ranges = np.empty((count, 2), np.int64)  # under the mutex nothing is made
            status = self._acquire()
            complete = self._skips.count == count
            if complete and count:
                memcpy(cnp.PyArray_DATA(ranges), self._skips.ranges, 16 * count)
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
            "num_appended": self.frames_written - self._skipped,
            "elapsed_s": (self._last_append_ns - self._first_append_ns) / 1e9,
            "append_counts": counts,
            "longest_append_ns": self._longest_append_ns,
        }

    # --------------------------------------------------------------- for the storage

    def exclusively(self, action):
        """Run `action()` while nobody appends; it may call all that is below."""
        if self._exclusive_thread == sw_this_thread() or self._acquire() == CLOSED:
            return action()  # no one else can append: nested, or for good
        self._exclusive_thread = sw_this_thread()
        try:
            return action()
        finally:
            self._exclusive_thread = SW_NO_THREAD
            sw_mutex_unlock(&self._mutex)

    def attach(self, position, owner, writable_nbytes):
        cdef Array* array = &self._arrays[<int64_t>position]
        array.base = <char*><uintptr_t>owner.address
        sw_store_release(&array.writable_nbytes, <int64_t>writable_nbytes)
        self._array_owners[position] = owner

    def set_readable_steps(self, steps):
        self._readable_steps = steps

    def publish_cursor(self, address, owner):
        cdef int64_t* cursor = <int64_t*><uintptr_t>address
        sw_store_release(cursor, self._cursor[0])
        sw_store_pointer(<void**>&self._cursor, cursor)
        # For good: a thread without the GIL may be about to look at it.
        self._cursor_owners.append(owner)

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
        self._closed = True
        # Nothing outside is written from here on, and its owners may go.
        sw_store_release(&self._own_cursor, self._cursor[0])
        sw_store_pointer(<void**>&self._cursor, &self._own_cursor)
        for position in range(self._num_positions):
            self._arrays[position].shape_digits = NULL
            self._arrays[position].new_digits = NULL
        sw_mutex_unlock(&self._mutex)
        self._digits_owner = self._new_digits_owner = None
        self._make_room = self._make_steps = None

    def disown(self):
        """In a forked child: all this is the parent's."""
        sw_mutex_init(&self._mutex)  # a thread that is not here may have held it
        self._exclusive_thread = SW_NO_THREAD
        self._closed = self._disowned = True

    # ------------------------------------------------------------------------ inside

    cdef object _as_frame(self, object frame):
        """Check a frame of any kind; return it contiguous and of the right dtype."""
        array = np.asarray(frame)
        expected = (self._height, self._width)
        if array.shape != expected:
            raise ValueError(
                f"Frame ({type(frame).__name__}) has shape {array.shape}, expected "
                f"{expected} ({self._frame_dims}). Append a 2-D array of that shape, or "
                "set the count of these dimensions to the camera's."
            )
        if array.dtype.kind not in "biufc":
            raise ValueError(
                f"Frame has dtype {array.dtype}, expected {self._dtype}: it holds no "
                "pixels. Convert it to a bool, integer, float or complex dtype."
            )
        if not np.can_cast(array.dtype, self._dtype, self._casting):
            if isinstance(frame, (list, tuple)) and array.dtype.kind in "biufc":
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
        return np.ascontiguousarray(array, self._dtype)

    cdef void _count_append(self, int64_t start_ns) noexcept nogil:
        cdef int64_t end_ns = sw_now_ns()
        cdef int64_t took_ns = end_ns - start_ns
        sw_add(&self._append_counts[bucket_of(took_ns)], 1)
        if took_ns > self._longest_append_ns:
            self._longest_append_ns = took_ns
        if self._first_append_ns == 0:
            self._first_append_ns = start_ns
        self._last_append_ns = end_ns

    cdef Status _acquire(self) noexcept:
        """Take the mutex; without the GIL if that means to wait."""
        if not sw_mutex_try(&self._mutex):
            if self._exclusive_thread == sw_this_thread():
                return BUSY
            with nogil:
                sw_mutex_lock(&self._mutex)
        if self._closed:
            sw_mutex_unlock(&self._mutex)
            return CLOSED
        return OK

    cdef Status _put(
        self, const char* frame, const char* body, size_t body_nbytes, Request* request
    ) noexcept nogil:
        """Copy a frame into the next slot and commit it, with its metadata line."""
        cdef int64_t cursor = self._cursor[0]
        cdef int64_t position = 0
        cdef int64_t stop_nbytes
        cdef Array* array
        if cursor == self._num_frames:
            return FULL
        if self._position_axis >= 0:
            position = self._next.index[self._position_axis]
        array = &self._arrays[position]
        stop_nbytes = self._next.offset_nbytes + self._frame_nbytes
        if stop_nbytes > sw_load_acquire(&array.writable_nbytes):
            request.position = position
            request.stop_nbytes = stop_nbytes
            return NEED_ROOM

        # What may fail comes first: a frame that is refused leaves nothing in its slot.
        if body_nbytes:
            request.errno_code = self._write_line(position, body, body_nbytes)
            if request.errno_code:
                request.needed_nbytes = PREFIX_NBYTES + body_nbytes
                return LOG_FAILED
        sw_copy(array.base + self._next.offset_nbytes, frame, self._frame_nbytes)
        if self._num_frames < 0 and self._next.index[0] >= array.steps:
            self._set_steps(array, self._next.index[0] + 1)
        advance(&self._next, self._counts, self._strides_nbytes, self._num_axes)
        sw_store_release(self._cursor, cursor + 1)
        return OK

    cdef Status _skip(self, int64_t frames, Request* request) noexcept nogil:
        """Commit frames that were never written."""
        cdef int64_t cursor = self._cursor[0]
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
        self._skipped += frames
        jump(
            &self._next, cursor + frames, self._counts, self._strides_nbytes,
            self._num_axes,
        )
        sw_store_release(self._cursor, cursor + frames)
        return OK

    cdef int _write_line(
        self, int64_t position, const char* body, size_t body_nbytes
    ) noexcept nogil:
        """Log '{"_pos": p, "_idx": [...], ' and the rest of `body`, a JSON object."""
        cdef MetadataLog* log = &self._log
        cdef size_t needed_nbytes = PREFIX_NBYTES + body_nbytes
        cdef char* memory
        cdef char* at
        cdef int i
        if needed_nbytes > log.line_capacity_nbytes:
            memory = <char*>realloc(log.line, 2 * needed_nbytes)
            if memory == NULL:
                return ENOMEM
            log.line = memory
            log.line_capacity_nbytes = 2 * needed_nbytes
        at = put_number(put_text(log.line, b'{"_pos": ', 9), position)
        at = put_text(at, b', "_idx": [', 11)
        for i in range(self._num_file_axes):
            if i:
                at = put_text(at, b', ', 2)
            at = put_number(at, self._next.index[self._file_axes[i]])
        at = put_text(at, b']', 1)
        if body_nbytes > 2:
            at = put_text(at, b', ', 2)
        at = put_text(at, body + 1, body_nbytes - 1)
        at = put_text(at, b'\n', 1)

        needed_nbytes = at - log.line
        if log.fd >= 0:
            i = sw_append(log.fd, log.line, needed_nbytes, log.nbytes)
            if i:
                return i
        elif log.keep:
            if not self._keep_line(log.line, needed_nbytes):
                return ENOMEM
        else:
            return 0
        log.nbytes += needed_nbytes
        return 0

    cdef bint _keep_line(self, const char* line, size_t nbytes) noexcept nogil:
        """Keep a line in memory; blocks grow in number, so that none is ever copied."""
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
        memcpy(<char*>(block + 1) + block.nbytes, line, nbytes)
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
        if status == FULL:
            raise IndexError(
                f"Cannot {what} {frames} frame{'s' if frames > 1 else ''}: it would "
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


@cython.final
cdef class Appender:
    """The way in: who holds it, or its `append`, keeps the acquisition going."""

    cdef FrameWriter _writer
    cdef object __weakref__

    def __cinit__(self, FrameWriter writer not None):
        self._writer = writer

    def append(self, frame, *, frame_metadata=None):
        "append($self, frame, *, frame_metadata=None)\n--\n\nStore the next frame."
        self._writer.put(frame, frame_metadata)
