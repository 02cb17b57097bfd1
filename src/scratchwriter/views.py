"""What users read: live, read-only arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from numpy.lib.mixins import NDArrayOperatorsMixin

from scratchwriter.coords import CoordSystem, Names, newest_steps
from scratchwriter.events import Events, Listener, need_callback
from scratchwriter.plan import FramePlan

Array = npt.NDArray[Any]
# An array, and what makes a view of it right before it is read.
LazyArray: TypeAlias = tuple[Array, Callable[[Array], None]]


class _WithOperators(NDArrayOperatorsMixin):
    """Operators and functions of numpy, on the values at this moment."""

    __slots__ = ()
    # By identity, though == compares the values: what is shown is a key of viewers.
    __hash__ = object.__hash__

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **kwargs: Any
    ) -> Any:
        if any(isinstance(array, _WithOperators) for array in out):
            raise TypeError(
                f"{type(self).__name__} is read-only: let {ufunc.__name__} make an array, "
                "or give another `out`."
            )
        plain = [np.asarray(i) if isinstance(i, _WithOperators) else i for i in inputs]
        if out:
            kwargs["out"] = out
        return getattr(ufunc, method)(*plain, **kwargs)


class ArrayView(_WithOperators):
    """The array of one position, read-only, growing with the frames.

    Indexing gives numpy arrays and scalars as `numpy.ndarray` does: views of the stored
    data, without a copy. They stay valid as long as they are referenced, also after the
    stream is closed; where nothing was written they are zero. Of a dataset that another
    process is recording, index again to see newer frames.
    """

    __slots__ = ("_current", "_dtype", "_shape")

    def __init__(
        self,
        current: Callable[[], LazyArray],
        shape: Callable[[], tuple[int, ...]],
        dtype: np.dtype[Any],
    ) -> None:
        self._current, self._shape, self._dtype = current, shape, dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at this moment, in storage order."""
        return self._shape()

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the pixels."""
        return self._dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._shape())

    def __len__(self) -> int:
        return self._shape()[0]

    def __getitem__(self, key: Any) -> Any:
        array, make_ready = self._current()
        make_ready(_spanned(array, key if isinstance(key, tuple) else (key,)))
        return array[key]

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> npt.NDArray[Any]:
        array, make_ready = self._current()
        make_ready(array)
        return np.array(array, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"<ArrayView shape={self.shape} dtype={self.dtype}>"


class _Viewed(Protocol):
    """A stream or a dataset."""

    def view(self, *, dynamic_shape: bool, strict: bool) -> StreamView: ...


class CoordsChanged:
    """Calls callbacks when a view shows more coordinates; off the appending thread."""

    __slots__ = ("_events", "_listeners", "_owner")

    def __init__(self, events: Events | None, owner: object = None) -> None:
        self._events = events  # None: what is shown does not change
        self._owner = owner  # whose end would end the listeners
        self._listeners: list[tuple[Callable[[], object], Listener | None]] = []

    def connect(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call a callback, without arguments, from now on; return it."""
        need_callback(callback)
        listener = None
        if self._events is not None:
            listener = self._events.on("coords_expanded", lambda _: callback(), self._owner)
        self._listeners.append((callback, listener))
        return callback

    def disconnect(self, callback: Callable[[], object]) -> None:
        """Stop calling a callback.

        Raises
        ------
        ValueError
            If it is not connected.
        """
        for i, (connected, listener) in enumerate(self._listeners):
            if connected == callback:
                del self._listeners[i]
                if listener is not None:
                    listener.stop()
                return
        raise ValueError(f"{callback!r} is not connected")


