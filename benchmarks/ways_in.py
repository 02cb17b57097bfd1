"""What each way in costs above the copy of the frame, and a camera's own thread in C.

    python benchmarks/ways_in.py

README.md says how to read the tables.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from asv_common import Frame, make_frame
from native import compile_c
from report import describe, exact_percentile, insert, markdown_table
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    ScratchStream,
    create_stream,
    dims_from_standard_axes,
    get_include,
)
from session import describe_machine

COUNT = 2048  # frames in a sample; less than is made ready ahead
BATCH = 64
RATE_HZ = 20_000
READY_S = 0.05


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as build_folder:
        native = load(Path(build_folder))
        lines = [
            describe(describe_machine(Path(build_folder)), {}),
            "",
            *costs(native, options.repetitions),
            "",
            *thread(native, options.seconds),
        ]
    text = "\n".join(lines)
    print(text)
    if options.into:
        insert(text, options.into, "ways_in")


def load(folder: Path) -> ctypes.CDLL:
    flags = "-shared", "-fPIC", f"-I{get_include()}"
    native = ctypes.CDLL(str(compile_c("ways_in.c", folder, *flags)))
    address, count = ctypes.c_void_p, ctypes.c_int64
    native.append_all.argtypes = address, address, count
    native.copy_all.argtypes = address, address, count, count
    native.append_all.restype = native.copy_all.restype = count
    native.camera_start.argtypes = address, count, count, address
    native.camera_start.restype = address
    native.camera_join.argtypes = (address,)
    return native


def open_stream(
    size: int, count: int | None, folder: str = "", timestamps: bool = False
) -> ScratchStream:
    settings = AcquisitionSettings(
        root_path=folder,
        dimensions=dims_from_standard_axes({"t": count, "y": size, "x": size}),
        dtype="uint16",
        format=ScratchFormat(max_memory_bytes=8 << 30, timestamps=timestamps),
    )
    stream = create_stream(settings)
    time.sleep(READY_S)  # the beginning is made ready
    return stream


def memory_of(stream: ScratchStream) -> npt.NDArray[np.uint16]:
    """Return the array of a stream, to write into: the floors are of the same memory."""
    array = np.asarray(stream.arrays[0])
    memory = (ctypes.c_char * array.nbytes).from_address(array.ctypes.data)
    return np.frombuffer(memory, array.dtype).reshape(array.shape)


# ------------------------------------------------------------------------ what it costs


def timed(action: Callable[[], object]) -> float:
    start_ns = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start_ns) / COUNT


def python_append(frame: Frame, **fields: int) -> float:
    def action() -> None:
        for _ in range(COUNT):
            append(frame, **fields)

    with open_stream(len(frame), COUNT + 1) as stream:
        stream.append(frame, **fields)  # what is made for the first record, is made
        append = stream.append
        return timed(action)


def python_assign(frame: Frame) -> float:
    def action() -> None:
        for view in views:
            view[...] = frame

    with open_stream(len(frame), COUNT) as stream:
        views = list(memory_of(stream))
        return timed(action)


def python_slot(frame: Frame) -> float:
    def action() -> None:
        for _ in range(COUNT):
            with slot() as view:
                view[...] = frame

    with open_stream(len(frame), COUNT) as stream:
        slot = stream.slot
        return timed(action)


def python_extend(frame: Frame) -> float:
    def action() -> None:
        for _ in range(COUNT // BATCH):
            extend(frames)

    frames = np.stack([frame] * BATCH)
    with open_stream(len(frame), COUNT) as stream:
        extend = stream.extend
        return timed(action)


def c_append(native: ctypes.CDLL, frame: Frame) -> float:
    with open_stream(len(frame), COUNT) as stream:
        return native.append_all(stream.c_address, frame.ctypes.data, COUNT) / COUNT


def c_copy(native: ctypes.CDLL, frame: Frame) -> float:
    with open_stream(len(frame), COUNT) as stream:
        to = memory_of(stream).ctypes.data
        return native.copy_all(to, frame.ctypes.data, frame.nbytes, COUNT) / COUNT


def c_copy_batch(native: ctypes.CDLL, frame: Frame) -> float:
    """Copy as many frames as a batch has at once: what `extend` cannot do without."""
    frames = np.stack([frame] * BATCH)
    source, num_batches = frames.ctypes.data, COUNT // BATCH
    with open_stream(len(frame), COUNT) as stream:
        to = memory_of(stream).ctypes.data
        return native.copy_all(to, source, frames.nbytes, num_batches) / COUNT


def costs(native: ctypes.CDLL, repetitions: int) -> list[str]:
    small, frame = make_frame(32), make_frame(64)
    ways: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "`with slot() as f: f[...] = frame`, 64x64, over `f[...] = frame`": (
            lambda: python_slot(frame),
            lambda: python_assign(frame),
        ),
        "`extend`, 64 frames of 32x32, over memcpy of the 64": (
            lambda: python_extend(small),
            lambda: c_copy_batch(native, small),
        ),
        "C `append`, 32x32, over memcpy": (
            lambda: c_append(native, small),
            lambda: c_copy(native, small),
        ),
        "`append` with a time and a number, 32x32, over `append`": (
            lambda: python_append(small, timestamp_ns=1, frame_id=1),
            lambda: python_append(small),
        ),
    }
    rows = []
    gc.disable()
    for name, (way, floor) in ways.items():
        way(), floor()
        pairs = [(way(), floor()) for _ in range(repetitions)]
        costs, floors = np.median(pairs, axis=0)
        above = np.median([cost - least for cost, least in pairs])
        rows.append([name, f"{costs:.0f}", f"{floors:.0f}", f"{above:.0f}"])
    gc.enable()
    return markdown_table(["ns per frame", "way", "floor", "above it"], rows)


# -------------------------------------------------------------------------- a thread


def spin(stop: threading.Event) -> None:
    while not stop.is_set():
        sum(range(100))


def thread(native: ctypes.CDLL, seconds: float) -> list[str]:
    rows = []
    for storage in ("memory", "disk"):
        with tempfile.TemporaryDirectory() as folder:
            took_us, lost = record(native, seconds, folder if storage == "disk" else "")
        times = [exact_percentile(took_us, q) for q in (50, 99, 99.9, 99.99, 100)]
        rows.append([storage, *(f"{t:.1f}" for t in times), str(lost)])
    heads = ["µs inside append", "p50", "p99", "p99.9", "p99.99", "max", "lost"]
    return markdown_table(heads, rows)


def record(
    native: ctypes.CDLL, seconds: float, folder: str
) -> tuple[npt.NDArray[np.float64], int]:
    """Let a camera's thread append 64x64 frames while Python does something else."""
    count = int(RATE_HZ * seconds)
    took_ns = np.ones(count, np.int64)
    stop = threading.Event()
    spinning = threading.Thread(target=spin, args=(stop,))
    spinning.start()
    with open_stream(64, None, folder and f"{folder}/data", timestamps=True) as stream:
        camera = native.camera_start(
            stream.c_address, 10**9 // RATE_HZ, count, took_ns.ctypes.data
        )
        status = native.camera_join(camera)
        stop.set()
        spinning.join()
        if status != 0:
            raise RuntimeError(f"append failed with status {status}")
        numbers = stream.arrays[0][:, 0, :4].copy().view(np.int64)[:, 0]
        found = len(np.intersect1d(numbers, np.arange(count)))
    return took_ns / 1e3, count - found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=31)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--into", type=Path, metavar="README", help="insert the tables")
    return parser.parse_args()


if __name__ == "__main__":
    main()
