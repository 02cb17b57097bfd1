"""Record from a GigE Vision camera with Aravis (Debian: gir1.2-aravis-0.8, python3-gi).

arv-fake-gv-camera-0.8 -i 127.0.0.1 &      # or a camera that you have
python examples/gige_vision.py [FOLDER]

A virtual environment sees Debian's `gi` only if it was made by the system's Python:
/usr/bin/python3 -m venv --system-site-packages.

Aravis fills buffers whose addresses it was given: memory of numpy arrays, that are appended
as they are, with the camera's own time and number of the frame.
"""

import sys

import gi
import numpy as np

from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes

gi.require_version("Aravis", "0.8")
from gi.repository import Aravis  # noqa: E402

NUM_FRAMES = 50
NUM_BUFFERS = 8
TIMEOUT_US = 5_000_000


def main(folder: str = "") -> None:
    Aravis.update_device_list()
    camera = Aravis.Camera.new(None)  # the first one found
    camera.set_pixel_format(Aravis.PIXEL_FORMAT_MONO_8)
    _, _, width, height = camera.get_region()
    settings = AcquisitionSettings(
        root_path=folder,
        dimensions=dims_from_standard_axes({"t": NUM_FRAMES, "y": height, "x": width}),
        dtype="uint8",
    )
    source = camera.create_stream(None, None)
    frames = {}
    for frame in np.empty((NUM_BUFFERS, height, width), np.uint8):
        buffer = Aravis.Buffer.new(frame.nbytes, frame.ctypes.data)
        frames[buffer] = frame
        source.push_buffer(buffer)
    with create_stream(settings) as stream:
        camera.start_acquisition()
        while stream.frames_written < NUM_FRAMES:
            buffer = source.timeout_pop_buffer(TIMEOUT_US)
            if buffer is None:
                raise TimeoutError(f"no frame in {TIMEOUT_US / 1e6} s")
            if buffer.get_status() == Aravis.BufferStatus.SUCCESS:
                stream.append(
                    frames[buffer],
                    timestamp_ns=buffer.get_timestamp(),
                    frame_id=buffer.get_frame_id(),
                )
            source.push_buffer(buffer)
        camera.stop_acquisition()
        print(f"{stream.frames_written} frames, {stream.stats().dropped} dropped")


if __name__ == "__main__":
    main(*sys.argv[1:])
