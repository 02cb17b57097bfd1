# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""See append_timer.pxd."""

cimport cython
cimport numpy as cnp
from libc.stdint cimport int64_t

from scratchwriter._region.platform cimport (
    sw_add,
    sw_load_acquire,
    sw_now_ns,
    sw_raise,
    sw_store_release,
)

import numpy as np

cnp.import_array()


cdef inline int bucket_of(int64_t value) noexcept nogil:
    """Return the bucket that counts a value; `stats.bucket_stop_ns` is the inverse."""
    cdef int shift = 0
    while value >> shift >= 2 << BUCKET_BITS:
        shift += 1
    return min((shift << BUCKET_BITS) + <int>(value >> shift), NUM_BUCKETS - 1)


@cython.final
cdef class AppendTimer:
    """The counters of a writer. See `append_timer.pyi` for its methods."""

    cdef void count(self, int64_t start_ns) noexcept nogil:
        """Count an append that began then and ends now."""
        cdef int64_t end_ns = sw_now_ns()
        cdef int64_t took_ns = end_ns - start_ns
        sw_add(&self.counts[bucket_of(took_ns)], 1)
        sw_raise(&self.longest_ns, took_ns)
        if sw_load_acquire(&self.first_ns) == 0:
            sw_store_release(&self.first_ns, start_ns)
        sw_store_release(&self.last_ns, end_ns)

    def measured(self):
        cdef cnp.ndarray counts = np.empty(NUM_BUCKETS, np.int64)
        cdef int i
        for i in range(NUM_BUCKETS):
            (<int64_t*>cnp.PyArray_DATA(counts))[i] = sw_load_acquire(&self.counts[i])
        return {
            "first_append_ns": sw_load_acquire(&self.first_ns),
            "last_append_ns": sw_load_acquire(&self.last_ns),
            "append_counts": counts,
            "longest_append_ns": sw_load_acquire(&self.longest_ns),
        }
