"""What is known of frames besides their pixels: times, frame numbers, what was dropped."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from reference import read_plain
from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from scratchwriter._files.records import count_dropped
from scratchwriter._files.repair import find_faults, recover
from scratchwriter.cli import main

FRAME = np.arange(20, dtype="uint16").reshape(4, 5)
RECORD = np.dtype([("timestamp_ns", "i8"), ("frame_id", "i8"), ("known", "i8")])


def test_what_nobody_gives_is_not_kept(make_settings, tmp_path):
    made = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        stream.append(FRAME)
        assert stream.timestamps[0].tolist() == [-1, -1, -1]
    assert not (tmp_path / "d" / "frame_records.bin").exists()
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.timestamps[0].tolist() == [-1, -1, -1]
        assert dataset.dropped == 0


def test_times_and_numbers_are_kept_per_position_in_the_shape_of_its_array(
    make_settings, place
):
    sizes = {"t": None, "p": 2, "c": 3, "y": 4, "x": 5}
    made = make_settings(sizes, storage_order=["c", "p", "t", "y", "x"], **place)
    with create_stream(made) as stream:
        for i in range(20):
            stream.append(FRAME, timestamp_ns=1000 + i, frame_id=i if i % 2 else None)
        times, ids = stream.timestamps, stream.frame_ids
        assert [t.shape for t in times] == [a.shape[:-2] for a in stream.arrays]
    assert [t.shape for t in times] == [(3, 4), (3, 3)]
    assert times[1][2, 1] == 1000 + 1 * 6 + 3 + 2
    assert ids[1][2, 1] == 11
    assert ids[1][1, 1] == -1
    assert times[0][2, 3] == -1  # the last time point is not complete


def test_the_records_are_read_by_numpy_alone(make_settings, tmp_path):
    made = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        stream.append(FRAME)
        stream.append(FRAME, timestamp_ns=5)
        stream.skip()
        stream.append(FRAME, frame_id=0)
    records = np.fromfile(tmp_path / "d" / "frame_records.bin", RECORD)
    assert records["known"].tolist() == [0, 1, 0, 2]
    assert records["timestamp_ns"].tolist() == [0, 5, 0, 0]
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.timestamps[0].tolist() == [-1, 5, -1, -1]
        assert dataset.frame_ids[0].tolist() == [-1, -1, -1, 0]


def test_the_time_of_this_machine_is_taken_where_none_is_given(make_settings, place):
    fmt = ScratchFormat(timestamps=True)
    with create_stream(
        make_settings({"t": None, "y": 4, "x": 5}, format=fmt, **place)
    ) as stream:
        before_ns = time.monotonic_ns()
        for _ in range(3):
            stream.append(FRAME)
        with stream.slot() as frame:
            frame[...] = FRAME
        stream.extend([FRAME, FRAME])
        after_ns = time.monotonic_ns()
        stream.append(FRAME, timestamp_ns=1)
        (times,) = stream.timestamps
    assert before_ns <= times[0]
    assert times[5] <= after_ns
    assert (np.diff(times[:6]) >= 0).all()
    assert times[6] == 1


def test_numbers_that_are_missing_are_frames_that_were_dropped(
    make_settings, tmp_path, capsys
):
    made = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        for number in (10, 11, 14, 15, 0, 1, 3):  # it counts anew at 0
            stream.append(FRAME, frame_id=number)
        assert stream.stats().dropped == 3
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.dropped == 3
    assert main(["info", str(tmp_path / "d")]) == 0
    assert main(["verify", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out.count("3 frame numbers never came") == 2


@pytest.mark.parametrize("length", [None, 40])
def test_records_survive_the_death_of_their_process(tmp_path, length):
    folder = tmp_path / "d"
    program = f"""
    import os, signal
    import numpy as np
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    dims = dims_from_standard_axes({{"t": {length}, "p": 2, "y": 4, "x": 5}})
    stream = create_stream(
        AcquisitionSettings(root_path={str(folder)!r}, dimensions=dims, dtype="uint16")
    )
    for i in range(31):
        stream.append(np.zeros((4, 5), "uint16"), timestamp_ns=i, frame_id=2 * i)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    for _ in range(2):
        with open_scratch(folder) as dataset:
            assert dataset.timestamps[0][:16].tolist() == list(range(0, 31, 2))
            assert dataset.frame_ids[1][:15].tolist() == list(range(2, 61, 4))
            assert dataset.dropped == 30
        recover(folder)
    assert (folder / "frame_records.bin").stat().st_size == 31 * 24


