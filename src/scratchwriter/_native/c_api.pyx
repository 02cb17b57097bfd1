# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The functions of include/scratchwriter.h, for threads that know nothing of Python.

GIL: they are called without it. What they cannot do themselves they ask of the provider as
the Python methods do, with the GIL (`ask`); but slots in files are made ready by the thread
ahead's own function (`prepare_native`), which needs none. A caller that has the GIL
releases it where it has to wait.

Memory: the `state` of a stream is its `FrameWriter`. A capsule keeps it alive, and so does
every address that was given out. Memory that `reserve` gave stays until `commit`, also when
the stream is closed and dropped meanwhile.

Interrupts: an exception of a signal handler (Ctrl-C) belongs to Python's main thread, and
not to the C function that it arrived in. It is raised there as soon as Python runs again.
So is anything else that does not say why there is no room.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_SetInterrupt, PyErr_SetObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, strlen

from scratchwriter cimport (
    SCRATCHWRITER_ABI_VERSION,
    SCRATCHWRITER_APART,
    SCRATCHWRITER_BUSY,
    SCRATCHWRITER_CLOSED,
    SCRATCHWRITER_FAILED,
    SCRATCHWRITER_FULL,
    SCRATCHWRITER_INVALID,
    SCRATCHWRITER_MOST_SLOTS,
    SCRATCHWRITER_OK,
    scratchwriter_stream,
)
from scratchwriter._core cimport (
    BUSY,
    CLOSED,
    FULL,
    NEED_ROOM,
    OK,
    SLOT_OPEN,
    SLOTS_APART,
    UNKNOWN,
    Frame,
    FrameWriter,
    Request,
    Status,
    leave_python,
    return_to_python,
)
from scratchwriter._region.platform cimport sw_load_acquire, sw_mutex_unlock

cdef extern from "Python.h":
    int Py_AddPendingCall(int (*call)(void*) noexcept, void* argument)


cdef enum:
    MOST_INTERRUPTS = 100  # of one call, before it is given up


# --------------------------------------------------------------- what a call may lack

cdef int ask(FrameWriter writer, Status status, Request* request) noexcept with gil:
    """Have Python see to what a call lacks: OK if it may be tried again."""
    try:
        return ask_until_answered(writer, status, request)
    except BaseException:  # not even the text of an error could be made
        note_text(writer, b"an error whose text cannot be made")
    return SCRATCHWRITER_FAILED


cdef int ask_until_answered(
    FrameWriter writer, Status status, Request* request
) except -1:
    cdef int answer = SCRATCHWRITER_FAILED
    cdef list others = []  # exceptions that are no answer
    while len(others) < MOST_INTERRUPTS:
        try:
            writer._answer(status, "append", 1, request)
            answer = SCRATCHWRITER_OK
        except BaseException as error:
            if writer._closed:  # by a handler, whose error this may be
                answer = SCRATCHWRITER_CLOSED
                if not isinstance(error, ValueError):
                    others.append(error)
            elif is_answer(error):
                note_error(writer, error)
            else:
                others.append(error)
                if not isinstance(error, Exception):
                    continue
                note_error(writer, error)
        break
    for error in others:
        raise_later(error)
    return answer


cdef bint is_answer(object error):
    """Return whether an exception says why there is no room; else it came in between."""
    if isinstance(error, OSError):
        return error.errno is not None  # TimeoutError, as handlers raise it, has none
    return isinstance(error, (MemoryError, ValueError, Warning))


cdef int note_error(FrameWriter writer, object error) except -1:
    """Keep the text of an error for `error_text`."""
    cdef bytes text = f"{type(error).__name__}: {error}".encode(errors="backslashreplace")
    text = text[: sizeof(writer._error_text) - 1]
    note_text(writer, PyBytes_AS_STRING(text))
    return 0


cdef void note_text(FrameWriter writer, const char* text) noexcept nogil:
    """Keep a text, which is short enough, for `error_text`."""
    cdef bint taken = writer._lock()
    memcpy(writer._error_text, text, strlen(text) + 1)
    writer._unlock(taken)


cdef int no_memory(FrameWriter writer) noexcept nogil:
    """Keep the text for memory that C's own tables lack."""
    note_text(writer, b"MemoryError: no memory for a table of the frames")
    return SCRATCHWRITER_FAILED


cdef int raise_pending(void* interrupt) noexcept with gil:
    PyErr_SetObject(type(<object>interrupt), <object>interrupt)
    Py_DECREF(<object>interrupt)
    return -1


cdef int raise_later(object interrupt) except -1:
    """Raise an exception in Python's main thread, when it runs bytecodes again."""
    Py_INCREF(interrupt)
    if Py_AddPendingCall(raise_pending, <void*>interrupt) != 0:  # its queue is full
        Py_DECREF(interrupt)
        PyErr_SetInterrupt()  # at least that
    return 0


