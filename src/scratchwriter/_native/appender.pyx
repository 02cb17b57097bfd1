# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The ways in from Python: one frame, a batch, slots that are filled in place.

All end in a table of `Frame` (see _core.pxd) for the writer. What is in it is kept alive by
the Python objects that it was made of, until the writer has it.

Slots: a `Slot` is a lease on the writer's memory: no frame is stored there before the slot
is left. Its array keeps that memory alive, and is read-only from then on.
"""

cimport cython
cimport numpy as cnp
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.number cimport PyNumber_Index
from cpython.object cimport PyObject, PyTypeObject
from cpython.pycapsule cimport PyCapsule_GetContext, PyCapsule_New, PyCapsule_SetContext
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free, malloc

from scratchwriter cimport SCRATCHWRITER_CAPSULE, SCRATCHWRITER_MOST_SLOTS
from scratchwriter._native.c_api cimport fill_c_stream
from scratchwriter._native.convert cimport as_batch, as_stamp, as_stamps
from scratchwriter._core cimport UNKNOWN, Frame, FrameWriter

from collections.abc import Mapping

cnp.import_array()

cdef extern from "numpy/arrayobject.h":
    PyTypeObject PyArray_Type
    object PyArray_NewFromDescr(
        PyTypeObject* subtype, cnp.dtype descr, int nd, const cnp.npy_intp* dims,
        const cnp.npy_intp* strides, void* data, int flags, PyObject* obj,
    )


# ------------------------------------------------------------------- tables of frames

cdef list bodies_of(FrameWriter writer, object frame_metadata, int64_t count):
    if frame_metadata is None:
        return None
    if isinstance(frame_metadata, Mapping):
        raise TypeError(
            "frame_metadata of several frames must be a list with a dict, or None, for "
            "each frame, got one dict."
        )
    bodies = [
        None if metadata is None else writer._encode_metadata(metadata)
        for metadata in frame_metadata
    ]
    if len(bodies) != count:
        raise ValueError(
            f"frame_metadata has {len(bodies)} entries for {count} frames: give one "
            "for each, None where there is none."
        )
    return bodies


cdef int set_extras(
    Frame* table, int64_t count, list bodies, cnp.ndarray times, cnp.ndarray ids
) except -1:
    cdef int64_t i
    for i in range(count):
        table[i].body = NULL
        table[i].body_nbytes = 0
        if bodies is not None and bodies[i] is not None:
            table[i].body = PyBytes_AS_STRING(bodies[i])
            table[i].body_nbytes = PyBytes_GET_SIZE(bodies[i])
        table[i].timestamp_ns = table[i].frame_id = UNKNOWN
        if times is not None:
            table[i].timestamp_ns = (<int64_t*>cnp.PyArray_DATA(times))[i]
        if ids is not None:
            table[i].frame_id = (<int64_t*>cnp.PyArray_DATA(ids))[i]
    return 0


cdef int put_all(
    FrameWriter writer, object frames, object frame_metadata, object timestamps_ns,
    object frame_ids,
) except -1:
    """Store many frames: all of them, or none."""
    cdef cnp.ndarray array = None
    cdef cnp.ndarray times = None
    cdef cnp.ndarray ids = None
    cdef list arrays, bodies
    cdef Frame* table
    cdef int64_t count, i
    batch = as_batch(frames)
    if batch is not None:
        array = writer._spec.as_frames(batch)
        count = cnp.PyArray_DIM(array, 0)
    else:
        arrays = []
        # What makes them one by one may use the same memory for each.
        copies = not isinstance(frames, (list, tuple))
        for i, frame in enumerate(frames):
            try:
                one = writer._spec.as_frame(frame)
            except ValueError as error:
                raise ValueError(f"Frame {i} of the batch: {error}") from None
            arrays.append(one.copy() if copies else one)
        count = len(arrays)
    bodies = bodies_of(writer, frame_metadata, count)
    times = as_stamps(timestamps_ns, count, "timestamps_ns")
    ids = as_stamps(frame_ids, count, "frame_ids")
    if count == 0:
        return 0
    table = <Frame*>malloc(count * sizeof(Frame))
    if table == NULL:
        raise MemoryError(f"table of {count} frames")
    try:
        for i in range(count):
            if array is not None:
                table[i].data = (
                    cnp.PyArray_BYTES(array) + i * cnp.PyArray_STRIDE(array, 0)
                )
                table[i].pitch_nbytes = cnp.PyArray_STRIDE(array, 1)
            else:
                table[i].data = cnp.PyArray_BYTES(<cnp.ndarray>arrays[i])
                table[i].pitch_nbytes = cnp.PyArray_STRIDE(<cnp.ndarray>arrays[i], 0)
        set_extras(table, count, bodies, times, ids)
        return writer.put_frames("append", table, count, 0)
    finally:
        free(table)


# --------------------------------------------------------------------------- classes

@cython.final
@cython.no_gc_clear  # a slot may still need it
cdef class Appender:
    """The way in: whoever holds it, or its `append`, keeps the acquisition going."""

    cdef FrameWriter _writer
    cdef object __weakref__

    def __cinit__(self, FrameWriter writer not None):
        self._writer = writer
        fill_c_stream(writer)

    def append(self, frame, *, frame_metadata=None, timestamp_ns=None, frame_id=None):
        """append($self, frame, *, frame_metadata=None, timestamp_ns=None, frame_id=None)
