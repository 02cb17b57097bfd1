"""What people write, for type checkers: `test_types` checks it, nothing runs it."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from scratchwriter import (
    AcquisitionSettings,
    Channel,
    CoordUpdate,
    Dimension,
    Plate,
    Position,
    ScratchFormat,
    StandardAxis,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)

names: list[str] = ["DAPI", "FITC"]
settings = AcquisitionSettings(
    root_path=Path("run1"),
    dimensions=[
        Dimension(name="t", count=None, type="time", scale=0.5, unit="s"),
        Dimension(name="p", type="position", coords=["A", Position(name="B", x_coord=1)]),
        Dimension(name="c", type="channel", coords=names),
        Dimension(name="z", coords=[0.0, 1, 3], type="space", unit="um"),
        *dims_from_standard_axes({"y": 512, "x": 512}),
    ],
    dtype=np.uint16,
    format="scratch",
    plate=Plate.from_standard_wells(96),
    overwrite=True,
    storage_order=["t", "p", "c", "z", "y", "x"],
)
Channel(name="DAPI", color="blue", emission_wavelength_nm=460)
Channel(name="FITC", color=(0, 255, 0))
AcquisitionSettings(root_path=b"run2", dtype=np.dtype("uint8"), format={"name": "scratch"})
AcquisitionSettings(root_path=None, dtype="uint16", plate={"row_names": ["A"]})
AcquisitionSettings(dimensions=tuple(dims_from_standard_axes({"t": None, "y": 8, "x": 8})))
AcquisitionSettings(
    format=ScratchFormat(spill_dir=Path("/tmp"), keep_last=3, disk_io="auto"),
    dtype=np.float32,
)
Plate(row_names=("A", "B"), column_names=["1"])
Dimension(name="z", coords=np.arange(3.0), unit="um", scale=np.float64(0.5))
order, chunks = ("c", "t", "y", "x"), {"y": 256, "x": 256}
dims_from_standard_axes(
    {
        "t": None,
        "p": [Position(name="A"), "B"],
        "c": [Channel(name="DAPI"), "FITC"],
        "z": [0.0, 1.5],
        **chunks,
    },
    chunk_shapes=chunks,
    shard_shapes={StandardAxis.Y: 2},
)
AcquisitionSettings(storage_order=order, dimensions=settings.dimensions)
settings.root_path = "there"
settings.overwrite = False


def show(update: CoordUpdate) -> None:
    print(update.frame_number, dict(update.current_indices))


with create_stream(settings) as stream:
    listener = stream.on("coords_changed", show)
    frame: npt.NDArray[np.uint16] = np.zeros((512, 512), np.uint16)
    stream.append(frame, frame_metadata={"exposure_ms": 5.0}, timestamp_ns=1, frame_id=7)
    stream.extend([frame, frame], timestamps_ns=[2, 3])
    with stream.slot() as place:
        place[...] = frame
    stream.skip(frames=2)
    count: int = stream.frames_written
    dims: tuple[Dimension, ...] = stream.settings.dimensions
    folder: str = stream.settings.root_path
    path: Path | None = stream.path
    fmt: ScratchFormat = stream.settings.format
    listener.stop()
with open_scratch(Path("run1")) as dataset:
    for image in dataset.follow():
        print(image.mean())
    print(dataset.arrays[0][0, 0].mean(), dataset.view().dims, dataset.state)
    copied: Path = dataset.copy(Path("run1_copy"))


async def watch() -> int:
    with open_scratch("run1") as dataset:
        async for image in dataset.follow(latest=True):
            print(image.mean(), image.shape)
        first: npt.NDArray[np.generic] = await anext(dataset.follow())
        again: npt.NDArray[np.generic] = next(dataset.follow(start=1))
        return first.size + again.size