cdef int answer_native(
    FrameWriter writer, Status status, Request* request
) noexcept nogil:
    """See to what a call lacks: OK for another try, or a `scratchwriter_status`."""
    if status == CLOSED:
        return SCRATCHWRITER_CLOSED
    if status == BUSY or status == SLOT_OPEN:
        return SCRATCHWRITER_BUSY
    if status == FULL:
        return SCRATCHWRITER_FULL
    if status == SLOTS_APART:
        return SCRATCHWRITER_APART
    return ask(writer, status, request)


cdef bint prepare_native(FrameWriter writer, Request* request) noexcept nogil:
    """Have a slot in a file made ready without Python, where that is possible."""
    cdef void* python
    cdef int code
    if writer._prepare == NULL:
        return False
    python = leave_python(NULL)  # it may take long
    code = writer._prepare(writer._ahead, request.position, request.stop_nbytes)
    return_to_python(python)
    return code == 0


# -------------------------------------------------------------------- entry points

cdef int c_append(FrameWriter writer, const void* data) noexcept nogil:
    return c_append_rows(writer, data, writer._row_nbytes, UNKNOWN, UNKNOWN)


cdef int c_append_rows(
    FrameWriter writer, const void* data, int64_t pitch_nbytes, int64_t timestamp_ns,
    int64_t frame_id,
) noexcept nogil:
    cdef int64_t start_ns
    cdef Status status
    cdef Request request
    cdef Frame frame
    cdef int answer
    if (
        data == NULL or timestamp_ns < UNKNOWN or frame_id < UNKNOWN
        or -writer._row_nbytes < pitch_nbytes < writer._row_nbytes
    ):
        return SCRATCHWRITER_INVALID
    start_ns = writer._start_ns(writer._frame_nbytes)
    frame.data = <const char*>data
    frame.pitch_nbytes = pitch_nbytes
    frame.body = NULL
    frame.body_nbytes = 0
    frame.timestamp_ns = timestamp_ns
    frame.frame_id = frame_id
    while True:
        status = writer._begin_native()
        if status == OK:
            status = writer._put(&frame, &request)
            while status == NEED_ROOM and prepare_native(writer, &request):
                status = writer._put(&frame, &request)
            sw_mutex_unlock(&writer._mutex)
            if status == OK:
                if start_ns:
                    writer._timer.count(start_ns)
                return SCRATCHWRITER_OK
        answer = answer_native(writer, status, &request)
        if answer != SCRATCHWRITER_OK:
            return answer


cdef int c_reserve(FrameWriter writer, int64_t count, void** frames) noexcept nogil:
    cdef Status status
    cdef Request request
    cdef int answer
    cdef char* copy = NULL
    if frames == NULL or not 0 < count <= SCRATCHWRITER_MOST_SLOTS:
        return SCRATCHWRITER_INVALID
    if writer._lends_copies:
        copy = <char*>calloc(count, writer._frame_nbytes)
        if copy == NULL:
            return no_memory(writer)
    writer._let_others_go_first()
    while True:
        status = writer._begin_native()
        if status == OK:
            status = writer._lend(count, True, copy, <char**>frames, &request)
            while status == NEED_ROOM and prepare_native(writer, &request):
                status = writer._lend(count, True, copy, <char**>frames, &request)
            sw_mutex_unlock(&writer._mutex)
            if status == OK:
                return SCRATCHWRITER_OK
        answer = answer_native(writer, status, &request)
        if answer != SCRATCHWRITER_OK:
            free(copy)
            return answer


cdef int may_commit(FrameWriter writer, int64_t count) noexcept nogil:
    """Return whether so many slots are lent to C; with the mutex held."""
    if writer._lease.frames == 0 or not writer._lease.is_native:
        return SCRATCHWRITER_CLOSED
    return SCRATCHWRITER_OK if count <= writer._lease.frames else SCRATCHWRITER_INVALID


