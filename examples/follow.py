"""Another process looks at each frame while it is recorded; the camera does not notice.

python examples/follow.py FOLDER
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

NUM_FRAMES = 500


def look(folder: str) -> None:
    """Find the brightest frame, as they come."""
    with open_scratch(folder) as dataset:
        means = [frame.mean() for frame in dataset.follow()]
        print(f"{len(means)} frames seen, the brightest is {np.argmax(means)}")
        print(f"the recording is {dataset.state}")


def main(folder: str) -> None:
    settings = AcquisitionSettings(
        root_path=folder,
        dimensions=dims_from_standard_axes({"t": None, "y": 128, "x": 128}),
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        process = multiprocessing.get_context("spawn").Process(target=look, args=[folder])
        process.start()
        for i in range(NUM_FRAMES):
            stream.append(np.full((128, 128), 100 - abs(i - 321) // 5, "uint16"))
            time.sleep(0.002)
    process.join()


if __name__ == "__main__":
    main(sys.argv[1])
