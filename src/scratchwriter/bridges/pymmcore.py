"""Cameras of Micro-Manager: MDA sequences of pymmcore-plus, and bare sequence acquisitions.

    handler = MDAHandler("run1")
    core.run_mda(sequence, output=handler)

`record_sequence` is a camera loop for pymmcore alone; it does not need pymmcore-plus.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy.typing as npt

from scratchwriter._files.metadata import RESERVED_KEYS, plain_metadata
from scratchwriter._writing.syncer import warn_in_thread
from scratchwriter.bridges.mda_runner import call_directly
from scratchwriter.bridges.useq import EventNumbers, useq_to_acquisition_settings
from scratchwriter.dimensions import Dimension
from scratchwriter.settings import AcquisitionSettings
from scratchwriter.stream import ScratchStream, create_stream
from scratchwriter.views import StreamView

if TYPE_CHECKING:
    import useq

_log = logging.getLogger(__name__)
_NAMESPACE = "pymmcore_plus"
_MOST_SHOWN = 200  # letters of a name, or a reason
# Of an array in metadata: as JSON, once in a manifest, and on the line of each frame.
_MOST_SUMMARY_ITEMS, _MOST_FRAME_ITEMS = 65536, 1024
_MOST_SUMMARY_NBYTES = 8 << 20  # half of what a manifest holds
_PATIENCE_S = 20.0
_PAUSE_S = 0.0001  # between polls of a camera that has no frame
_ENDLESS = 2**31 - 1  # frames


class MDAHandler:
    """Stores the frames of an MDA sequence with their metadata: `run_mda(output=handler)`.

    The runner calls it directly, on the thread of the acquisition, as it calls a sink of
    its own: no queue lies between the camera and the file, and a frame that cannot be
    stored ends the run with the error. The stream is closed when the run ends.

    Each frame is stored at the index of its event, so that a missing frame leaves zeros and
    does not shift later ones. If a sequence does not fit an array (see
    `useq_to_acquisition_settings`), its frames are stored one after the other.

    Metadata never keep a frame from being stored: what JSON cannot hold is left out, with
    one warning.

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
        Why a frame of that run, or all of them, could not be stored.

    Raises
    ------
    ImportError
        If pymmcore-plus is not installed.
    RuntimeError
        If this version of pymmcore-plus is not supported.
    """

    def __init__(
        self,
        settings: AcquisitionSettings | str | os.PathLike[str] | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        call_directly(MDAHandler)
        if not isinstance(settings, AcquisitionSettings):
            settings = AcquisitionSettings(
                root_path=os.fspath(settings or ""), overwrite=overwrite
            )
        self._settings = settings
        self._number: EventNumbers | None = None
        self._cameras = 1
        self._num_frames: int | None = None  # of the sequence, all cameras
        self._left_out: set[str] = set()  # names of metadata
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

    # ------------------------------------------- what the runner calls, on its own thread

    def setup(self, sequence: useq.MDASequence, meta: Mapping[str, Any] | None) -> None:
        """Make the stream for a sequence.

        Parameters
        ----------
        sequence : useq.MDASequence
            The sequence that begins.
        meta : mapping
            Summary metadata of pymmcore-plus, with the size and dtype of the frames.

        Raises
        ------
        NotImplementedError
            If the camera gives colour frames.
        ValueError
            If `meta` does not say how large a frame is.
        OSError, MemoryError
            As `create_stream`.
        """
        self.stream, self.error = None, None
        self._left_out.clear()
        with self._keeping_the_error():
            self.stream = self._create_stream(sequence, meta or {})

    def append(
        self, img: npt.NDArray[Any], event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> None:
        """Store a frame.

        Raises
        ------
        ValueError
            If the index of the event is not of the sequence, or its frame, or a later one,
            is stored already.
        ValueError, TypeError, IndexError, OSError, MemoryError
            As `ScratchStream.append`.
        """
        with self._keeping_the_error():
            if self.stream is None:
                raise RuntimeError("No sequence has begun: the runner calls setup first.")
            missing = self._place(event) - self.stream.frames_written
            if missing < 0:
                raise ValueError(
                    f"The frame at {_text(event.index)} came twice or too late: "
                    f"{self.stream.frames_written} frames are stored, in the order of the "
                    "sequence. If an engine gives several frames for an event, run the "
                    "events without a sequence: run_mda(iter(sequence), ...)."
                )
            if missing > 0:
                self.stream.skip(frames=missing)
            self.stream.append(img, frame_metadata=self._frame_metadata(event, meta))

    def skip(self, *, frames: int = 1) -> None:
        """Leave the places of frames empty that the camera did not give."""
        if self.stream is not None:
            with self._keeping_the_error():
                self.stream.skip(frames=frames)

    def close(self) -> None:
        """Close the stream of the newest run, if there is one. Can be repeated.

        Raises
        ------
        OSError
            If a file cannot be finished; the others are.
        """
        if self.stream is not None:
            with self._keeping_the_error():
                self.stream.close()

    def get_view(self) -> StreamView | None:
        """Return the live array that `core.mda.get_view()` gives to viewers."""
        stream = self.stream
        return None if stream is None else stream.view(dynamic_shape=True, strict=False)

    # ------------------------------------------------- where another program relays events

    def sequenceStarted(self, seq: useq.MDASequence, meta: Mapping[str, Any]) -> None:
        """As `setup`, for `mda_listeners_connected`: an error is logged, not raised."""
        with self._logging_errors():
            self.setup(seq, meta)

    def frameReady(
        self, img: npt.NDArray[Any], event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> None:
        """As `append`, but an error is logged, and later frames are stored.

        The last frame of a known number closes the stream: pymmcore-plus (0.18) can leave
        out the report of the end to those that listen.
        """
        if self.stream is None:
            return  # the start was logged as an error
        with self._logging_errors():
            self.append(img, event, meta)
            if self.stream.frames_written == self._num_frames:
                self.stream.close()

    def sequenceFinished(self, seq: useq.MDASequence) -> None:
        """Close the stream."""
        self.close()

    # ---------------------------------------------------------------------- inside

    def _create_stream(
        self, seq: useq.MDASequence, meta: Mapping[str, Any]
    ) -> ScratchStream:
        if not (infos := meta.get("image_infos")):
            raise ValueError(
                "The engine's summary metadata have no image_infos: MDAHandler needs the "
                "size and the dtype of a frame before the first one."
            )
        info = infos[0]
        height, width = info["height"], info["width"]
        if len(plane_shape := info.get("plane_shape") or ()) > 2:
            raise NotImplementedError(
                f"The camera gives colour frames of shape {tuple(plane_shape)}, and a "
                "frame has two dimensions: set its PixelType to '8bit' or '16bit'."
            )
        self._cameras = info.get("num_camera_adapter_channels") or 1
        settings = None
        try:
            asked = useq_to_acquisition_settings(
                seq, width, height, pixel_size_um=info.get("pixel_size_um")
            )
            if len(asked["dimensions"]) > 2:
                if self._cameras > 1:
                    cameras = Dimension(name="cam", count=self._cameras, type="other")
                    asked["dimensions"].insert(-2, cameras)
                settings = self._settings_with(info["dtype"], **asked)
        except (NotImplementedError, ValueError) as error:
            _log.warning("Frames are stored one after the other: %s", error)
        self._number = None if settings is None else EventNumbers(seq)
        if settings is None:
            dims = _one_after_the_other(width, height)
            settings = self._settings_with(info["dtype"], dimensions=dims, plate=None)
        stream = create_stream(settings)
        self._num_frames = settings.num_frames
        self._set_summary(stream, meta)
        return stream

    def _settings_with(self, dtype: str, **asked: Any) -> AcquisitionSettings:
        return AcquisitionSettings.model_validate(
            dict(self._settings) | asked | {"dtype": dtype}
        )

    def _set_summary(self, stream: ScratchStream, meta: Mapping[str, Any]) -> None:
        summary = self._plain(meta, _MOST_SUMMARY_ITEMS, "summary_metadata")
        for name in _drop_largest(summary, "summary_metadata", _MOST_SUMMARY_NBYTES):
            self._leave_out(name, "all of it is more than a manifest holds")
        try:
            stream.set_global_metadata(_NAMESPACE, {"summary_metadata": summary})
        except (ValueError, TypeError) as error:
            self._leave_out("summary_metadata", str(error))

    def _place(self, event: useq.MDAEvent) -> int:
        """Return the number of the next frame of an event."""
        assert self.stream is not None
        if self._number is None:
            return self.stream.frames_written
        index = {str(axis): i for axis, i in event.index.items()}
        camera = index.pop("cam", 0) if self._cameras > 1 else 0
        if not 0 <= camera < self._cameras:
            raise ValueError(
                f"The frame at {_text(event.index)} is of no camera: the summary metadata "
                f"named {self._cameras}."
            )
        return self._number(index) * self._cameras + camera

    def _frame_metadata(
        self, event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the metadata of a frame, under names that ome-writers knows if it has one.

        The event is without its sequence, which the summary has once.
        """
        try:
            more = dict(meta)
        except Exception as error:  # of any kind: what a mapping does is its engine's
            self._leave_out("of the frame", f"{type(error).__name__}: {error}")
            more = {}
        if isinstance(position := more.get("position"), dict):
            del more["position"]
        else:
            position = {}
        more.pop("mda_event", None)
        found = {
            "delta_t": _seconds(more.get("runner_time_ms")),
            "exposure_time": _seconds(more.get("exposure_ms")),
            **{f"position_{axis}": position[axis] for axis in "xyz" if axis in position},
            **more,
            "mda_event": {
                name: value
                for name, value in event
                if name != "sequence"
                and value is not None
                and name in event.model_fields_set
            },
        }
        for key in RESERVED_KEYS:
            if key in found:
                self._leave_out(key, "the name is reserved")
                del found[key]
        found = {key: value for key, value in found.items() if value is not None}
        return self._plain(found, _MOST_FRAME_ITEMS, "")  # type: ignore[no-any-return]

    def _plain(self, value: Any, most_items: int, name: str) -> Any:
        return plain_metadata(value, most_items, self._leave_out, name)

    def _leave_out(self, name: str, why: str) -> None:
        if name not in self._left_out:
            self._left_out.add(name)
            warn_in_thread(
                f"Metadata {name[:_MOST_SHOWN]!r} are left out: {why[:_MOST_SHOWN]}. The "
                "frames and all other metadata are stored."
            )

    @contextmanager
    def _keeping_the_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error = error
            raise

    @contextmanager
    def _logging_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _log.error("Frames are not stored: %s", error, exc_info=error)