--

Store the next frame."""
        self._writer.put(frame, frame_metadata, timestamp_ns, frame_id)

    def extend(self, frames, *, frame_metadata=None, timestamps_ns=None, frame_ids=None):
        """extend($self, frames, *, frame_metadata=None, timestamps_ns=None, frame_ids=None)
--

Store the next frames."""
        put_all(self._writer, frames, frame_metadata, timestamps_ns, frame_ids)

    def slot(self, *, frame_metadata=None, timestamp_ns=None, frame_id=None):
        return make_slot(self, 0, frame_metadata, timestamp_ns, frame_id)

    def slots(self, n, *, frame_metadata=None, timestamps_ns=None, frame_ids=None):
        count = PyNumber_Index(n)
        if not 0 < count <= SCRATCHWRITER_MOST_SLOTS:
            raise ValueError(
                f"slots({count}): the number must be from 1 to {SCRATCHWRITER_MOST_SLOTS}."
            )
        return make_slot(self, count, frame_metadata, timestamps_ns, frame_ids)

    @property
    def capsule(self):
        capsule = PyCapsule_New(
            &self._writer._c_stream, SCRATCHWRITER_CAPSULE, release_capsule
        )
        PyCapsule_SetContext(capsule, <void*>self)
        Py_INCREF(self)
        return capsule


cdef void release_capsule(object capsule) noexcept:
    Py_DECREF(<object>PyCapsule_GetContext(capsule))


@cython.final
@cython.no_gc_clear
@cython.freelist(4)
cdef class Slot:
    """The memory of the next frame, or frames, open to be filled in place.

    A context manager; see `ScratchStream.slot` and `ScratchStream.slots`.
    """

    cdef Appender _appender
    cdef int64_t _count           # of frames; 0: one, and the array is 2-D
    cdef int64_t _serial          # of the lease; 0: not open
    cdef bint _is_used            # or was
    cdef cnp.ndarray _array
    cdef public object frame_metadata, timestamp_ns, frame_id, num_filled

    # The names of `slots(n, ...)`
    @property
    def timestamps_ns(self):
        return self.timestamp_ns

    @timestamps_ns.setter
    def timestamps_ns(self, values):
        self.timestamp_ns = values

    @property
    def frame_ids(self):
        return self.frame_id

    @frame_ids.setter
    def frame_ids(self, values):
        self.frame_id = values

    def __init__(self):
        raise TypeError("a Slot is made by ScratchStream.slot() or slots()")

    def __dealloc__(self):
        if self._serial:
            if self._array is not None:  # else it could not be made
                cnp.PyArray_CLEARFLAGS(self._array, cnp.NPY_ARRAY_WRITEABLE)
            self._appender._writer.give_back(self._serial)

    def __enter__(self):
        cdef FrameWriter writer = self._appender._writer
        cdef cnp.npy_intp shape[3]
        cdef char* address = NULL
        cdef bint was_used
        with cython.critical_section(self):  # of two threads one enters it
            was_used, self._is_used = self._is_used, True
        if was_used:
            raise RuntimeError(
                "This slot is open or was used: take another one, stream.slot(), for each "
                "frame."
            )
        shape[0] = self._count
        shape[1], shape[2] = writer._height, writer._width
        try:
            self._check_given()
            owner = writer.lend(max(self._count, 1), &address, &self._serial)
        except BaseException:
            self._is_used = False
            raise
        Py_INCREF(writer._dtype)  # which the array takes over
        try:
            self._array = PyArray_NewFromDescr(
                &PyArray_Type, <cnp.dtype>writer._dtype, 3 if self._count else 2,
                &shape[0] if self._count else &shape[1], NULL, address,
                cnp.NPY_ARRAY_CARRAY, NULL,
            )
        except MemoryError:
            writer.give_back(self._serial)
            self._serial = 0
            raise
        cnp.set_array_base(self._array, owner)
        return self._array

    def __exit__(self, exc_type, exc_value, traceback):
        cdef FrameWriter writer = self._appender._writer
        cdef cnp.ndarray array
        cdef int64_t serial
        cdef int64_t count = max(self._count, 1)
        cdef Frame one
        cdef Frame* table = &one
        cdef bint is_stored = False
        with cython.critical_section(self):  # of two threads one leaves it
            serial, array = self._serial, self._array
            self._serial, self._array = 0, None
        if serial == 0:
            raise RuntimeError("This slot is not open: use it in a `with` statement.")
        cnp.PyArray_CLEARFLAGS(array, cnp.NPY_ARRAY_WRITEABLE)
        try:
            if exc_type is None:
                if self.num_filled is not None:
                    filled = PyNumber_Index(self.num_filled)
                    if not 0 <= filled <= count:
                        raise ValueError(
                            f"num_filled={filled}: it must be from 0 to {count}, the "
                            "number of frames reserved."
                        )
                    count = filled
                if self._count == 0:
                    bodies = self._fill_one(&one)
                else:
                    bodies = bodies_of(
                        writer, self._of_filled(self.frame_metadata, count), count
                    )
                    times = as_stamps(
                        self._of_filled(self.timestamp_ns, count), count, "timestamps_ns"
                    )
                    ids = as_stamps(
                        self._of_filled(self.frame_id, count), count, "frame_ids"
                    )
                    table = <Frame*>calloc(max(count, 1), sizeof(Frame))
                    if table == NULL:
                        raise MemoryError(f"table of {count} frames")
                    set_extras(table, count, bodies, times, ids)
                writer.put_frames("commit", table, count, serial)
                is_stored = True
        finally:
            if not is_stored:
                writer.give_back(serial)
            if table != &one:
                free(table)
        return False

    def __array__(self, dtype=None, copy=None):
        raise TypeError("A slot is no array: `with stream.slot() as frame:` gives one.")

    def __getitem__(self, key):
        return self.__array__()

    def __setitem__(self, key, value):
        self.__array__()

    def __repr__(self):
        state = "open" if self._serial else "left" if self._is_used else "not open yet"
        return f"<Slot of {max(self._count, 1)} frames, {state}>"

    cdef int _check_given(self) except -1:
        """Refuse what is given with a slot before a camera fills it."""
        cdef FrameWriter writer = self._appender._writer
        cdef Frame one
        if self._count == 0:
            self._fill_one(&one)
            return 0
        if self.frame_metadata is not None:
            if not isinstance(self.frame_metadata, Mapping):
                self.frame_metadata = list(self.frame_metadata)
            bodies_of(writer, self.frame_metadata, self._count)
        as_stamps(self.timestamp_ns, self._count, "timestamps_ns")
        as_stamps(self.frame_id, self._count, "frame_ids")
        return 0

    cdef object _of_filled(self, object values, int64_t count):
        """Leave out what was given for frames that were reserved and not filled."""
        if values is not None and len(values) == self._count:
            return values[:count]
        return values

    cdef bytes _fill_one(self, Frame* one):
        """Fill in what is given; return the body of its line, which `one` points into."""
        cdef bytes body = None
        one.data = NULL
        one.pitch_nbytes = 0
        one.body = NULL
        one.body_nbytes = 0
        one.timestamp_ns = one.frame_id = UNKNOWN
        if self.frame_metadata is not None:
            body = self._appender._writer._encode_metadata(self.frame_metadata)
            one.body = PyBytes_AS_STRING(body)
            one.body_nbytes = PyBytes_GET_SIZE(body)
        if self.timestamp_ns is not None:
            one.timestamp_ns = as_stamp(self.timestamp_ns, "timestamp_ns")
        if self.frame_id is not None:
            one.frame_id = as_stamp(self.frame_id, "frame_id")
        return body


cdef Slot make_slot(
    Appender appender, int64_t count, object frame_metadata, object timestamp_ns,
    object frame_id,
):
    cdef Slot slot = Slot.__new__(Slot)
    slot._appender = appender
    slot._count = count
    slot.frame_metadata = frame_metadata
    slot.timestamp_ns, slot.frame_id = timestamp_ns, frame_id
    return slot
