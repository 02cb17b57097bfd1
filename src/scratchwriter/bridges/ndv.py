"""Streams and datasets in ndv, live, with the names of axes and channels.

Importing this module is enough: `ndv.imshow` finds the wrappers. It is imported
automatically if ndv is imported before a view is made or a dataset is opened.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import ndv
import numpy as np
import numpy.typing as npt
from ndv.models import LUTModel

from scratchwriter.dimensions import Channel
from scratchwriter.reader import ScratchDataset
from scratchwriter.views import StreamView

_REDRAW_MS = 50


class StreamViewWrapper(ndv.DataWrapper[StreamView]):
    """A `StreamView` for ndv; it grows with the frames.

    It polls for frames from the main thread, as often as drawing is worth it: a viewer that
    hangs polls nothing, and costs nothing.
    """

    PRIORITY: ClassVar[int] = 20

    def __init__(self, data: StreamView) -> None:
        super().__init__(data)
        self._num_frames, self._shape = data.num_frames, data.shape
        _poll_later(weakref.ref(self))

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Return whether this is a `StreamView`."""
        return isinstance(obj, StreamView)

    @property
    def coords(self) -> Mapping[Hashable, Sequence[Any]]:
        """Coordinates along each dimension; indices begin at 0, as ndv expects."""
        return {
            dim: range(len(names)) if isinstance(names, range) else names
            for dim, names in self._data.coords.items()
        }

    def isel(self, index: Mapping[int, int | slice]) -> npt.NDArray[Any]:
        """Return a copy of a part of it."""
        key = tuple(index.get(axis, slice(None)) for axis in range(self._data.ndim))
        return np.array(self._data[key])

    def axis_scales(self) -> dict[Hashable, float]:
        """Return the size of an element along each dimension that has one."""
        return dict(self._data.scales)

    def poll(self) -> None:
        """Notify the viewer if frames have come."""
        num_frames = self._data.num_frames
        if num_frames == self._num_frames:
            return
        self._num_frames = num_frames
        if self._data.shape != self._shape:
            self._shape = self._data.shape
            self.dims_changed.emit()
        self.data_changed.emit()


def _poll_later(wrapper: weakref.ref[StreamViewWrapper]) -> None:
    def poll() -> None:
        alive = wrapper()
        if alive is not None:
            alive.poll()
            _poll_later(wrapper)

    ndv.call_later(_REDRAW_MS, poll)


class DatasetWrapper(StreamViewWrapper):
    """A `ScratchDataset` for ndv, by its view."""

    def __init__(self, data: ScratchDataset) -> None:
        super().__init__(data.view())

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Return whether this is a `ScratchDataset`."""
        return isinstance(obj, ScratchDataset)


class Watcher:
    """A viewer of a dataset that shows the newest frame until a slider is moved.

    It shows the newest again once the sliders are moved to it.

    Parameters
    ----------
    dataset : ScratchDataset
        Being recorded by another process, or finished.

    Attributes
    ----------
    viewer : ndv.ArrayViewer
        The window.
    """

    def __init__(self, dataset: ScratchDataset) -> None:
        self._view = dataset.view()
        self._num_frames = -1  # as of the last poll
        self._shown: dict[str, int] = {}
        self.viewer = ndv.ArrayViewer(self._view)
        for number, color in _colors(dataset).items():
            self.viewer.display_model.luts[number] = LUTModel(cmap=["black", color])
        self.viewer.show()
        self._poll()

    def _poll(self) -> None:
        """Show the newest frame, if there is one, and poll again a little later."""
        ndv.call_later(_REDRAW_MS, self._poll)
        num_frames = self._view.num_frames
        if num_frames != self._num_frames and self._is_at_newest():
            self._show_newest()
        self._num_frames = num_frames

    def _is_at_newest(self) -> bool:
        index = self.viewer.display_model.current_index
        return all(index.get(dim, i) == i for dim, i in self._shown.items())

    def _show_newest(self) -> None:
        wrapper = self.viewer.data_wrapper
        if isinstance(wrapper, StreamViewWrapper):
            wrapper.poll()  # sliders reach no farther than the last known shape
        newest = dict(zip(self._view.dims, self._view.newest or (), strict=False))
        self.viewer.display_model.current_index.update(newest)
        self._shown = newest


def _colors(dataset: ScratchDataset) -> dict[int, str]:
    """Return the colours of channels that have one, for when they are shown together."""
    return {
        number: channel.color.as_hex("long")[:7]
        for dim in dataset.settings.dimensions
        for number, channel in enumerate(dim.coords or ())
        if isinstance(channel, Channel) and channel.color is not None
    }


def watch(dataset: ScratchDataset) -> None:
    """Show a dataset, live, until the window is closed."""
    _watcher = Watcher(dataset)  # keeps it alive until then
    ndv.run_app()