class StreamView(_WithOperators):
    """An acquisition as one array: all positions, in acquisition order, live, read-only.

    It has the shape of what has come so far (or, with `dynamic_shape=False`, of what is
    planned), and numpy's indexing; what is not written yet is zero. Integers, slices,
    Ellipsis and None give a view of the stored data if they select from one position, else
    a read-only copy of what they select. Other indices copy everything. Integers beyond
    what has come, but within what is planned, give zeros, too, unless the view is `strict`.
    """

    def __init__(
        self,
        plan: FramePlan,
        coords: CoordSystem,
        cursor: Callable[[], int],
        storage_array: Callable[[int, int], LazyArray],
        events: Events,
        *,
        dynamic_shape: bool = True,
        strict: bool = False,
        owner: object = None,
    ) -> None:
        self._plan, self._coords = plan, coords
        self._cursor, self._storage_array = cursor, storage_array
        self._is_dynamic, self._is_strict = dynamic_shape, strict
        changes = dynamic_shape or plan.is_unbounded
        self._coords_changed = CoordsChanged(events if changes else None, owner)

    @classmethod
    def from_stream(
        cls, stream: _Viewed, *, dynamic_shape: bool = True, strict: bool = False
    ) -> StreamView:
        """Return the view of a stream or dataset; the same as its `view` method."""
        return stream.view(dynamic_shape=dynamic_shape, strict=strict)

    # ------------------------------------------------------------------------ properties

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape at this moment, in acquisition order, frames last."""
        return self._shape(self._cursor())

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the pixels."""
        return self._plan.dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self._plan.counts) + 2

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the dimensions."""
        return self._coords.dims

    @property
    def coords(self) -> dict[str, Names]:
        """Coordinates along each dimension: names of channels and positions, or indices."""
        cursor = self._cursor()
        first_step = self._first_step(cursor)
        named = self._coords.names(self._shape(cursor)[:-2], first_step)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in named.items()}

    @property
    def num_frames(self) -> int:
        """Frames appended and skipped so far."""
        return self._cursor()

    @property
    def position_dim(self) -> str | None:
        """Name of the dimension of positions, None without one."""
        axis = self._plan.position_axis
        return None if axis is None else self.dims[axis]

    @property
    def scales(self) -> dict[str, float]:
        """Size of an element along the dimensions that have one, in their unit."""
        return dict(self._coords.scales)

    @property
    def newest(self) -> tuple[int, ...] | None:
        """Index of the newest frame (or skip) along all dimensions but the frame's own."""
        cursor = self._cursor()
        if cursor == 0:
            return None
        indices = list(self._plan.indices(cursor - 1))
        if self._plan.is_unbounded:
            indices[0] -= self._first_step(cursor)
        return tuple(indices)

    @property
    def coords_changed(self) -> CoordsChanged:
        """Its `connect` takes a callback for changes of the coordinates."""
        return self._coords_changed

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        # By length, because a view that is not strict accepts indices beyond it.
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        sizes = ", ".join(f"{d}={n}" for d, n in zip(self.dims, self.shape, strict=True))
        return f"<StreamView {sizes}, dtype={self.dtype}>"

    # -------------------------------------------------------------------------- indexing

    def __getitem__(self, key: Any) -> Any:
        cursor = self._cursor()
        shape = self._shape(cursor)
        key = key if isinstance(key, tuple) else (key,)
        if not all(map(_is_basic, key)):
            return _read_only(self._choose([slice(None)] * len(shape), shape, cursor)[key])
        index = _per_axis(key, len(shape))
        if self._is_within(index, shape) and self._has_come(index, shape, cursor):
            chosen = self._choose(index, shape, cursor)
        else:
            chosen = _zeros(_chosen_shape(index, shape), self.dtype)
        if None in key:
            chosen = chosen[_new_axes(key, len(shape))]
        if any(i is Ellipsis for i in key):
            chosen = np.asarray(chosen)  # of no dimensions, where others give a scalar
        return _read_only(chosen)

    def __array__(
        self, dtype: npt.DTypeLike | None = None, copy: bool | None = None
    ) -> Array:
        if copy is False and self._plan.num_positions > 1:
            raise ValueError(
                f"The view of {self._plan.num_positions} positions cannot be an array "
                "without a copy: leave out copy=False, or index one of them."
            )
        return np.array(self[...], dtype=dtype, copy=copy)

    def frame(self, number: int) -> Array:
        """Return a frame by its number in acquisition order, of shape (y, x).

        Raises
        ------
        IndexError
            If it has not come yet, or is no longer kept.
        """
        cursor = self._cursor()
        indices = list(self._plan.indices(number))
        if self._plan.is_unbounded:
            indices[0] -= self._first_step(cursor)
        if not 0 <= number < cursor or min(indices, default=0) < 0:
            raise IndexError(f"there is no frame {number}: {cursor} have come")
        index: list[int | slice] = [*indices, slice(None), slice(None)]
        frame: Array = self._choose(index, self._shape(cursor), cursor)
        return frame

    def _has_come(
        self, index: Sequence[int | slice], shape: Sequence[int], cursor: int
    ) -> bool:
        """Return whether the frame is complete, if the index selects a single one."""
        indices = []
        for i, n in zip(index[:-2], shape[:-2], strict=True):
            chosen = range(n)[i]
            if isinstance(chosen, range):
                if len(chosen) != 1:
                    return True
                chosen = chosen[0]
            indices.append(chosen)
        if self._plan.is_unbounded:
            indices[0] += self._first_step(cursor)
        return self._plan.number(indices) < cursor

    def _first_step(self, cursor: int) -> int:
        return newest_steps(self._plan, self._plan.extents(cursor)).start

    def _shape(self, cursor: int) -> tuple[int, ...]:
        extents = self._plan.extents(cursor)
        steps = len(newest_steps(self._plan, extents))
        if not self._is_dynamic:
            extents = tuple(count or 0 for count in self._plan.counts)
        if self._plan.is_unbounded:
            extents = (steps, *extents[1:])
        return (*extents, *self._plan.frame_shape)

    def _is_within(self, index: Sequence[int | slice], shape: Sequence[int]) -> bool:
        """Return whether integers are within the shape; raise if they are not allowed."""
        counts = (*self._plan.counts, *self._plan.frame_shape)
        is_within = True
        for axis, (i, n, count) in enumerate(zip(index, shape, counts, strict=True)):
            if isinstance(i, slice) or -n <= i < n:
                continue
            if self._is_strict or i < 0 or i >= (count or 0):
                name = self.dims[axis]
                raise IndexError(
                    f"index {i} is out of bounds for axis {axis} ({name!r}) with size {n}"
                )
            is_within = False
        return is_within

    def _choose(self, index: list[int | slice], shape: tuple[int, ...], cursor: int) -> Any:
        """Index all positions; the index is within the shape."""
        axis = self._plan.position_axis
        if axis is None:
            return self._choose_from(0, index, shape, cursor)
        index, lengths = index.copy(), (*shape[:axis], *shape[axis + 1 :])
        position = index.pop(axis)
        if isinstance(position, int):
            return self._choose_from(position % shape[axis], index, lengths, cursor)
        positions = range(shape[axis])[position]
        kept = sum(isinstance(i, slice) for i in index[:axis])
        if len(positions) == 1:
            only = self._choose_from(positions[0], index, lengths, cursor)
            return np.expand_dims(only, kept)
        if not positions:
            empty = _chosen_shape(index, lengths)
            return _zeros((*empty[:kept], 0, *empty[kept:]), self.dtype)
        return np.stack(
            [self._choose_from(p, index, lengths, cursor) for p in positions], axis=kept
        )

    def _choose_from(
        self, position: int, index: list[int | slice], lengths: Sequence[int], cursor: int
    ) -> Any:
        """Index one position, without its axis; the index is within `lengths`."""
        plan = self._plan
        stored = [plan.file_axes[axis] for axis in plan.storage_axes[:-2]]
        array, make_ready = self._storage_array(position, cursor)
        array = array.transpose(*np.argsort(stored), -2, -1)
        if not plan.is_unbounded:
            array = array[tuple(slice(n) for n in lengths)]
            make_ready(_spanned(array, tuple(index)))
            return array[tuple(index)]
        # A position may have fewer steps than others, and in a ring keep an older one.
        first = self._first_step(cursor)
        skipped = first - plan.first_step(position, cursor)
        array = array[(slice(skipped, skipped + lengths[0]), *map(slice, lengths[1:]))]
        first_index = _resolved(index[0], lengths[0])
        make_ready(_spanned(array, (first_index, *index[1:])))
        if len(array) == lengths[0]:
            return array[tuple(index)]
        if isinstance(index[0], int):
            step = index[0] % lengths[0]
            if step < len(array):
                return array[(step, *index[1:])]
            return _zeros(_chosen_shape(index, lengths), self.dtype)
        wanted = range(lengths[0])[index[0]]
        if not wanted:
            return array[(slice(0, 0), *index[1:])]
        if max(wanted[0], wanted[-1]) < len(array):
            stop = wanted.stop if wanted.stop >= 0 else None
            return array[(slice(wanted.start, stop, wanted.step), *index[1:])]
        steps = np.arange(lengths[0])[index[0]]
        chosen = array[(slice(None), *index[1:])]
        has_come = steps < len(chosen)
        result = np.zeros((len(steps), *chosen.shape[1:]), self.dtype)
        result[has_come] = chosen[steps[has_come]]
        return result


