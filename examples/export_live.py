"""Export to OME-Zarr while the camera goes on; it is complete shortly after the last frame.

python examples/export_live.py FOLDER OUT.ome.zarr

Needs `pip install ".[export]"`.
"""

import multiprocessing
import sys
import time

import numpy as np

from scratchwriter import (
    AcquisitionSettings,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)

NUM_FRAMES = 300


def export(folder: str, out: str) -> None:
    """Follow the recording to its end, in a process of its own."""
    made = open_scratch(folder).export(out)
    print(f"exported {made.name}")


def main(folder: str, out: str) -> None:
    dims = {"t": None, "c": ["DAPI", "FITC"], "y": 128, "x": 128}
    settings = AcquisitionSettings(
        root_path=folder, dimensions=dims_from_standard_axes(dims), dtype="uint16"
    )
    with create_stream(settings) as stream:
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=export, args=[folder, out])
        process.start()
        for i in range(NUM_FRAMES):
            frame = np.full((128, 128), i, "uint16")
            stream.append(frame, frame_metadata={"delta_t": i / 500})
            time.sleep(0.002)
    process.join()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
