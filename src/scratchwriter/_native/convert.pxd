cimport numpy as cnp
from libc.stdint cimport int64_t

cdef int64_t as_stamp(object value, str name) except? -2
cdef cnp.ndarray as_stamps(object values, int64_t count, str name)
cdef object as_batch(object frames)
cdef object as_array(object frame, object dtype, tuple shape)
