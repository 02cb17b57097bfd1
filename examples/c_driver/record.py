"""Record from a camera whose driver calls back from a thread of its own, in C.

python examples/c_driver/record.py [FOLDER]

Python only starts and ends it: no frame passes through the interpreter, so it does not
matter what Python does meanwhile.
"""

import ctypes
import subprocess
import sys
import tempfile
from pathlib import Path

import scratchwriter
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
)

HERE = Path(__file__).parent


def build(folder: Path) -> ctypes.CDLL:
    library = folder / "driver.so"
    include = scratchwriter.get_include()
    command = ["cc", "-shared", "-fPIC", "-O2", "-pthread", f"-I{include}"]
    subprocess.run([*command, HERE / "driver.c", "-o", library], check=True)
    driver = ctypes.CDLL(str(library))
    driver.driver_start.restype = ctypes.c_void_p
    driver.driver_start.argtypes = [
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int,
        ctypes.c_void_p,
    ]
    driver.driver_sent.restype = ctypes.c_int64
    driver.driver_sent.argtypes = driver.driver_join.argtypes = [ctypes.c_void_p]
    return driver


def main(folder: str = "") -> None:
    settings = AcquisitionSettings(
        root_path=folder,
        dimensions=dims_from_standard_axes({"t": None, "y": 64, "x": 64}),
        dtype="uint16",
        # Room for times and numbers from the beginning: else the first frame that comes
        # with them waits for Python.
        format=ScratchFormat(timestamps=True),
    )
    with tempfile.TemporaryDirectory() as build_folder, create_stream(settings) as stream:
        driver = build(Path(build_folder))
        # 20 kHz, each frame with its time and number, written in place (way 2).
        camera = driver.driver_start(stream.c_address, 20_000, 50_000, 2, None)
        status = driver.driver_join(camera)
        print(f"status {status}, {stream.frames_written} frames")
        print(f"{stream.stats().dropped} dropped, the last is {stream.frame_ids[0][-1]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
