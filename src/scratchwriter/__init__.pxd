"""What `from scratchwriter cimport ...` gives: the stream of include/scratchwriter.h."""

from libc.stdint cimport int64_t, uint32_t

cdef extern from "scratchwriter.h":
    const char* SCRATCHWRITER_CAPSULE
    uint32_t SCRATCHWRITER_ABI_VERSION
    int64_t SCRATCHWRITER_UNKNOWN
    int64_t SCRATCHWRITER_MOST_SLOTS
    cdef enum:
        SCRATCHWRITER_OK
        SCRATCHWRITER_CLOSED
        SCRATCHWRITER_BUSY
        SCRATCHWRITER_FULL
        SCRATCHWRITER_FAILED
        SCRATCHWRITER_INVALID
        SCRATCHWRITER_APART
    ctypedef struct scratchwriter_stream:
        uint32_t abi_version, nbytes
        void* state
        int64_t frame_nbytes, height, width, itemsize
        char dtype[16]
        int (*append)(void* state, const void* frame) noexcept nogil
        int (*append_rows)(
            void* state, const void* frame, int64_t pitch_nbytes, int64_t timestamp_ns,
            int64_t frame_id
        ) noexcept nogil
        int (*reserve)(void* state, int64_t count, void** frames) noexcept nogil
        int (*commit)(
            void* state, int64_t count, const int64_t* timestamps_ns,
            const int64_t* frame_ids
        ) noexcept nogil
        int (*skip)(void* state, int64_t frames) noexcept nogil
        int64_t (*frames_written)(void* state) noexcept nogil
        const char* (*status_text)(int status) noexcept nogil
        int64_t (*error_text)(
            void* state, char* text, int64_t capacity_nbytes
        ) noexcept nogil
    scratchwriter_stream* scratchwriter_from_capsule(object capsule) except NULL
