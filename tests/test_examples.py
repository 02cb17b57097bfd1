"""Each example runs as a user runs it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reference import read_plain
from scratchwriter import open_scratch

EXAMPLES = Path(__file__).parent.parent / "examples"

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="they are not in a wheel")


def run(name, *args):
    command = [sys.executable, str(EXAMPLES / name), *map(str, args)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
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
