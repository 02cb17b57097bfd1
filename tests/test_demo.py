"""The demo: the real demo camera of Micro-Manager, in the real MMCore."""

import json
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from marks import needs_direct_writes
from scratchwriter._showing import demo
from scratchwriter._writing import policy
from scratchwriter.cli import main


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    yield demo.run_demo(60, folder, folder.with_suffix(".png"))
    shutil.rmtree(folder)


def read_plain(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    shape = tuple(manifest["position_shapes"][0])
    return np.memmap(folder / "pos_0.dat", dtype=manifest["dtype"], mode="r", shape=shape)


def test_every_frame_of_the_camera_is_in_the_dataset(dataset):
    frames = read_plain(dataset.path)
    assert frames.shape == (60, 512, 512)
    assert frames.dtype == np.uint16
    # The stripes of the demo camera move: no frame is blank, and they are not all equal.
    assert all(frame.std() > 0 for frame in frames)
    assert len({frame.tobytes() for frame in frames}) > 3


def test_frame_metadata_holds_the_tags_of_the_camera_in_order(dataset):
    text = (dataset.path / "frame_metadata.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["_idx"] for line in lines] == [[i] for i in range(60)]
    assert [int(line["ImageNumber"]) for line in lines] == list(range(60))
    times_ms = [float(line["ElapsedTime-ms"]) for line in lines]
    assert times_ms == sorted(times_ms)
    assert {line["Camera"] for line in lines} == {"Camera"}


def test_append_times_are_those_of_every_frame(dataset):
    assert dataset.append_ns.shape == (60,)
    assert (dataset.append_ns > 0).all()
    assert dataset.append_ns.sum() < dataset.elapsed_s * 1e9


def test_the_contact_sheet_shows_the_frames(dataset):
    with Image.open(dataset.sheet) as sheet:
        assert sheet.format == "PNG"
        assert sheet.size == (5 * 128, 4 * 128)
        pixels = np.asarray(sheet)
    assert pixels.min() < 10
    assert pixels.max() > 245
    frames = read_plain(dataset.path)
    last = pixels[-128:, -128:].astype(float)
    small = frames[-1].reshape(128, 4, 128, 4).mean(axis=(1, 3))
    assert np.corrcoef(last.ravel(), small.ravel())[0, 1] > 0.99


def test_in_memory_there_is_only_the_contact_sheet(tmp_path):
    counts = []
    result = demo.run_demo(7, None, tmp_path / "sheet.png", counts.append)
    assert result.path is None
    assert result.disk is None
    assert result.frames == 7
    assert counts == list(range(1, 8))
    assert list(tmp_path.iterdir()) == [tmp_path / "sheet.png"]


@needs_direct_writes
def test_a_long_demo_tells_how_the_disk_did(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(policy, "_PAGE_CACHE_NBYTES", 0)  # as if 30 frames were long
    assert main(["demo", "--out", str(tmp_path / "data"), "--frames", "30"]) == 0
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("disk ")]
    assert re.search(r" waited for it at the end$", line)


def test_a_frame_that_reads_back_wrong_fails_the_demo(tmp_path, monkeypatch):
    read_back = demo._read_back

    def one_bit_wrong(stream):
        frames = np.array(read_back(stream))
        frames[3, 100, 100] ^= 1
        return frames

    monkeypatch.setattr(demo, "_read_back", one_bit_wrong)
    with pytest.raises(RuntimeError, match="Frame 3"):
        demo.run_demo(5, tmp_path / "data", tmp_path / "sheet.png")


def test_a_camera_that_stops_early_fails_the_demo(tmp_path, monkeypatch):
    sequence = demo.DemoCamera.sequence
    monkeypatch.setattr(demo.DemoCamera, "sequence", lambda self, n: sequence(self, n - 2))
    with pytest.raises(RuntimeError, match="3 of 5"):
        demo.run_demo(5, tmp_path / "data", tmp_path / "sheet.png")


def test_a_buffer_that_overflows_is_reported(monkeypatch):
    camera = demo.DemoCamera()
    camera.core.setCircularBufferMemoryFootprint(1)  # MB: two frames
    with pytest.raises(RuntimeError, match="overflow"):
        for _ in camera.sequence(20):
            time.sleep(0.1)
    camera.close()


def test_the_camera_can_be_opened_and_closed_again_and_again():
    # A camera that is unloaded while its thread still runs kills the process.
    for _ in range(8):
        camera = demo.DemoCamera()
        assert sum(1 for _ in camera.sequence(3)) == 3
        camera.close()


def test_an_existing_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious").write_text("data")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        demo.run_demo(5, tmp_path / "data", tmp_path / "sheet.png")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "precious"]
