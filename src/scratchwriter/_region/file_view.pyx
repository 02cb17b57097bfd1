"""The bytes of files, mapped without a descriptor (Linux)."""

import os

cimport cython
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from cpython.buffer cimport PyBuffer_FillInfo
from libc.errno cimport errno
from libc.stdint cimport int64_t

from scratchwriter._region.system import errors_name, open_regular


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