def _one_after_the_other(width: int, height: int) -> list[Dimension]:
    return [
        Dimension(name="t", type="time"),
        Dimension(name="y", count=height, type="space"),
        Dimension(name="x", count=width, type="space"),
    ]


def _drop_largest(metadata: Any, name: str, most_nbytes: int) -> list[str]:
    """Remove the largest values until the rest is small enough; return their names."""
    leaves = sorted(_leaves(metadata, name), key=lambda leaf: leaf[0], reverse=True)
    left_nbytes, dropped = sum(nbytes for nbytes, *_ in leaves), []
    for nbytes, path, mapping, key in leaves:
        if left_nbytes <= most_nbytes:
            break
        del mapping[key]
        left_nbytes -= nbytes
        dropped.append(path)
    return dropped


def _leaves(metadata: Any, name: str) -> Iterator[tuple[int, str, dict[str, Any], str]]:
    """Yield the size as JSON, the name, the mapping and the key of all that is none."""
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        if isinstance(value, dict):
            yield from _leaves(value, f"{name}.{key}")
        else:
            yield len(json.dumps(value)), f"{name}.{key}", metadata, key


def _text(index: Mapping[Any, int]) -> str:
    return str({str(axis): i for axis, i in index.items()})


def _seconds(milliseconds: Any) -> float | None:
    """Return a time in seconds; None if it is not known."""
    return milliseconds / 1e3 if isinstance(milliseconds, int | float) else None


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
