"""Exports that one stream writes: OME-TIFF, as others read it."""

import time
from contextlib import nullcontext

import numpy as np
import pytest

ome_writers = pytest.importorskip("ome_writers")
tifffile = pytest.importorskip("tifffile")
ome_types = pytest.importorskip("ome_types")

from scratchwriter import (
    AcquisitionSettings,
    Dimension,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter.bridges import export as exporting
from test_export import (
    FRAME,
    PLACES,
    SIZE,
    fill,
    frame,
    nothing_unfinished,
    record,
    settings_at,
)


def test_it_has_pixels_and_planes(tmp_path):
    dataset = record(tmp_path / "data", {"t": 10, "c": ["a", "b"], **FRAME}, 20)
    made = dataset.export(tmp_path / "out.ome.tiff")
    pixels = tifffile.imread(made)
    np.testing.assert_array_equal(pixels, np.asarray(dataset.arrays[0]))
    ome = ome_types.from_tiff(made)
    image = ome.images[0].pixels
    assert (image.size_t, image.size_c) == (10, 2)
    assert [c.name for c in image.channels] == ["a", "b"]
    assert [plane.delta_t for plane in image.planes] == [i / 2 for i in range(20) if i % 3]
    assert any(note.namespace == "lab" for note in ome.structured_annotations)


def test_places_heights_and_the_interval_are_in_its_xml(tmp_path):
    with create_stream(settings_at(tmp_path / "data", PLACES)) as stream:
        fill(stream, 12)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.tiff")
    for file in sorted(made.iterdir()):
        one, two = ome_types.from_tiff(file).images
        assert (one.name, two.name) == ("A", "B")
        assert (one.stage_label.name, one.stage_label.x, one.stage_label.y) == (
            "A",
            100,
            -20,
        )
        for image, heights in ((one, [15, 13, 11]), (two, [10, 8, 6])):
            pixels = image.pixels
            assert (pixels.time_increment, pixels.time_increment_unit.value) == (0.5, "s")
            assert (pixels.physical_size_z, pixels.physical_size_x) == (2, 0.25)
            first = [p for p in pixels.planes if (p.the_t, p.the_c) == (0, 0)]
            assert {p.the_z: p.position_z for p in first} == dict(enumerate(heights))
            assert {p.position_z_unit.value for p in first} == {"µm"}
        assert {p.position_x for p in one.pixels.planes if p.the_t == 0} == {100}


def test_uneven_heights_and_times_are_kept(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=[
            Dimension(name="t", type="time", coords=[0.0, 1.0, 7.0], unit="second"),
            Dimension(name="z", type="space", coords=[5.0, 6.0, 8.5], unit="um"),
            *dims_from_standard_axes(FRAME),
        ],
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        for i in range(9):
            told = {"position_z": -1.0} if i == 1 else {}
            stream.append(frame(i), frame_metadata=told)
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.tiff")
    model = ome_types.from_tiff(made)
    pixels = model.images[0].pixels
    assert (pixels.time_increment, pixels.physical_size_z) == (None, None)
    heights = {p.the_z: p.position_z for p in pixels.planes if p.the_t == 0}
    assert heights == {0: 5, 1: -1, 2: 8.5}  # one was measured
    notes = model.structured_annotations.map_annotations
    (note,) = [note.value for note in notes if note.namespace == "scratchwriter"]
    assert "[0.0, 1.0, 7.0]" in str(note)


def test_a_tiff_that_lacks_pages_does_not_appear(tmp_path, monkeypatch):
    dataset = record(tmp_path / "data", {"t": 5, **FRAME}, 5)
    write = exporting.whole.write

    def lose(run):
        made = write(run)
        (file,) = made.iterdir()
        tifffile.imwrite(file, np.zeros((4, SIZE, SIZE), "uint16"))
        return made

    monkeypatch.setattr(exporting.whole, "write", lose)
    with pytest.raises(OSError, match=r"written 4 pages in out\.ome\.tiff, and 5"):
        dataset.export(tmp_path / "out.ome.tiff")
    assert not (tmp_path / "out.ome.tiff").exists()


MODES = ["redundant", "master-tiff", "companion-file"]


@pytest.mark.parametrize("length", [5, None])
@pytest.mark.parametrize("mode", MODES)
def test_positions_are_a_folder_of_files_that_know_each_other(tmp_path, mode, length):
    sizes = {"t": length, "p": ["A", "B"], "c": 2, **FRAME}
    dataset = record(tmp_path / "data", sizes, 20)
    warned = (
        nullcontext()
        if mode == "redundant"
        else pytest.warns(UserWarning, match="Frame metadata is kept only with")
    )
    with warned:
        made = dataset.export(
            tmp_path / "out.ome.tiff",
            format=ome_writers.OmeTiffFormat(multi_file_metadata=mode),
        )
    assert made == tmp_path / "out"
    files = sorted(made.glob("*.tiff"))
    models = []
    for i, file in enumerate(files):
        with tifffile.TiffFile(file) as tiff:
            pixels = np.array([page.asarray() for page in tiff.pages])
        stored = np.asarray(dataset.arrays[i]).reshape(-1, SIZE, SIZE)
        np.testing.assert_array_equal(pixels, stored)
        models.append(ome_types.from_tiff(file))
    assert len(files) == 2
    models += [ome_types.from_xml(file) for file in made.glob("*.ome")]
    for model in models:
        if model.binary_only is not None:
            assert (made / model.binary_only.metadata_file).is_file()
            assert "/" not in model.binary_only.metadata_file
            continue
        for image in model.images:
            assert (image.pixels.size_t, image.pixels.size_c) == (5, 2)
            assert image.pixels.tiff_data_blocks[0].plane_count == 10
    assert any(model.images for model in models)


def test_a_dataset_of_positions_is_exported_beside_itself_under_its_own_name(tmp_path):
    dataset = record(tmp_path / "data", {"t": 2, "p": ["A", "B"], **FRAME}, 4)
    made = dataset.export(tmp_path / "data.ome.tiff")
    assert made == tmp_path / "data.ome.tiff"
    assert len(list(made.iterdir())) == 2
    assert dataset.export(tmp_path / "data.ome.tiff", overwrite=True) == made
    assert nothing_unfinished(tmp_path)


def test_metadata_of_any_kind_are_carried_over(tmp_path):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": 2, **FRAME}),
        dtype="uint16",
    )
    told = {"a": {"b": [1, None]}, "c": True, "d": None, "e": "text", "f": 1.5}
    with create_stream(settings) as stream:
        stream.append(frame(0), frame_metadata=told | {"exposure_time": "5 ms"})
        stream.append(frame(1), frame_metadata=told | {"exposure_time": 0.005})
    made = open_scratch(tmp_path / "data").export(tmp_path / "out.ome.tiff")
    ome = ome_types.from_tiff(made)
    found = [dict(note.value) for note in ome.structured_annotations.map_annotations]
    as_text = {"a": '{"b": [1, null]}', "c": "true", "d": "null", "e": "text", "f": "1.5"}
    assert found == [as_text | {"exposure_time_as_given": "5 ms"}, as_text]
    planes = ome.images[0].pixels.planes
    assert [plane.exposure_time for plane in planes] == [None, 0.005]


def test_it_is_whole_also_if_it_takes_longer_than_ome_writers_waits(tmp_path, monkeypatch):
    dataset = record(tmp_path / "data", {"t": 130, **FRAME}, 130)
    write, written, ahead = tifffile.TiffWriter.write, [], []

    def write_slowly(self, *args, **options):
        time.sleep(0.05)
        written.append(1)
        return write(self, *args, **options)

    monkeypatch.setattr(tifffile.TiffWriter, "write", write_slowly)
    monkeypatch.setattr(exporting.whole, "_BACKLOG_NBYTES", 5 * SIZE * SIZE * 2)
    made = dataset.export(
        tmp_path / "out.ome.tiff",
        progress=lambda done, total: ahead.append(done - len(written)),
    )
    np.testing.assert_array_equal(tifffile.imread(made), np.asarray(dataset.arrays[0]))
    assert ome_types.from_tiff(made).images[0].pixels.size_t == 130
    assert max(ahead) < 20  # it tells what is done, and little more


@pytest.mark.filterwarnings("ignore:Unexpected error during TIFF write:RuntimeWarning")
def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, small_disk):
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=dims_from_standard_axes({"t": 60, "y": 256, "x": 256}),
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        for _ in range(60):
            stream.append(np.ones((256, 256), "uint16"))
    with pytest.raises(OSError, match="bytes are free there"):
        open_scratch(tmp_path / "data").export(small_disk / "out.ome.tiff")
    assert not (small_disk / "out.ome.tiff").exists()
    open_scratch(tmp_path / "data").export(tmp_path / "out.ome.tiff")
    assert nothing_unfinished(tmp_path)
