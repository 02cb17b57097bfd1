"""A file descriptor that closes itself.

A number in a variable of Python is lost when a KeyboardInterrupt comes between the call
that opens and the line that is responsible for it. Here no bytecode runs in between. (That
holds for the number. A *file* that is made stays, and its caller removes it.)

Forks: a `flock` belongs to the open file, which a forked child has, too; the lock would
live as long as the child. So descriptors that hold locks are kept in a list, which the
child closes. `_forking` guards the list, and is held while one of them is opened, and
while any is closed: a fork waits for that. It is never waited for with the GIL held.
"""

import os
import sys

cimport cython
from libc.errno cimport EINTR, errno

from cpython.exc cimport PyErr_CheckSignals

from scratchwriter._region.platform cimport (
    sw_mutex,
    sw_mutex_init,
    sw_mutex_lock,
    sw_mutex_unlock,
)

cdef extern from * nogil:
    """
    #include <fcntl.h>
    #ifdef _WIN32
    #include <io.h>
    #define sw_open _open
    #define sw_close _close
    #define SW_OPEN_FLAGS (_O_BINARY | _O_NOINHERIT)
    #else
    #include <unistd.h>
    #define sw_open open
    #define sw_close close
    #define SW_OPEN_FLAGS O_CLOEXEC
    #endif
    """
    int sw_open(const char* path, int flags, int mode)
    int sw_close(int fd)
    int SW_OPEN_FLAGS

cdef struct Link:
    int fd
    Link* before
    Link* after

cdef sw_mutex _forking
cdef Link _in_children  # closed there: between the first and the last
sw_mutex_init(&_forking)
_in_children.before = _in_children.after = &_in_children


cdef void _insert(Link* link) noexcept nogil:
    link.before, link.after = &_in_children, _in_children.after
    link.after.before = link.before.after = link


cdef void _remove(Link* link) noexcept nogil:
    link.before.after, link.after.before = link.after, link.before
    link.before = link.after = NULL


@cython.final
cdef class Descriptor:
    """See `descriptor.pyi`."""

    cdef object __weakref__
    cdef Link _link
    cdef bint _closed_in_children

    def __cinit__(self, path, int flags, int mode=0o666, *, bint closed_in_children=False):
        self._link.fd = -1
        self._closed_in_children = closed_in_children
        if sys.platform == "win32":  # which has names that are no bytes, and no forks
            self._link.fd = os.open(path, flags | SW_OPEN_FLAGS, mode)
            return
        cdef bytes encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise ValueError("embedded null byte")
        cdef const char* name = encoded
        cdef int code = EINTR
        while code == EINTR:
            PyErr_CheckSignals()
            with nogil:
                code = self._open(name, flags, mode)
        if code != 0:
            raise OSError(code, os.strerror(code), os.fspath(path))

    cdef int _open(self, const char* name, int flags, int mode) noexcept nogil:
        cdef int code = 0
        if self._closed_in_children:
            sw_mutex_lock(&_forking)
        self._link.fd = sw_open(name, flags | SW_OPEN_FLAGS, mode)
        if self._link.fd < 0:
            code = errno
        if self._closed_in_children:
            if code == 0:
                _insert(&self._link)
            sw_mutex_unlock(&_forking)
        return code

    cdef int _close(self) noexcept nogil:
        cdef int code = 0
        cdef int fd
        sw_mutex_lock(&_forking)  # of two threads that close it, one does
        fd, self._link.fd = self._link.fd, -1
        if fd >= 0 and sw_close(fd) != 0:
            code = errno
        if self._link.after != NULL:
            _remove(&self._link)
        sw_mutex_unlock(&_forking)
        return code

    def __dealloc__(self):
        if self._link.fd >= 0:
            with nogil:
                self._close()

    def fileno(self):
        if self._link.fd < 0:
            raise ValueError("The file is closed.")
        return self._link.fd

    @property
    def closed(self):
        return self._link.fd < 0

    def close(self):
        cdef int code
        with nogil:
            code = self._close()
        if code != 0:
            raise OSError(code, os.strerror(code))

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        return f"<Descriptor {self._link.fd if self._link.fd >= 0 else 'closed'}>"


def before_fork():
    with nogil:
        sw_mutex_lock(&_forking)


def after_fork_in_parent():
    sw_mutex_unlock(&_forking)


def after_fork_in_child():
    cdef Link* link = _in_children.after
    while link != &_in_children:
        sw_close(link.fd)
        link.fd = -1
        _remove(link)
        link = _in_children.after
    sw_mutex_init(&_forking)  # threads that waited for it are not here


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=before_fork,
        after_in_parent=after_fork_in_parent,
        after_in_child=after_fork_in_child,
    )
