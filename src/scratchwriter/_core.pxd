cimport numpy as cnp
from libc.stdint cimport int64_t, uintptr_t

from scratchwriter cimport scratchwriter_stream
from scratchwriter._native.append_timer cimport AppendTimer
from scratchwriter._native.frame_spec cimport FrameSpec
from scratchwriter._native.logs cimport MetadataLog, SkipLog
from scratchwriter._native.odometer cimport MAX_AXES, Odometer
from scratchwriter._region.platform cimport sw_mutex

cdef extern from "copy.h" nogil:
    void sw_copy(char* to, const char* data, int64_t nbytes)
    void sw_copy_rows(
        char* to, const char* data, int64_t rows, int64_t row_nbytes, int64_t pitch_nbytes
    )

cdef enum Status:
    OK
    CLOSED         # the stream is closed
    BUSY           # called by the thread that is growing the stream just now
    FULL           # the plan has no more frames
    NEED_ROOM      # the next slot is not allocated yet
    NEED_STEPS     # a skip goes past what can be read
    LOG_FAILED     # the metadata line could not be written
    SKIP_FAILED    # the skip could not be recorded
    SLOT_OPEN      # called by the thread that has a slot open
    SLOTS_APART    # the slots that are wanted together are not next to each other

cdef struct Array:
    char* base                 # first byte of the position's array
    int64_t writable_nbytes    # slots that end there or before may be written; atomic
    int64_t steps              # how far its outermost axis reaches
    int64_t shown_steps        # the same as the manifest says
    int64_t lent_stop_nbytes   # memory to here was lent out at some time
    char* shape_digits         # where it says so, or NULL
    char* new_digits           # and in the manifest that is just replacing it, or NULL

cdef struct Lease:             # memory of the next frames, lent to be filled in place
    int64_t frames             # how many; 0: none are lent
    int64_t serial             # of the loan; no two have the same
    int64_t thread             # that has it
    bint is_native             # it was lent to C
    bint is_revoked            # by close; the memory is kept until it is given back
    int64_t position           # of the array
    char* copy                 # lent in place of the array's, which may move; or NULL

cdef struct Frame:             # that is to be stored
    const char* data           # NULL: it is in its slot already
    int64_t pitch_nbytes       # from row to row
    const char* body           # of its metadata line, or NULL
    size_t body_nbytes
    int64_t timestamp_ns       # UNKNOWN, or not negative
    int64_t frame_id           # the same

cdef enum:
    TIMED_NBYTES = 65536       # every append of larger frames is timed ...
    SAMPLED = 16               # ... and one in so many of smaller ones

cdef enum:
    NOT_STAGED = -1            # `FrameWriter._frames_in_files`

cdef enum:
    UNKNOWN = -1
    # What is known of a frame, besides its pixels.
    KNOWS_TIME = 1
    KNOWS_ID = 2
    IS_HOST_TIME = 4           # the time is of this machine's monotonic clock

cdef struct Record:            # of a frame, in acquisition order; see docs/format.md
    int64_t timestamp_ns
    int64_t frame_id
    int64_t known

# Has what is ahead of the frames make a slot ready that ends there: 0, or an errno.
ctypedef int (*prepare_function)(
    void* ahead, int64_t position, int64_t stop_nbytes
) noexcept nogil

cdef struct Request:           # what a refused call lacks, for the provider
    int64_t position
    int64_t stop_nbytes
    int64_t steps
    int errno_code
    int64_t needed_nbytes

cdef void* leave_python(void* state) noexcept nogil
cdef void return_to_python(void* state) noexcept nogil

