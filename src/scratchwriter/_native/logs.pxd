"""What is logged beside the frames: lines of metadata, and ranges that were skipped.

Memory: each log owns its buffers. Its file descriptor belongs to whoever gave it.

Locks: none of their own; the writer's mutex guards them. `copy_first_block` alone runs
without it: nothing is written into a block that another one follows.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy

cdef enum:
    PREFIX_NBYTES = 256        # more than '{"_pos": p, "_idx": [i, ...]' can take
    SKIP_NBYTES = 16           # of a pair in skips.bin

cdef struct LogBlock:          # lines that are kept until there is a file for them
    LogBlock* next
    size_t nbytes
    size_t capacity_nbytes     # of the data behind this header


cdef class MetadataLog:
    cdef int fd                     # -1: there is no file (yet)
    cdef bint keep                  # without a file, keep the lines in blocks for one
    cdef int64_t nbytes             # of whole lines written so far
    cdef int64_t copied_nbytes      # of those, in the file; there the first block goes
    cdef LogBlock* first
    cdef LogBlock* last
    cdef char* lines                # those that are being made
    cdef size_t lines_capacity_nbytes

    cdef char* reserve(self, size_t nbytes) noexcept nogil
    cdef int store(self, size_t nbytes) noexcept nogil
    cdef bint _keep_lines(self, size_t nbytes) noexcept nogil
    cdef int copy_first_block(self, int fd) noexcept nogil
    cdef void drop_first_block(self) noexcept nogil


cdef class SkipLog:
    cdef int fd                     # -1: there is no file (yet)
    cdef int64_t* ranges            # start and stop of each, in order, none adjacent
    cdef int64_t count
    cdef int64_t capacity

    cdef int note(self, int64_t start, int64_t stop) noexcept nogil
    cdef int64_t first_after(self, int64_t frame) noexcept nogil
    cdef int copy_to(self, int fd) noexcept nogil


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


cdef inline char* put_line(
    char* at, int64_t position, const int64_t* index, const int* axes, int num_axes,
    const char* body, size_t body_nbytes,
) noexcept nogil:
    """Write '{"_pos": p, "_idx": [...], ' and the rest of the body, a JSON object."""
    cdef int i
    at = put_number(put_text(at, b'{"_pos": ', 9), position)
    at = put_text(at, b', "_idx": [', 11)
    for i in range(num_axes):
        if i:
            at = put_text(at, b', ', 2)
        at = put_number(at, index[axes[i]])
    at = put_text(at, b']', 1)
    if body_nbytes > 2:
        at = put_text(at, b', ', 2)
    at = put_text(at, body + 1, body_nbytes - 1)
    return put_text(at, b'\n', 1)
