from scratchwriter._core cimport FrameWriter

cdef void fill_c_stream(FrameWriter writer) noexcept
