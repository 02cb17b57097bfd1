# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""See logs.pxd."""

cimport cython
from libc.errno cimport ENOMEM
from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy

from scratchwriter._region.platform cimport sw_append, sw_pwrite

cdef enum:
    LOG_BLOCK_NBYTES = 65000   # small enough for malloc to have it at hand


@cython.final
cdef class MetadataLog:
    """The lines of frame_metadata.jsonl. With the writer's mutex, without the GIL."""

    def __cinit__(self, keep):
        self.fd = -1
        self.keep = keep

    def __dealloc__(self):
        while self.first != NULL:
            self.drop_first_block()
        free(self.lines)

    cdef char* reserve(self, size_t nbytes) noexcept nogil:
        """Return memory for lines that are to be stored; NULL if there is none."""
        cdef char* memory
        if nbytes > self.lines_capacity_nbytes:
            memory = <char*>realloc(self.lines, 2 * nbytes)
            if memory == NULL:
                return NULL
            self.lines = memory
            self.lines_capacity_nbytes = 2 * nbytes
        return self.lines

    cdef int store(self, size_t nbytes) noexcept nogil:
        """Store the lines that were made, all or none: 0, or an errno."""
        cdef int code
        if self.fd >= 0:
            code = sw_append(self.fd, self.lines, nbytes, self.nbytes)
            if code:
                return code
        elif not self.keep:
            return 0
        elif not self._keep_lines(nbytes):
            return ENOMEM
        self.nbytes += nbytes
        return 0

    cdef bint _keep_lines(self, size_t nbytes) noexcept nogil:
        """Keep lines in memory; blocks grow in number, so that none is ever copied."""
        cdef LogBlock* block = self.last
        cdef size_t capacity_nbytes
        if block == NULL or block.capacity_nbytes - block.nbytes < nbytes:
            capacity_nbytes = max(nbytes, <size_t>LOG_BLOCK_NBYTES)
            block = <LogBlock*>malloc(sizeof(LogBlock) + capacity_nbytes)
            if block == NULL:
                return False
            block.next = NULL
            block.nbytes = 0
            block.capacity_nbytes = capacity_nbytes
            if self.last == NULL:
                self.first = block
            else:
                self.last.next = block
            self.last = block
        memcpy(<char*>(block + 1) + block.nbytes, self.lines, nbytes)
        block.nbytes += nbytes
        return True

    cdef int copy_first_block(self, int fd) noexcept nogil:
        cdef int64_t nbytes = self.first.nbytes
        cdef int code = sw_append(
            fd, <const char*>(self.first + 1), nbytes, self.copied_nbytes
        )
        if code == 0:
            self.copied_nbytes += nbytes
        return code

    cdef void drop_first_block(self) noexcept nogil:
        cdef LogBlock* block = self.first
        self.first = block.next
        if block.next == NULL:
            self.last = NULL
        free(block)


@cython.final
cdef class SkipLog:
    """The ranges of skips.bin. With the writer's mutex, without the GIL."""

    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        free(self.ranges)

    cdef int note(self, int64_t start, int64_t stop) noexcept nogil:
        """Record a range of frames that are skipped, or more of the range before."""
        cdef int64_t pair[2]
        cdef int64_t at = self.count
        cdef int64_t capacity = 2 * self.capacity + 64
        cdef int64_t* memory
        cdef int code
        pair[0], pair[1] = start, stop
        if at and self.ranges[2 * at - 1] == start:
            at -= 1
            pair[0] = self.ranges[2 * at]
        elif at == self.capacity:
            memory = <int64_t*>realloc(self.ranges, capacity * SKIP_NBYTES)
            if memory == NULL:
                return ENOMEM
            self.ranges, self.capacity = memory, capacity
        if self.fd >= 0:
            # A reader does not count half a pair, if it comes to that.
            code = sw_pwrite(self.fd, <const char*>pair, SKIP_NBYTES, at * SKIP_NBYTES)
            if code:
                return code
        self.ranges[2 * at], self.ranges[2 * at + 1] = pair[0], pair[1]
        self.count = at + 1
        return 0

    cdef int64_t first_after(self, int64_t frame) noexcept nogil:
        """Return the number of the first range that ends behind a frame."""
        cdef int64_t low = 0
        cdef int64_t high = self.count
        cdef int64_t middle
        while low < high:
            middle = (low + high) // 2
            if self.ranges[2 * middle + 1] <= frame:
                low = middle + 1
            else:
                high = middle
        return low

    cdef int copy_to(self, int fd) noexcept nogil:
        """Write all ranges to a file that has none: 0, or an errno."""
        return sw_append(fd, <char*>self.ranges, SKIP_NBYTES * self.count, 0)
