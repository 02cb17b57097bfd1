"""Each example runs as a user runs it."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from reference import read_plain
from scratchwriter import open_scratch
from waiting import wait_until

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="they are not in a wheel")


def run(name, *args, **variables):
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    env = {**os.environ, **variables}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the driver needs pthreads")
def test_a_driver_in_c_records_from_its_own_thread(tmp_path):
    assert run("c_driver/record.py", tmp_path / "d").startswith("status 0, 20000 frames\n")
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.dropped == 0
        assert dataset.frame_ids[0].tolist() == list(range(20_000))
        assert (np.diff(dataset.timestamps[0]) == 1000).all()
        assert (dataset.arrays[0][:, 0, 0] == np.arange(20_000, dtype="uint16")).all()


def test_a_camera_of_micro_manager_is_recorded_in_batches_and_through_a_slot(tmp_path):
    out = run("micro_manager.py", tmp_path / "d")
    assert out == "201 frames, 0 dropped\n"
    with open_scratch(tmp_path / "d") as dataset:
        ids, times = dataset.frame_ids[0], dataset.timestamps[0]
        assert ids.tolist() == [*range(200), -1]
        assert (np.diff(times[:200]) >= 0).all()
    (frames,) = read_plain(tmp_path / "d")
    assert (frames.max((1, 2)) > 0).all()  # all came, the last one through the slot


FAKE_CAMERA = "arv-fake-gv-camera-0.8"  # Debian: aravis-tools
SYSTEM_PACKAGES = Path("/usr/lib/python3/dist-packages")


@pytest.fixture
def aravis(tmp_path):
    """A GigE Vision camera on the loopback interface, and where Python finds Aravis."""
    packages = tmp_path / "packages"
    packages.mkdir()
    if (SYSTEM_PACKAGES / "gi").exists():
        # Of the system's packages this one only.
        (packages / "gi").symlink_to(SYSTEM_PACKAGES / "gi")
    program = "import gi; gi.require_version('Aravis', '0.8'); import gi.repository.Aravis"
    env = {**os.environ, "PYTHONPATH": str(packages)}
    tried = subprocess.run([sys.executable, "-c", program], capture_output=True, env=env)
    if tried.returncode or shutil.which(FAKE_CAMERA) is None:
        pytest.skip("Aravis is not installed, or not for this Python")
    import fcntl  # not on Windows, where the camera is not either

    with (Path(tempfile.gettempdir()) / "scratchwriter-aravis.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # there is one network port for it
        camera = subprocess.Popen(
            [FAKE_CAMERA, "-i", "127.0.0.1"], stdout=subprocess.DEVNULL
        )
        wait_until(lambda: ":0F74 " in Path("/proc/net/udp").read_text())  # GVCP's port
        yield packages
        camera.kill()
        camera.wait()


def test_a_gige_vision_camera_is_recorded_with_its_times_and_numbers(tmp_path, aravis):
    out = run("gige_vision.py", tmp_path / "d", PYTHONPATH=str(aravis))
    with open_scratch(tmp_path / "d") as dataset:
        ids, times = dataset.frame_ids[0], dataset.timestamps[0]
        steps = np.diff(ids)  # 1 each, if the network has lost none
        assert (steps > 0).all()
        assert (np.diff(times) > 0).all()
        assert dataset.dropped == (steps - 1).sum()
        assert out == f"50 frames, {dataset.dropped} dropped\n"
        # A pattern that moves by one with each frame.
        (frames,) = dataset.arrays
        assert (np.diff(frames[:, 0, 0]) == steps.astype("uint8")).all()


def test_an_endless_preview_keeps_the_newest():
    out = run("preview.py")
    assert out.startswith("1000 frames, the newest 50 are kept\nmean of the newest: 12")


def test_another_process_follows_a_recording(tmp_path):
    out = run("follow.py", tmp_path / "d")
    assert "500 frames seen, the brightest is 31" in out
    assert "the recording is closed" in out


def test_an_export_is_made_while_the_camera_goes_on(tmp_path):
    pytest.importorskip("ome_writers")
    zarr = pytest.importorskip("zarr")
    out = tmp_path / "out.ome.zarr"
    assert run("export_live.py", tmp_path / "d", out) == "exported out.ome.zarr\n"
    pixels = zarr.open(out)["0"][:]
    assert pixels[..., 0, 0].ravel().tolist() == list(range(300))


def test_an_mda_of_pymmcore_plus_is_recorded(tmp_path):
    pytest.importorskip("pymmcore_plus")
    out = run("mda.py", tmp_path / "d")
    assert "{'t': 2, 'p': 2, 'c': 2, 'z': 5, 'y': 512, 'x': 512}" in out
    assert "at x=100 µm" in out
    with open_scratch(tmp_path / "d") as dataset:
        assert len(dataset.frame_metadata) == dataset.frames_written == 40
