from libc.stdint cimport int64_t, uint64_t

from scratchwriter._region.platform cimport sw_mutex

cdef struct Mapping:
    char* base
    int64_t reserved_nbytes   # addresses from `base` on
    bint is_open              # memory can be stored to without asking
    int64_t nbytes            # readable from `base` on; atomic
    int64_t file_start        # from here on in the file; `reserved_nbytes`: none. atomic
    const char* path          # of the file
    uint64_t device, inode    # which file that was: another may have come in its place
    bint no_fallocate         # its file system has none
    sw_mutex growing          # guards the length of the file and what is mapped

# Each returns 0 or an errno.
cdef int prepare(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil
cdef int make_readable(Mapping* mapping, int64_t nbytes) noexcept nogil
cdef int reserve_blocks(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil
cdef int write_zeros(int fd, int64_t start, int64_t stop) noexcept nogil
cdef int populate(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil

# Returns a descriptor, or -1 with an errno.
cdef int open_mapped(Mapping* mapping, int flags) noexcept nogil

cdef class MappedRegion:
    cdef Mapping mapping
    cdef object _path         # None: anonymous memory
    cdef bytes _encoded_path  # what mapping.path points into
    cdef bint _is_saved       # what came before the file is in it, too

    cdef int _map_file(self, path, int64_t start) except -1
    cdef int _open_file(self) except -1
    cdef int _write_memory(self, int fd, path, int64_t stop) except -1
    cdef int _check_reserve(self, nbytes) except -1
    cdef int _check(self, int code, nbytes) except -1
