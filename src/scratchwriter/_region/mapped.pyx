"""A region whose addresses are reserved once and that grows in place (Linux).

Memory: a `MappedRegion` owns `reserved_nbytes` of addresses from `base` on, until it is
deallocated, and never moves. Arrays made from it hold a reference to it, so that nothing is
unmapped that can still be read; `end` unmaps what no array has. It is anonymous memory up
to `file_start`, and its file from there on.

Files: kept open only while they are extended, so that ten thousand of them do not exhaust
the limit of open files; the mapping holds the file.

Locks: `growing` guards the length of the file and what is mapped. It is taken without the
GIL, and held for system calls only. The writer stores into what is ready without it.

Pages: a page that is first touched by a store costs a fault in the middle of a frame.
`populate` touches pages ahead. In a file zeros are written there first: for a `write` of a
whole huge page (2 MiB) many kernels make one, which is then mapped at once (measured:
7 GB/s). What is larger than a moment's worth of memory does not go through the page cache
at all: see `staging.pyx`.
"""

import math
import os

cimport cython
cimport libc.errno
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
    madvise,
    mmap,
    mprotect,
    munmap,
)
from posix.unistd cimport close, dup, ftruncate

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport EFAULT, EINTR, EINVAL, ENOMEM, ENOSPC, EOPNOTSUPP, ESTALE, errno
from libc.stdint cimport uint64_t, uintptr_t

from scratchwriter._region.platform cimport (
    sw_load_acquire,
    sw_mutex_destroy,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_unlock,
    sw_pwrite,
    sw_store_release,
    sw_touch,
    sw_write_back,
)

import numpy as np

