"""ndv shows streams and datasets: names of axes and channels, live.

It is enough that this module is imported: `ndv.imshow` finds the wrappers. That happens by
itself if ndv is imported before a view is made, or a dataset opened.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import ndv
import numpy as np
import numpy.typing as npt

from scratchwriter.reader import ScratchDataset
from scratchwriter.views import StreamView

_REDRAW_MS = 50


class StreamViewWrapper(ndv.DataWrapper[StreamView]):
    """A `StreamView` for ndv; it grows with the frames.

    It looks by itself whether frames have come, from the main thread, as often as is worth
    drawing: a viewer that hangs looks at nothing, and costs nothing.
    """

    PRIORITY: ClassVar[int] = 20

    def __init__(self, data: StreamView) -> None:
        super().__init__(data)
        self._num_frames, self._shape = data.num_frames, data.shape
        _look_later(weakref.ref(self))

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Return whether it is one."""
        return isinstance(obj, StreamView)

    @property
    def coords(self) -> Mapping[Hashable, Sequence[Any]]:
        """Coordinates along each dimension; what ndv takes for indices begins at 0."""
        return {
            dim: range(len(names)) if isinstance(names, range) else names
            for dim, names in self._data.coords.items()
        }

    def isel(self, index: Mapping[int, int | slice]) -> npt.NDArray[Any]:
        """Return a part of it, as it is now: a copy."""
        key = tuple(index.get(axis, slice(None)) for axis in range(self._data.ndim))
        return np.array(self._data[key])

    def axis_scales(self) -> dict[Hashable, float]:
        """Return the size of an element along each dimension that has one."""
        return dict(self._data.scales)

    def look(self) -> None:
        """Tell the viewer if there is something new."""
        num_frames = self._data.num_frames
        if num_frames == self._num_frames:
            return
        self._num_frames = num_frames
        if self._data.shape != self._shape:
            self._shape = self._data.shape
            self.dims_changed.emit()
        self.data_changed.emit()


def _look_later(wrapper: weakref.ref[StreamViewWrapper]) -> None:
    def look() -> None:
        alive = wrapper()
        if alive is not None:
            alive.look()
            _look_later(wrapper)

    ndv.call_later(_REDRAW_MS, look)


class DatasetWrapper(StreamViewWrapper):
    """A `ScratchDataset` for ndv, by its view."""

    def __init__(self, data: ScratchDataset) -> None:
        super().__init__(data.view())

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Return whether it is one."""
        return isinstance(obj, ScratchDataset)


class Watcher:
    """A viewer of a dataset that shows the newest frame, until somebody moves a slider.

    It goes on with the newest when the sliders are moved to it again.

    Parameters
    ----------
    dataset : ScratchDataset
        Recorded by another process, or not any more.

    Attributes
    ----------
    viewer : ndv.ArrayViewer
        What is shown.
    """

    def __init__(self, dataset: ScratchDataset) -> None:
        self._view = dataset.view()
        self._num_frames = -1  # that have been looked at
        self._shown: dict[str, int] = {}
        self.viewer = ndv.ArrayViewer(self._view)
        self.viewer.show()
        self._look()

    def _look(self) -> None:
        """Show the newest frame, if there is one, and look again a little later."""
        ndv.call_later(_REDRAW_MS, self._look)
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
            wrapper.look()  # sliders reach no farther than they were told
        newest = dict(zip(self._view.dims, self._view.newest or (), strict=False))
        self.viewer.display_model.current_index.update(newest)
        self._shown = newest


def watch(dataset: ScratchDataset) -> None:
    """Show a dataset, live, until the window is closed."""
    _watcher = Watcher(dataset)  # kept until then
    ndv.run_app()