def _spanned(array: Array, key: tuple[Any, ...]) -> Array:
    """Return a view of an array that spans what an index selects."""
    if not all(map(_is_basic, key)):
        return array
    axes = [i for i in key if i is not None]
    try:
        return array[tuple(i if _is_range(i) else _slice_of(i) for i in axes)]
    except IndexError:
        return array[:0]  # it is refused anyway


def _is_range(entry: object) -> bool:
    return isinstance(entry, slice | EllipsisType)


def _slice_of(i: Any) -> slice:
    i = operator.index(i)
    return slice(i, i + 1 or None)


def _resolved(index: int | slice, length: int) -> slice:
    """Return an index of an axis of some length as a slice that no shorter axis changes."""
    chosen = range(length)[index]
    if isinstance(chosen, int):
        return slice(chosen, chosen + 1)
    if not chosen:
        return slice(0)
    low, high = sorted((chosen[0], chosen[-1]))
    return slice(low, high + 1)


def _is_basic(entry: object) -> bool:
    if isinstance(entry, slice | EllipsisType) or entry is None:
        return True
    if isinstance(entry, np.ndarray):
        return entry.ndim == 0 and entry.dtype.kind in "iu"
    # A bool is not an integer index, as in numpy.
    return hasattr(entry, "__index__") and not isinstance(entry, bool | np.bool_)