from scratchwriter._region.system import open_regular
from scratchwriter.errors import device_error, disk_error

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #include <sys/stat.h>
    #ifndef MADV_POPULATE_WRITE
    #define MADV_POPULATE_WRITE 23  /* Linux 5.14 */
    #endif
    #ifndef MADV_HUGEPAGE
    #define MADV_HUGEPAGE 14
    #endif
    static char sw_zeros[2 << 20];  /* never written: one page of memory, in the cache */
    """
    int MADV_POPULATE_WRITE, MADV_HUGEPAGE
    char* sw_zeros
    int open(const char* path, int flags)
    int fallocate(int fd, int mode, int64_t offset, int64_t nbytes)
    int O_RDWR, O_CLOEXEC, O_NOFOLLOW
    struct stat:
        uint64_t st_dev, st_ino
        int64_t st_size
    int fstat(int fd, stat* status)

cdef int64_t PAGE_NBYTES = os.sysconf("SC_PAGESIZE")
cdef enum:
    ZEROS_NBYTES = 2 << 20
    HUGE_PAGE_NBYTES = 2 << 20
    SAVE_NBYTES = 16 << 20
    # The kernel holds a lock of the whole process while it populates: in small pieces.
    PIECE_NBYTES = 2 << 20
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
    huge_pages : bool
        Ask for huge pages of memory.
    """

    def __cinit__(self, reserve_nbytes, path=None, *, huge_pages=False):
        if not 0 < reserve_nbytes <= MAX_NBYTES:
            raise MemoryError(
                f"cannot reserve {reserve_nbytes} bytes of addresses, "
                f"the most is {MAX_NBYTES}"
            )
        cdef Mapping* mapping = &self.mapping
        cdef int64_t reserved = _whole_pages(reserve_nbytes)
        sw_mutex_init(&mapping.growing)
        if _reserve(mapping, reserved, huge_pages) != 0:
            raise MemoryError(
                f"the system refuses to reserve {reserved} bytes of addresses (limited by "
                "ulimit -v, or by vm.max_map_count for very many positions)"
            )
        if path is not None:
            self._map_file(path, 0)

    def __dealloc__(self):
        if self.mapping.base != NULL:
            munmap(self.mapping.base, self.mapping.reserved_nbytes)
        sw_mutex_destroy(&self.mapping.growing)

    @property
    def path(self):
        return self._path

    @property
    def address(self):
        return <uintptr_t>self.mapping.base

    @property
    def memory(self):
        return self

    @property
    def moves(self):
        return False

    @property
    def nbytes(self):
        return sw_load_acquire(&self.mapping.nbytes)

    @property
    def memory_nbytes(self):
        return min(sw_load_acquire(&self.mapping.file_start), self.nbytes)

    def extend(self, nbytes):
        self._check_reserve(nbytes)
        cdef Mapping* mapping = &self.mapping
        cdef int64_t wanted = nbytes
        cdef int code
        with nogil:
            code = make_readable(mapping, wanted)
        self._check(code, nbytes)

    def allocate(self, start, stop):
        self._check_reserve(stop)
        cdef int64_t first = start, last = stop
        cdef int code
        with nogil:
            code = reserve_blocks(&self.mapping, first, last)
        self._check(code, stop)

    def populate(self, start, stop):
        cdef int64_t first = start, last = stop
        cdef int code
        with nogil:
            code = populate(&self.mapping, first, last)
        if code != 0:
            raise MemoryError(
                f"the system refuses {stop - start} bytes of memory ({os.strerror(code)})"
            )

    def spill(self, path, start):
        self._check_reserve(start)
        self._map_file(path, start)

    def save(self):
        cdef int fd
        if self._path is None or self._is_saved:
            return
        fd = self._open_file()
        try:
            self._write_memory(fd, self._path, self.memory_nbytes)
        finally:
            close(fd)
        self._is_saved = True

    def save_as(self, path, nbytes):
        if self._is_saved:
            return
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        cdef int fd = os.open(path, flags, 0o666)
        try:
            self._write_memory(fd, path, nbytes)
            if ftruncate(fd, nbytes) != 0:  # what ends in zeros is a hole
                raise disk_error(errno, path, nbytes)
            self._is_saved = True
        finally:
            close(fd)
            if not self._is_saved:
                os.unlink(path)

    cdef int _write_memory(self, int fd, path, int64_t stop) except -1:
        """Write the first bytes, which are in memory, into a file."""
        cdef Mapping* mapping = &self.mapping
        cdef int64_t at = 0
        cdef int64_t synced = 0
        cdef int64_t nbytes
        cdef int code, sync_code
        while at < stop:
            nbytes = min(ZEROS_NBYTES, stop - at)
            with nogil:
                code = sync_code = 0
                if _is_not_zero(mapping.base + at, nbytes):  # else: leave a hole
                    code = sw_pwrite(fd, mapping.base + at, nbytes, at)
                at += nbytes
                if code == 0 and at - synced >= SAVE_NBYTES:
                    # At the pace of the disk, so that the frames need not wait for it.
                    if sw_write_back(fd, synced, at - synced) != 0:
                        sync_code = errno
                    synced = at
            if code:
                raise disk_error(code, path, stop - (at - nbytes))
            if sync_code:  # the kernel reports this only once
                raise device_error(sync_code, path)
        return 0

    @property
    def is_saved(self):
        return self._is_saved

    def end(self, nbytes, lent_stop=0):
        cdef Mapping* mapping = &self.mapping
        cdef int64_t start = max(_whole_pages(nbytes), mapping.file_start)
        self._check(_end_file(mapping, start, lent_stop), nbytes)
        sw_store_release(&mapping.nbytes, min(<int64_t>nbytes, self.nbytes))
        _give_back(mapping, max(nbytes, lent_stop))

    def trim(self, nbytes):
        cdef int fd, code = 0
        if self._path is None:
            return
        fd = self._open_file()
        if ftruncate(fd, nbytes) != 0:
            code = errno
        close(fd)
        self._check(code, nbytes)

    cdef int _open_file(self) except -1:
        cdef int fd = open_mapped(&self.mapping, 0)
        if fd < 0:
            raise disk_error(errno, self._path)
        return fd

    def array(self, dtype, shape, start=0):
        nbytes = math.prod(shape) * dtype.itemsize
        if start + nbytes > self.nbytes:
            raise ValueError(f"{start + nbytes} bytes of {self.nbytes}")
        return np.ndarray(shape, dtype, buffer=_Bytes(self, start, nbytes))

    cdef int _map_file(self, path, int64_t start) except -1:
        """Make a file, and map it from the page of `start` on in place of memory."""
        cdef Mapping* mapping = &self.mapping
        cdef int64_t page_start = start // PAGE_NBYTES * PAGE_NBYTES
        cdef int64_t nbytes = self.nbytes
        cdef int code = 0
        cdef int fd
        cdef stat status
        self._encoded_path = os.fsencode(path)
        cdef const char* c_path = self._encoded_path
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with nogil:
            sw_mutex_lock(&mapping.growing)
            if ftruncate(fd, nbytes) != 0 or fstat(fd, &status) != 0:
                code = errno
            elif page_start < start:
                code = sw_pwrite(
                    fd, mapping.base + page_start, start - page_start, page_start
                )
                if code == 0 and close(dup(fd)) != 0:
                    code = errno  # of a network: while it can be undone
            # Whoever holds an array sees no difference: the same bytes, and then zeros.
            if code == 0 and page_start < mapping.reserved_nbytes and mmap(
                mapping.base + page_start, mapping.reserved_nbytes - page_start,
                PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, page_start,
            ) == MAP_FAILED:
                code = errno
            if code == 0:
                madvise(
                    mapping.base + page_start, mapping.reserved_nbytes - page_start,
                    MADV_HUGEPAGE,
                )
                mapping.path = c_path
                mapping.device, mapping.inode = status.st_dev, status.st_ino
                sw_store_release(&mapping.file_start, page_start)
            sw_mutex_unlock(&mapping.growing)
            close(fd)
        if code != 0:
            os.unlink(path)
            if code == ENOMEM:
                raise MemoryError(f"no room to map {path}")
            raise disk_error(code, path, nbytes - page_start)
        self._path = path
        self._is_saved = page_start == 0

    cdef int _check_reserve(self, nbytes) except -1:
        if nbytes > self.mapping.reserved_nbytes:
            raise MemoryError(
                f"{nbytes} bytes are more than the {self.mapping.reserved_nbytes} bytes "
                "of addresses reserved for this array"
            )
        return 0

    cdef int _check(self, int code, nbytes) except -1:
        if code == ENOMEM:
            raise MemoryError(f"the system refuses {nbytes} bytes of memory")
        if code != 0:
            raise disk_error(code, self._path, nbytes - self.nbytes)
        return 0


