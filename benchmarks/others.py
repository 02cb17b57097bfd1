"""What else people keep frames in.

All store plain uint16, uncompressed, one frame per chunk where there are chunks, and may
use as many threads as they like. `append` returns when the camera may have its buffer
back; that is what all of them have in common.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

from writers import GIB, Target, Work, Writer, assign_to, is_able

# A recording may be larger than memory: no more than this waits for the disk.
MOST_IN_FLIGHT_NBYTES = GIB


def open_zarr(work: Work, folder: Path) -> Target:
    import zarr

    array = zarr.create_array(
        str(folder / "frames.zarr") if work.on_disk else zarr.storage.MemoryStore(),
        shape=work.shape,
        chunks=(1, work.height, work.width),
        dtype="uint16",
        compressors=None,
    )
    return assign_to(array)


def open_tensorstore(work: Work, folder: Path) -> Target:
    import tensorstore

    path = str(folder / "frames.zarr")
    kvstore = {"driver": "file", "path": path} if work.on_disk else {"driver": "memory"}
    chunk = {"chunk_shape": [1, work.height, work.width]}
    metadata = {
        "shape": list(work.shape),
        "data_type": "uint16",
        "chunk_grid": {"name": "regular", "configuration": chunk},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
    }
    spec = {"driver": "zarr3", "kvstore": kvstore, "metadata": metadata, "create": True}
    array = tensorstore.open(spec).result()
    writes: deque[Any] = deque()
    most_in_flight = max(MOST_IN_FLIGHT_NBYTES // work.frame_nbytes, 1)

    def append(i: int, frame: Any) -> None:
        if len(writes) == most_in_flight:
            writes.popleft().result()
        write = array[i].write(frame)
        write.copy.result()  # the frame may change from here on
        writes.append(write)

    # In memory it is fastest to wait for all of it, to files only for the copy.
    return Target(
        "for i, frame in enumerate(frames, first)",
        "append(i, frame)" if work.on_disk else "array[i].write(frame).result()",
        {"array": array, "append": append},
        lambda: [write.result() for write in writes],
        lambda: array,
    )


def open_h5py(work: Work, folder: Path) -> Target:
    import h5py

    where = {} if work.on_disk else {"driver": "core", "backing_store": False}
    file = h5py.File(folder / "frames.h5", "w", libver="latest", **where)
    return assign_to(file.create_dataset("frames", work.shape, "uint16"), file.flush)


def open_tifffile(work: Work, folder: Path) -> Target:
    import tifffile

    path = folder / "frames.tif"
    return assign_to(tifffile.memmap(path, shape=work.shape, dtype="uint16", bigtiff=True))


def open_acquire_zarr(work: Work, folder: Path) -> Target:
    import acquire_zarr
    import zarr

    path = str(folder / "frames.zarr")
    sizes = {"t": (0, 1), "y": (work.height,) * 2, "x": (work.width,) * 2}
    dimensions = [
        acquire_zarr.Dimension(
            name=name,
            kind=getattr(acquire_zarr.DimensionType, "TIME" if name == "t" else "SPACE"),
            array_size_px=size,
            chunk_size_px=chunk,
            shard_size_chunks=1,
        )
        for name, (size, chunk) in sizes.items()
    ]
    array = acquire_zarr.ArraySettings(
        data_type=acquire_zarr.DataType.UINT16, dimensions=dimensions
    )
    stream = acquire_zarr.ZarrStream(
        acquire_zarr.StreamSettings(store_path=path, arrays=[array], overwrite=True)
    )
    return Target(
        "for frame in frames",
        "append(frame)",
        {"append": stream.append},
        stream.close,
        lambda: zarr.open_array(path, mode="r"),
    )


OTHERS = {
    "zarr": Writer(open_zarr, ("zarr",), "zarr"),
    "tensorstore": Writer(open_tensorstore, ("tensorstore",), "tensorstore"),
    "h5py": Writer(open_h5py, ("h5py",), "h5py"),
    "tifffile.memmap": Writer(open_tifffile, ("tifffile",), "tifffile"),
    "acquire-zarr": Writer(open_acquire_zarr, ("acquire_zarr", "zarr"), "acquire-zarr"),
}
DISK_ONLY = ("tifffile.memmap", "acquire-zarr")
GROWING = ("acquire-zarr",)  # the others are opened with their number of frames


def is_possible(writer: str, work: Work) -> bool:
    """Tell whether a writer, of those here or in writers.py, does this work."""
    if writer not in OTHERS:
        return is_able(writer, work)
    is_long_enough = work.bounded or writer in GROWING
    return is_long_enough and (work.on_disk or writer not in DISK_ONLY)
