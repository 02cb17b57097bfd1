"""What a frame of an acquisition has to be."""

cimport numpy as cnp

cdef class FrameSpec:
    cdef readonly object dtype               # numpy.dtype of the pixels
    cdef object _casting                     # for numpy.can_cast
    cdef str _dims                           # names of the frame's axes, for messages
    cdef readonly Py_ssize_t height, width

    cdef cnp.ndarray as_frame(self, object frame)
    cdef cnp.ndarray as_frames(self, object frames)