@cython.final
cdef class _Bytes:
    """What an array is made of: read-only, and no more than that: `end` unmaps the rest."""

    cdef MappedRegion _region
    cdef int64_t _start, _nbytes

    def __cinit__(self, MappedRegion region not None, start, nbytes):
        self._region, self._start, self._nbytes = region, start, nbytes

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a region is read-only from Python")
        PyBuffer_FillInfo(
            buffer, self, self._region.mapping.base + self._start, self._nbytes, True, flags
        )


# ------------------------------------------------------- without the GIL: 0 or an errno

cdef int prepare(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil:
    """Make bytes that were never written ready for stores that take no fault."""
    cdef int64_t first = max(start, sw_load_acquire(&mapping.file_start))
    cdef int code = 0
    cdef int fd
    if first < stop:
        fd = open_mapped(mapping, 0)
        if fd < 0:
            return errno
        code = _allocate_blocks(mapping, fd, first, stop)
        if code == 0:
            code = write_zeros(fd, first, stop)
        close(fd)
    if code == 0 and populate(mapping, start, stop) == EFAULT:
        code = ENOSPC  # what a store would kill the process for; else it is only advice
    return code


cdef int make_readable(Mapping* mapping, int64_t nbytes) noexcept nogil:
    """Make the first `nbytes` readable: zeros, where nothing was written."""
    cdef int code = 0
    if nbytes > sw_load_acquire(&mapping.nbytes):
        sw_mutex_lock(&mapping.growing)
        code = _extend(mapping, nbytes)
        sw_mutex_unlock(&mapping.growing)
    return code


cdef int reserve_blocks(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil:
    """Make bytes safe to store to, and readable, though with a fault at first."""
    cdef int64_t file_start = sw_load_acquire(&mapping.file_start)
    cdef int code = 0
    cdef int fd
    if stop <= file_start:
        return make_readable(mapping, stop)
    fd = open_mapped(mapping, 0)
    if fd < 0:
        return errno
    start = max(start, file_start)
    code = _allocate_blocks(mapping, fd, start, stop)
    if code == 0 and mapping.no_fallocate:
        code = write_zeros(fd, start, stop)
    close(fd)
    return code


cdef int populate(Mapping* mapping, int64_t start, int64_t stop) noexcept nogil:
    """Touch the pages of these bytes, whatever is in them, before a store has to."""
    cdef int64_t at = start // PAGE_NBYTES * PAGE_NBYTES
    cdef int64_t nbytes
    stop = min(_whole_pages(stop), _whole_pages(sw_load_acquire(&mapping.nbytes)))
    while at < stop:
        nbytes = min(PIECE_NBYTES, stop - at)
        if madvise(mapping.base + at, nbytes, MADV_POPULATE_WRITE) != 0:
            if errno != EINVAL:
                return errno
            while nbytes > 0:  # before Linux 5.14
                sw_touch(mapping.base + at)
                at += PAGE_NBYTES
                nbytes -= PAGE_NBYTES
        else:
            at += nbytes
    return 0


cdef int _reserve(Mapping* mapping, int64_t nbytes, bint huge_pages) noexcept nogil:
    """Reserve addresses, of huge pages from the boundary of one on.

    They cost nothing until they are touched. Where the system counts memory that is only
    promised (vm.overcommit_memory=2) they are without access at first.
    """
    cdef int64_t slack = HUGE_PAGE_NBYTES if huge_pages else 0
    cdef int64_t before
    cdef int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    cdef char* base = <char*>mmap(
        NULL, nbytes + slack, PROT_READ | PROT_WRITE, flags, -1, 0
    )
    mapping.is_open = base != <char*>MAP_FAILED
    if not mapping.is_open:
        base = <char*>mmap(NULL, nbytes + slack, PROT_NONE, flags, -1, 0)
    if base == <char*>MAP_FAILED:
        return ENOMEM
    if slack:
        before = (HUGE_PAGE_NBYTES - <int64_t>base % HUGE_PAGE_NBYTES) % HUGE_PAGE_NBYTES
        if before:
            munmap(base, before)
        if slack - before:
            munmap(base + before + nbytes, slack - before)
        base += before
        madvise(base, nbytes, MADV_HUGEPAGE)  # fails where there are none: all the same
    mapping.base = base
    mapping.reserved_nbytes = mapping.file_start = nbytes
    return 0


cdef int _end_file(Mapping* mapping, int64_t start, int64_t lent_stop) noexcept nogil:
    """Put memory in place of the file where it is lent out behind a page: 0, or an errno.

    In one step: what another thread stores meanwhile goes to the file or to the memory.
    """
    if start < lent_stop and mmap(
        mapping.base + start, _whole_pages(lent_stop) - start, PROT_READ | PROT_WRITE,
        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0,
    ) == MAP_FAILED:
        return errno
    return 0


cdef void _give_back(Mapping* mapping, int64_t stop) noexcept nogil:
    """Give back the addresses behind a byte: a process has few of that size."""
    cdef int64_t kept = max(_whole_pages(stop), PAGE_NBYTES)
    if kept < mapping.reserved_nbytes and munmap(
        mapping.base + kept, mapping.reserved_nbytes - kept
    ) == 0:
        mapping.file_start = min(mapping.file_start, kept)
        mapping.reserved_nbytes = kept


cdef int _extend(Mapping* mapping, int64_t nbytes) noexcept nogil:
    """Make the first `nbytes` readable. With `growing` held."""
    cdef int64_t memory_nbytes = min(_whole_pages(nbytes), mapping.file_start)
    cdef int fd
    cdef int code = 0
    if nbytes <= mapping.nbytes:
        return 0
    if (
        not mapping.is_open
        and memory_nbytes > mapping.nbytes
        and mprotect(mapping.base, memory_nbytes, PROT_READ | PROT_WRITE) != 0
    ):
        return ENOMEM
    if nbytes > mapping.file_start:
        fd = open_mapped(mapping, 0)
        if fd < 0:
            return errno
        code = _make_longer(fd, _whole_pages(nbytes))
        close(fd)
    if code == 0:
        sw_store_release(&mapping.nbytes, nbytes)
    return code


cdef int _make_longer(int fd, int64_t nbytes) noexcept nogil:
    """Make a file that long, if it is shorter.

    It may be longer, after an attempt to allocate blocks on a full disk. Others, who have
    mapped it, would be killed if it became shorter.
    """
    cdef stat status
    if fstat(fd, &status) != 0 or (
        status.st_size < nbytes and ftruncate(fd, nbytes) != 0
    ):
        return errno
    return 0


cdef int _allocate_blocks(
    Mapping* mapping, int fd, int64_t start, int64_t stop
) noexcept nogil:
    """Give a file real blocks, so that a full disk is an error here, not a SIGBUS."""
    cdef int code = 0
    sw_mutex_lock(&mapping.growing)
    while fallocate(fd, 0, start, stop - start) != 0:
        # This file system allocates when it is written.
        if errno == EOPNOTSUPP:
            mapping.no_fallocate = True
            code = _extend(mapping, stop)
            break
        if errno != EINTR:
            code = errno
            break
    if code == 0 and stop > mapping.nbytes:
        sw_store_release(&mapping.nbytes, stop)
    sw_mutex_unlock(&mapping.growing)
    return code


cdef int write_zeros(int fd, int64_t start, int64_t stop) noexcept nogil:
    cdef int64_t nbytes
    cdef int code = 0
    while start < stop and code == 0:
        nbytes = min(ZEROS_NBYTES - start % ZEROS_NBYTES, stop - start)
        code = sw_pwrite(fd, sw_zeros, nbytes, start)
        start += nbytes
    return code


cdef bint _is_not_zero(const char* data, int64_t nbytes) noexcept nogil:
    cdef const int64_t* words = <const int64_t*>data  # whole pages
    cdef int64_t i
    for i in range((nbytes + 7) // 8):
        if words[i]:
            return True
    return False


cdef int open_mapped(Mapping* mapping, int flags) noexcept nogil:
    """Open the file that is mapped, and no other that has come in its place."""
    cdef stat status
    cdef int fd = open(mapping.path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | flags)
    if fd >= 0 and (
        fstat(fd, &status) != 0
        or status.st_dev != mapping.device
        or status.st_ino != mapping.inode
    ):
        close(fd)
        libc.errno.errno = ESTALE
        return -1
    return fd


cdef int64_t _whole_pages(int64_t nbytes) noexcept nogil:
    return (nbytes + PAGE_NBYTES - 1) // PAGE_NBYTES * PAGE_NBYTES


cdef char* _map_mirrored(int fd, int64_t nbytes, int access) noexcept nogil:
    """Map a file behind itself; NULL with an errno if that cannot be."""
    cdef char* base = <char*>mmap(
        NULL, 2 * nbytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
    )
    cdef int i
    if base == <char*>MAP_FAILED:
        return NULL
    for i in range(2):
        if mmap(
            base + i * nbytes, nbytes, access, MAP_SHARED | MAP_FIXED, fd, 0
        ) == MAP_FAILED:
            munmap(base, 2 * nbytes)
            return NULL
    return base


@cython.final
cdef class MappedRing:
    """See `mapped.pyi`."""

    cdef char* _base
    cdef int64_t _nbytes
    cdef object _path

    def __cinit__(self, nbytes, path=None):
        cdef int64_t wanted = nbytes
        cdef int fd, code = 0
        cdef Mapping mapping
        if path is None:
            fd = os.memfd_create("scratchwriter", os.MFD_CLOEXEC)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        with nogil:
            if ftruncate(fd, wanted) != 0 or fallocate(fd, 0, 0, wanted) != 0:
                code = errno
                if code == EOPNOTSUPP:  # this file system allocates when it is written
                    code = write_zeros(fd, 0, wanted)
            if code == 0:
                self._base = _map_mirrored(fd, wanted, PROT_READ | PROT_WRITE)
                code = 0 if self._base != NULL else errno
        os.close(fd)
        if code != 0 and path is not None:
            os.unlink(path)
        if code == ENOMEM or code != 0 and path is None:
            raise MemoryError(f"the system refuses a ring of {nbytes} bytes")
        if code != 0:
            raise disk_error(code, path, nbytes)
        self._nbytes, self._path = wanted, path
        mapping.base, mapping.nbytes = self._base, 2 * wanted
        with nogil:
            populate(&mapping, 0, 2 * wanted)  # no more than advice

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, 2 * self._nbytes)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("a region is read-only from Python")
        PyBuffer_FillInfo(buffer, self, self._base, 2 * self._nbytes, True, flags)

    @property
    def path(self):
        return self._path

    @property
    def address(self):
        return <uintptr_t>self._base

    @property
    def memory(self):
        return self

    @property
    def moves(self):
        return False

    @property
    def nbytes(self):
        return self._nbytes

    @property
    def memory_nbytes(self):
        return self._nbytes if self._path is None else 0

    def extend(self, nbytes):
        if nbytes > self._nbytes:
            raise MemoryError("a ring does not grow")

    def allocate(self, start, stop):
        self.extend(stop)

    def populate(self, start, stop):
        pass  # all was, when it was made

    def spill(self, path, start):
        raise MemoryError("a ring does not leave memory")

    def save(self):
        pass

    def save_as(self, path, nbytes):
        raise MemoryError("a ring does not leave memory")

    @property
    def is_saved(self):
        return True

    def end(self, nbytes, lent_stop=0):
        pass

    def trim(self, nbytes):
        pass

    def array(self, dtype, shape, start=0):
        return np.ndarray(shape, dtype, buffer=self, offset=start)


def map_ring(path, nbytes):
    return memoryview(_RingView(path, nbytes))


@cython.final
cdef class _RingView:
    """The bytes of a ring's file, read-only, twice."""

    cdef char* _base
    cdef int64_t _nbytes

    def __cinit__(self, path, nbytes):
        with open_regular(path) as file:
            if not 0 < nbytes <= os.fstat(file.fileno()).st_size:
                raise ValueError(f"it has not the {nbytes} bytes of its ring")
            self._base = _map_mirrored(file.fileno(), nbytes, PROT_READ)
            if self._base == NULL:
                raise disk_error(errno, path)
            self._nbytes = nbytes

    def __dealloc__(self):
        if self._base != NULL:
            munmap(self._base, 2 * self._nbytes)

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self._base, 2 * self._nbytes, True, flags)
