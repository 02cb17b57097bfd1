"""Record a camera of Micro-Manager: all unread frames at once, with its times and numbers.

python examples/micro_manager.py [FOLDER]

Needs `pip install pymmcore mm-test-adapters` (the demo camera; any other will do).
"""

import sys
import time

import mm_test_adapters
import numpy as np
import pymmcore

from scratchwriter import (
    AcquisitionSettings,
    ScratchStream,
    create_stream,
    dims_from_standard_axes,
)

NUM_FRAMES = 200
SHAPE = (64, 64)


def demo_camera() -> pymmcore.CMMCore:
    core = pymmcore.CMMCore()
    core.setDeviceAdapterSearchPaths([mm_test_adapters.device_adapter_path()])
    core.loadDevice("Camera", "DemoCamera", "DCam")
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setProperty("Camera", "OnCameraCCDXSize", str(SHAPE[1]))
    core.setProperty("Camera", "OnCameraCCDYSize", str(SHAPE[0]))
    core.setExposure(0.5)
    return core


def take_all(core: pymmcore.CMMCore, stream: ScratchStream) -> None:
    """Take all frames out of MMCore's buffer, and store them in one call."""
    frames, times, numbers = [], [], []
    num_left = NUM_FRAMES - stream.frames_written
    while core.getRemainingImageCount() and len(frames) < num_left:
        metadata = pymmcore.Metadata()
        frames.append(core.popNextImageMD(metadata))
        times.append(int(1e6 * float(metadata.GetSingleTag("ElapsedTime-ms").GetValue())))
        numbers.append(int(metadata.GetSingleTag("ImageNumber").GetValue()))
    stream.extend(frames, timestamps_ns=times, frame_ids=numbers)


def snap_into_slot(core: pymmcore.CMMCore, stream: ScratchStream) -> None:
    """Let the pixels of a snapped image go straight to their place."""
    core.snapImage()
    with stream.slot() as frame:
        np.copyto(frame, core.getImage())


def main(folder: str = "") -> None:
    core = demo_camera()
    settings = AcquisitionSettings(
        root_path=folder,
        dimensions=dims_from_standard_axes(
            {"t": NUM_FRAMES + 1, "y": SHAPE[0], "x": SHAPE[1]}
        ),
        dtype="uint16",
    )
    try:
        with create_stream(settings) as stream:
            core.startSequenceAcquisition(1 << 30, 0, True)
            try:
                while stream.frames_written < NUM_FRAMES:
                    take_all(core, stream)
                    time.sleep(0.005)
            finally:
                core.stopSequenceAcquisition()
            snap_into_slot(core, stream)
            print(f"{stream.frames_written} frames, {stream.stats().dropped} dropped")
    finally:
        core.unloadAllDevices()


if __name__ == "__main__":
    main(*sys.argv[1:])
