"""The demo: a real camera loop, from MMCore's demo camera into a scratch dataset.

Needs the `demo` extra (pymmcore, mm-test-adapters, rich, pillow).
"""

from __future__ import annotations

import errno
import json
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mm_test_adapters
import numpy as np
import numpy.typing as npt
import pymmcore
from PIL import Image

from scratchwriter._showing.pictures import THUMBNAIL, thumbnail
from scratchwriter.dimensions import dims_from_standard_axes
from scratchwriter.settings import AcquisitionSettings, ScratchFormat
from scratchwriter.stats import DiskStats
from scratchwriter.stream import ScratchStream, create_stream

FRAME_SHAPE = (512, 512)
_ENDLESS = 2**31 - 1  # frames
_PATIENCE_S = 20.0  # how long to wait for a frame
_SHEET_COLUMNS, _SHEET_ROWS = 5, 4


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What a run of the demo measured and made.

    Attributes
    ----------
    frames : int
        Frames stored.
    elapsed_s : float
        From the first frame to the last.
    append_ns : numpy.ndarray of int64
        Time inside each append.
    disk : DiskStats or None
        How the disk did when the last frame had come; None unless it was written directly.
    path : pathlib.Path or None
        The dataset; None in memory.
    sheet : pathlib.Path
        The contact sheet, a PNG.
    """

    frames: int
    elapsed_s: float
    append_ns: npt.NDArray[np.int64]
    disk: DiskStats | None
    path: Path | None
    sheet: Path


class DemoCamera:
    """The 16 bit demo camera of Micro-Manager in the real MMCore.

    Parameters
    ----------
    exposure_ms : float
        Exposure time.

    """

    def __init__(self, exposure_ms: float = 1.0) -> None:
        self.core = core = pymmcore.CMMCore()
        core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
        core.loadDevice("Camera", "DemoCamera", "DCam")
        core.initializeAllDevices()
        core.setCameraDevice("Camera")
        core.setProperty("Camera", "PixelType", "16bit")
        core.setProperty("Camera", "OnCameraCCDXSize", str(FRAME_SHAPE[1]))
        core.setProperty("Camera", "OnCameraCCDYSize", str(FRAME_SHAPE[0]))
        core.setExposure(exposure_ms)

    def sequence(
        self, num_frames: int
    ) -> Iterator[tuple[npt.NDArray[np.uint16], dict[str, str]]]:
        """Yield the frames of a sequence acquisition with the camera's own tags.

        Raises
        ------
        RuntimeError
            If the camera stops early, as it does when MMCore's buffer overflows.
        """
        core = self.core
        # More than wanted, and stopped from here, because a sequence that ends by itself
        # leaves a thread that may still be ending when the camera is unloaded.
        core.startSequenceAcquisition(_ENDLESS, 0, True)
        try:
            for _ in range(num_frames):
                end_s = time.monotonic() + _PATIENCE_S
                while not core.getRemainingImageCount():
                    is_over = core.isBufferOverflowed() or not core.isSequenceRunning()
                    if is_over or time.monotonic() > end_s:
                        raise RuntimeError(
                            "The camera stopped early. If MMCore's buffer overflowed, "
                            "frames were taken out too slowly."
                        )
                    time.sleep(0.0001)
                metadata = pymmcore.Metadata()
                frame = core.popNextImageMD(metadata)
                tags = {k: metadata.GetSingleTag(k).GetValue() for k in metadata.GetKeys()}
                yield frame, tags
        finally:
            core.stopSequenceAcquisition()

    def close(self) -> None:
        """Release the camera."""
        self.core.unloadAllDevices()


def run_demo(
    num_frames: int,
    root_path: Path | None,
    sheet: Path,
    on_frame: Callable[[int], object] = lambda _: None,
) -> DemoResult:
    """Stream the demo camera, read everything back, and compare.

    Parameters
    ----------
    num_frames : int
        How many frames to take.
    root_path : pathlib.Path or None
        Folder of the dataset; None for memory.
    sheet : pathlib.Path
        Where to put the contact sheet.
    on_frame : callable, optional
        Called with the number of frames so far.

    Raises
    ------
    FileExistsError
        If the dataset or the contact sheet exists already.
    RuntimeError
        If frames were lost, or what is read back is not what the camera gave.
    """
    if sheet.exists():
        raise FileExistsError(errno.EEXIST, "The contact sheet exists already", str(sheet))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    settings = AcquisitionSettings(
        root_path=root_path or "",
        dimensions=dims_from_standard_axes(
            {"t": num_frames, "y": FRAME_SHAPE[0], "x": FRAME_SHAPE[1]}
        ),
        dtype="uint16",
        # In memory means in memory: a temporary folder would be removed afterwards.
        format=ScratchFormat(spill_to_disk=False),
    )
    append_ns = np.zeros(num_frames, np.int64)
    checksums = []
    with _camera() as camera, create_stream(settings) as stream:
        start_ns = end_ns = time.perf_counter_ns()
        for i, (frame, tags) in enumerate(camera.sequence(num_frames)):
            before_ns = time.perf_counter_ns()
            stream.append(frame, frame_metadata=tags)
            end_ns = time.perf_counter_ns()
            append_ns[i] = end_ns - before_ns
            if i == 0:
                start_ns = before_ns
            checksums.append(zlib.crc32(frame.data))
            on_frame(i + 1)
        disk = stream.stats().disk
    if len(checksums) != num_frames:
        raise RuntimeError(f"The camera gave {len(checksums)} of {num_frames} frames.")
    stored = _read_back(stream)
    for i, checksum in enumerate(checksums):
        if zlib.crc32(np.ascontiguousarray(stored[i]).data) != checksum:
            raise RuntimeError(f"Frame {i} is not what the camera gave.")
    _save_sheet(stored, sheet)
    elapsed_s = (end_ns - start_ns) / 1e9
    return DemoResult(num_frames, elapsed_s, append_ns, disk, stream.path, sheet)


@contextmanager
def _camera() -> Iterator[DemoCamera]:
    camera = DemoCamera()
    try:
        yield camera
    finally:
        camera.close()


def _read_back(stream: ScratchStream) -> npt.NDArray[Any]:
    """Read a dataset with numpy alone."""
    if stream.path is None:
        return np.asarray(stream.arrays[0])
    manifest = json.loads((stream.path / "manifest.json").read_text())
    shape = tuple(manifest["position_shapes"][0])
    return np.memmap(
        stream.path / "pos_0.dat", dtype=manifest["dtype"], mode="r", shape=shape
    )


def _save_sheet(frames: npt.NDArray[Any], path: Path) -> None:
    """Save thumbnails of evenly spaced frames, with the contrast of all of them."""
    count = min(len(frames), _SHEET_COLUMNS * _SHEET_ROWS)
    chosen = np.linspace(0, len(frames) - 1, count).round().astype(int)
    low, high = int(frames[chosen].min()), int(frames[chosen].max())
    rows = -(-count // _SHEET_COLUMNS)
    sheet = Image.new("L", (_SHEET_COLUMNS * THUMBNAIL, rows * THUMBNAIL))
    for n, i in enumerate(chosen):
        row, column = divmod(n, _SHEET_COLUMNS)
        place = column * THUMBNAIL, row * THUMBNAIL
        sheet.paste(thumbnail(frames[i], low, high), place)
    sheet.save(path)