cdef class FrameWriter:
    # The plan: set once, read without a lock
    cdef FrameSpec _spec
    cdef object _dtype                       # numpy.dtype of the pixels
    cdef int64_t _height, _width             # shape of a frame
    cdef int64_t _frame_nbytes
    cdef int64_t _row_nbytes
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
    cdef int64_t _ring_nbytes                # of a position, if it is overwritten; else 0
    cdef int64_t _ring_frames                # the same for all positions
    cdef int64_t _keep_steps                 # of them, those that are shown; 0: all
    cdef bint _clears_next                   # the slot that a step later comes there
    cdef int64_t _slot_steps                 # of a ring, that slots may be open in together
    cdef bint _takes_time                    # of frames that come without one

    # What moves with the frames: guarded by _mutex
    cdef sw_mutex _mutex
    cdef int64_t _exclusive_thread           # that runs Python code under it; atomic
    cdef bint _closed
    cdef bint _disowned                      # this process is a fork of the owner
    cdef Odometer _next
    cdef Array* _arrays                      # one per position, and that of the records
    cdef int64_t _skipped                    # of the frames before the cursor; atomic
    cdef int64_t _readable_steps             # steps that every array can be read to
    cdef MetadataLog _log
    cdef SkipLog _skips
    cdef Lease _lease
    cdef bint _lends_copies                  # the arrays move when they grow
    cdef int64_t _last_frame_id              # UNKNOWN: none yet
    cdef int64_t _dropped                    # frame numbers that never came; atomic
    cdef int64_t _waiting                    # threads that wait for its end; atomic
    cdef char _error_text[1024]              # of the last failure, for C

    # What says how many frames are in the files of the arrays: the lengths in the manifest,
    # and a number in the progress. Before any is staged all are, and the writer renews the
    # lengths; then the thread that writes files does. `_lengths` is taken after _mutex.
    cdef int64_t _exact_frames               # before that none is staged; atomic
    cdef sw_mutex _lengths
    cdef int64_t _frames_in_files            # NOT_STAGED, or how many are; atomic
    cdef bint _has_staged                    # in staging.bin: else NOT_STAGED is shown
    cdef int64_t* _file_in_files             # the same, in the progress; or NULL
    cdef bint _has_final_lengths

    # What is ahead of the frames; NULL without it, and after close
    cdef void* _ahead
    cdef prepare_function _prepare
    cdef int64_t* _frames_ahead              # frames that are ready; atomic

    cdef AppendTimer _timer

    # Written under _mutex by release-stores, read by anyone by acquire-loads
    cdef int64_t _cursor                     # frames appended and skipped
    # The same, and _dropped, in a file that others read; NULL without it, and after close
    cdef int64_t* _file_cursor
    cdef int64_t* _file_dropped

    # What keeps the memory above; exchanged under _mutex, dropped after it
    cdef list _array_owners
    cdef object _lent                        # what keeps the memory of a revoked lease
    cdef object _file_owner, _in_files_owner
    cdef object _digits_owner, _new_digits_owner
    # What a call lacks is asked of the provider: a weak reference, as it owns the writer
    cdef object _provider
    cdef object _encode_metadata
    cdef object _log_path, _skips_path

    # For C: whoever has its address may use it for the life of the process
    cdef scratchwriter_stream _c_stream
    cdef bint _is_immortal

    cdef int put(
        self, object frame, object frame_metadata, object timestamp_ns, object frame_id
    ) except -1
    cdef int put_frames(
        self, str what, Frame* frames, int64_t count, int64_t serial
    ) except -1
    cdef object lend(self, int64_t count, char** address, int64_t* serial)
    cdef void give_back(self, int64_t serial) noexcept nogil
    cdef int64_t _start_ns(self, int64_t nbytes) noexcept nogil
    cdef bint _is_plain_frame(self, object frame) noexcept
    cdef int _begin(self) except -1
    cdef int _wait_for_lease(self) except -1
    cdef Status _begin_native(self) noexcept nogil
    cdef void _let_others_go_first(self) noexcept nogil
    cdef void _move_cursor(self, int64_t frames) noexcept nogil
    cdef bint _lock(self) noexcept nogil
    cdef void _unlock(self, bint taken) noexcept nogil
    cdef int _answer(
        self, Status status, str what, object frames, Request* request
    ) except -1
    cdef bint _is_exclusive(self) noexcept nogil
    cdef Status _acquire(self) noexcept
    cdef int64_t _position(self, Odometer* slot) noexcept nogil
    cdef void _advance(self, Odometer* slot) noexcept nogil
    cdef void _clear(self, int64_t steps) noexcept nogil
    cdef Status _put(self, Frame* frame, Request* request) noexcept nogil
    cdef Status _store(
        self, Frame* frames, int64_t count, int64_t serial, Request* request
    ) noexcept nogil
    cdef Status _put_all(
        self, Frame* frames, int64_t count, Request* request
    ) noexcept nogil
    cdef Status _look_ahead(
        self, int64_t count, bint together, Request* request
    ) noexcept nogil
    cdef Status _look_for_record(self, int64_t stop, Request* request) noexcept nogil
    cdef void _record(self, int64_t frame_number, Frame* frame) noexcept nogil
    cdef Status _lend(
        self, int64_t count, bint is_native, char* copy, char** address, Request* request
    ) noexcept nogil
    cdef Status _commit(
        self, int64_t serial, Frame* frames, int64_t count, Request* request
    ) noexcept nogil
    cdef bint _end_lease(self) noexcept nogil
    cdef void _populate(self, char* start, int64_t nbytes) noexcept nogil
    cdef Status _skip(self, int64_t frames, Request* request) noexcept nogil
    cdef void _skip_in_ring(self, int64_t cursor, int64_t frames) noexcept nogil
    cdef int _write_lines(self, Frame* frames, int64_t count) noexcept nogil
    cdef void _show_steps(self, Array* array) noexcept nogil
    cdef int64_t _steps_of(self, int64_t position, int64_t frames) noexcept nogil
    cdef void _put_length(self, Array* array, int64_t steps) noexcept nogil
    cdef void show_frames_in_files(self, int64_t frames, bint has_staged) noexcept nogil
    cdef int _raise(
        self, Status status, str what, object frames, Request* request
    ) except -1
    cdef int _check(self, int code, object path, int64_t needed_nbytes) except -1
