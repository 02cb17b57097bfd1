from libc.stdint cimport int64_t, uintptr_t

from scratchwriter._odometer cimport MAX_AXES, Odometer
from scratchwriter._platform cimport sw_mutex

cdef extern from "copy.h" nogil:
    void sw_copy(char* to, const char* data, int64_t nbytes)

cdef enum:
    # Counts of append times: each power of two is divided into 32 (3 % resolution), as in
    # HdrHistogram (http://hdrhistogram.org). 36 powers reach beyond half an hour.
    BUCKET_BITS = 5
    NUM_BUCKETS = 37 << BUCKET_BITS

cdef enum Status:
    OK
    CLOSED         # the stream is closed
    BUSY           # called by the thread that is growing the stream just now
    FULL           # the plan has no more frames
    NEED_ROOM      # the next slot is not allocated yet
    NEED_STEPS     # a skip goes past what can be read
    LOG_FAILED     # the metadata line could not be written
    SKIP_FAILED    # the skip could not be recorded

cdef struct Array:
    char* base                 # first byte of the position's array
    int64_t writable_nbytes    # slots that end here or before may be written; atomic
    int64_t steps              # how far its outermost axis reaches
    char* shape_digits         # the same number in the manifest, or NULL
    char* new_digits           # and in the one that is just replacing it, or NULL

cdef struct LogBlock:          # lines that are kept until there is a file for them
    LogBlock* next
    size_t nbytes
    size_t capacity_nbytes     # of the data behind this header

cdef struct MetadataLog:
    int fd                     # -1: there is no file (yet)
    bint keep                  # without a file, keep the lines in blocks for one
    int64_t nbytes             # of whole lines written so far
    int64_t copied_nbytes      # of those, in the file; with the first block at this place
    LogBlock* first
    LogBlock* last
    char* line                 # the line being made
    size_t line_capacity_nbytes

cdef struct SkipLog:           # ranges of frames that were skipped
    int fd                     # -1: there is no file (yet)
    int64_t* ranges            # start and stop of each, in order, none touching the next
    int64_t count
    int64_t capacity

cdef struct Request:           # what a refused call lacks, for the one who provides it
    int64_t position
    int64_t stop_nbytes
    int64_t steps
    int errno_code
    int64_t needed_nbytes

cdef class FrameWriter:
    # The plan: set once, read without a lock
    cdef object _dtype                       # numpy.dtype of the pixels
    cdef object _casting                     # for numpy.can_cast
    cdef str _frame_dims                     # names of the frame's axes, for messages
    cdef int64_t _height, _width             # shape of a frame
    cdef int64_t _frame_nbytes
    cdef int64_t _num_positions
    cdef int64_t _num_frames                 # of a bounded plan, else -1
    cdef int64_t _step_frames                # frames per step of the unbounded axis
    cdef int64_t _visit_frames               # frames a position gets in a row
    cdef int _num_axes                       # acquisition axes, the frame's left out
    cdef int _position_axis                  # -1: none
    cdef int _num_file_axes
    cdef int _file_axes[MAX_AXES]            # acquisition axis per file axis
    cdef int64_t _counts[MAX_AXES]           # 0: unbounded
    cdef int64_t _strides_nbytes[MAX_AXES]   # 0 for the position axis

    # What moves with the frames: guarded by _mutex
    cdef sw_mutex _mutex
    cdef uintptr_t _exclusive_thread         # who holds _mutex while running Python code
    cdef bint _closed
    cdef bint _disowned                      # this process is a fork of the owner
    cdef Odometer _next
    cdef Array* _arrays                      # one per position
    cdef int64_t _skipped                    # of the frames before the cursor
    cdef int64_t _readable_steps             # steps that every array can be read to
    cdef MetadataLog _log
    cdef SkipLog _skips

    # How long appends took: added to atomically, by any thread, without a lock
    cdef int64_t _append_counts[NUM_BUCKETS]
    cdef int64_t _longest_append_ns
    cdef int64_t _first_append_ns            # on the monotonic clock; 0: none yet
    cdef int64_t _last_append_ns             # of those that were timed

    # Written under _mutex by release-stores, read by anyone by acquire-loads
    cdef int64_t* _cursor                    # frames appended and skipped
    cdef int64_t _own_cursor                 # where _cursor points without a file

    # Owners of the memory above, and who to ask for more of it
    cdef list _array_owners, _cursor_owners
    cdef object _digits_owner, _new_digits_owner
    cdef object _make_room, _make_steps, _encode_metadata, _disk_error
    cdef object _log_path, _skips_path

    cdef int put(self, object frame, object frame_metadata) except -1
    cdef object _as_frame(self, object frame)
    cdef void _count_append(self, int64_t start_ns) noexcept nogil
    cdef Status _acquire(self) noexcept
    cdef Status _put(
        self, const char* frame, const char* body, size_t body_nbytes, Request* request
    ) noexcept nogil
    cdef Status _skip(self, int64_t frames, Request* request) noexcept nogil
    cdef int _write_line(
        self, int64_t position, const char* body, size_t body_nbytes
    ) noexcept nogil
    cdef bint _keep_line(self, const char* line, size_t nbytes) noexcept nogil
    cdef int _copy_first_block(self, int fd) noexcept nogil
    cdef void _drop_first_block(self) noexcept nogil
    cdef int _note_skip(self, int64_t start, int64_t stop) noexcept nogil
    cdef void _set_steps(self, Array* array, int64_t steps) noexcept nogil
    cdef int _raise(
        self, Status status, str what, object frames, Request* request
    ) except -1
    cdef int _check(self, int code, object path, int64_t needed_nbytes) except -1
