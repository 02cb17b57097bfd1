"""See frame_spec.pxd. Everything here needs the GIL, and raises."""

cimport cython
cimport numpy as cnp

from scratchwriter._native.convert cimport as_array

import numpy as np

cnp.import_array()


@cython.final
cdef class FrameSpec:
    """Checks frames. See `frame_spec.pyi`."""

    def __cinit__(self, plan, casting):
        self.dtype = plan.dtype
        self._casting = casting
        self._dims = ", ".join(plan.file_dims[len(plan.file_axes):])
        self.height, self.width = plan.frame_shape

    cdef cnp.ndarray as_frame(self, object frame):
        """Check a frame of any kind; return it with whole rows and the right dtype."""
        array = as_array(frame, self.dtype, (self.height, self.width))
        expected = (self.height, self.width)
        if array.ndim == 0:
            raise ValueError(
                f"Frame ({type(frame).__name__}) has shape (), expected {expected} "
                f"({self._dims}): it is neither an array nor a buffer. Append a 2-D "
                "array of that shape; of what is at an address, "
                "numpy.ctypeslib.as_array(pointer, shape) or ffi.buffer(pointer)."
            )
        if array.shape != expected:
            raise ValueError(
                f"Frame ({type(frame).__name__}) has shape {array.shape}, expected "
                f"{expected} ({self._dims}). Append a 2-D array of that shape, or "
                "set the count of these dimensions to the camera's."
            )
        return self._as_rows(array, frame)

    cdef cnp.ndarray as_frames(self, object frames):
        """Check an array of frames; return it with whole rows and the right dtype."""
        array = frames
        expected = (self.height, self.width)
        if array.ndim != 3 or array.shape[1:] != expected:
            raise ValueError(
                f"The batch has shape {array.shape}, expected (n, {self.height}, "
                f"{self.width}) (n, {self._dims}). Append a 3-D array of n frames "
                "of that shape, or a list of frames."
            )
        return self._as_rows(array, frames)

    def _as_rows(self, array, given):
        if array.dtype.kind not in "biufc":
            raise ValueError(
                f"Frame has dtype {array.dtype}, expected {self.dtype}: it holds no "
                "pixels. Convert it to a bool, integer, float or complex dtype."
            )
        if array.dtype != self.dtype and not np.can_cast(
            array.dtype, self.dtype, self._casting
        ):
            if isinstance(given, (list, tuple)):
                # Plain numbers have no dtype to respect: what counts is their values.
                with np.errstate(all="ignore"):
                    cast = array.astype(self.dtype)
                if np.array_equal(cast, array, equal_nan=array.dtype.kind in "fc"):
                    return cast
            raise ValueError(
                f"Frame has dtype {array.dtype}, which does not cast to the stream's "
                f"{self.dtype} by the rule {self._casting!r}. Convert the frame, set "
                f"the settings' dtype to {array.dtype.name!r}, or allow the cast with "
                "ScratchFormat(casting='same_kind' or 'unsafe')."
            )
        itemsize = self.dtype.itemsize
        if array.dtype == self.dtype and array.strides[array.ndim - 1] == itemsize:
            return array  # rows with gaps between them need no copy
        return np.ascontiguousarray(array, self.dtype)
