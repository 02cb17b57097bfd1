"""ome-writers' own "scratch" format, written by this library.

    from scratchwriter.bridges import ome_writers
    ome_writers.install()

From then on all code in this process that makes a stream of ome-writers in that format
(pymmcore-plus with `output="memory"`, say) uses the writer of this library. Streams that
are open already do not change.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import ome_writers
from ome_writers import _useq
from ome_writers._backends._backend import ArrayBackend
from ome_writers._stream import AVAILABLE_BACKENDS, BackendMetadata

from scratchwriter.settings import WITHOUT_WARNINGS, AcquisitionSettings
from scratchwriter.stream import ScratchStream, create_stream

if TYPE_CHECKING:
    import numpy as np
    from ome_writers._router import FrameRouter

_log = logging.getLogger(__name__)
_FORMAT = "scratch"
# Also before and after a release, and builds of git: 0.3.3rc1, 0.3.2.post1, 0.3.3.dev7+gab.
_SUPPORTED = re.compile(r"0\.3\.([2-9]|\d\d+)(?!\d)")
_theirs: list[BackendMetadata] = []
_their_dims_from_useq: list[Callable[..., Any]] = []


def need_supported() -> None:
    """Check the version of ome-writers, because the bridge uses its private names."""
    version = ome_writers.__version__
    if not _SUPPORTED.match(version):
        raise RuntimeError(
            f"ome-writers {version} is installed; the bridge supports 0.3.2 and later "
            "versions of 0.3: pip install 'ome-writers>=0.3.2,<0.4'"
        )


def install() -> None:
    """Make ome-writers use this library for its scratch format; can be repeated.

    Raises
    ------
    RuntimeError
        If this version of ome-writers is not supported.
    """
    need_supported()
    if not _theirs:
        _theirs.append(AVAILABLE_BACKENDS[_FORMAT])
        AVAILABLE_BACKENDS[_FORMAT] = replace(
            _theirs[0], module_path=__name__, class_name=ScratchwriterBackend.__name__
        )
        _their_dims_from_useq.append(_useq._dims_from_useq)
        _useq._dims_from_useq = _dims_from_useq


def uninstall() -> None:
    """Make ome-writers use its own code again; can be repeated."""
    if _theirs:
        AVAILABLE_BACKENDS[_FORMAT] = _theirs.pop()
        _useq._dims_from_useq = _their_dims_from_useq.pop()


def is_installed() -> bool:
    """Return whether ome-writers uses this library."""
    return bool(_theirs)


def from_ome_writers(settings: ome_writers.AcquisitionSettings) -> AcquisitionSettings:
    """Return the same settings as an object of this library.

    Raises
    ------
    pydantic.ValidationError
        (a ValueError) If they ask for another format.
    """
    return AcquisitionSettings.model_validate(
        settings.model_dump(), context=WITHOUT_WARNINGS
    )


def _dims_from_useq(seq: Any, *args: Any, **kwargs: Any) -> Any:
    """Return what ome-writers makes of a sequence; report what is wrong with it."""
    # useq is installed, then.
    from scratchwriter.bridges.useq import why_misplaced, wrong_coordinates

    (theirs,) = _their_dims_from_useq
    dims = theirs(seq, *args, **kwargs)
    # Logged, because warnings are errors in some programs, whose runs would not begin.
    if why := why_misplaced(seq, dims):
        _log.warning(
            "ome-writers puts frames of this sequence at wrong places. %s Use "
            "scratchwriter.bridges.pymmcore.MDAHandler, or another sequence.",
            why,
        )
    elif which := wrong_coordinates(seq, dims):
        _log.warning("ome-writers gives positions wrong coordinates. %s", which)
    return dims


class ScratchwriterBackend(ArrayBackend):
    """What ome-writers' stream hands its frames to: a `ScratchStream`.

    Both count frames in acquisition order. A stream of ome-writers leaves the place of a
    refused frame empty and continues with the next, and so does this class.
    """

    def __init__(self) -> None:
        self._stream: ScratchStream | None = None
        self._lost = 0  # places left empty that the stream has not skipped yet

    def is_incompatible(self, settings: ome_writers.AcquisitionSettings) -> Literal[False]:
        """Return False: it can store all settings."""
        return False

    def prepare(
        self, settings: ome_writers.AcquisitionSettings, router: FrameRouter
    ) -> None:
        """Make the stream."""
        self._stream = create_stream(from_ome_writers(settings))

    def write(
        self,
        position_index: int,
        index: tuple[int, ...],
        frame: np.ndarray[Any, Any],
        *,
        frame_metadata: dict[str, Any] | None = None,
    ) -> None:
        """Append a frame."""
        stream, lost = self._need_stream(), self._lost
        self._lost = lost + 1
        if lost:
            stream.skip(frames=lost)
            self._lost = 1
        stream.append(frame, frame_metadata=frame_metadata)
        self._lost = 0

    def advance(self, indices: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        """Skip frames."""
        self._lost += len(indices)
        self._need_stream().skip(frames=self._lost)
        self._lost = 0

    def finalize(self) -> None:
        """Close the stream."""
        if self._stream is not None:
            self._stream.close()

    def get_arrays(self) -> Sequence[Any]:
        """Return the live array of each position."""
        return self._need_stream().arrays

    def get_metadata(self) -> Any:
        """Return the stream's metadata."""
        return self._need_stream().get_metadata()

    def update_metadata(self, metadata: Any) -> None:
        """Pass it to the stream."""
        self._need_stream().update_metadata(metadata)

    def set_global_metadata(self, namespace: str, metadata: Mapping[str, Any]) -> None:
        """Pass it to the stream."""
        self._need_stream().set_global_metadata(namespace, metadata)

    @property
    def _global_metadata(self) -> dict[str, Any]:  # a test of ome-writers looks at it
        return self._need_stream().global_metadata

    def _need_stream(self) -> ScratchStream:
        if self._stream is None:
            raise RuntimeError("prepare() has not been called: use create_stream.")
        return self._stream
