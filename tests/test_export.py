"""The way out: exports against what ome-writers writes itself, and as others read them."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

ome_writers = pytest.importorskip("ome_writers")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")
yaozarrs = pytest.importorskip("yaozarrs")

from scratchwriter import (
    AcquisitionSettings,
    DatasetError,
    Dimension,
    ExportCancelledError,
    Plate,
    Position,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter.bridges import export as exporting
from scratchwriter.bridges.export import unfinished
from scratchwriter.cli import main

BACKENDS = ["zarr-python"]
try:
    import tensorstore  # noqa: F401
except ImportError:
    pass
else:
    BACKENDS.append("tensorstore")

SIZE = 8
FRAME = {"y": SIZE, "x": SIZE}
CHUNKED = {"t": 3, "c": 2, "y": SIZE, "x": SIZE}
# Sizes, how many frames come, which are skipped, and other layouts.
CASES = {
    "plain": ({"t": 40, "c": ["a", "b"], **FRAME}, 80, (), {}),
    "skips": ({"t": 40, "c": ["a", "b"], **FRAME}, 80, (0, 4, 5, 50), {}),
    "stopped early": ({"t": 40, "c": ["a", "b"], **FRAME}, 55, (), {}),
    "positions": ({"t": 20, "p": ["A", "B", "C"], "c": 2, **FRAME}, 120, (7,), {}),
    "position by position": ({"p": ["A", "B"], "t": 40, **FRAME}, 80, (), {}),
    "chunks": ({"t": 40, "c": 2, **FRAME}, 80, (9,), {"chunk_shapes": CHUNKED}),
    "chunks in positions": (
        {"p": ["A", "B"], "t": 40, "c": 2, **FRAME},
        160,
        (),
        {"chunk_shapes": CHUNKED},
    ),
    "shards": (
        {"t": 40, "c": 2, **FRAME},
        80,
        (),
        {
            "chunk_shapes": {"t": 1, "c": 1, "y": 4, "x": 8},
            "shard_shapes": {"t": 6, "c": 1, "y": 2, "x": 1},
        },
    ),
    "one frame": (FRAME, 1, (), {}),
    "unbounded": ({"t": None, "c": 2, **FRAME}, 45, (7,), {}),
    "unbounded chunks": (
        {"t": None, "p": ["A", "B"], "c": 2, **FRAME},
        74,
        (30,),
        {"chunk_shapes": CHUNKED},
    ),
    "unbounded, less than a chunk": (
        {"t": None, "c": 2, **FRAME},
        3,
        (),
        {"chunk_shapes": CHUNKED},
    ),
}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of ten frames, so that there are many."""
    monkeypatch.setattr(exporting.parts, "PART_NBYTES", 10 * SIZE * SIZE * 2)


def frame(i):
    return np.full((SIZE, SIZE), i + 1, "uint16")


def metadata(i):
    return {"delta_t": i / 2, "n": i} if i % 3 else None


def fill(stream, frames, skipped=()):
    for i in range(frames):
        if i in skipped:
            stream.skip()
        else:
            stream.append(frame(i), frame_metadata=metadata(i))
    stream.set_global_metadata("lab", {"who": ["me", 1]})


def record(path, sizes, frames, skipped=(), layout=None, **fields):
    settings = AcquisitionSettings(
        root_path=str(path),
        dimensions=dims_from_standard_axes(sizes, **(layout or {})),
        dtype="uint16",
        **fields,
    )
    with create_stream(settings) as stream:
        fill(stream, frames, skipped)
    return open_scratch(path)


def tree(path):
    files = (file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): file.read_bytes() for file in files}


