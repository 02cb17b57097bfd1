"""How long appends take: counted by any thread, without a lock."""

from libc.stdint cimport int64_t

cdef enum:
    # Each power of two is divided into 32 buckets (3 % resolution), as in HdrHistogram
    # (http://hdrhistogram.org). 36 powers reach beyond half an hour.
    BUCKET_BITS = 5
    NUM_BUCKETS = 37 << BUCKET_BITS

cdef class AppendTimer:
    # All are atomic
    cdef int64_t counts[NUM_BUCKETS]
    cdef int64_t longest_ns
    cdef int64_t first_ns            # when the first began (monotonic); 0: none yet
    cdef int64_t last_ns             # when the last ended that was timed

    cdef void count(self, int64_t start_ns) noexcept nogil