cdef int c_commit(
    FrameWriter writer, int64_t count, const int64_t* timestamps_ns,
    const int64_t* frame_ids,
) noexcept nogil:
    cdef Frame few[16]
    cdef Frame* frames = few
    cdef Status status = OK
    cdef Request request
    cdef int64_t i, serial
    cdef int64_t start_ns = 0
    cdef int answer
    cdef bint taken, is_revoked
    # Before anything is made of the count, or read by it.
    taken = writer._lock()
    serial = writer._lease.serial
    is_revoked = writer._lease.is_revoked and writer._lease.is_native
    answer = may_commit(writer, count) if count >= 0 else SCRATCHWRITER_INVALID
    writer._unlock(taken)
    if answer != SCRATCHWRITER_OK:
        if answer == SCRATCHWRITER_CLOSED and is_revoked:
            writer.give_back(serial)  # the caller is done with its memory
        return answer
    for i in range(count):
        if (
            timestamps_ns != NULL and timestamps_ns[i] < UNKNOWN
            or frame_ids != NULL and frame_ids[i] < UNKNOWN
        ):
            return SCRATCHWRITER_INVALID
    if count > 16:
        frames = <Frame*>malloc(count * sizeof(Frame))
        if frames == NULL:
            writer.give_back(serial)
            return no_memory(writer)
    if count:
        start_ns = writer._start_ns(count * writer._frame_nbytes)
    for i in range(count):
        frames[i].data = NULL
        frames[i].body = NULL
        frames[i].body_nbytes = 0
        frames[i].timestamp_ns = UNKNOWN if timestamps_ns == NULL else timestamps_ns[i]
        frames[i].frame_id = UNKNOWN if frame_ids == NULL else frame_ids[i]
    while answer == SCRATCHWRITER_OK:
        taken = writer._lock()
        answer = may_commit(writer, count)
        if answer == SCRATCHWRITER_OK:
            status = writer._commit(serial, frames, count, &request)
            while status == NEED_ROOM and prepare_native(writer, &request):
                status = writer._commit(serial, frames, count, &request)
        writer._unlock(taken)
        if answer == SCRATCHWRITER_OK:
            if status == OK:
                break
            answer = answer_native(writer, status, &request)
        if answer != SCRATCHWRITER_OK:
            writer.give_back(serial)  # the caller has no way to
    if start_ns and answer == SCRATCHWRITER_OK:
        writer._timer.count(start_ns)
    if frames != few:
        free(frames)
    return answer


cdef int c_skip(FrameWriter writer, int64_t frames) noexcept nogil:
    cdef Status status
    cdef Request request
    cdef int answer
    if frames <= 0:
        return SCRATCHWRITER_INVALID
    frames = min(frames, <int64_t>1 << 62)  # as from Python: too many for any array
    while True:
        status = writer._begin_native()
        if status == OK:
            status = writer._skip(frames, &request)
            sw_mutex_unlock(&writer._mutex)
            if status == OK:
                return SCRATCHWRITER_OK
        answer = answer_native(writer, status, &request)
        if answer != SCRATCHWRITER_OK:
            return answer


cdef int64_t c_frames_written(FrameWriter writer) noexcept nogil:
    return sw_load_acquire(&writer._cursor)


cdef const char* c_status_text(int status) noexcept nogil:
    if status == SCRATCHWRITER_OK:
        return b"ok"
    if status == SCRATCHWRITER_CLOSED:
        return b"the stream is closed, or no slot is reserved any more"
    if status == SCRATCHWRITER_BUSY:
        return b"this thread has a slot open, or is growing the stream"
    if status == SCRATCHWRITER_FULL:
        return b"the dimensions have no more frames"
    if status == SCRATCHWRITER_FAILED:
        return b"no room in memory or on the disk: see error_text"
    if status == SCRATCHWRITER_INVALID:
        return b"an argument is out of range"
    if status == SCRATCHWRITER_APART:
        return b"the slots are not next to each other"
    return b"unknown status"


cdef int64_t c_error_text(
    FrameWriter writer, char* text, int64_t capacity_nbytes
) noexcept nogil:
    cdef int64_t nbytes
    cdef bint taken = writer._lock()
    nbytes = strlen(writer._error_text)
    if text != NULL and capacity_nbytes > 0:
        memcpy(text, writer._error_text, min(nbytes, capacity_nbytes - 1))
        text[min(nbytes, capacity_nbytes - 1)] = 0
    writer._unlock(taken)
    return nbytes


# ------------------------------------------------------------------------- for Python

cdef void fill_c_stream(FrameWriter writer) noexcept:
    cdef scratchwriter_stream* stream = &writer._c_stream
    cdef bytes dtype = writer._dtype.str.encode()[:15]
    stream.abi_version = SCRATCHWRITER_ABI_VERSION
    stream.nbytes = sizeof(scratchwriter_stream)
    stream.state = <void*>writer
    stream.frame_nbytes = writer._frame_nbytes
    stream.height, stream.width = writer._height, writer._width
    stream.itemsize = writer._dtype.itemsize
    memcpy(stream.dtype, PyBytes_AS_STRING(dtype), PyBytes_GET_SIZE(dtype) + 1)
    stream.append = <int (*)(void*, const void*) noexcept nogil>c_append
    stream.append_rows = (
        <int (*)(void*, const void*, int64_t, int64_t, int64_t) noexcept nogil>c_append_rows
    )
    stream.reserve = <int (*)(void*, int64_t, void**) noexcept nogil>c_reserve
    stream.commit = (
        <int (*)(void*, int64_t, const int64_t*, const int64_t*) noexcept nogil>c_commit
    )
    stream.skip = <int (*)(void*, int64_t) noexcept nogil>c_skip
    stream.frames_written = <int64_t (*)(void*) noexcept nogil>c_frames_written
    stream.status_text = c_status_text
    stream.error_text = <int64_t (*)(void*, char*, int64_t) noexcept nogil>c_error_text


def c_append_of(FrameWriter writer not None):
    writer.c_address  # noqa: whoever has its address may use it for ever
    return <uintptr_t><void*>writer._c_stream.append, <uintptr_t>writer._c_stream.state
