"""A guard of an object's calls: none runs in the middle of another one of the same thread.

A thread can leave a call in its middle: a signal handler runs, or garbage is collected, and
either may call the same object. What it calls there must not wait for a lock that its own
thread holds, and must not find the object half changed.

This is compiled because no interrupt can come between a lock and the code that releases it:
Python looks for signals, and traces lines, between its own bytecodes only.
"""

cimport cython

from threading import get_ident


cpdef int run_all(list actions) except -1:
    cdef object first = None
    for action in actions:
        try:
            action()
        except BaseException as error:
            first = first or error
    if first is not None:
        raise first
    return 0


@cython.final
cdef class CallGuard:
    """Knows which threads are in the middle of a call. See `call_guard.pyi`."""

    cdef dict _deferred  # per thread that is in a call: what it does afterwards

    def __cinit__(self):
        self._deferred = {}

    def run(self, action, *locks, what=""):
        cdef object me = get_ident()
        cdef list deferred
        cdef Py_ssize_t taken = 0
        if me in self._deferred:
            if locks:
                raise RuntimeError(
                    f"Cannot {what} in the middle of another call of this thread (from a "
                    "signal handler, say): call it again later."
                )
            return action()
        self._deferred[me] = deferred = []
        try:
            for lock in locks:
                lock.acquire()
                taken += 1
            return action()
        finally:
            for lock in locks[:taken][::-1]:
                lock.release()
            del self._deferred[me]
            run_all(deferred)

    def after(self, action):
        cdef list deferred = self._deferred.get(get_ident())
        if deferred is None:
            action()
        else:
            deferred.append(action)
