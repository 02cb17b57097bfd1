"""Cameras of Micro-Manager: MDA sequences of pymmcore-plus, and bare sequence acquisitions.

    handler = MDAHandler("run1")
    core.run_mda(sequence, output=handler)

`record_sequence` is a camera loop for pymmcore alone; it does not need pymmcore-plus.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from scratchwriter.bridges.useq import EventNumbers, useq_to_acquisition_settings
from scratchwriter.dimensions import Dimension, check_dimensions
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stream import ScratchStream, create_stream
from scratchwriter.views import StreamView

if TYPE_CHECKING:
    import useq

_log = logging.getLogger(__name__)
_NAMESPACE = "pymmcore_plus"
_PATIENCE_S = 20.0
_PAUSE_S = 0.0001  # between polls of a camera that has no frame
_ENDLESS = 2**31 - 1  # frames


class MDAHandler:
    """Stores the frames of an MDA sequence with their metadata: `run_mda(output=handler)`.

    The stream is closed with the last frame of a sequence whose length is known, else when
    the sequence ends. pymmcore-plus (0.18) reports the end of a sequence to handlers from
    another thread, and can leave the report out; a stream of unknown length then stays open
    until `close` is called.

    Each frame is stored at the index of its event, so that a missing frame leaves zeros and
    does not shift later ones. If a sequence does not fit an array (see
    `useq_to_acquisition_settings`), its frames are stored one after the other.

    Parameters
    ----------
    settings : AcquisitionSettings or path-like, optional
        Where and how to store; dimensions, dtype and plate come from the sequence. A path
        is a folder on disk. Default: in memory.
    overwrite : bool
        Replace an existing dataset, if a path is given.

    Attributes
    ----------
    stream : ScratchStream or None
        The stream of the newest run, closed after it.
    error : Exception or None
        Why storing ended early, if it did; it is logged, too.
    num_refused : int
        How many of its frames came twice or too late, and were not stored.
    """

    def __init__(
        self,
        settings: AcquisitionSettings | str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(settings, AcquisitionSettings):
            settings = AcquisitionSettings(
                root_path=os.fspath(settings or ""), overwrite=overwrite
            )
        self._settings = settings
        self._number: EventNumbers | None = None
        self._cameras = 1
        self._num_frames: int | None = None  # of the sequence, all cameras
        self.num_refused = 0
        self.stream: ScratchStream | None = None
        self.error: Exception | None = None

    def view(self) -> StreamView:
        """Return the frames as one live array; see `ScratchStream.view`.

        Raises
        ------
        RuntimeError
            If no sequence has been started.
        """
        if self.stream is None and self.error is not None:
            raise RuntimeError(f"No stream was made: {self.error}") from self.error
        if self.stream is None:
            raise RuntimeError(
                "No sequence has begun yet: call run_mda(..., output=handler), which "
                "returns before the sequence begins."
            )
        return self.stream.view()

    def close(self) -> None:
        """Close the stream of the newest run, if there is one. Can be repeated.

        Raises
        ------
        OSError
            If a file cannot be finished; the others are.
        """
        if self.stream is not None:
            self.stream.close()

    # ------------------------------------------------------ what pymmcore-plus calls

    def sequenceStarted(self, seq: useq.MDASequence, meta: Mapping[str, Any]) -> None:
        """Make the stream."""
        self.stream, self.error, self.num_refused = None, None, 0
        try:
            self.stream = self._create_stream(seq, meta)
        except Exception as error:
            self._give_up(error)

    def frameReady(
        self, img: npt.NDArray[Any], event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> None:
        """Store a frame."""
        if self.stream is None or self.error is not None:
            return
        try:
            missing = self._place(event) - self.stream.frames_written
            if missing < 0:
                self.num_refused += 1
                _log.error("A frame came twice or too late, not stored: %s", event.index)
                return
            if missing > 0:
                self.stream.skip(frames=missing)
            self.stream.append(img, frame_metadata=_frame_metadata(event, meta))
            if self.stream.frames_written == self._num_frames:
                self.stream.close()
        except Exception as error:
            self._give_up(error)

    def sequenceFinished(self, seq: useq.MDASequence) -> None:
        """Close the stream."""
        self.close()

    # ---------------------------------------------------------------------- inside

    def _create_stream(
        self, seq: useq.MDASequence, meta: Mapping[str, Any]
    ) -> ScratchStream:
        info = meta["image_infos"][0]
        height, width = info["height"], info["width"]
        pixel_size_um = info.get("pixel_size_um")
        self._cameras = info.get("num_camera_adapter_channels", 1)
        try:
            asked = useq_to_acquisition_settings(
                seq, width, height, pixel_size_um=pixel_size_um
            )
            dims, plate = asked["dimensions"], asked["plate"]
            if self._cameras > 1:
                dims.insert(-2, Dimension(name="cam", count=self._cameras, type="other"))
            check_dimensions(tuple(dims))
            self._number = EventNumbers(seq) if len(dims) > 2 else None
        except (NotImplementedError, ValueError) as error:
            _log.warning("Frames are stored one after the other: %s", error)
            dims, plate, self._number = [], None, None
        if self._number is None:
            dims = _one_after_the_other(width, height)
        stream = create_stream(
            AcquisitionSettings.model_validate(
                dict(self._settings)
                | {"dimensions": dims, "plate": plate, "dtype": info["dtype"]}
            )
        )
        self._num_frames = stream.settings.num_frames
        stream.set_global_metadata(_NAMESPACE, {"summary_metadata": _plain(meta)})
        return stream

    def _place(self, event: useq.MDAEvent) -> int:
        """Return the number of the next frame of an event."""
        assert self.stream is not None
        if self._number is None:
            return self.stream.frames_written
        index = {str(axis): i for axis, i in event.index.items()}
        camera: int = index.get("cam", 0)
        return self._number(index) * self._cameras + camera

    def _give_up(self, error: Exception) -> None:
        self.error = error
        _log.error("No more frames of this sequence are stored: %s", error, exc_info=error)


def _one_after_the_other(width: int, height: int) -> list[Dimension]:
    return [
        Dimension(name="t", type="time"),
        Dimension(name="y", count=height, type="space"),
        Dimension(name="x", count=width, type="space"),
    ]


def _frame_metadata(event: useq.MDAEvent, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a frame, under names that ome-writers knows if it has one."""
    position = meta.get("position") or {}
    return {
        "delta_t": meta["runner_time_ms"] / 1e3,
        "exposure_time": meta["exposure_ms"] / 1e3,
        **{f"position_{axis}": v for axis, v in position.items() if axis in "xyz"},
        **_plain({k: v for k, v in meta.items() if k not in ("mda_event", "position")}),
        "mda_event": _plain(event),
    }


