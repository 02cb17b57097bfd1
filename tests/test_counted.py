"""What is counted is there: for those who look on, after a kill, at the largest counts."""

import contextlib
import mmap
import os
import random
import shutil
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from edges import AtLine, Child, check_frames, frame_of, in_child, lines_of
from reference import read_plain
from scratchwriter import (
    AcquisitionSettings,
    DatasetError,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.repair import find_faults, recover
from test_native import OK, native
from waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks its writers")
SIZE, BATCH = 256, 40


def settings_of(folder, *, positions=1, size=SIZE, frames_in_memory=None):
    """Without an end; on disk, or beginning in memory."""
    in_memory = frames_in_memory is not None
    fields = {"max_memory_bytes": frames_in_memory * size**2 * 2} if in_memory else {}
    return AcquisitionSettings(
        root_path="" if in_memory else str(Path(folder) / "data"),
        dimensions=dims_from_standard_axes(
            {"t": None, "p": positions, "y": size, "x": size}
        ),
        dtype="uint16",
        overwrite=True,
        format=ScratchFormat(spill_dir=str(folder), **fields),
    )


# ------------------------------------------------------------------- for those who look on


class Counts:
    """What the manifest and progress.bin of a dataset that is recorded count, just now.

    By its own reading of docs/format.md. The manifest is opened again when it is replaced,
    which nobody does here.
    """

    def __init__(self, folder):
        text = (folder / "manifest.json").read_bytes()
        start = text.index(b"[", text.index(b'"position_shapes"') + 20)
        self._digits = slice(start + 1, text.index(b",", start))
        self._manifest = self._map(folder / "manifest.json")
        self._progress = np.frombuffer(self._map(folder / "progress.bin"), np.int64)

    def _map(self, path):
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def look(self):
        """Return the first position's length, as it was before the cursor was read."""
        length = int(self._manifest[self._digits].strip(b" ["))
        return length, int(self._progress[64 // 8])


def record_batches(folder, positions, way):
    folder = Path(folder)
    size = SIZE if way == "extend" else 8
    batch = np.ones((BATCH, size, size), "uint16")
    with create_stream(settings_of(folder, positions=positions, size=size)) as stream:
        for _ in range(positions):
            stream.append(batch[0])
        (folder / "begun").touch()
        wait_until((folder / "looks").exists)
        for _ in range(30 if way == "extend" else 300):
            if way == "extend":
                stream.extend(batch)
            else:
                stream.skip(frames=positions)
    (folder / "done").touch()


@pytest.mark.parametrize(
    ("way", "positions"), [("extend", 1), ("extend", 2), ("skip", 1), ("skip", 1000)]
)
def test_a_manifest_counts_no_frame_before_it_is_committed(tmp_path, way, positions):
    writer = Child(record_batches, tmp_path, positions, way)
    wait_until((tmp_path / "begun").exists)
    counts, ahead, zeros, looks = Counts(tmp_path / "data"), [], [], 0
    (tmp_path / "looks").touch()
    while not (tmp_path / "done").exists():
        for _ in range(200 if way == "skip" else 5):
            length, cursor = counts.look()
            if length > -(-cursor // positions):
                ahead.append((length, cursor))
        if way == "extend":
            # As in the README: what it shows has been recorded.
            shown = read_plain(tmp_path / "data")
            zeros += [array.shape for array in shown if not array[-BATCH:, 0, 0].all()]
        looks += 1
    code, text = writer.wait()
    assert code == 0, text
    assert looks > 5
    assert (ahead[:3], zeros[:3]) == ([], [])


# ---------------------------------------------------------------------------- after a kill


def record_until_killed(folder, way):
    """Count in a file the frames of the calls that have returned."""
    warnings.simplefilter("ignore")
    folder = Path(folder)
    with (folder / "count").open("r+b") as file:
        count = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
    in_memory = {"leaving memory": 30}.get(way)
    stream = create_stream(settings_of(folder, frames_in_memory=in_memory))
    number = 0
    while True:
        # One by one when memory has been left: the files are made whole meanwhile.
        size = 1 if way == "leaving memory" and number > BATCH else BATCH
        values = np.arange(number, number + size) % 60_000 + 1
        batch = np.empty((size, SIZE, SIZE), "uint16")
        batch[...] = values[:, None, None]
        if way == "slots":
            with stream.slots(size) as frames:
                frames[...] = batch
        else:
            stream.extend(batch)
        number += size
        count[0] = number


def check_whole(folder, at_least):
    with open_scratch(folder) as dataset:
        assert dataset.frames_written >= at_least
        array = dataset.arrays[0]
        firsts = 1 + np.arange(dataset.frames_written) % 60_000
        for corner in (0, -1):
            np.testing.assert_array_equal(array[:, corner, corner], firsts)
        return find_faults(dataset.source)


@pytest.mark.parametrize("way", ["extend", "slots", "leaving memory"])
def test_a_kill_costs_no_frame_of_a_call_that_returned(tmp_path, way):
    rng = random.Random(way)
    killed = number = 0
    # Longer, the longer it takes: a slow machine does not leave memory so soon.
    while number < 25 or (killed <= 5 and number < 250):
        number += 1
        folder = tmp_path / str(number)
        folder.mkdir()
        np.zeros(1, np.int64).tofile(folder / "count")
        writer = Child(record_until_killed, folder, way)
        wait_until(lambda folder=folder: np.fromfile(folder / "count", np.int64)[0])
        time.sleep(rng.random() * 0.05 * (1 + number // 25))
        writer.kill()
        done = int(np.fromfile(folder / "count", np.int64)[0])
        data = next((path.parent for path in folder.glob("*/manifest.json")), None)
        if data is not None:
            killed += 1
            (fault,) = check_whole(data, done)
            assert "its writer died" in fault
            recover(data)
            assert check_whole(data, done) == []
            (plain,) = read_plain(data)
            assert plain.nbytes == (data / "pos_0.dat").stat().st_size
        else:
            assert way == "leaving memory"  # which is promised nothing before it has left
        shutil.rmtree(folder)
    assert killed > 5


# -------------------------------------------------------- recovered while it is replaced


def replace_killed(folder, round_, seed):
    """Record in place of what was killed there; then die, or close."""
    rng = random.Random(f"{seed} {round_}")
    while True:
        try:
            stream = create_stream(settings_of(folder, size=64))
        except (FileExistsError, BlockingIOError):  # it is being recovered
            continue
        break
    frames = rng.randrange(20, 60)
    for number in range(frames):
        stream.append(frame_of(number))
        if number % 5 == 0:
            check_frames(stream.arrays[0], number + 1)
    check_frames(stream.arrays[0], frames)
    with open_scratch(stream.path) as dataset:
        assert dataset.state == "recording", dataset.state
        check_frames(dataset.arrays[0], frames)
    if rng.random() < 0.7:
        os._exit(0)
    stream.close()


def recover_again_and_again(folder):
    folder = Path(folder)
    while not (folder / "done").exists():
        with contextlib.suppress(DatasetError, OSError):
            recover(folder / "data")


@pytest.mark.parametrize("seed", range(2))
def test_recover_cuts_no_stream_that_is_made_in_place_of_what_was_killed(tmp_path, seed):
    recoverers = [Child(recover_again_and_again, tmp_path) for _ in range(2)]
    try:
        for round_ in range(50):
            in_child(replace_killed, tmp_path, round_, seed)
    finally:
        (tmp_path / "done").touch()
        ended = [child.wait() for child in recoverers]
    assert [code for code, _ in ended] == [0, 0], ended


def recover_a_folder_that_is_replaced(folder):
    """At each line of `recover`, another stream takes the place of what was killed."""
    folder = Path(folder)

    def leave_killed():
        pid = os.fork()
        if pid == 0:
            stream = create_stream(settings_of(folder, size=64))
            for number in range(9):
                stream.append(frame_of(number))
            os._exit(0)
        os.waitpid(pid, 0)

    leave_killed()
    numbers = lines_of(lambda: recover(folder / "data"))
    for number in numbers:
        leave_killed()
        made = []

        def replace(made=made):
            with contextlib.suppress(OSError):  # it is locked: recovered as it is
                made.append(create_stream(settings_of(folder, size=64)))
                for number in range(3):
                    made[0].append(frame_of(number))

        with contextlib.suppress(DatasetError, OSError), AtLine(number, replace) as line:
            recover(folder / "data")
        if not made:
            continue
        with made[0] as stream:
            print("replaced at", line.where, flush=True)  # the next lines may be the last
            for number in range(3, 20):
                stream.append(frame_of(number))
        check_frames(stream.arrays[0], 20)
        with open_scratch(stream.path) as dataset:
            assert find_faults(dataset.source) == [], line.where


def test_recover_looks_whether_what_it_has_locked_is_still_what_it_recovers(tmp_path):
    in_child(recover_a_folder_that_is_replaced, tmp_path)


# ------------------------------------------------------------------------ largest counts

MOST = 2**63 - 1
IDS = [0, MOST, 0, MOST]


def append_from_c(stream, frame):
    c = native(stream)
    for number in IDS:
        assert c.append_rows(c.state, frame.ctypes.data, 16, 1, number) == OK


def fill_slots(stream, frame):
    for number in IDS:
        with stream.slot(frame_id=number) as slot:
            slot[...] = frame


WAYS = {
    "append": lambda stream, frame: [stream.append(frame, frame_id=n) for n in IDS],
    "extend": lambda stream, frame: stream.extend([frame] * 4, frame_ids=IDS),
    "slot": fill_slots,
    "C": append_from_c,
}


@pytest.mark.parametrize("way", WAYS)
def test_frames_that_were_dropped_are_counted_up_to_the_largest_number(tmp_path, way):
    with create_stream(settings_of(tmp_path, size=8)) as stream:
        WAYS[way](stream, np.ones((8, 8), "uint16"))
        with open_scratch(stream.path) as dataset:
            assert dataset.state == "recording"
            assert [stream.stats().dropped, dataset.dropped] == [MOST, MOST]
    with open_scratch(stream.path) as dataset:
        assert [stream.stats().dropped, dataset.dropped] == [MOST, MOST]
        assert dataset.frame_ids[0].tolist() == IDS
