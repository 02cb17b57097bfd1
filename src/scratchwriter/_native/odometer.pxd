"""The odometer: where the slots of frames are, in acquisition order. Pure arithmetic.

Inlined into the writer, and into the thread that walks ahead of it.
"""

from libc.stdint cimport int64_t

cdef enum:
    MAX_AXES = 8

cdef struct Odometer:          # a slot
    int64_t index[MAX_AXES]    # per acquisition axis, the frame's left out
    int64_t offset_nbytes      # in its position's array


cdef inline void advance(
    Odometer* odometer, const int64_t* counts, const int64_t* strides, int num_axes
) noexcept nogil:
    """Go on to the next slot: the last axis first, with carry."""
    cdef int axis = num_axes - 1
    while axis >= 0:
        odometer.index[axis] += 1
        odometer.offset_nbytes += strides[axis]
        if odometer.index[axis] != counts[axis]:    # always so where it is unbounded (0)
            return
        odometer.offset_nbytes -= counts[axis] * strides[axis]
        odometer.index[axis] = 0
        axis -= 1


cdef inline void jump(
    Odometer* odometer, int64_t frame, const int64_t* counts, const int64_t* strides,
    int num_axes,
) noexcept nogil:
    """Go to the slot of any frame, in constant time."""
    cdef int axis = num_axes - 1
    odometer.offset_nbytes = 0
    while axis >= 0:
        if counts[axis]:
            odometer.index[axis] = frame % counts[axis]
            frame = frame // counts[axis]
        else:
            odometer.index[axis] = frame
        odometer.offset_nbytes += odometer.index[axis] * strides[axis]
        axis -= 1
