"""An MDA of pymmcore-plus with positions, channels and a z-stack, with all its metadata.

python examples/mda.py FOLDER

Needs `pip install ".[pymmcore]" mm-test-adapters` (the demo camera).
"""

import sys

import mm_test_adapters
import useq
from pymmcore_plus import CMMCorePlus

from scratchwriter import open_scratch
from scratchwriter.bridges.pymmcore import MDAHandler


def demo_microscope() -> CMMCorePlus:
    core = CMMCorePlus(adapter_paths=[mm_test_adapters.device_adapter_path()])
    devices = {"Camera": "DCam", "XY": "DXYStage", "Z": "DStage", "Wheel": "DWheel"}
    for label, device in (devices | {"Shutter": "DShutter"}).items():
        core.loadDevice(label, "DemoCamera", device)
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setXYStageDevice("XY")
    core.setFocusDevice("Z")
    core.setShutterDevice("Shutter")
    for state, channel in enumerate(("DAPI", "FITC")):
        core.defineConfig("Channel", channel, "Wheel", "State", str(state))
    core.setChannelGroup("Channel")
    core.setExposure(1)
    return core


def main(folder: str) -> None:
    core = demo_microscope()
    sequence = useq.MDASequence(
        axis_order="tpcz",
        time_plan={"interval": 0, "loops": 2},
        stage_positions=[(0, 0, 0), (100, 0, 0)],
        channels=["DAPI", "FITC"],
        z_plan={"range": 4, "step": 1},
    )
    handler = MDAHandler(folder)
    core.mda.run(sequence, output=handler)
    core.unloadAllDevices()
    if handler.error is not None:
        raise handler.error
    with open_scratch(folder) as dataset:
        view = dataset.view()
        print(dict(zip(view.dims, view.shape, strict=True)))
        line = dataset.frame_metadata[-1]
        print(f"the last frame was taken at x={line['position_x']:.0f} µm")


if __name__ == "__main__":
    main(sys.argv[1])
