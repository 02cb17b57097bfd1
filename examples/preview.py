"""An endless preview: the newest 50 frames are kept, memory does not grow.

python examples/preview.py
"""

import numpy as np

from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
)


def main() -> None:
    settings = AcquisitionSettings(
        dimensions=dims_from_standard_axes({"t": None, "y": 128, "x": 128}),
        dtype="uint8",
        format=ScratchFormat(keep_last=50),
    )
    chance = np.random.default_rng(0)
    with create_stream(settings) as stream:
        for _ in range(1000):  # until somebody stops it
            with stream.slot() as frame:  # the camera's driver writes here
                frame[:] = chance.integers(0, 255, frame.shape, dtype="uint8")
        view = stream.view()
        print(f"{stream.frames_written} frames, the newest {len(view)} are kept")
        print(f"mean of the newest: {view[-1].mean():.1f}")


if __name__ == "__main__":
    main()