def _plain(value: Any) -> Any:
    """Return metadata as JSON has it."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_defaults=True)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | None) else str(value)


# ------------------------------------------------------------------ sequence acquisition


class _Core(Protocol):
    """The part of `pymmcore.CMMCore` that is used."""

    def startSequenceAcquisition(
        self, numImages: int, intervalMs: float, stopOnOverflow: bool, /
    ) -> None: ...
    def stopSequenceAcquisition(self) -> None: ...
    def isSequenceRunning(self) -> bool: ...
    def isBufferOverflowed(self) -> bool: ...
    def getRemainingImageCount(self) -> int: ...
    def popNextImageMD(self, md: Any, /) -> npt.NDArray[Any]: ...


def record_sequence(
    core: _Core,
    stream: ScratchStream,
    num_frames: int | None = None,
    *,
    with_tags: bool = False,
    timeout_s: float = _PATIENCE_S,
    until: Callable[[], bool] = lambda: False,
) -> int:
    """Run a sequence acquisition of the current camera into a stream.

    All frames that wait are stored in one call, each with the camera's time and number;
    `stream.stats().dropped` counts what MMCore or the camera left out.

    MMCore returns frames as copies of its own buffer and cannot write into other memory. So
    each frame is copied twice, and `ScratchStream.slot` would not save a copy.

    Parameters
    ----------
    core : pymmcore.CMMCore or pymmcore_plus.CMMCorePlus
        Its camera must be set up.
    stream : ScratchStream
        For frames of the camera's size and type.
    num_frames : int, optional
        How many to take; default: until `until` returns True.
    with_tags : bool
        Whether all tags of the camera are stored as frame metadata, too (slower).
    timeout_s : float
        How long to wait for a frame.
    until : callable
        Called between frames; True stops the recording.

    Returns
    -------
    int
        How many frames were stored.

    Raises
    ------
    RuntimeError
        If the camera stops, gives no frame in time, or MMCore's buffer overflows. Earlier
        frames are stored.
    """
    num_frames = _ENDLESS if num_frames is None else num_frames
    done = 0
    # More than wanted, and stopped from here, because a sequence that ends by itself leaves
    # a thread that may still be ending when the camera is unloaded.
    core.startSequenceAcquisition(_ENDLESS, 0, True)
    try:
        deadline_s = time.monotonic() + timeout_s
        while done < num_frames and not until():
            waiting = min(core.getRemainingImageCount(), num_frames - done)
            if waiting:
                _take(core, stream, waiting, with_tags)
                done += waiting
                deadline_s = time.monotonic() + timeout_s
                continue
            if core.isBufferOverflowed():
                raise RuntimeError(
                    f"MMCore's buffer overflowed after {done} frames: they were taken out "
                    "too slowly. setCircularBufferMemoryFootprint makes it larger."
                )
            if not core.isSequenceRunning() or time.monotonic() > deadline_s:
                raise RuntimeError(
                    f"The camera gave {done} frames and no more (of {num_frames}, in "
                    f"{timeout_s} s)."
                )
            time.sleep(_PAUSE_S)
    finally:
        core.stopSequenceAcquisition()
    return done


def _take(core: _Core, stream: ScratchStream, count: int, with_tags: bool) -> None:
    """Move frames from MMCore's buffer into the stream."""
    import pymmcore

    frames, times_ns, numbers, tags = [], [], [], []
    for _ in range(count):
        metadata = pymmcore.Metadata()
        frames.append(core.popNextImageMD(metadata))
        found = {key: metadata.GetSingleTag(key).GetValue() for key in metadata.GetKeys()}
        if "ElapsedTime-ms" in found:  # not every camera has it
            times_ns.append(round(1e6 * float(found["ElapsedTime-ms"])))
        if "ImageNumber" in found:
            numbers.append(int(found["ImageNumber"]))
        tags.append(found)
    stream.extend(
        frames,
        frame_metadata=tags if with_tags else None,
        timestamps_ns=times_ns if len(times_ns) == count else None,
        frame_ids=numbers if len(numbers) == count else None,
    )
