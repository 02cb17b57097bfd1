"""What users read: live, read-only arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt


class ArrayView:
    """The array of one position, read-only, growing with the frames.

    Indexing gives numpy arrays and scalars as `numpy.ndarray` does: views of the stored
    data, without a copy. They stay valid as long as anyone holds them, also after the
    stream is closed; where nothing was written they are zero.
    """

    __slots__ = ("_current",)

    def __init__(self, current: Callable[[], npt.NDArray[Any]]) -> None:
        self._current = current

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at this moment, in storage order."""
        return self._current().shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the pixels."""
        return self._current().dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self._current().ndim

    def __len__(self) -> int:
        return len(self._current())

    def __getitem__(self, key: Any) -> Any:
        return self._current()[key]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        return np.array(self._current(), dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<ArrayView shape={self.shape} dtype={self.dtype}>"
