"""Waiting for frames, without the GIL and without anything that the writer has to do.

A frame wakes no thread: that would be a system call in an append. A thread that waits polls
the frame cursor, and sleeps in between.
"""

from libc.stdint cimport int64_t

from scratchwriter._core cimport FrameWriter
from scratchwriter._region.platform cimport sw_load_acquire, sw_nap, sw_now_ns


cdef int64_t _wait_past(
    const int64_t* cursor, const int64_t* stop, int64_t seen, int64_t timeout_ns,
    int64_t poll_ns,
) noexcept nogil:
    cdef int64_t deadline_ns = sw_now_ns() + timeout_ns
    cdef int64_t found, left_ns
    while True:
        found = sw_load_acquire(cursor)
        left_ns = deadline_ns - sw_now_ns()
        if found > seen or left_ns <= 0 or sw_load_acquire(stop):
            return found
        sw_nap(min(poll_ns, left_ns))


def wait_for_writer(
    FrameWriter writer not None, const int64_t[::1] stop not None, int64_t seen,
    int64_t timeout_ns, int64_t poll_ns,
):
    cdef int64_t found
    with nogil:
        found = _wait_past(&writer._cursor, &stop[0], seen, timeout_ns, poll_ns)
    return found


def wait_for_cursor(
    const int64_t[::1] cursor not None, const int64_t[::1] stop not None, int64_t seen,
    int64_t timeout_ns, int64_t poll_ns,
):
    cdef int64_t found
    with nogil:
        found = _wait_past(&cursor[0], &stop[0], seen, timeout_ns, poll_ns)
    return found