def directly(path, sizes, frames, skipped, layout, backend):
    """What ome-writers writes without us, and to a length that it knows."""
    if sizes.get("t", 0) is None:
        others = [n if isinstance(n, int) else len(n) for n in list(sizes.values())[1:-2]]
        sizes = {**sizes, "t": -(-frames // math.prod(others))}
    settings = ome_writers.AcquisitionSettings(
        root_path=str(path),
        dimensions=ome_writers.dims_from_standard_axes(sizes, **layout),
        dtype="uint16",
        format=ome_writers.OmeZarrFormat(backend=backend),
    )
    with ome_writers.create_stream(settings) as stream:
        fill(stream, frames, skipped)
    for future in getattr(stream._backend, "_futures", ()):
        future.result()
    return tree(path)


def is_the_same_image(file, found, expected):
    """Return whether metadata are the same but for what is ours.

    The name of a position, and no unit of an axis whose scale is not known.
    """
    ours, theirs = json.loads(found[file]), json.loads(expected[file])
    (image,) = theirs["attributes"]["ome"]["multiscales"]
    for axis in image["axes"]:
        axis.pop("unit", None)
    if file != "zarr.json":
        image["name"] = file.split("/")[-2]
    return ours == theirs


def nothing_unfinished(folder):
    return not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_a_zarr_in_parts_is_byte_for_byte_what_ome_writers_writes(tmp_path, name, backend):
    sizes, frames, skipped, layout = CASES[name]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    told = []
    made = dataset.export(
        tmp_path / "out.ome.zarr",
        format=ome_writers.OmeZarrFormat(backend=backend),
        progress=lambda *done: told.append(done),
    )
    assert made == tmp_path / "out.ome.zarr"
    expected = directly(
        tmp_path / "direct" / "out.ome.zarr", sizes, frames, skipped, layout, backend
    )
    found = tree(made)
    assert found.keys() == expected.keys()
    differ = [file for file in found if found[file] != expected[file]]
    assert [file for file in differ if not is_the_same_image(file, found, expected)] == []
    assert told[-1] == (frames, frames)
    assert nothing_unfinished(tmp_path)


def test_an_unbounded_dimension_has_the_length_that_it_reached(tmp_path):
    dataset = record(tmp_path / "data", {"t": None, "c": 2, **FRAME}, 77)
    made = dataset.export(tmp_path / "out.ome.zarr")
    pixels = zarr.open(made)["0"][:]
    assert pixels.shape == (39, 2, SIZE, SIZE)
    assert pixels[..., 0, 0].ravel().tolist() == [*range(1, 78), 0]


def test_metadata_is_carried_over(tmp_path):
    dataset = record(tmp_path / "data", {"t": 30, "c": ["a", "b"], **FRAME}, 60)
    made = dataset.export(tmp_path / "out.ome.zarr")
    group = json.loads((made / "zarr.json").read_text())["attributes"]
    lines = group["ome_writers"]["frame_metadata"]
    assert [line["n"] for line in lines] == [i for i in range(60) if i % 3]
    assert lines[-1]["storage_index"] == [29, 1]
    assert group["lab"] == {"who": ["me", 1]}
    assert [c["label"] for c in group["ome"]["omero"]["channels"]] == ["a", "b"]


def test_times_and_numbers_of_frames_are_carried_over(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": 30, **FRAME}),
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        for i in range(30):
            stream.append(frame(i), timestamp_ns=1000 * i, frame_id=2 * i)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.zarr")
    group = json.loads((made / "zarr.json").read_text())["attributes"]
    assert group["ome_writers"]["frame_metadata"][21] == {
        "timestamp_ns": 21_000,
        "frame_id": 42,
        "delta_t": 21e-6,
        "storage_index": [21],
    }


@pytest.mark.parametrize("end", ["zarr", "tiff"])
def test_what_a_killed_writer_left_is_exported_with_zeros_behind(tmp_path, end):
    dataset = record(tmp_path / "data", {"t": 20, "p": ["A", "B"], **FRAME}, 13)
    made = dataset.export(tmp_path / f"out.ome.{end}")
    expected = [np.asarray(array) for array in dataset.arrays]
    if end == "zarr":
        found = [zarr.open(made)[name]["0"][:] for name in "AB"]
    else:
        files = sorted(made.rglob("*.tiff"))
        found = [tifffile.imread(file, series=0) for file in files]
    np.testing.assert_array_equal(found, expected)


def test_other_storage_orders_come_out_in_an_order_of_ome(tmp_path):
    sizes = {"t": 5, "c": 2, "z": 3, **FRAME}
    dataset = record(tmp_path / "data", sizes, 30, storage_order=["z", "t", "c", "y", "x"])
    made = dataset.export(tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(zarr.open(made)["0"][:], np.asarray(dataset.view()))


# ------------------------------------------------------- names and places of positions


def position(name, **fields):
    return Position(name=name, **fields)


def in_well(name, cell=None, row="A", column="1", **fields):
    if cell is not None:
        fields |= {"grid_row": cell[0], "grid_column": cell[1]}
    return Position(name=name, plate_row=row, plate_column=column, **fields)


WELLS = {"plate": Plate(row_names=["A", "B"], column_names=["1", "2"])}
# Positions, other settings, and where each is found.
MEETING = {
    "fields of a well": (
        [in_well("0", (0, g)) for g in range(3)],
        WELLS,
        ["A/1/fov0", "A/1/fov1", "A/1/fov2"],
    ),
    "fields of several wells": (
        [in_well("0", (0, g), row=row) for row in "AB" for g in range(2)],
        WELLS,
        ["A/1/fov0", "A/1/fov1", "B/1/fov0", "B/1/fov1"],
    ),
    "a name that is a cell": (
        [position("a", grid_row=0, grid_column=1), position("a_0_1")],
        {},
        ["a_0_1", "a_0_1_1"],
    ),
    "one within another": ([position("a/0"), position("a")], {}, ["a/0", "a_1"]),
    "another within one": ([position("a"), position("a/0")], {}, ["a", "a_0_1"]),
    "large and small letters": ([position("a"), position("A")], {}, ["a", "A_1"]),
    "cells": (
        [position("a", grid_row=0, grid_column=g) for g in range(2)],
        {},
        ["a_0_0", "a_0_1"],
    ),
    "one well with names of its own": (
        [in_well("a"), in_well("b"), in_well("c", row="B"), in_well("C", row="B")],
        WELLS,
        ["A/1/a", "A/1/b", "B/1/fov0", "B/1/fov1"],
    ),
    "one position on a plate": ([in_well("a")], WELLS, ["A/1/a"]),
    "names that no well has": (
        [in_well("Pos 1"), in_well("Pos é", row="B"), in_well("../x", row="B")],
        WELLS,
        ["A/1/fov0", "B/1/fov0", "B/1/fov1"],
    ),
    "wells alone": ([in_well("0"), in_well("0", row="B")], WELLS, ["A/1/0", "B/1/0"]),
}


def settings_at(path, positions, **fields):
    dims = [
        Dimension(name="t", count=2, type="time", scale=0.5, unit="second"),
        Dimension(name="p", type="position", coords=positions),
        Dimension(name="z", count=3, type="space", scale=-2, translation=10, unit="um"),
        *dims_from_standard_axes(FRAME),
    ]
    for dim in dims[-2:]:
        dim.scale = 0.25
    return AcquisitionSettings(
        root_path=str(path), dimensions=dims, dtype="uint16", **fields
    )


@pytest.mark.filterwarnings("ignore:In an OME-Zarr a position is a folder:UserWarning")
@pytest.mark.parametrize("name", MEETING)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_position_has_a_folder_of_its_own(tmp_path, name, backend):
    positions, fields, paths = MEETING[name]
    with create_stream(settings_at(tmp_path / "data", positions, **fields)) as stream:
        fill(stream, 2 * 3 * len(positions))
    dataset = open_scratch(tmp_path / "data")
    made = dataset.export(
        tmp_path / "out.ome.zarr", format=ome_writers.OmeZarrFormat(backend=backend)
    )
    for array, path, at in zip(dataset.arrays, paths, positions, strict=True):
        group = zarr.open_group(made / path, mode="r")
        np.testing.assert_array_equal(group["0"][...], array)
        assert group.attrs["ome"]["multiscales"][0]["name"] == at.name
    if "plate" in fields:
        yaozarrs.validate_zarr_store(made)


@pytest.mark.filterwarnings("ignore:In an OME-Zarr a position is a folder:UserWarning")
def test_a_backslash_in_a_name_is_no_folder(tmp_path):
    positions = [position("a\\b"), position("c")]
    with create_stream(settings_at(tmp_path / "data", positions)) as stream:
        fill(stream, 12)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.zarr")
    image = zarr.open_group(made / "a_b", mode="r").attrs["ome"]["multiscales"][0]
    assert image["name"] == "a\\b"


def test_a_name_that_no_file_system_takes_is_refused_before_the_first_frame(tmp_path):
    dataset = record(tmp_path / "data", {"p": ["A", "b" * 300], "t": 3, **FRAME}, 6)
    with pytest.raises(ValueError, match="cannot be its name: export to"):
        dataset.export(tmp_path / "out.ome.zarr")
    assert nothing_unfinished(tmp_path)


def test_positions_that_are_renamed_are_said(tmp_path):
    positions = [in_well("0", (0, g)) for g in range(7)]
    with create_stream(settings_at(tmp_path / "data", positions, **WELLS)) as stream:
        fill(stream, 42)
    with pytest.warns(UserWarning, match=r"7 have another name there .fov0,.*fov4, "):
        open_scratch(tmp_path / "data").export(tmp_path / "out.ome.zarr")


PLACES = [
    position("A", x_coord=100.0, y_coord=-20.0, z_coord=5.0),
    position("B", x_coord=0.0, y_coord=0.0),
]


def test_stage_positions_and_heights_are_translations(tmp_path):
    with create_stream(settings_at(tmp_path / "data", PLACES)) as stream:
        fill(stream, 12)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.zarr")
    for path, translation in (("A", [0, 15, -20, 100]), ("B", [0, 10, 0, 0])):
        image = zarr.open_group(made / path, mode="r").attrs["ome"]["multiscales"][0]
        scale, moved = image["datasets"][0]["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": [0.5, -2.0, 0.25, 0.25]}
        assert moved == {"type": "translation", "translation": translation}
        units = [axis["unit"] for axis in image["axes"]]
        assert units == ["second", *["micrometer"] * 3]
    yaozarrs.validate_zarr_store(made)


def test_an_axis_without_a_scale_has_no_unit_and_its_coordinates_are_kept(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=[
            Dimension(name="t", type="time", coords=[0.0, 1.0, 7.0], unit="second"),
            Dimension(name="z", type="space", coords=["low", "high"], unit="um", scale=0),
            *dims_from_standard_axes(FRAME),
        ],
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        fill(stream, 6)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.zarr")
    attributes = zarr.open_group(made, mode="r").attrs
    image = attributes["ome"]["multiscales"][0]
    assert image["datasets"][0]["coordinateTransformations"][0]["scale"] == [1, 1, 1, 1]
    assert all("unit" not in axis for axis in image["axes"])
    coords = {"t": [0, 1, 7], "z": ["low", "high"]}
    assert attributes["scratchwriter"] == {"coords": coords}


# ------------------------------------------------------------------------ what is counted


def lose_a_position(run, made):
    (found,) = made.iterdir()
    shutil.rmtree(found / "B" / "0")
    shutil.copytree(found / "A" / "0", found / "B" / "0")
    document = json.loads((found / "B" / "0" / "zarr.json").read_text())
    document["shape"][0] -= 1
    (found / "B" / "0" / "zarr.json").write_text(json.dumps(document))


def test_an_export_that_lacks_something_does_not_appear(tmp_path, monkeypatch):
    dataset = record(tmp_path / "data", {"t": 5, "p": ["A", "B"], **FRAME}, 10)
    write = exporting.parts.write

    def lose(run, client):
        made = write(run, client)
        lose_a_position(run, made)
        return made

    monkeypatch.setattr(exporting.parts, "write", lose)
    with pytest.raises(OSError, match=r"'t': 4.*elements in B.*'t': 5.*does not appear"):
        dataset.export(tmp_path / "out.ome.zarr")
    assert not (tmp_path / "out.ome.zarr").exists()


def lose_a_chunk(run, made):
    (found,) = made.iterdir()
    (found / "B" / "0" / "c" / "3" / "0" / "0").unlink()


def empty_a_chunk(run, made):
    (found,) = made.iterdir()
    os.truncate(found / "A" / "0" / "c" / "0" / "0" / "0", 0)


def lose_all_chunks(run, made):
    (found,) = made.iterdir()
    shutil.rmtree(found / "B" / "0" / "c")


@pytest.mark.parametrize(
    ("lose", "message"),
    [
        (lose_a_chunk, "1 chunks in B too few"),
        (empty_a_chunk, "1 chunks in A too few"),
        (lose_all_chunks, "5 chunks in B too few"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_export_that_lacks_a_chunk_does_not_appear(
    tmp_path, monkeypatch, lose, message, backend
):
    dataset = record(tmp_path / "data", {"t": 5, "p": ["A", "B"], **FRAME}, 10)
    write = exporting.parts.write

    def lose_it(run, client):
        made = write(run, client)
        lose(run, made)
        return made

    monkeypatch.setattr(exporting.parts, "write", lose_it)
    with pytest.raises(OSError, match=message):
        dataset.export(
            tmp_path / "out.ome.zarr", format=ome_writers.OmeZarrFormat(backend=backend)
        )
    assert not (tmp_path / "out.ome.zarr").exists()


def test_a_chunk_that_goes_while_an_export_is_interrupted_is_noticed(tmp_path):
    dataset = record(tmp_path / "data", {"t": 40, **FRAME}, 40)
    cancel = threading.Event()

    def stop(done, total):
        if done >= 25:
            cancel.set()

    with pytest.raises(ExportCancelledError):
        dataset.export(tmp_path / "out.ome.zarr", progress=stop, cancel=cancel)
    (chunk, *_) = sorted((tmp_path / ".out.ome.zarr.partial" / "parts").rglob("c/3/0/0"))
    chunk.unlink()
    with pytest.raises(OSError, match=r"1 chunks in \. too few"):
        dataset.export(tmp_path / "out.ome.zarr")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("sizes", "layout"),
    [
        ({"t": 12, "p": ["A", "B"], "c": 2, **FRAME}, {}),
        ({"p": ["A", "B"], "t": 12, "c": 2, **FRAME}, {}),
        ({"t": None, "c": 4, **FRAME}, {"chunk_shapes": CHUNKED}),
    ],
)
def test_chunks_of_zeros_need_not_be_there(tmp_path, sizes, layout, backend):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes(sizes, **layout),
        dtype="uint16",
    )
    zeros = np.zeros((SIZE, SIZE), "uint16")
    with create_stream(settings) as stream:
        for number in range(48):
            stream.append(frame(number) if number % 5 == 4 else zeros)
    dataset = open_scratch(tmp_path / "data")
    made = dataset.export(
        tmp_path / "out.ome.zarr", format=ome_writers.OmeZarrFormat(backend=backend)
    )
    paths = ["A/0", "B/0"] if "p" in sizes else ["0"]
    for array, path in zip(dataset.arrays, paths, strict=True):
        np.testing.assert_array_equal(zarr.open_array(made / path)[...], array)


def test_a_stack_in_front_of_the_channels_comes_out_in_the_order_of_ome(tmp_path):
    sizes = {"t": 2, "z": 3, "c": ["a", "b"], **FRAME}
    dataset = record(tmp_path / "data", sizes, 12, storage_order="acquisition")
    made = dataset.export(tmp_path / "out.ome.zarr")
    expected = np.asarray(dataset.view()).swapaxes(1, 2)
    np.testing.assert_array_equal(zarr.open(made)["0"][...], expected)
    yaozarrs.validate_zarr_store(made)
    tiff = dataset.export(tmp_path / "out.ome.tiff")
    with tifffile.TiffFile(tiff) as file:
        axes, pixels = file.series[0].axes, file.series[0].asarray()
    order = [axes.index(axis) for axis in "TZCYX"]
    np.testing.assert_array_equal(pixels.transpose(order), np.asarray(dataset.view()))


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_numbers_that_are_not_finite_are_in_no_json_of_a_zarr(tmp_path):
    nan = float("nan")
    places = [position("A", x_coord=nan, y_coord=1.0), position("B", y_coord=float("inf"))]
    settings = settings_at(tmp_path / "data", places)
    settings.dimensions[0].scale = settings.dimensions[-1].scale = nan
    settings.dimensions[2].translation = nan
    given = {"gain": nan, "range": [-float("inf"), {"to": float("inf")}], "delta_t": nan}
    with create_stream(settings) as stream:
        for i in range(12):
            stream.append(frame(i), frame_metadata=given)
        stream.set_global_metadata("lab", {"offset": nan})
    dataset = open_scratch(tmp_path / "data")
    made = dataset.export(tmp_path / "out.ome.zarr")
    for path in made.rglob("zarr.json"):
        json.loads(path.read_text(), parse_constant=refuse)
    attributes = zarr.open_group(made / "A", mode="r").attrs
    lab = zarr.open_group(made, mode="r").attrs["lab"]
    assert lab == {"offset": "NaN"}
    (line, *_) = attributes["ome_writers"]["frame_metadata"]
    assert line["gain"] == "NaN"
    assert line["range"] == ["-Infinity", {"to": "Infinity"}]
    transforms = attributes["ome"]["multiscales"][0]["datasets"][0]
    scale, moved = transforms["coordinateTransformations"]
    assert scale["scale"] == [1, -2, 0.25, 1]
    assert moved["translation"] == [0, 0, 1, 0]
    yaozarrs.validate_zarr_store(made)
    dataset.export(tmp_path / "out.ome.tiff")
    for path in (tmp_path / "out").iterdir():
        with tifffile.TiffFile(path) as tiff:
            assert 'PositionX="nan"' not in tiff.ome_metadata
            assert "inf" not in tiff.ome_metadata.replace("Infinity", "")


@pytest.mark.parametrize("name", ["out.ome.zarr", "out.ome.tiff"])
def test_a_dataset_without_frames_is_not_exported_as_one(tmp_path, name):
    dataset = record(tmp_path / "data", {"t": None, **FRAME}, 0)
    with pytest.raises(ValueError, match="has no frames, and an export needs one"):
        dataset.export(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize("name", ["out", "my.data", "U.OME.ZARR", "out.zarr"])
def test_a_zarr_has_the_name_that_was_asked_for(tmp_path, name):
    dataset = record(tmp_path / "data", {"t": 3, **FRAME}, 3)
    made = dataset.export(tmp_path / name, format="ome-zarr")
    assert made == tmp_path / name
    assert zarr.open(made)["0"].shape == (3, SIZE, SIZE)
    assert nothing_unfinished(tmp_path)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint32", "float32", "float64"])
def test_every_kind_of_pixels_comes_out_with_the_names_of_channels(tmp_path, dtype):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": 5, "c": ["a", "b"], **FRAME}),
        dtype=dtype,
    )
    with create_stream(settings) as stream:
        for i in range(10):
            stream.append(np.full((SIZE, SIZE), i % 3, dtype))
    dataset = open_scratch(tmp_path / "data")
    made = dataset.export(tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(zarr.open(made)["0"][:], np.asarray(dataset.view()))
    assert '"a"' in (made / "zarr.json").read_text()


def test_what_ome_writers_cannot_write_is_refused_before_the_first_frame(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": None, **FRAME}),
        dtype="float64",
    )
    with create_stream(settings) as stream:
        stream.append(np.zeros((SIZE, SIZE)))
        with (
            open_scratch(tmp_path / "data") as dataset,
            pytest.raises(ValueError, match=r"cannot write this as ome-tiff: .*as \.npy"),
        ):
            dataset.export(tmp_path / "out.ome.tiff")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_a_compression_of_another_format_is_left_out_with_a_warning(tmp_path):
    dataset = record(tmp_path / "data", {"t": 3, **FRAME}, 3, compression="blosc-zstd")
    assert dataset.export(tmp_path / "out.ome.zarr").exists()
    with pytest.warns(UserWarning, match="ome-tiff has no compression 'blosc-zstd'"):
        made = dataset.export(tmp_path / "out.ome.tiff")
    np.testing.assert_array_equal(tifffile.imread(made), np.asarray(dataset.arrays[0]))


def test_chunks_and_shards_larger_than_a_dimension_are_clipped(tmp_path):
    layout = {
        "chunk_shapes": {"t": 50, "y": SIZE, "x": SIZE},
        "shard_shapes": {"t": 2, "y": 1, "x": 1},
    }
    dataset = record(tmp_path / "data", {"t": 30, **FRAME}, 30, (), layout)
    made = dataset.export(tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(zarr.open(made)["0"][:], np.asarray(dataset.view()))


def test_a_ring_gives_the_steps_that_it_keeps(tmp_path):
    dataset = record(
        tmp_path / "data",
        {"t": None, "c": 2, **FRAME},
        101,
        format=ScratchFormat(keep_last=20),
    )
    made = dataset.export(tmp_path / "out.ome.zarr")
    pixels = zarr.open(made)["0"][:]
    np.testing.assert_array_equal(pixels, np.asarray(dataset.view()))
    lines = json.loads((made / "zarr.json").read_text())["attributes"]["ome_writers"]
    first = lines["frame_metadata"][0]
    assert pixels[tuple(first["storage_index"])][0, 0] == first["n"] + 1


# -------------------------------------------------------------- cancelled, killed, live


@pytest.mark.parametrize("end", ["zarr", "tiff"])
def test_an_export_that_is_cancelled_at_once_says_so(tmp_path, end):
    dataset, cancel = record(tmp_path / "data", {"t": 30, **FRAME}, 30), threading.Event()
    cancel.set()
    for _ in range(5):
        with pytest.raises(ExportCancelledError):
            dataset.export(tmp_path / f"out.ome.{end}", cancel=cancel)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cancelled_export_leaves_nothing_and_goes_on(tmp_path, backend):
    sizes, frames, skipped, layout = CASES["chunks"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    zarr_format = ome_writers.OmeZarrFormat(backend=backend)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr", format=zarr_format)
    out, chance, starts = tmp_path / "out.ome.zarr", random.Random(1), []
    while not out.exists():
        cancel, told, stop_at = threading.Event(), [], chance.randrange(5, 40)

        def tell(done, total, cancel=cancel, told=told, stop_at=stop_at):
            told.append(done)
            if len(told) == stop_at:
                cancel.set()

        try:
            dataset.export(out, format=zarr_format, progress=tell, cancel=cancel)
        except ExportCancelledError:
            assert not out.exists()
        starts.append(told[0])
    assert len(starts) > 1
    assert starts[-1] > starts[0]  # what was done was not done again
    assert tree(out) == tree(whole)
    assert nothing_unfinished(tmp_path)


KILLED = """
import sys
from scratchwriter import open_scratch
from scratchwriter.bridges import export
export.parts.PART_NBYTES = 1280
print("go", flush=True)
open_scratch(sys.argv[1]).export(sys.argv[2], progress=lambda *_: print(".", flush=True))
"""


def test_an_export_whose_process_is_killed_goes_on(tmp_path):
    sizes, frames, skipped, layout = CASES["chunks"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    out, chance = tmp_path / "out.ome.zarr", random.Random(2)
    command = [sys.executable, "-c", KILLED, str(dataset.path), str(out)]
    for _ in range(3):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for _ in range(chance.randrange(2, 60)):
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    dataset.export(out, overwrite=True)
    assert tree(out) == tree(whole)
    assert nothing_unfinished(tmp_path)


def test_joining_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    sizes, frames, skipped, layout = CASES["positions"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    move, calls = exporting.parts._move_chunks, []

    def fail(source, goal):
        calls.append(source)
        if len(calls) == 4:
            raise OSError("no more")
        move(source, goal)

    monkeypatch.setattr(exporting.parts, "_move_chunks", fail)
    out = tmp_path / "out.ome.zarr"
    with pytest.raises(OSError, match="no more"):
        dataset.export(out)
    assert not out.exists()
    monkeypatch.setattr(exporting.parts, "_move_chunks", move)
    dataset.export(out)
    assert tree(out) == tree(whole)


def test_an_export_that_was_killed_after_it_appeared_can_be_repeated(tmp_path, monkeypatch):
    dataset, out = (
        record(tmp_path / "data", {"t": 30, **FRAME}, 30),
        tmp_path / "o.ome.zarr",
    )

    def fail(path):
        if path.name == ".o.ome.zarr.partial":
            raise OSError("killed")
        clear(path)

    clear = exporting.clear
    monkeypatch.setattr(exporting, "clear", fail)
    with pytest.raises(OSError, match="killed"):
        dataset.export(out)
    before = tree(out)
    monkeypatch.setattr(exporting, "clear", clear)
    dataset.export(out, overwrite=True)
    assert tree(out) == before
    assert nothing_unfinished(tmp_path)


def test_parts_of_another_length_are_joined_with_those_that_are_there(
    tmp_path, monkeypatch
):
    sizes, frames, skipped, layout = CASES["chunks"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    out, cancel, told = tmp_path / "out.ome.zarr", threading.Event(), []

    def stop(done, total):
        told.append(done)
        if done == 50:
            cancel.set()

    with pytest.raises(ExportCancelledError):
        dataset.export(out, progress=stop, cancel=cancel)
    parts = sorted((tmp_path / ".out.ome.zarr.partial" / "parts").iterdir())
    assert len(parts) > 3
    shutil.rmtree(parts[1])  # as if a worker had not come to it
    monkeypatch.setattr(exporting.parts, "PART_NBYTES", 1 << 20)
    dataset.export(out)
    assert tree(out) == tree(whole)


@pytest.mark.parametrize("frames_done", [1, 9])
def test_what_still_writes_for_an_earlier_try_changes_nothing(tmp_path, frames_done):
    sizes, frames, skipped, layout = CASES["plain"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    cancel = threading.Event()
    cancel.set()
    out, folder = tmp_path / "out.ome.zarr", tmp_path / ".out.ome.zarr.partial"
    with pytest.raises(ExportCancelledError):
        dataset.export(out, progress=lambda *_: None, cancel=cancel)
    job = exporting.Job(**json.loads((folder / "export.json").read_text()))
    # A worker in the middle of a part, whose scheduler has died.
    work = exporting.parts._Work(folder, "a")
    work.begin()
    old = work.write(dataset, job, 0, 10)
    for _ in range(frames_done):
        next(old)
    steps = []

    def go_on(done, total):
        if not steps:
            steps.append(done)
            with pytest.raises(ExportCancelledError):
                list(old)

    dataset.export(out, progress=go_on)
    assert steps
    assert tree(out) == tree(whole)
    assert nothing_unfinished(tmp_path)


def test_a_lock_is_one_of_the_folder_that_is_there(tmp_path, monkeypatch):
    folder, lock_file, calls = tmp_path / ".out.partial", unfinished.lock_file, []

    def lock_late(fd):
        if not calls:  # who had it before is done with it meanwhile
            shutil.rmtree(folder)
        calls.append(fd)
        return lock_file(fd)

    monkeypatch.setattr(unfinished, "lock_file", lock_late)
    with unfinished.locked(folder):
        monkeypatch.setattr(unfinished, "lock_file", lock_file)
        with pytest.raises(BlockingIOError), unfinished.locked(folder):
            pass
    assert len(calls) == 2
    assert not folder.exists()


def test_an_unfinished_export_of_another_recording_begins_again(tmp_path):
    cancel = threading.Event()
    cancel.set()
    out = tmp_path / "out.ome.zarr"
    for name in ("first", "second"):
        dataset = record(tmp_path / name, {"t": 30 if name == "first" else 25, **FRAME}, 20)
        with pytest.raises(ExportCancelledError):
            dataset.export(out, cancel=cancel, progress=lambda *_: None)
    dataset.export(out)
    assert zarr.open(out)["0"].shape == (25, SIZE, SIZE)


WRITER = """
import sys, time
import numpy as np
from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes

dims = dims_from_standard_axes({"t": None, "c": 2, "y": 8, "x": 8})
with create_stream(
    AcquisitionSettings(root_path=sys.argv[1], dimensions=dims, dtype="uint16")
) as stream:
    print("go", flush=True)
    for i in range(400):
        if i == 200:
            sys.stdin.readline()  # the export has come as far
        stream.append(np.full((8, 8), i + 1, "uint16"), frame_metadata={"n": i})
        time.sleep(0.002)
    stream.set_global_metadata("lab", {"who": "me"})
"""


def start_recording(path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdout.readline()
    return process


@pytest.mark.parametrize("end", ["zarr", "tiff"])
def test_a_recording_is_followed_to_its_end(tmp_path, end):
    out = tmp_path / f"out.ome.{end}"

    def go_on(done, total):
        if done == 200:
            process.stdin.write(b"go\n")
            process.stdin.flush()

    with start_recording(tmp_path / "data") as process:
        watchdog = threading.Timer(60, process.kill)  # it waits for ever if not followed
        watchdog.start()
        dataset = open_scratch(tmp_path / "data")
        made = dataset.export(out, progress=go_on)
        assert process.wait() == 0
        watchdog.cancel()
    pixels = zarr.open(made)["0"][:] if end == "zarr" else tifffile.imread(made)
    assert pixels[..., 0, 0].ravel().tolist() == list(range(1, 401))
    if end == "zarr":
        again = dataset.export(tmp_path / "again" / "out.ome.zarr")
        assert tree(made) == tree(again)
    else:  # also what was said at the end
        assert 'Namespace="lab"' in tifffile.tiffcomment(made)


def test_a_recording_whose_writer_is_killed_is_exported_as_far_as_it_came(tmp_path):
    with start_recording(tmp_path / "data") as process:
        dataset = open_scratch(tmp_path / "data")
        killer = threading.Timer(0.4, process.kill)
        killer.start()
        made = dataset.export(tmp_path / "out.ome.zarr")
    assert dataset.state == "killed"
    values = zarr.open(made)["0"][:][..., 0, 0].ravel()
    came = dataset.frames_written
    assert values[:came].tolist() == list(range(1, came + 1))
    assert not values[came:].any()


@pytest.mark.parametrize("is_before", [True, False])
def test_two_recordings_are_never_mixed(tmp_path, is_before):
    sizes, out = {"t": 60, **FRAME}, tmp_path / "out.ome.zarr"
    dataset, cancel = record(tmp_path / "data", sizes, 60), threading.Event()

    def record_anew(done, total):
        if done == 25:
            settings = dataset.settings.model_copy(update={"overwrite": True})
            with create_stream(settings) as stream:
                for i in range(60):
                    stream.append(frame(1000 + i))
            cancel.set()

    if is_before:
        with pytest.raises(ExportCancelledError):
            dataset.export(out, progress=record_anew, cancel=cancel)
    else:
        with pytest.raises(DatasetError, match="another"):
            dataset.export(out, progress=record_anew)
    assert not out.exists()
    open_scratch(tmp_path / "data").export(out)
    values = zarr.open(out)["0"][:][:, 0, 0].tolist()
    assert values == list(range(1001, 1061))


@pytest.mark.parametrize("fails", [True, False])
def test_what_is_to_be_replaced_is_kept_until_the_new_one_is_there(
    tmp_path, monkeypatch, fails
):
    dataset, out = record(tmp_path / "data", {"t": 3, **FRAME}, 3), tmp_path / "o.ome.zarr"
    out.write_text("mine")
    rename = Path.rename

    def fail(path, goal):
        if goal == out and path.name == "data.ome.zarr" and fails:
            raise OSError("no")
        return rename(path, goal)

    monkeypatch.setattr(Path, "rename", fail)
    if fails:
        with pytest.raises(OSError, match="no"):
            dataset.export(out, overwrite=True)
        assert out.read_text() == "mine"
    else:  # as if it had been killed between the two renames
        rename(out, tmp_path / ".o.ome.zarr.replaced")
        with pytest.raises(FileExistsError):
            dataset.export(out)
        assert out.read_text() == "mine"


# ------------------------------------------------------------------------------ refused


def test_what_is_there_is_kept_unless_it_is_to_be_replaced(tmp_path):
    dataset = record(tmp_path / "data", {"t": 3, **FRAME}, 3)
    for name in ("a.ome.zarr", "a.ome.tiff", "a.npy"):
        out = tmp_path / name
        out.write_text("mine")
        with pytest.raises(FileExistsError, match="overwrite=True"):
            dataset.export(out)
        assert out.read_text() == "mine"
        dataset.export(out, overwrite=True)
        assert out.is_dir() == name.endswith("zarr")
    assert nothing_unfinished(tmp_path)


@pytest.mark.parametrize("end", ["zarr", "tiff"])
def test_a_folder_with_more_than_an_export_is_never_replaced(tmp_path, end):
    dataset = record(tmp_path / "data", {"p": ["A", "b/c"], "t": 5, **FRAME}, 10)
    out = tmp_path / f"out.ome.{end}"
    goal = out if end == "zarr" else tmp_path / "out"
    goal.mkdir()
    (goal / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds more than an export"):
        dataset.export(out, overwrite=True)
    assert (goal / "thesis.txt").read_text() == "mine"
    (goal / "thesis.txt").unlink()
    dataset.export(out, overwrite=True)
    (goal / "out_paper.pdf").write_text("mine")
    with pytest.raises(FileExistsError, match="holds more than an export"):
        dataset.export(out, overwrite=True)
    (goal / "out_paper.pdf").unlink()
    for _ in range(2):
        assert dataset.export(out, overwrite=True) == goal
    assert nothing_unfinished(tmp_path)


def test_a_folder_that_only_has_the_name_of_an_unfinished_export_is_left_alone(tmp_path):
    dataset = record(tmp_path / "data", {"t": 5, **FRAME}, 5)
    folder = tmp_path / ".out.ome.zarr.partial"
    folder.mkdir()
    (folder / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="not belong to an export"):
        dataset.export(tmp_path / "out.ome.zarr")
    assert [path.name for path in folder.iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["../victim.ome.zarr", "{there}", "a/../..", "OME", "."])
def test_no_name_of_a_position_leads_out_of_a_zarr(tmp_path, name):
    victim = record(tmp_path / "first", {"t": 3, **FRAME}, 3)
    there = victim.export(tmp_path / "victim.ome.zarr")
    before = tree(there)
    sizes = {"p": ["A", name.format(there=there)], "t": 3, **FRAME}
    dataset = record(tmp_path / "data", sizes, 6)
    with pytest.raises(ValueError, match="cannot be its name"):
        dataset.export(tmp_path / "out.ome.zarr")
    assert tree(there) == before
    assert nothing_unfinished(tmp_path)


def test_two_processes_do_not_make_the_same_export(tmp_path):
    dataset = record(tmp_path / "data", {"t": 3, **FRAME}, 3)
    second = []

    def try_again(done, total):
        if not second:
            code = (
                "import sys; from scratchwriter import open_scratch\n"
                "open_scratch(sys.argv[1]).export(sys.argv[2])"
            )
            command = [sys.executable, "-c", code, str(dataset.path), str(out)]
            second.append(subprocess.run(command, capture_output=True, text=True))

    out = tmp_path / "out.ome.zarr"
    dataset.export(out, progress=try_again)
    assert "BlockingIOError" in second[0].stderr
    assert "another process is making this export" in second[0].stderr


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("out", {}, r"\.ome\.zarr, \.ome\.tiff or \.npy"),
        ("out.h5", {}, r"\.ome\.zarr, \.ome\.tiff or \.npy"),
        ("out", {"format": "scratch"}, "copy its folder"),
        ("out.ome.zarr", {"position": 1}, "position is for .npy files"),
        ("out.npy", {"format": "ome-zarr"}, "neither format nor client"),
        ("data/out.ome.zarr", {}, "choose another place"),
        ("data", {"format": "ome-zarr", "overwrite": True}, "choose another place"),
        (".", {"format": "ome-zarr", "overwrite": True}, "choose another place"),
        ("out.ome.tiff", {"client": object()}, "Only one process can write"),
    ],
)
def test_what_cannot_be_exported_is_reported(tmp_path, name, options, message):
    dataset = record(tmp_path / "data", {"t": 3, **FRAME}, 3)
    with pytest.raises(ValueError, match=message):
        dataset.export(tmp_path / name, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    assert dataset.frames_written == 3
    assert open_scratch(tmp_path / "data").frames_written == 3


def test_a_ring_is_not_exported_while_it_is_recorded(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": None, **FRAME}),
        dtype="uint16",
        format=ScratchFormat(keep_last=5),
    )
    with create_stream(settings) as stream:
        stream.append(frame(0))
        with open_scratch(tmp_path / "data") as dataset:
            for name in ("out.ome.zarr", "out.ome.tiff", "out.npy"):
                with pytest.raises(ValueError, match="Wait until it is closed"):
                    dataset.export(tmp_path / name)


def test_a_full_disk_is_an_error_that_leaves_the_dataset_alone(tmp_path, small_disk):
    dataset = record(tmp_path / "data", {"t": 3000, **FRAME}, 3000)
    with pytest.raises((OSError, ValueError)):
        dataset.export(small_disk / "out.ome.zarr")
    assert not (small_disk / "out.ome.zarr").exists()
    assert dataset.frames_written == 3000


# ----------------------------------------------------------------------------- the rest


def test_a_position_is_saved_as_npy(tmp_path):
    sizes = {"t": 5, "p": ["A", "B"], "c": 3, **FRAME}
    dataset = record(tmp_path / "data", sizes, 30, storage_order=["c", "t", "p", "y", "x"])
    with pytest.raises(ValueError, match="position=0 to 1"):
        dataset.export(tmp_path / "out.npy")
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="position=0 to 1"):
            dataset.export(tmp_path / "out.npy", position=wrong)
    told = []
    dataset.export(tmp_path / "out.npy", position=1, progress=lambda *n: told.append(n))
    np.testing.assert_array_equal(
        np.load(tmp_path / "out.npy"), np.asarray(dataset.arrays[1])
    )
    assert told[-1] == (15, 15)
    cancel = threading.Event()
    cancel.set()
    with pytest.raises(ExportCancelledError):
        dataset.export(tmp_path / "other.npy", position=1, cancel=cancel)
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(FileExistsError):
        dataset.export(tmp_path / "folder.npy", position=1, overwrite=True)
    (tmp_path / "folder.npy").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.npy"]


def test_the_command_exports_and_tells(tmp_path, capsys):
    record(tmp_path / "data", {"t": 30, **FRAME}, 30)
    out = tmp_path / "out.ome.zarr"
    assert main(["export", str(tmp_path / "data"), str(out)]) == 0
    assert f"exported  {out}" in capsys.readouterr().out
    assert zarr.open(out)["0"].shape == (30, SIZE, SIZE)
    assert main(["export", str(tmp_path / "data"), str(out)]) == 1
    assert "overwrite" in capsys.readouterr().err


@pytest.fixture
def interruptible():
    """Have what is begun take interrupts, which a shell's background jobs do not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupted_command_says_how_to_go_on(tmp_path, interruptible):
    with start_recording(tmp_path / "data") as writer:
        out = tmp_path / "out.ome.zarr"
        command = [sys.executable, "-m", "scratchwriter", "export", tmp_path / "data", out]
        with subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        ) as export:
            while not (tmp_path / ".out.ome.zarr.partial" / "parts").exists():
                assert export.poll() is None, export.communicate()[1]
                time.sleep(0.05)
            export.send_signal(signal.SIGINT)
            told = export.communicate()[1]
        assert export.returncode == 130
        assert "resumes it" in told
        assert "Traceback" not in told
        writer.kill()
    assert not out.exists()
