"""A region whose addresses are reserved once and that grows in place (Linux).

Memory: a `MappedRegion` owns `_reserved_nbytes` of addresses from `_base` on, until it is
deallocated, and never moves. Arrays and buffers made from it hold a reference to it, so
that nothing is unmapped that somebody can still read.

Files: kept open only while they are extended, so that ten thousand of them do not exhaust
the limit of open files; the mapping holds the file.

Threads: every method needs the GIL. The writer stores into what `allocate` has made
ready without asking this class.
"""

import os

cimport cython
from posix.fcntl cimport posix_fallocate
from posix.mman cimport (
    MAP_ANONYMOUS,
    MAP_FAILED,
    MAP_FIXED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
    mmap,
    mprotect,
    munmap,
)

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport EINTR, ENOMEM, errno

import numpy as np

cdef size_t PAGE_NBYTES = os.sysconf("SC_PAGESIZE")
# Python integers beyond this are no addresses; checked before they become C integers.
MAX_NBYTES = 1 << 46


@cython.final
cdef class MappedRegion:
    """See `Region`.

    Parameters
    ----------
    reserve_nbytes : int
        Addresses to reserve, rounded up to pages; the region cannot outgrow them.
    path : pathlib.Path, optional
        File to make and map. None: anonymous memory.
    """

    cdef char* _base
    cdef size_t _reserved_nbytes
    cdef size_t _nbytes       # readable from _base on
    cdef object _path         # None: anonymous memory
    cdef list _allocated      # [start, stop) pairs that were written or may be

    def __cinit__(self, reserve_nbytes, path=None):
        if not 0 < reserve_nbytes <= MAX_NBYTES:
            raise MemoryError(
                f"cannot reserve {reserve_nbytes} bytes of addresses, "
                f"the most is {MAX_NBYTES}"
            )
        cdef size_t reserved = _whole_pages(reserve_nbytes)
        self._path = None
        self._allocated = []
        if path is None:
            # Without access it costs nothing, not even a promise of memory.
            self._base = <char*>mmap(
                NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                -1, 0,
            )
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._base = <char*>mmap(
                NULL, reserved, PROT_READ | PROT_WRITE, MAP_SHARED, <int>fd, 0
            )
            os.close(fd)
        if self._base == <char*>MAP_FAILED:
            self._base = NULL
            code = errno
            if path is not None:
                os.unlink(path)
            if code == ENOMEM:
                raise MemoryError(f"no room for {reserved} bytes of addresses")
            raise _os_error(code, path)
        self._reserved_nbytes = reserved
        self._path = path

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, self._reserved_nbytes)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a region is read-only from Python")
        PyBuffer_FillInfo(
            buffer, self, self._base, <Py_ssize_t>self._nbytes, True, flags
        )

    @property
    def path(self):
        return self._path

    @property
    def address(self):
        return <size_t>self._base

    @property
    def nbytes(self):
        return self._nbytes

    def extend(self, nbytes):
        self._check_reserve(nbytes)
        if nbytes <= self._nbytes:
            return
        if self._path is None:
            self._unlock(nbytes)
        else:
            try:
                os.truncate(self._path, nbytes)
            except OSError as error:
                raise _os_error(error.errno, self._path) from None
        self._nbytes = nbytes

    def allocate(self, start, stop):
        self._check_reserve(stop)
        if self._path is None:
            self.extend(stop)
        else:
            fd = _open(self._path)
            try:
                _allocate_blocks(fd, start, stop, self._path)
            finally:
                os.close(fd)
            self._nbytes = max(self._nbytes, stop)
        if self._allocated and self._allocated[-1][1] == start:
            self._allocated[-1][1] = stop
        else:
            self._allocated.append([start, stop])

    def move_to_file(self, path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            try:
                os.ftruncate(fd, self._nbytes)
                data = memoryview(self)
                for start, stop in self._allocated:
                    _allocate_blocks(fd, start, stop, path)
                    while start < stop:
                        start += os.pwrite(fd, data[start:stop], start)
            except OSError as error:
                raise _os_error(error.errno, path) from None
            # Same addresses, same bytes: whoever holds an array sees no difference.
            if mmap(
                self._base, self._reserved_nbytes, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_FIXED, <int>fd, 0,
            ) == MAP_FAILED:
                raise _os_error(errno, path)
        except BaseException:
            os.unlink(path)
            raise
        finally:
            os.close(fd)
        self._path = path

    def trim(self, nbytes):
        if self._path is not None:
            os.truncate(self._path, nbytes)
            self._nbytes = nbytes

    def array(self, dtype, shape):
        return np.ndarray(shape, dtype, buffer=self)

    cdef int _check_reserve(self, nbytes) except -1:
        if nbytes > self._reserved_nbytes:
            raise MemoryError(
                f"{nbytes} bytes are more than the {self._reserved_nbytes} bytes of "
                "addresses reserved for this array"
            )
        return 0

    cdef int _unlock(self, size_t nbytes) except -1:
        if mprotect(self._base, _whole_pages(nbytes), PROT_READ | PROT_WRITE) != 0:
            raise MemoryError(f"the system refuses {nbytes} bytes of memory")
        return 0


cdef size_t _whole_pages(size_t nbytes) noexcept:
    return (nbytes + PAGE_NBYTES - 1) // PAGE_NBYTES * PAGE_NBYTES


def _open(path):
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _os_error(code, path):
    return OSError(code, os.strerror(code), os.fspath(path))


def _allocate_blocks(int fd, start, stop, path):
    """Give a file real blocks, so that a full disk is an error here, not a SIGBUS."""
    cdef int code = EINTR
    while code == EINTR:
        code = posix_fallocate(fd, start, stop - start)
    if code != 0:
        raise _os_error(code, path)
