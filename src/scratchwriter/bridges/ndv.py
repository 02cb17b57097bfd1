"""ndv shows streams and datasets: names of axes and channels, live.

It is enough that this module is imported: `ndv.imshow` finds the wrappers. That happens by
itself if ndv is imported before a view is made, or a dataset opened.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import ndv
from ndv.views._app import ensure_main_thread

from scratchwriter.reader import ScratchDataset
from scratchwriter.views import StreamView

_REDRAW_MS = 50


class StreamViewWrapper(ndv.DataWrapper[StreamView]):
    """A `StreamView` for ndv; it grows with the frames."""

    PRIORITY: ClassVar[int] = 20

    def __init__(self, data: StreamView) -> None:
        super().__init__(data)
        # Told in the thread of the events; what is drawn belongs to the main one.
        data.coords_changed.connect(ensure_main_thread(self.dims_changed.emit))

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Tell whether it is one."""
        return isinstance(obj, StreamView)

    @property
    def coords(self) -> Mapping[Hashable, Sequence[Any]]:
        """Coordinates along each dimension; what ndv takes for indices begins at 0."""
        return {
            dim: range(len(names)) if isinstance(names, range) else names
            for dim, names in self._data.coords.items()
        }

    def axis_scales(self) -> dict[Hashable, float]:
        """Return the size of an element along each dimension that has one."""
        return dict(self._data.scales)


class DatasetWrapper(StreamViewWrapper):
    """A `ScratchDataset` for ndv, by its view."""

    def __init__(self, data: ScratchDataset) -> None:
        super().__init__(data.view())

    @classmethod
    def supports(cls, obj: Any) -> TypeGuard[Any]:
        """Tell whether it is one."""
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
        self._dataset, self._view = dataset, dataset.view()
        self._frames = -1  # that have been looked at
        self._shown: dict[str, int] = {}
        self._shape: tuple[int, ...] = ()
        self.viewer = ndv.ArrayViewer(self._view)
        self.viewer.show()
        self._look()

    def _look(self) -> None:
        """Show the newest frame, if there is one, and look again a little later."""
        is_over = self._dataset.state != "recording"
        frames = self._dataset.frames_written
        if frames != self._frames and self._is_at_newest():
            self._show_newest()
        self._frames = frames
        if not is_over:
            ndv.call_later(_REDRAW_MS, self._look)

    def _is_at_newest(self) -> bool:
        index = self.viewer.display_model.current_index
        return all(index.get(dim, i) == i for dim, i in self._shown.items())

    def _show_newest(self) -> None:
        newest = dict(zip(self._view.dims, self._view.newest or (), strict=False))
        wrapper = self.viewer.data_wrapper
        if wrapper is not None and self._view.shape != self._shape:
            self._shape = self._view.shape
            wrapper.dims_changed.emit()  # sliders reach no farther than they were told
        self.viewer.display_model.current_index.update(newest)
        self._shown = newest


def watch(dataset: ScratchDataset) -> None:
    """Show a dataset, live, until the window is closed."""
    _watcher = Watcher(dataset)  # kept until then
    ndv.run_app()
