"""Writers killed at random moments: what append returned for is there.

SCRATCHWRITER_KILLS=1000 pytest tests/test_crash.py    for more of them
"""

import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest

import crash_writer
from crash_writer import CALLS, CLOSED, CREATED, FRAMES, GLOBAL, MODES, call
from marks import PORTABLE
from reference import read_plain
from scratchwriter import open_scratch
from scratchwriter._files.layout import PROGRESS, PROGRESS_HEADER, STAGING
from scratchwriter._files.repair import find_faults, recover

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
KILLS = int(os.environ.get("SCRATCHWRITER_KILLS", "300"))
ENDS = ["SIGKILL", "SIGTERM", "exit", "abort"]


@pytest.fixture(scope="module")
def server():
    process = subprocess.Popen(
        [sys.executable, crash_writer.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def record_and_kill(server, folder, mode, delay_s, how):
    """Return what had returned when the writer died."""
    np.zeros(8, np.int64).tofile(folder / "counts")
    job = {"folder": str(folder), "mode": mode, "delay_s": delay_s, "how": how}
    server.stdin.write(json.dumps(job) + "\n")
    server.stdin.flush()
    assert server.stdout.readline() == "\n"
    return np.fromfile(folder / "counts", np.int64)


def dataset_folder(folder):
    """Where the manifest is, None if there is none (yet)."""
    return next((path.parent for path in folder.glob("*/manifest.json")), None)


def frames_in_files(folder, frames):
    """How many of the frames are in the files of the arrays, as progress.bin says."""
    header = np.fromfile(folder / PROGRESS, PROGRESS_HEADER, 1)
    in_files = int(header["in_files"][0])
    return in_files if (folder / STAGING).exists() and in_files >= 0 else frames


def expected_calls(frames):
    """What the calls that make so many frames did: value and call of each frame."""
    values, calls, number = [], [], 0
    while len(values) < frames:
        skip = call(number)
        values += [0] * skip or [number % 65536 + 1]
        calls += [-1] * skip or [number]
        number += 1
    return np.array(values[:frames], np.uint32), np.array(calls[:frames], int)


def check(folder, mode, counts):
    """Check a dataset against what its writer had done."""
    t, p, c, _, _ = MODES[mode]["sizes"]
    done = int(counts[FRAMES])
    with open_scratch(folder) as dataset:
        assert dataset.state == ("closed" if counts[CLOSED] else dataset.state)
        assert dataset.state != "recording"
        frames = dataset.frames_written
        assert done <= frames <= done + max(call(int(counts[CALLS])), 1)
        values, calls = expected_calls(frames)
        slots = np.unravel_index(np.arange(frames), (t or frames + 1, p, c))
        for position in range(p):
            here = slots[1] == position
            at = slots[0][here], slots[2][here]
            steps = t or max(int(at[0].max(initial=0)) + 1, 1)
            expected = np.zeros((steps, c), np.uint32)
            expected[at] = values[here]
            plain = read_plain(folder)[position]
            array = dataset.arrays[position][...]
            if "order" in MODES[mode]:  # c before t; in files an unbounded t is outermost
                array = array.swapaxes(0, 1)
                plain = plain if t is None else plain.swapaxes(0, 1)
            assert len(array) == steps
            # The manifest counts what calls that returned have stored, and no frame that
            # is not committed. Of frames that are staged: what is in the files.
            in_files = frames_in_files(folder, frames)
            certain = min(done, in_files)
            if "memory" in MODES[mode] and "staging" in MODES[mode]:
                # It may be killed before the first frames behind memory were counted.
                certain = done if dataset.state == "closed" else 0
            returned = slots[0][:certain][here[:certain]]
            least = t or max(int(returned.max(initial=0)) + 1, 1)
            assert least <= len(plain) <= steps
            # All pixels of a frame are the same. One that came half is not counted.
            for found, count in ((array, frames), (plain, in_files)):
                counted = np.zeros((steps, c), bool)
                counted[slots[0][:count][here[:count]], slots[2][:count][here[:count]]] = (
                    True
                )
                is_right = found == expected[: len(found), ..., None, None]
                assert is_right[counted[: len(found)]].all()
            written = np.zeros((steps, c), bool)
            written[at] = calls[here] >= 0
            if "order" in MODES[mode]:
                written = written.T
            np.testing.assert_array_equal(dataset.written(position), written)
        assert [line["call"] for line in dataset.frame_metadata] == [
            number for number in calls if number >= 0
        ]
        skipped = {frame for ranges in dataset.skipped for frame in ranges}
        assert skipped == set(np.flatnonzero(calls < 0).tolist())
        assert dataset.global_metadata.get("here", {"call": 0})["call"] >= counts[GLOBAL]


@pytest.mark.parametrize(
    "mode", [mode for mode in MODES if not (PORTABLE and "staging" in MODES[mode])]
)
def test_a_killed_writer_loses_nothing_that_it_was_given(server, tmp_path, mode):
    rng = random.Random(f"{mode} {KILLS}")
    found = whole = number = 0
    wanted = -(-KILLS // len(MODES))
    # On, if need be, until one has died with a dataset that was not closed.
    while number < wanted or (found == whole and number < 20 * wanted):
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        # Longer, the longer it takes: a busy machine may not come to it so soon.
        delay_s = rng.choice([0.005, 0.03, 0.1]) * rng.random() * (1 + number // wanted)
        counts = record_and_kill(server, folder, mode, delay_s, ENDS[number % len(ENDS)])
        data = dataset_folder(folder)
        if data is None:
            # Nothing was promised: not made yet, or the frames were still in memory.
            assert not counts[CREATED] or "memory" in MODES[mode]
            continue
        found += 1
        if not counts[CREATED]:
            with open_scratch(data) as dataset:
                assert dataset.frames_written <= 1  # 1 of the one that is overwritten
            continue
        check(data, mode, counts)
        whole += recover(data) == []
        with open_scratch(data) as dataset:
            assert dataset.state == "closed"
            assert find_faults(dataset.source) == []
        check(data, mode, counts)
        shapes = [array.shape for array in read_plain(data)]
        sizes = [(data / f"pos_{i}.dat").stat().st_size for i in range(len(shapes))]
        assert sizes == [int(np.prod(shape)) * 4 for shape in shapes]
    assert found > whole  # some died with a dataset that was not closed
