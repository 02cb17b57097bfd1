"""Datasets that another process records, seen while it does."""

import gc
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
import weakref
import zlib
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from waiting import wait_until

# Appends a frame for each line that it is sent; "end" closes the dataset.
WRITER = textwrap.dedent("""
    import sys
    import numpy as np
    from scratchwriter import *
    stream = create_stream(AcquisitionSettings(
        root_path=sys.argv[1], dtype="uint16", format=ScratchFormat(keep_last=KEEP),
        dimensions=dims_from_standard_axes(SIZES)))
    print("ready", flush=True)
    for line in sys.stdin:
        action, n = line.split()
        if action == "end":
            break
        for _ in range(int(n) if action == "append" else 0):
            stream.append(np.full((4, 5), stream.frames_written + 1, "uint16"))
        if action == "skip":
            stream.skip(frames=int(n))
        print(stream.frames_written, flush=True)
    stream.close()
""")


class Writer:
    def __init__(self, path, sizes, keep=None):
        program = WRITER.replace("SIZES", repr(sizes)).replace("KEEP", repr(keep))
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.process.stdout.readline()

    def tell(self, action, n=1):
        self.process.stdin.write(f"{action} {n}\n")
        self.process.stdin.flush()

    def do(self, action, n=1):
        self.tell(action, n)
        return int(self.process.stdout.readline())

    def end(self):
        self.tell("end")
        assert self.process.wait(30) == 0

    def die(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture
def record(tmp_path):
    """Have another process record a dataset."""
    writers = []

    def begin(keep=None, **sizes):
        writers.append(Writer(tmp_path / "data", {**sizes, "y": 4, "x": 5}, keep))
        return writers[-1], open_scratch(tmp_path / "data")

    yield begin
    for writer in writers:
        writer.process.kill()
        writer.process.wait()
        writer.process.stdin.close()
        writer.process.stdout.close()


def values(frames):
    return [int(frame[0, 0]) for frame in frames]


def test_arrays_and_view_grow_with_the_frames_of_another_process(record):
    writer, dataset = record(t=None, p=["A", "B"], c=2)
    view = dataset.view()
    assert view.shape == (0, 0, 0, 4, 5)
    for n in range(1, 12):
        writer.do("append")
        assert dataset.frames_written == n
        assert view[np.unravel_index(n - 1, (3, 2, 2))][3, 4] == n
        assert len(view) == (n + 3) // 4
    assert dataset.arrays[0].shape == (3, 2, 4, 5)
    writer.end()
    assert dataset.state == "closed"
    assert view.shape == (3, 2, 2, 4, 5)


def test_waiting_ends_when_so_many_frames_have_come(record):
    writer, dataset = record(t=None)
    assert not dataset.wait(timeout_s=0.02)
    assert not dataset.wait(frames=3, timeout_s=0)
    writer.tell("append", 3)
    assert dataset.wait(frames=3, timeout_s=30)
    assert dataset.frames_written == 3
    assert dataset.wait(frames=2)  # they have come already
    timer = threading.Timer(0.1, writer.tell, ("append",))
    timer.start()
    assert dataset.wait()
    timer.join()
    assert dataset.frames_written == 4


@pytest.mark.parametrize("end", ["end", "die"])
def test_waiting_ends_with_the_writer(record, end):
    writer, dataset = record(t=None)
    timer = threading.Timer(0.2, getattr(writer, end))
    timer.start()
    assert not dataset.wait()
    timer.join()
    assert dataset.state == {"end": "closed", "die": "killed"}[end]
    assert not dataset.wait(frames=1)


def test_following_gives_every_frame_that_came_and_comes(record):
    writer, dataset = record(t=None, c=2)
    writer.do("append", 3)
    frames, state = [], []

    def follow():
        frames.extend(dataset.follow())
        state.append(dataset.state)

    follower = threading.Thread(target=follow)
    follower.start()
    for _ in range(30):
        writer.do("append", 7)
    writer.do("skip", 5)
    writer.do("append", 2)
    writer.end()
    follower.join(30)
    assert values(frames) == [*range(1, 214), 219, 220]
    assert all(frame.shape == (4, 5) and not frame.flags.writeable for frame in frames)
    assert state == ["closed"]
    assert values(dataset.follow(start=211)) == [212, 213, 219, 220]


def test_following_gives_all_that_a_killed_writer_appended(record):
    writer, dataset = record(t=None)
    writer.do("append", 1000)
    writer.die()
    assert values(dataset.follow()) == list(range(1, 1001))
    assert dataset.state == "killed"


def test_a_display_follows_the_newest(record):
    writer, dataset = record(t=None)
    writer.do("append", 10)
    newest = dataset.follow(latest=True)
    assert values([next(newest)]) == [10]
    writer.do("append", 1)
    writer.do("append", 5)
    assert values([next(newest)]) == [16]
    writer.end()
    assert list(newest) == []


def test_following_a_ring_gives_what_is_kept(record):
    writer, dataset = record(keep=3, t=None)
    frames = dataset.follow()
    writer.do("append", 2)
    assert values([next(frames)]) == [1]
    writer.do("append", 500)
    assert values([next(frames)]) == [500]  # 2 is not kept any more
    writer.do("append", 1)
    writer.end()
    assert values(frames)[-2:] == [502, 503]


def test_callbacks_receive_frames_of_another_process(record, monkeypatch):
    for name in ("_STALE_S", "_FOLD_S"):  # however slow the machine is
        monkeypatch.setattr(f"scratchwriter.events.{name}", 600.0)
    writer, dataset = record(t=3, c=["DAPI", "FITC"])
    changed, expanded, views = [], [], []
    dataset.on("coords_changed", changed.append)
    dataset.on("coords_expanded", expanded.append)
    dataset.view().coords_changed.connect(lambda: views.append(1))
    writer.do("append", 3)
    writer.do("skip", 2)
    writer.end()
    wait_until(lambda: min(map(len, (changed, expanded, views))) == 4)
    assert [u.frame_number for u in changed] == [0, 1, 2, 4]
    assert [u.frame_number for u in expanded] == [0, 1, 2, 4]
    assert expanded[1].max_coords["c"] == ("DAPI", "FITC")
    assert len(views) == 4


def test_a_closed_dataset_tells_its_callbacks_no_more(record):
    writer, dataset = record(t=None)
    updates = []
    dataset.on("coords_changed", updates.append)
    dataset.close()
    time.sleep(0.1)
    writer.do("append", 3)
    time.sleep(0.05)
    assert updates == []
    with pytest.raises(ValueError, match="dataset is closed"):
        next(dataset.follow())


def test_following_in_the_process_that_records(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        dataset = open_scratch(tmp_path / "data")
        follow = dataset.follow()
        for frame in frames[:10]:
            stream.append(frame)
            np.testing.assert_array_equal(next(follow), frame)
    assert list(follow) == []


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="no /proc here")
def test_the_writer_does_nothing_for_its_readers(make_settings, tmp_path, frames):
    def system_calls():  # reads and writes
        lines = Path("/proc/self/io").read_text().splitlines()
        return np.array([int(line.split()[1]) for line in lines[2:4]])

    settings = make_settings({"t": 60, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    program = textwrap.dedent("""
        import sys
        from scratchwriter import open_scratch
        dataset = open_scratch(sys.argv[1])
        print("ready", flush=True)
        print(sum(1 for _ in dataset.follow()))
    """)
    with ExitStack() as stack:
        stream = stack.enter_context(create_stream(settings))
        command = [sys.executable, "-c", program, stream.path]
        readers = [
            stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            for _ in range(2)
        ]
        for reader in readers:
            reader.stdout.readline()
        to_look = -(system_calls() - system_calls())
        before = system_calls()
        for frame in frames:
            stream.append(frame)
        assert (system_calls() - before == to_look).all()
        stream.close()
        assert [reader.stdout.readline() for reader in readers] == ["60\n", "60\n"]


# ------------------------------------------------------------------ what is not believed


def put_cursor(folder, cursor):
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(64)
        file.write(struct.pack("=q", cursor))


@pytest.mark.parametrize("cursor", [-7, 7, 1 << 40, (1 << 63) - 1])
def test_a_number_of_frames_that_cannot_be_is_an_error_while_it_is_live(
    make_settings, tmp_path, frames, cursor
):
    settings = make_settings({"t": 6, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        for frame in frames[:3]:
            stream.append(frame)
        with open_scratch(tmp_path / "data") as dataset:
            view = dataset.view()
            follow = dataset.follow(start=3)
            put_cursor(tmp_path / "data", cursor)
            for act in (
                lambda: dataset.frames_written,
                lambda: view.shape,
                lambda: view[0],
                lambda: next(follow),
                lambda: dataset.wait(frames=5, timeout_s=5),
            ):
                with pytest.raises(DatasetError, match=f"{cursor} frames"):
                    act()


def test_damage_ends_a_listener_and_is_logged(make_settings, tmp_path, frames, caplog):
    settings = make_settings({"t": 6, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream, open_scratch(tmp_path / "data") as dataset:
        listener = dataset.on("coords_changed", lambda _: None)
        put_cursor(tmp_path / "data", -1)
        listener.join(10)
        assert "gets no more frames" in caplog.text
        stream.append(frames[0])  # which sets it right
        updates = []
        dataset.on("coords_changed", updates.append)
        stream.append(frames[1])
        stream.close()
        dataset._events.finish(10)
        assert [u.frame_number for u in updates] == [1]


def test_a_reader_sees_nothing_of_a_dataset_that_replaces_its_own(
    make_settings, tmp_path, frames
):
    def settings(**fields):
        sizes = {"t": 6, "p": 2, "y": 4, "x": 5}
        return make_settings(sizes, root_path=str(tmp_path / "data"), **fields)

    with create_stream(settings()) as stream:
        for frame in frames[:6]:
            stream.append(frame)
    dataset = open_scratch(tmp_path / "data")
    np.testing.assert_array_equal(dataset.arrays[0][0], frames[0])
    with create_stream(settings(overwrite=True)) as stream:
        stream.append(frames[9])
        np.testing.assert_array_equal(dataset.arrays[0][0], frames[0])  # mapped before
        with pytest.raises(DatasetError, match="replaced by another"):
            dataset.arrays[1][0]
        assert dataset.state == "closed"
        assert dataset.frames_written == 6
    dataset.close()


def test_a_dataset_that_is_forgotten_goes_with_its_last_listener(make_settings, tmp_path):
    settings = make_settings({"t": 6, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings):
        dataset = open_scratch(tmp_path / "data")
        listener = dataset.on("coords_changed", lambda _: None)
        forgotten = weakref.ref(dataset)
        del dataset
        gc.collect()
        assert forgotten() is not None
        listener.stop()
        listener.join(10)
        del listener
        gc.collect()
        assert forgotten() is None


def test_the_newest_that_was_not_skipped_is_the_latest(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream, open_scratch(tmp_path / "data") as dataset:
        for frame in frames[:5]:
            stream.append(frame)
        stream.skip(frames=10**6)
        follow = dataset.follow(latest=True)
        np.testing.assert_array_equal(next(follow), frames[4])
        stream.close()
        assert list(follow) == []
        assert len(list(dataset.follow())) == 5


# ------------------------------------------------------------------------- a real camera

FOLLOWER = textwrap.dedent("""
    import sys
    import time
    import zlib
    import numpy as np
    from pathlib import Path
    from scratchwriter import open_scratch
    while not (Path(sys.argv[1]) / "manifest.json").exists():
        time.sleep(0.01)
    with open_scratch(sys.argv[1]) as dataset:
        sums = [zlib.crc32(np.ascontiguousarray(frame)) for frame in dataset.follow()]
        print(dataset.state, *sums)
""")


def test_two_processes_follow_a_real_camera_that_a_third_records(tmp_path):
    pytest.importorskip("pymmcore")
    pytest.importorskip("mm_test_adapters")
    path, count = tmp_path / "data", 200
    follow = [sys.executable, "-c", FOLLOWER, str(path)]
    demo = [sys.executable, "-m", "scratchwriter", "demo", "--out", str(path)]
    with ExitStack() as stack:
        followers = [
            stack.enter_context(subprocess.Popen(follow, stdout=subprocess.PIPE, text=True))
            for _ in range(2)
        ]
        subprocess.run(
            [*demo, "--frames", str(count)], check=True, capture_output=True, timeout=120
        )
        said = [follower.communicate(timeout=60)[0].split() for follower in followers]
    with open_scratch(path) as dataset:
        frames = np.asarray(dataset.arrays[0])
    expected = [str(zlib.crc32(np.ascontiguousarray(frame))) for frame in frames]
    assert len(expected) == count
    assert said == [["closed", *expected]] * 2


def test_a_listener_keeps_its_dataset(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    told = []
    with create_stream(settings) as stream:
        listener = open_scratch(tmp_path / "d").on("coords_changed", told.append)
        for frame in frames[:3]:
            gc.collect()
            stream.append(frame)
            wait_until(lambda: len(told) == stream.frames_written)
        assert not listener.is_stopped
    assert [update.frame_number for update in told] == [0, 1, 2]


def test_frames_of_a_ring_that_are_followed_do_not_change(make_settings, tmp_path):
    settings = make_settings(
        {"t": None, "y": 64, "x": 64},
        root_path=str(tmp_path / "d"),
        format=ScratchFormat(keep_last=4),
    )
    frame = np.zeros((64, 64), "uint16")
    is_over = threading.Event()

    def record(stream):
        for i in range(60_000):
            if is_over.is_set():
                return
            frame[:] = i % 60_000 + 1
            stream.append(frame)
            time.sleep(1e-5)
        stream.close()  # who is slow is given few

    with create_stream(settings) as stream, open_scratch(tmp_path / "d") as dataset:
        thread = threading.Thread(target=record, args=[stream])
        thread.start()
        newest, given = 0, 0
        for one in dataset.follow():
            first = int(one[0, 0])
            time.sleep(0.002)
            assert (one == first).all()  # neither torn, nor overwritten while it is held
            assert first > newest  # in order, none twice
            newest, given = first, given + 1
            if given == 200:
                break
        assert given
        is_over.set()
        thread.join()


def test_nothing_of_a_recording_that_took_its_place_is_returned(
    make_settings, tmp_path, frames
):
    def record(skipped, **fields):
        settings = make_settings(
            {"t": 10, "y": 4, "x": 5}, root_path=str(tmp_path / "d"), **fields
        )
        with create_stream(settings) as stream:
            for i in range(10):
                if i in skipped:
                    stream.skip()
                else:
                    stream.append(frames[i], frame_metadata={"i": i})
            stream.set_global_metadata("skipped", {"are": list(skipped)})

    record([2])
    dataset = open_scratch(tmp_path / "d")
    first = dataset.view()[0]  # mapped: it stays
    record([5, 6, 7], overwrite=True)
    for ask in (
        lambda: list(dataset.follow()),
        lambda: dataset.skipped,
        lambda: dataset.written(0),
        lambda: dataset.append_times,
        lambda: dataset.global_metadata,
        lambda: dataset.source.manifest_shapes,
        lambda: list(dataset.frame_metadata),
    ):
        with pytest.raises(DatasetError, match="replaced by another"):
            ask()
    np.testing.assert_array_equal(first, frames[0])