def test_records_leave_memory_with_the_frames(make_settings, tmp_path):
    fmt = ScratchFormat(max_memory_bytes=20 * 40, spill_dir=str(tmp_path))
    sizes = {"t": None, "p": 2, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, format=fmt)) as stream:
        for i in range(15):
            stream.append(FRAME, timestamp_ns=i)
        with pytest.warns(UserWarning, match="max_memory"):
            for i in range(15, 5000):
                stream.append(FRAME, timestamp_ns=i)
        assert stream.timestamps[0].tolist() == list(range(0, 5000, 2))
    records = np.fromfile(stream.path / "frame_records.bin", RECORD)
    assert records["timestamp_ns"].tolist() == list(range(5000))
    with open_scratch(stream.path) as dataset:
        assert find_faults(dataset.source) == []
        assert dataset.timestamps[1].tolist() == list(range(1, 5000, 2))


def test_records_that_come_late_are_of_the_frames_that_they_came_with(make_settings, place):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, **place)) as stream:
        for _ in range(1000):
            stream.append(FRAME)
        for i in range(1000, 20_000):
            stream.append(FRAME, frame_id=i)
        (ids,) = stream.frame_ids
    assert (ids[:1000] == -1).all()
    assert (ids[1000:] == np.arange(1000, 20_000)).all()


def test_a_disk_without_room_for_a_record_is_an_error_and_stores_nothing(
    make_settings, small_disk
):
    frame = np.ones((1, 1), "uint8")
    made = make_settings(
        {"t": None, "y": 1, "x": 1}, root_path=str(small_disk / "d"), dtype="uint8"
    )
    with create_stream(made) as stream:
        with pytest.raises(OSError, match=r"No space.*frame_records\.bin"):
            while True:
                stream.extend([frame] * 1000, frame_ids=[1] * 1000)
        frames = stream.frames_written
        assert frames > 10_000
        assert stream.frame_ids[0].shape == (frames,)
    assert read_plain(small_disk / "d")[0].shape == (frames, 1, 1)


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda path: path.write_bytes(b"x" * 30), None),
        (lambda path: path.write_bytes(b""), None),
        (lambda path: (path.unlink(), path.symlink_to("/etc/passwd")), "regular"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "regular"),
        (lambda path: path.write_bytes(b"\xff" * 240), None),
    ],
    ids=["short", "empty", "link", "pipe", "nonsense"],
)
def test_records_of_somebody_else_are_not_believed(make_settings, tmp_path, damage, fault):
    made = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        for i in range(10):
            stream.append(FRAME, timestamp_ns=i)
    damage(tmp_path / "d" / "frame_records.bin")
    with open_scratch(tmp_path / "d") as dataset:
        if fault is None:
            assert dataset.timestamps[0].shape == (10,)
            assert isinstance(dataset.dropped, int)
        else:
            with pytest.raises(DatasetError, match=r"frame_records\.bin.*" + fault):
                _ = dataset.timestamps
            assert len(find_faults(dataset.source)) == 1


@pytest.mark.parametrize("value", [-1, 1 << 63, 1.5, "1"])
def test_a_time_that_is_none_is_refused_and_stores_nothing(make_settings, place, value):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5}, **place)) as stream:
        for name in ("timestamp_ns", "frame_id"):
            with pytest.raises((ValueError, TypeError, OverflowError)):
                stream.append(FRAME, **{name: value})
        assert stream.frames_written == 0


@pytest.mark.parametrize(
    ("ids", "dropped"),
    [
        ([0, 1, 2], 0),
        ([0, 3, 1, 5], 2 + 3),
        ([5, 5, 4], 0),
        ([0, 2**63 - 1], 2**63 - 2),
        ([0, 2**63 - 1, 0, 2], 2**63 - 1),
        ([0, 2**63 - 1, 0, 2**63 - 1], 2**63 - 1),
        ([0, 2**33, 0, 2**33], 2 * (2**33 - 1)),
        ([-(2**63), 2**63 - 1], 2**63 - 1),  # which nobody but a damaged file says
        ([7], 0),
        ([], 0),
    ],
)
def test_numbers_that_are_missing_are_counted_exactly_as_far_as_64_bits_go(ids, dropped):
    records = np.zeros(len(ids), RECORD)
    records["frame_id"], records["known"] = ids, 2
    assert count_dropped(records) == dropped
