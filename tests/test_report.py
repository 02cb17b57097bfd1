"""The page about a dataset, in a browser."""

import re
import shutil
import subprocess

import numpy as np
import pytest

from scratchwriter import ScratchFormat, create_stream
from scratchwriter.cli import main

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
