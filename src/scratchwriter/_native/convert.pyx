"""What a camera loop gives, as C and numpy take it: frames, numbers, metadata.

Knows nothing of a writer; everything needs the GIL, and raises.
"""

cimport numpy as cnp
from cpython.bool cimport PyBool_Check
from cpython.dict cimport PyDict_Next
from cpython.float cimport PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.number cimport PyIndex_Check, PyNumber_Index
from cpython.object cimport PyObject
from cpython.unicode cimport PyUnicode_CheckExact
from libc.stdint cimport int64_t

import numpy as np

cdef extern from "Python.h":
    bint PyUnicode_IS_ASCII(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)

cnp.import_array()


cdef int64_t as_stamp(object value, str name) except? -2:
    cdef int overflow = 0
    cdef int64_t number
    if not PyIndex_Check(value) or PyBool_Check(value):
        raise TypeError(
            f"{name} must be an integer, got {value!r}. A time is in nanoseconds: "
            "round(1e9 * time_s)."
        )
    number = PyLong_AsLongLongAndOverflow(PyNumber_Index(value), &overflow)
    if number < 0 or overflow:
        raise ValueError(
            f"{name}={value}: it must be from 0 to 2**63 - 1. Leave it out if it is not "
            "known."
        )
    return number


cdef cnp.ndarray as_stamps(object values, int64_t count, str name):
    if values is None:
        return None
    stamps = np.asarray(values)
    if stamps.size == 0:
        stamps = stamps.astype(np.int64)  # an empty list has no dtype of its own
    if stamps.shape != (count,) or stamps.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {stamps.shape} and dtype {stamps.dtype}, expected a list "
            f"or an array with one integer for each of {count} frames."
        )
    if count and not -1 <= int(stamps.min()) <= int(stamps.max()) < 1 << 63:
        raise ValueError(
            f"{name} has {stamps.min()} to {stamps.max()}: each must be from 0 to "
            "2**63 - 1, or -1 if it is not known."
        )
    return np.ascontiguousarray(stamps, np.int64)


cdef object as_array(object frame, object dtype, tuple shape):
    """Make a numpy array of a frame of any kind: of its own memory, wherever it can be."""
    if isinstance(frame, np.ndarray):
        return np.asarray(frame)
    if hasattr(type(frame), "__dlpack_device__"):
        device = frame.__dlpack_device__()[0]
        if device not in (1, 3, 11, 13):  # CPU, or memory that the CPU can reach, too
            raise ValueError(
                f"Frame ({type(frame).__name__}) is in the memory of a GPU (DLPack device "
                f"type {int(device)}). Copy it to the host first: tensor.cpu(), or "
                "cupy.asnumpy(array)."
            )
        return np.from_dlpack(frame)
    if hasattr(type(frame), "__cuda_array_interface__"):
        raise ValueError(
            f"Frame ({type(frame).__name__}) is in the memory of a GPU. Copy it to the "
            "host first: cupy.asnumpy(array)."
        )
    if not isinstance(frame, (list, tuple)):
        try:
            view = memoryview(frame)
        except TypeError:
            pass  # not a buffer
        else:
            if view.ndim == 1 and view.c_contiguous:
                # A frame's bytes, or its pixels, one after the other.
                pixels = shape[0] * shape[1]
                is_raw = view.format.lstrip("@=<>!") in ("B", "c", "b")
                if dtype.itemsize == 1:
                    # Signed bytes are pixels of another dtype, and any are to a bool.
                    is_raw = is_raw and view.format[-1] != "b" and dtype.kind != "b"
                if is_raw and view.nbytes == pixels * dtype.itemsize:
                    return np.frombuffer(view, dtype).reshape(shape)
                if len(view) == pixels:
                    return np.asarray(view).reshape(shape)
                raise ValueError(
                    f"Frame ({type(frame).__name__}) is a buffer of {view.nbytes} bytes, "
                    f"expected {pixels} pixels of {dtype}, {pixels * dtype.itemsize} "
                    "bytes. Append one frame at a time, whole, or set the dimensions' "
                    "counts and the settings' dtype to the camera's."
                )
        try:
            return np.asarray(frame)
        except ValueError as error:
            raise ValueError(
                f"Frame ({type(frame).__name__}) is a buffer that cannot be read: {error}. "
                "If it is a pointer, it has no size: append "
                "numpy.ctypeslib.as_array(pointer, (height, width))."
            ) from None
    return np.asarray(frame)


cdef object as_batch(object frames):
    """Make a numpy array of frames that are one thing in memory; of others, None."""
    if isinstance(frames, np.ndarray):
        return np.asarray(frames)
    if isinstance(frames, (list, tuple)):
        return None
    if hasattr(type(frames), "__dlpack_device__"):
        return as_array(frames, None, ())
    if hasattr(frames, "__array_interface__"):
        return np.asarray(frames)
    try:
        return np.asarray(memoryview(frames))
    except TypeError:
        return None  # not a buffer


cdef inline bint fits_in_64_bits(object number) except -1:
    cdef int overflow = 0
    PyLong_AsLongLongAndOverflow(number, &overflow)
    return not overflow


cdef Py_ssize_t MOST_PLAIN_LENGTH = 1 << 20


def plain_text(dict metadata not None):
    cdef PyObject* key
    cdef PyObject* value
    cdef Py_ssize_t at = 0
    cdef bint is_ascii = True
    cdef Py_ssize_t length = 0
    while PyDict_Next(metadata, &at, &key, &value):
        if not PyUnicode_CheckExact(<object>key):
            return None
        is_ascii &= PyUnicode_IS_ASCII(<object>key)
        if PyUnicode_CheckExact(<object>value):
            is_ascii &= PyUnicode_IS_ASCII(<object>value)
            length += PyUnicode_GET_LENGTH(<object>value)
        elif not (
            PyLong_CheckExact(<object>value) and fits_in_64_bits(<object>value)
            or PyFloat_CheckExact(<object>value)
            or PyBool_Check(<object>value)
            or <object>value is None
        ):
            return None
    if length > MOST_PLAIN_LENGTH:
        return None  # it may be more than a line holds
    return "ascii" if is_ascii else "unicode"
