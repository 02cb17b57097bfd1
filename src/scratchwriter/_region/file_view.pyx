"""The bytes of files, mapped without a descriptor (Linux)."""

import os

cimport cython
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    madvise,
    mmap,
    munmap,
)

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t
from libc.string cimport memcpy

from scratchwriter._region.system import errors_name, open_regular

cdef extern from *:
    int MADV_HUGEPAGE "14"

cdef int64_t PAGE_NBYTES = os.sysconf("SC_PAGESIZE")


def map_file(path):
    with open_regular(path) as file, errors_name(path):
        return memoryview(_FileView(file.fileno(), False))


def map_open_file(file, writable=False):
    return memoryview(_FileView(file.fileno(), writable))


@cython.final
cdef class _FileView:
    """The bytes of a file as they are when it is made, without a descriptor."""

    cdef char* _base
    cdef int64_t _nbytes
    cdef bint _is_readonly

    def __cinit__(self, int fd, bint writable):
        cdef int64_t nbytes = os.fstat(fd).st_size
        cdef int access = PROT_READ | PROT_WRITE if writable else PROT_READ
        cdef int code
        if nbytes == 0:
            raise ValueError("the file is empty")
        base = mmap(NULL, nbytes, access, MAP_SHARED, fd, 0)
        if base == MAP_FAILED:
            code = errno
            raise OSError(code, os.strerror(code))
        self._base, self._nbytes = <char*>base, nbytes
        self._is_readonly = not writable

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, self._nbytes)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(
            buffer, self, self._base, self._nbytes, self._is_readonly, flags
        )


@cython.final
cdef class OverlaidFile:
    """See `file_view.pyi`."""

    cdef char* _base
    cdef readonly int64_t reserved_nbytes
    cdef readonly int64_t mapped_nbytes

    def __cinit__(self, nbytes):
        cdef int64_t wanted = max(<int64_t>nbytes, 1)
        # Private memory: what is put there is this process's.
        base = mmap(
            NULL, wanted, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0,
        )
        if base == MAP_FAILED:
            raise MemoryError(f"the system refuses {wanted} bytes of addresses")
        self._base, self.reserved_nbytes = <char*>base, wanted
        madvise(base, wanted, MADV_HUGEPAGE)  # first touches cost more than the copies

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, self.reserved_nbytes)

    def map_file(self, file, stop):
        cdef int64_t start = self.mapped_nbytes
        cdef int64_t last = min(<int64_t>stop, self.reserved_nbytes)
        cdef int fd = file.fileno()
        last = min(last, <int64_t>os.fstat(fd).st_size) // PAGE_NBYTES * PAGE_NBYTES
        if last <= start:
            return
        if mmap(
            self._base + start, last - start, PROT_READ, MAP_SHARED | MAP_FIXED, fd, start
        ) == MAP_FAILED:
            raise OSError(errno, os.strerror(errno))
        self.mapped_nbytes = last

    def put(self, start, const unsigned char[::1] data not None):
        cdef int64_t first = max(<int64_t>start, self.mapped_nbytes)
        cdef int64_t skipped = first - <int64_t>start
        cdef int64_t count = data.shape[0] - skipped
        if count <= 0:
            return
        if first + count > self.reserved_nbytes:
            raise ValueError(f"{count} bytes at {first}")
        memcpy(self._base + first, &data[skipped], count)

    def view(self, nbytes):
        return memoryview(_Part(self, nbytes))


@cython.final
cdef class _Part:
    """The first bytes of an `OverlaidFile`, read-only."""

    cdef OverlaidFile _file
    cdef int64_t _nbytes

    def __cinit__(self, OverlaidFile file not None, nbytes):
        if not 0 <= nbytes <= file.reserved_nbytes:
            raise ValueError(f"{nbytes} bytes of {file.reserved_nbytes}")
        self._file, self._nbytes = file, nbytes

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a dataset is read-only")
        PyBuffer_FillInfo(buffer, self, self._file._base, self._nbytes, True, flags)