def _per_axis(key: tuple[Any, ...], ndim: int) -> list[int | slice]:
    """Return the integer or slice for each axis of a basic index."""
    given = [i for i in key if i is not None]
    num_ellipses = sum(i is Ellipsis for i in given)
    if num_ellipses > 1:
        raise IndexError("an index can only have a single ellipsis ('...')")
    missing = ndim - len(given) + num_ellipses
    if missing < 0:
        raise IndexError(
            f"too many indices: the view has {ndim} dimensions, "
            f"{ndim - missing} are indexed"
        )
    at = given.index(Ellipsis) if num_ellipses else len(given)
    filled = given[:at] + [slice(None)] * missing + given[at + 1 :]
    return [i if isinstance(i, slice) else operator.index(i) for i in filled]


def _new_axes(key: tuple[Any, ...], ndim: int) -> tuple[Any, ...]:
    """Return the index that inserts the new axes of a basic index into its result."""
    axes: list[Any] = []
    missing = ndim - sum(i is not None and i is not Ellipsis for i in key)
    for i in key:
        if i is Ellipsis:
            axes += [slice(None)] * missing
        elif i is None:
            axes.append(None)
        elif isinstance(i, slice):
            axes.append(slice(None))
    return tuple(axes)


def _chosen_shape(index: Sequence[int | slice], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        len(range(n)[i]) for i, n in zip(index, shape, strict=True) if isinstance(i, slice)
    )


def _zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """Return zeros that take no memory, whatever their number."""
    return np.broadcast_to(np.zeros((), dtype), shape)[()]


def _read_only(array: Any) -> Any:
    if isinstance(array, np.ndarray):
        array.flags.writeable = False
    return array
