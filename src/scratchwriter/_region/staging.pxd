from libc.stdint cimport int64_t

from scratchwriter._region.mapped cimport Mapping
from scratchwriter._region.platform cimport sw_mutex

cdef struct Piece:             # of an array: staged, or in the page cache of its file
    int64_t serial             # they are taken in this order; 0: none
    int64_t position
    int64_t start              # bytes of the array
    int64_t stop
    int64_t slot               # of staging.bin; -1: it is in the page cache
    int64_t written_nbytes     # of the array: in its file up to here
    bint is_written            # all of it is in its file

cdef struct Slot:              # as staging.bin has it; see docs/format.md
    int64_t generation         # odd while the rest changes
    int64_t position           # -1: nothing
    int64_t start
    int64_t stop
    int64_t after              # all from there to `start` is in the position's file

cdef struct Staging:
    # Set once
    int64_t num_positions
    int64_t visit_frames, frame_nbytes
    Mapping** mappings         # of the positions
    int* files                 # of the positions: open for direct writes
    int64_t piece_nbytes
    int64_t most_slots
    int64_t capacity           # pieces, with those in the page cache that wait for the disk
    int64_t keep_ns            # after which slots that were not needed are given back
    int64_t from_nbytes        # of each array: before that the page cache is used
    int64_t exact_frames       # before that no frame is staged
    int folder                 # of the arrays; another may come under its name
    const char* name           # of staging.bin, which is made for the first piece
    char* reserved             # addresses of the table and the slots
    int64_t reserved_nbytes
    char* base                 # of its slots, mapped

    # Of the thread that stages
    int file                   # staging.bin; -1: it is not made yet
    Slot* table                # in it
    int64_t num_slots          # that have been made, and not given back
    int64_t* free_slots        # of them
    int64_t num_free
    int64_t* bare_slots        # that are yet to be made, or have been given back
    int64_t num_bare
    bint keeps_slots           # as the file system can give nothing back
    int64_t num_pieces
    int64_t last_serial

    sw_mutex lock
    char* blocks               # memory of `last_block`
    char* last_block           # of a write that ends within one; of the thread behind
    Piece* pieces              # guarded by `lock`
    int64_t num_used           # of them, with those that are free between; by `lock`, too
    int64_t* in_file_nbytes    # of each position, all before is in its file; by `lock`, too
    int64_t* shown_in_file_nbytes  # the same in staging.bin; atomic
    int64_t* staged_nbytes     # of each position: where its last slot ends
    int64_t* shown_staged_nbytes   # the same in staging.bin; atomic

    int64_t lost_code          # errno of the first write that a device refused; atomic
    int64_t lost_position      # where; stored before
    int64_t refused_code       # of the first try to make staging.bin, or a slot; atomic

# Each returns 0 or an errno.
cdef int stage(
    Staging* staging, int64_t position, int64_t start, int64_t stop
) noexcept nogil
cdef int write_out(Staging* staging, Piece* piece, int64_t stop) noexcept nogil

# Pieces in slots that are not in their files.
cdef int64_t waiting_slots(Staging* staging) noexcept nogil
# Give a slot back to the system, if there are more than so many.
cdef void give_back(Staging* staging, int64_t most_slots) noexcept nogil

cdef bint may_be_cached(Staging* staging) noexcept nogil
# The next piece after one, in order, that is not in its file: a copy.
cdef bint next_unwritten(Staging* staging, Piece* piece) noexcept nogil
# Before which all frames are in the files of the arrays, if so many have come.
cdef int64_t frames_in_files(Staging* staging, int64_t cursor) noexcept nogil

cdef class StagingFile:
    cdef Staging staging
    cdef list _regions         # keeps the mappings
    cdef bytes _encoded_name
    cdef readonly object path
