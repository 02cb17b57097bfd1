"""The viewers themselves, on a virtual screen, looked at by their pixels."""

import importlib.util
import inspect
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from scratchwriter import (
    AcquisitionSettings,
    Channel,
    Dimension,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)

NEEDS_SCREEN = pytest.mark.skipif(
    shutil.which("xvfb-run") is None, reason="no virtual screen: apt install xvfb xauth"
)


def needs(name):
    missing = importlib.util.find_spec(name) is None
    return pytest.mark.skipif(missing, reason=f"{name} is not installed")


WRITER = """
import sys
import numpy as np
from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
stream = create_stream(
    AcquisitionSettings(
        root_path=sys.argv[1],
        dtype="uint16",
        dimensions=dims_from_standard_axes(
            {"t": None, "p": ["A1", "B2"], "c": ["DAPI", "FITC"], "y": 64, "x": 64}
        ),
    )
)
print("ready", flush=True)
for i, line in enumerate(sys.stdin):
    frame = np.zeros((64, 64), "uint16")
    frame[:, : i + 1] = frame[:, -1] = 1000  # wider with each frame
    stream.append(frame)
    print(i + 1, flush=True)
stream.close()
"""


def bright_columns(picture):
    """How many of the 64 columns are bright, the first and the last among them."""
    height = len(picture)
    canvas = picture[height // 4 : height // 2, 10:-10]  # without the window around it
    bright = np.flatnonzero((canvas > 200).all(0))
    if not len(bright):
        return 0
    return len(bright) / (bright[-1] - bright[0] + 1) * 64


# What each viewer's program begins with.
PREAMBLE = """
import io, subprocess, sys, time, warnings
warnings.simplefilter("ignore")  # of icons that are to be had on the internet only
import numpy as np
from PIL import Image
from qtpy.QtCore import QBuffer
from qtpy.QtWidgets import QApplication
from scratchwriter import *

app = QApplication([])
path, picture = sys.argv[1:3]

def process(condition, timeout_s=60):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "nothing came"
        app.processEvents()
        time.sleep(0.01)

def wait(time_s):
    end_s = time.monotonic() + time_s
    process(lambda: time.monotonic() > end_s)

def grab(widget):
    buffer = QBuffer()
    widget.grab().save(buffer, "png")
    return Image.open(io.BytesIO(bytes(buffer.data())))

def save_when(take, columns):
    "Save a picture as soon as so many columns are bright in it, or at last."
    def is_as_expected():
        taken = take().convert("L")
        taken.save(picture)
        return abs(bright_columns(np.asarray(taken)) - columns) <= 1
    try:
        process(is_as_expected, 30)
    except AssertionError:
        pass  # the test looks at the picture again

""" + inspect.getsource(bright_columns)


def show(program, tmp_path):
    """Run a program on a virtual screen; return the picture that it saved."""
    from PIL import Image

    picture = tmp_path / "picture.png"
    source = textwrap.dedent(PREAMBLE) + textwrap.dedent(program)
    screen = ["xvfb-run", "-a", "-s", "-screen 0 1024x768x24 +extension GLX"]
    command = [*screen, sys.executable, "-c", source, str(tmp_path / "data"), str(picture)]
    environment = {"QT_QPA_PLATFORM": "xcb", "LIBGL_ALWAYS_SOFTWARE": "1"}
    ran = subprocess.run(
        ["env", *(f"{k}={v}" for k, v in environment.items()), *command],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    return np.asarray(Image.open(picture).convert("L")), ran.stdout


NDV_LIVE = """
import ndv
from scratchwriter.bridges.ndv import Watcher

writer = subprocess.Popen(
    [sys.executable, "-c", WRITER, path],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
writer.stdout.readline()

def record(n):
    for _ in range(n):
        writer.stdin.write("\\n")
        writer.stdin.flush()
        writer.stdout.readline()

dataset = open_scratch(path)
watcher = Watcher(dataset)
index = watcher.viewer.display_model.current_index
for n in (1, 9, 22):
    record(n)
    frames = int(dataset.frames_written) - 1
    newest = {"t": frames // 4, "p": frames // 2 % 2, "c": frames % 2}
    process(lambda: {k: index.get(k) for k in newest} == newest)
save_when(lambda: grab(watcher.viewer.widget()), 32 + 1)
index["t"] = 2  # somebody looks at another frame
record(4)
wait(0.5)
print(index["t"])
writer.stdin.close()
writer.wait()
process(lambda: dataset.state == "closed")
print(watcher.viewer.data_wrapper.channel_names(2))
""".replace("WRITER", repr(WRITER))


@NEEDS_SCREEN
@needs("ndv")
def test_ndv_follows_the_newest_frame_of_another_process(tmp_path):
    picture, said = show(NDV_LIVE, tmp_path)
    assert said == "2\n{0: 'DAPI', 1: 'FITC'}\n"
    assert bright_columns(picture) == pytest.approx(32 + 1, abs=1)


NDV_STREAM = """
import ndv

dims = dims_from_standard_axes({"t": None, "c": ["DAPI", "FITC"], "y": 64, "x": 64})
stream = create_stream(AcquisitionSettings(dimensions=dims, dtype="uint16"))
frame = np.zeros((64, 64), "uint16")
viewer = ndv.ArrayViewer(stream.view())  # before there is a frame
viewer.show()
wait(0.5)
wrapper = viewer.data_wrapper
print(type(wrapper).__name__, wrapper.dims)
sliders = viewer.widget().dims_sliders._sliders
for i in range(6):
    frame[:, : i + 16] = frame[:, -1] = 1000
    stream.append(frame)
process(lambda: "t" in sliders and sliders["t"].maximum() == 2)
save_when(lambda: grab(viewer.widget()), 16 + 1)  # nobody has touched a slider
stream.close()
"""


@NEEDS_SCREEN
@needs("ndv")
def test_a_view_of_a_stream_in_ndv_grows_with_the_frames(tmp_path):
    picture, said = show(NDV_STREAM, tmp_path)
    assert said == "StreamViewWrapper ('t', 'c', 'y', 'x')\n"
    assert bright_columns(picture) == pytest.approx(16 + 1, abs=1)


NDV_RING = """
from scratchwriter.bridges.ndv import Watcher

settings = AcquisitionSettings(
    root_path=path,
    dimensions=dims_from_standard_axes({"t": None, "y": 64, "x": 64}),
    dtype="uint16",
    format=ScratchFormat(keep_last=3),
)
stream = create_stream(settings)
watcher = Watcher(open_scratch(path))
frame = np.zeros((64, 64), "uint16")
for i in range(40):
    frame[:, : i + 1] = frame[:, -1] = 1000
    stream.append(frame)
    wait(0.02)
save_when(lambda: grab(watcher.viewer.widget()), 40 + 1)
stream.close()
"""


@NEEDS_SCREEN
@needs("ndv")
def test_watching_a_ring_shows_the_newest_when_it_is_full(tmp_path):
    picture, _ = show(NDV_RING, tmp_path)
    assert bright_columns(picture) == pytest.approx(40 + 1, abs=1)


NDV_COLOURS = """
from scratchwriter.bridges.ndv import Watcher

watcher = Watcher(open_scratch(path))
viewer = watcher.viewer
wait(0.5)
print(viewer.display_model.luts[0].cmap.color_stops[-1].color.hex)
print(viewer.data_wrapper.axis_scales())
grab(viewer.widget()).convert("L").save(picture)
"""


@NEEDS_SCREEN
@needs("ndv")
def test_ndv_has_colours_of_channels_and_scales_of_axes(tmp_path):
    record_widening_frames(tmp_path / "data")
    _, said = show(NDV_COLOURS, tmp_path)
    assert said == "#0000FF\n{'y': 0.5, 'x': 0.5}\n"


def record_widening_frames(path):
    """Record four frames, each brighter at the left than the one before."""
    y, x = dims_from_standard_axes({"y": 64, "x": 64})
    channels = [Channel(name="DAPI", color="blue"), Channel(name="FITC")]
    settings = AcquisitionSettings(
        root_path=str(path),
        dimensions=[
            Dimension(name="t", count=2, type="time", scale=0.0),
            Dimension(name="c", count=2, type="channel", coords=channels),
            y.model_copy(update={"scale": 0.5, "translation": 3.0}),
            x.model_copy(update={"scale": 0.5}),
        ],
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        for i in range(4):
            frame = np.zeros((64, 64), "uint16")
            frame[:, : 16 * i + 1] = frame[:, -1] = 1000
            stream.append(frame)


SCREEN_OF = """
import napari

def screen_of(viewer):
    return Image.fromarray(viewer.screenshot(canvas_only=True, flash=False))
"""

NAPARI = """

viewer = napari.Viewer()
layers = viewer.open(path, plugin="scratchwriter")
viewer.dims.set_current_step(0, 1)
wait(1)
viewer.reset_view()
for layer in layers:
    print(layer.name, layer.data.shape, layer.scale.tolist(), layer.translate.tolist(),
          [str(unit) for unit in layer.units], layer.contrast_limits, layer.colormap.name,
          layer.blending)
print(viewer.dims.axis_labels)
layers[0].visible = False
save_when(lambda: screen_of(viewer), 49 + 1)
viewer.close()
"""


@NEEDS_SCREEN
@needs("napari")
def test_napari_opens_a_folder_as_a_layer_per_channel(tmp_path):
    record_widening_frames(tmp_path / "data")
    picture, said = show(SCREEN_OF + NAPARI, tmp_path)
    where = (
        "(2, 64, 64) [1.0, 0.5, 0.5] [0.0, 3.0, 0.0] ['pixel', 'micrometer', 'micrometer']"
    )
    dapi, fitc, labels = said.splitlines()[:3]
    assert dapi.startswith(f"DAPI {where} [0.0, 1000.0] ")
    assert dapi.endswith(" additive")
    assert "#0000ff" in dapi.lower() or "blue" in dapi
    assert fitc == f"FITC {where} [0.0, 1000.0] gray additive"
    assert labels == "('t', 'y', 'x')"
    assert bright_columns(picture) == pytest.approx(49 + 1, abs=1)


@pytest.mark.parametrize("order", [("t", "p", "c"), ("c", "t", "p")])
@pytest.mark.parametrize(
    "key",
    [
        np.s_[1],
        np.s_[np.int64(1), :, np.int8(3)],
        np.s_[:, [0, 1]],
        np.s_[1, :, [0, 5]],
        np.s_[:, :, [1, 2], [3, 4]],
        np.s_[np.array([[1, 0]]), ..., [0]],
        np.s_[..., np.arange(8) % 3 == 0],
        np.s_[np.ones((2, 2), bool)],
        np.s_[:, None, 1],
        np.s_[True],
        np.s_[...],
        np.s_[:, 1],
        np.s_[1, ..., 3],
        np.s_[..., 0:2, :],
        np.s_[0, 1, 2:5, ::2],
    ],
)
def test_a_channel_is_indexed_as_numpy_does(tmp_path, key, order):
    from scratchwriter.bridges.napari import read

    sizes = {"t": 2, "p": ["A", "B"], "c": ["a", "b"]}
    dims = dims_from_standard_axes({name: sizes[name] for name in order} | {"y": 8, "x": 8})
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"), dimensions=dims, dtype="uint16"
    )
    frames = np.arange(2 * 2 * 2 * 64, dtype="uint16").reshape(8, 8, 8)
    with create_stream(settings) as stream:
        stream.extend(frames)
    expected = frames.reshape(2, 2, 2, 8, 8)
    for channel, (data, options, _) in enumerate(read(str(tmp_path / "data"))):
        assert options["name"] == "ab"[channel]
        right = expected.take(channel, order.index("c"))
        np.testing.assert_array_equal(data[key], right[key])
        np.testing.assert_array_equal(data, right)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_have_no_part_in_the_contrast(tmp_path, value):
    from scratchwriter.bridges.napari import read

    dims = dims_from_standard_axes({"t": 1, "y": 8, "x": 8})
    for name in ("all", "some"):
        settings = AcquisitionSettings(
            root_path=str(tmp_path / name), dimensions=dims, dtype="float64"
        )
        frame = np.full((8, 8), value)
        if name == "some":
            frame[0] = np.arange(8)
        with create_stream(settings) as stream:
            stream.append(frame)
        ((_, options, _),) = read(str(tmp_path / name))
        limits = options.get("contrast_limits")
        assert limits == (None if name == "all" else pytest.approx((0, 7), abs=0.1))


NAPARI_EXPORTS = """
from scratchwriter.bridges.napari import get_reader  # not asked for what is exported

viewer = napari.Viewer()
dataset = open_scratch(path)
(tiff,) = viewer.open(path + ".ome.tiff", plugin="napari")
zarrs = viewer.open(path + ".ome.zarr", plugin="napari-ome-zarr")
expected = np.asarray(dataset.view())
assert get_reader(path + ".ome.zarr") is None
np.testing.assert_array_equal(np.asarray(tiff.data), expected)
names = [layer.name.split(": ")[-1] for layer in zarrs]  # some versions say "image: "
print(names, [layer.scale.tolist() for layer in zarrs])
for c, layer in enumerate(zarrs):  # a layer per channel
    data = layer.data[0] if layer.multiscale else layer.data
    np.testing.assert_array_equal(np.asarray(data), expected[:, c])
for layer in (tiff, zarrs[0]):
    viewer.layers.remove(layer)
zarrs[1].contrast_limits = 0, 1000  # those of the file are of all that uint16 has
zarrs[1].colormap = "gray"
viewer.dims.set_current_step(0, 1)
viewer.reset_view()
save_when(lambda: screen_of(viewer), 49 + 1)
viewer.close()
"""


@NEEDS_SCREEN
@needs("napari")
@needs("napari_ome_zarr")
@needs("ome_writers")
def test_napari_opens_what_was_exported(tmp_path):
    record_widening_frames(tmp_path / "data")
    with open_scratch(tmp_path / "data") as dataset:
        for end in ("zarr", "tiff"):
            dataset.export(tmp_path / f"data.ome.{end}")
    picture, said = show(SCREEN_OF + NAPARI_EXPORTS, tmp_path)
    assert "['DAPI', 'FITC'] [[1.0, 0.5, 0.5], [1.0, 0.5, 0.5]]\n" in said
    assert bright_columns(picture) == pytest.approx(49 + 1, abs=1)


@needs("napari")
def test_napari_is_offered_datasets_only(tmp_path):
    from scratchwriter.bridges.napari import get_reader

    assert get_reader(str(tmp_path)) is None
