"""The page about a dataset, in a browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from marks import needs_direct_writes, needs_page_cache
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter.cli import main
from scratchwriter.reader import ScratchDataset
from scratchwriter.stats import DiskStats

pytest.importorskip("matplotlib")
PIL = pytest.importorskip("PIL.Image")


@pytest.fixture
def page(make_settings, tmp_path):
    """The page about 40 frames every 2 ms, one late, three skipped, two dropped."""
    settings = make_settings(
        {"t": None, "c": ["DAPI", "<b>FITC</b>"], "y": 64, "x": 64},
        root_path=str(tmp_path / "my run"),
        format=ScratchFormat(timestamps=True),
    )
    with create_stream(settings) as stream:
        for i in range(40):
            frame = np.zeros((64, 64), "uint16")
            frame[:, 32:] = 100 + i
            late_ns = 5_000_000 if i >= 20 else 0
            stream.append(
                frame,
                timestamp_ns=2_000_000 * i + late_ns,
                frame_id=i if i < 30 else i + 2,
            )
        stream.skip(frames=3)
        stream.set_global_metadata("operator", {"name": "<script>alert(1)</script>"})
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "my run"), "-o", str(path)]) == 0
    return path


def test_the_page_tells_what_was_recorded_and_how_it_went(page):
    text = page.read_text(encoding="utf-8")
    for section in ("frames", "thumbnails", "intervals", "time", "skipped", "settings"):
        assert f'<section id="{section}">' in text
    assert "median 2.000 ms" in text
    assert "longest 7.000 ms" in text
    assert "<th>dropped</th><td>2</td>" in text
    assert "<th>skipped</th><td>3</td>" in text
    assert "frames 40-42" in text
    assert "of 3 timed appends" in text


def test_the_page_has_everything_in_it_and_runs_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "<b>FITC" not in text
    links = re.findall(r'(?:src|href)="([^"]{1,40})', text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)


def rows(page, section):
    """The rows of a table of the page, as text."""
    text = page.read_text(encoding="utf-8")
    found = re.search(rf'<section id="{section}">(.*?)</section>', text, re.DOTALL)
    return dict(re.findall("<th>(.*?)</th><td>(.*?)</td>", found[1]))


@needs_page_cache
def test_the_page_tells_why_files_are_not_written_directly(page, tmp_path):
    with open_scratch(tmp_path / "my run") as dataset:
        assert rows(page, "disk") == {"written": dataset.disk_io}


@needs_direct_writes
def test_the_page_tells_how_the_disk_did(make_settings, tmp_path):
    settings = make_settings(
        {"t": None, "y": 512, "x": 512},
        root_path=str(tmp_path / "data"),
        format=ScratchFormat(disk_io="direct"),
    )
    path = tmp_path / "report.html"
    with create_stream(settings) as stream:
        for _ in range(20):  # more than is written at a time
            stream.append(np.ones((512, 512), "uint16"))
        stream.flush()
    assert main(["report", str(tmp_path / "data"), "-o", str(path)]) == 0
    told = rows(path, "disk")
    assert list(told) == ["written", "rate of the disk", "waited for it", "may wait"]
    assert told["written"] == "staged, and directly"
    assert re.fullmatch(r"[\d.]+ [MG]B/s", told["rate of the disk"])
    assert re.match(r"\d+ frames", told["waited for it"])


def test_the_page_tells_of_frames_that_waited_and_of_those_that_still_do(
    make_settings, tmp_path, monkeypatch
):
    disk = DiskStats(1e9, 0.5e9, 3_000_000_000, 5_000_000_000, 4.0, 17, 0.31)
    monkeypatch.setattr(ScratchDataset, "disk_stats", disk)
    settings = make_settings({"t": None, "y": 64, "x": 64}, root_path=str(tmp_path / "d"))
    path = tmp_path / "report.html"
    with create_stream(settings) as stream:
        stream.append(np.ones((64, 64), "uint16"))
        assert main(["report", str(tmp_path / "d"), "-o", str(path)]) == 0
    told = rows(path, "disk")
    del told["written"]
    assert told == {
        "rate of the disk": "500.0 MB/s",
        "waited for it": "17 frames, 310 ms altogether",
        "may wait": "5.0 GB",
        "rate of the camera": "1.0 GB/s",
        "waits now": "3.0 GB of 5.0 GB, full in 4 s at these rates",
    }


def test_a_page_is_not_overwritten(page, tmp_path):
    before = page.read_bytes()
    assert main(["report", str(tmp_path / "my run"), "-o", str(page)]) == 1
    assert page.read_bytes() == before


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_page(page, tmp_path):
    picture = tmp_path / "page.png"
    command = [
        *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update"),
        *("--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"),
        *("--window-size=1000,3000", f"--screenshot={picture}", page.as_uri()),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with PIL.open(picture) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # Two rows of thumbnails, half black and half white; and the blue of the plots.
    black = (pixels.sum(2) == 0).mean()
    blue = ((pixels[..., 2] - pixels[..., 0]) > 80).sum()
    assert black > 0.01
    assert blue > 300  # pixels: at least the line


def test_a_dataset_without_frames_has_a_page_too(make_settings, tmp_path):
    settings = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    create_stream(settings).close()
    path = tmp_path / "report.html"
    assert main(["report", str(tmp_path / "data"), "-o", str(path)]) == 0
    assert 'id="thumbnails"' not in path.read_text(encoding="utf-8")
