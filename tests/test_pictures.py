"""Contact sheets, thumbnails, and how things show themselves in a notebook."""

import base64
import io
import re

import numpy as np
import pytest

from marks import needs_direct_writes
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._showing.disk_texts import short_disk_text
from scratchwriter.cli import main
from scratchwriter.stats import DiskStats

PIL = pytest.importorskip("PIL.Image")


def pixels_of(path):
    with PIL.open(path) as picture:
        return np.asarray(picture)


def record(stream, frames=None):
    """Channel 0 becomes darker with time, channel 1 (much brighter) brighter."""
    n = stream.settings.num_frames if frames is None else frames
    for i in range(n):
        t, c = divmod(i, 2)
        frame = np.zeros((64, 64), "uint16")
        frame[:, 32:] = (40 - t) if c == 0 else 1000 * (t + 1)
        stream.append(frame)


@pytest.fixture
def settings(make_settings, tmp_path):
    sizes = {"t": 20, "c": ["DAPI", "FITC"], "y": 64, "x": 64}
    return make_settings(sizes, root_path=str(tmp_path / "data"))


def test_a_contact_sheet_has_a_row_for_each_channel_with_its_contrast(settings, tmp_path):
    with create_stream(settings) as stream:
        record(stream)
    sheet = tmp_path / "sheet.png"
    assert main(["preview", str(tmp_path / "data"), "-o", str(sheet)]) == 0
    pixels = pixels_of(sheet)
    assert pixels.shape == (2 * (64 + 14), 8 * 64)
    for row, is_falling in enumerate((True, False)):
        line = pixels[row * 78 + 14 + 40].reshape(8, 64)
        assert (line[:, :32] == 0).all()
        bright = line[:, 48].astype(int)
        assert bright.max() == 255
        assert (np.diff(bright[::-1] if is_falling else bright) > 0).all()
        assert pixels[row * 78 : row * 78 + 14].any()  # the label


def test_positions_have_rows_of_their_own(make_settings, tmp_path):
    sizes = {"t": 3, "p": ["A", "B"], "c": 2, "y": 64, "x": 32}
    settings = make_settings(sizes, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        for i in range(12):
            stream.append(np.full((64, 32), i, "uint16"))
    sheet = tmp_path / "sheet.jpg"
    assert main(["preview", str(tmp_path / "data"), "-o", str(sheet)]) == 0
    assert pixels_of(sheet).shape == (4 * (64 + 14), 3 * 32)


def test_a_preview_that_cannot_be_is_refused_and_leaves_nothing(settings, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    with create_stream(settings):
        assert main(["preview", str(tmp_path / "data"), "-o", str(sheet)]) == 1
        assert "No frame has come yet" in capsys.readouterr().err
    assert not sheet.exists()
    sheet.write_bytes(b"mine")
    assert main(["preview", str(tmp_path / "data"), "-o", str(sheet)]) == 1
    assert sheet.read_bytes() == b"mine"


def picture_in(html):
    uri = re.search(r'src="data:image/png;base64,([^"]+)"', html)[1]
    return np.asarray(PIL.open(io.BytesIO(base64.b64decode(uri))))


def test_a_notebook_shows_the_newest_frame_and_how_it_is_going(settings, tmp_path):
    with create_stream(settings) as stream:
        assert "<img" not in stream._repr_html_()
        record(stream, 5)
        html = stream._repr_html_()
        assert (">disk<" in html) is (stream.stats().disk is not None)
        assert picture_in(html)[32, [0, 63]].tolist() == [0, 255]
        assert "t=3, c=2, y=64, x=64; uint16" in html
        assert "open" in html
        with open_scratch(tmp_path / "data") as dataset:
            assert "recording" in dataset._repr_html_()
            assert picture_in(dataset._repr_html_()).shape == (64, 64)


@needs_direct_writes
def test_a_notebook_shows_how_the_disk_does_where_it_is_written_directly(
    make_settings, tmp_path
):
    settings = make_settings(
        {"t": None, "y": 64, "x": 64},
        root_path=str(tmp_path / "data"),
        format=ScratchFormat(disk_io="direct"),
    )
    with create_stream(settings) as stream:
        stream.append(np.ones((64, 64), "uint16"))
        assert re.search(">disk</th><td[^>]*>not known yet", stream._repr_html_())


def test_of_a_disk_a_notebook_shows_its_rate_and_what_waits():
    fields = {
        "camera_nbytes_per_s": 1e9,
        "max_staged_nbytes": 10**10,
        "seconds_left": float("inf"),
        "waited_frames": 0,
        "waited_s": 0.0,
    }
    disk = DiskStats(disk_nbytes_per_s=1.2e9, staged_nbytes=34_000_000, **fields)
    assert short_disk_text(disk) == "1.2 GB/s, 34.0 MB wait"
    disk = DiskStats(disk_nbytes_per_s=1.2e9, staged_nbytes=0, **fields)
    assert short_disk_text(disk) == "1.2 GB/s"


@pytest.mark.parametrize("dtype", ["int16", "float32", "complex64", "bool"])
def test_pictures_of_any_dtype_are_dark_where_pixels_are(make_settings, dtype):
    frame = np.zeros((64, 64), dtype)
    frame[:, 32:] = 1 if dtype == "bool" else 1000
    if dtype == "int16":
        frame[:, :32] = -1000
    elif dtype != "bool":
        frame[0, 0] = np.nan
    with create_stream(make_settings({"t": 1, "y": 64, "x": 64}, dtype=dtype)) as stream:
        stream.append(frame)
        assert picture_in(stream._repr_html_())[32, [0, 63]].tolist() == [0, 255]


def test_names_in_a_notebook_are_text(make_settings, tmp_path):
    settings = make_settings({"t": 1, "y": 4, "x": 5}, root_path=str(tmp_path / "<script>"))
    with create_stream(settings) as stream:
        assert "<script>" not in stream._repr_html_()
