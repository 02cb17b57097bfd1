"""Copies of datasets: closed, killed, and while they are recorded."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import closing

import numpy as np
import ome_writers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marks import PORTABLE, needs_direct_writes, takes_a_shim
from reference import Model, read_lines, read_plain
from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from scratchwriter._files import copying
from scratchwriter._files.layout import is_dataset_name
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._region.system import lock_folder
from scratchwriter._writing import policy
from scratchwriter.cli import main
from waiting import wait_until

SIZES = {"t": None, "p": 2, "y": 4, "x": 5}
FRAME = np.arange(1, 21, dtype="uint16").reshape(4, 5)
DISK_IO = ["page_cache"] if PORTABLE else ["page_cache", "direct"]


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "copies" / "copy"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def copy(folder, out):
    with open_scratch(folder) as dataset:
        return dataset.copy(out)


def left_over(out):
    """What is beside a copy, and the copy."""
    return sorted(path.name for path in out.parent.iterdir())


def record(stream, count, start=0):
    for i in range(start, start + count):
        stream.append(FRAME + i, frame_metadata={"i": i}, timestamp_ns=1000 + i)


# --------------------------------------------------------------------- what a copy holds

STEPS = st.lists(
    st.tuples(st.sampled_from(["append", "append", "bare", "skip"]), st.integers(1, 9)),
    max_size=12,
)


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    steps=STEPS,
    count=st.sampled_from([None, 40]),
    sizes=st.sampled_from([{}, {"p": 2}, {"c": 3}, {"p": 2, "c": 3}, {"c": 2, "p": 3}]),
    reverse=st.booleans(),
    keep=st.sampled_from([None, None, 1, 3]),
    shape=st.sampled_from([(4, 5), (32, 64)]),
    disk_io=st.sampled_from(DISK_IO),
    is_closed=st.booleans(),
)
def test_a_copy_holds_what_had_come(
    make_settings,
    tmp_path_factory,
    steps,
    count,
    sizes,
    reverse,
    keep,
    shape,
    disk_io,
    is_closed,
):
    folder = tmp_path_factory.mktemp("copy") / "data"
    sizes = {"t": count, **sizes, "y": shape[0], "x": shape[1]}
    names = list(sizes)[:-2]
    made = make_settings(
        sizes,
        root_path=str(folder),
        storage_order=[*reversed(names), "y", "x"] if reverse else "acquisition",
        format=ScratchFormat(
            keep_last=None if count else keep,
            disk_io="auto" if reverse or (keep and not count) else disk_io,
        ),
    )
    model, lines, skipped = Model(made), [], []
    with create_stream(made) as stream:
        for action, n in steps:
            n = n if model.left() is None else min(n, model.left())
            first = len(model.visited)
            if action == "skip" and n:
                stream.skip(frames=n)
                model.skip(n)
                skipped += range(first, first + n)
            for i in range(first, first + n if action != "skip" else 0):
                frame = np.full(shape, i + 1, "uint16")
                metadata = {"i": i} if action == "append" else None
                stream.append(frame, frame_metadata=metadata, timestamp_ns=i)
                model.append(frame)
                lines += [i] if metadata else []
        stream.set_global_metadata("mine", {"a": 1})
        if is_closed:
            stream.close()
        with open_scratch(folder) as dataset:
            out = dataset.copy(folder.with_name("copy"))
            times = [array.copy() for array in dataset.timestamps]
            shapes = [array.shape for array in dataset.arrays]
            written = [dataset.written(i) for i in range(model.num_positions)]
    with open_scratch(out) as found:
        assert (found.state, found.frames_written) == ("closed", len(model.visited))
        assert find_faults(found.source) == []
        assert found.frames_synced == found.frames_written
        assert found.global_metadata == {"mine": {"a": 1}}
        assert [line["i"] for line in found.frame_metadata] == lines
        assert [i for skip in found.skipped for i in skip] == skipped
        assert found.dropped == 0
        assert found.settings == made
        for i, array in enumerate(found.arrays):
            expected = model.array(i)
            axis = model.storage_names.index("t")
            steps = expected.shape[axis]
            kept = steps if count or keep is None else min(steps, keep)
            expected = expected.take(range(steps - kept, steps), axis)
            assert array.shape == shapes[i]
            np.testing.assert_array_equal(array, expected)
            np.testing.assert_array_equal(found.timestamps[i], times[i])
            np.testing.assert_array_equal(found.written(i), written[i])
            if count or keep is None:
                plain = model.array(i, order="file")
                np.testing.assert_array_equal(read_plain(out)[i], plain)
    names = {path.name for path in out.iterdir()}
    assert all(map(is_dataset_name, names))
    assert "staging.bin" not in names
    assert recover(out) == []
    shutil.rmtree(folder.parent)


def test_a_copy_of_a_closed_dataset_is_the_same(make_settings, folder, out):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        record(stream, 5)
        stream.skip(frames=3)
    before = content(folder)
    with open_scratch(folder) as dataset:
        assert dataset.copy(str(out)) == out
        with open_scratch(out) as found:
            assert found.recording_id == dataset.recording_id
            assert found.append_times.p50_us == dataset.append_times.p50_us
            assert found.disk_io == dataset.disk_io
    after = content(out)
    assert content(folder) == before
    for name in ("manifest.json", "progress.bin"):  # of other white space; what is certain
        assert before.pop(name) != after.pop(name)
    assert after == before
    assert left_over(out) == ["copy"]


def test_what_was_never_written_takes_no_room(make_settings, folder, out):
    sizes = {"t": 1000, "y": 64, "x": 64}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        stream.append(np.ones((64, 64), "uint16"))
        stream.skip(frames=500)
        stream.append(np.full((64, 64), 2, "uint16"))
    copy(folder, out)
    status = (out / "pos_0.dat").stat()
    assert status.st_size == 1000 * 8192
    assert status.st_blocks * 512 < 1 << 20
    (array,) = read_plain(out)
    assert np.flatnonzero(array.any(axis=(1, 2))).tolist() == [0, 501]


# ------------------------------------------------------- while another process records it

WRITER = """
import sys, time, numpy as np
from scratchwriter import *
from scratchwriter._writing import policy
policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 1 << 16
sizes, fmt = eval(sys.argv[2])
stream = create_stream(AcquisitionSettings(
    root_path=sys.argv[1], dtype="uint16", format=ScratchFormat(**fmt),
    dimensions=dims_from_standard_axes({**sizes, "y": 32, "x": 32}),
))
frames = np.arange(1 << 16, dtype="uint16")
print("ready", flush=True)
while stream.frames_written < 29_000:
    number = stream.frames_written
    if number % 50 == 7:
        stream.skip(frames=3)
    else:
        frame = np.broadcast_to(frames[number % 65535 + 1], (32, 32))
        stream.append(frame, frame_metadata={"n": number}, timestamp_ns=number)
    if number % 3 == 0:
        time.sleep(0.001)
time.sleep(60)
"""


def writer(folder, sizes, **fmt):
    command = [sys.executable, "-W", "ignore", "-c", WRITER, folder, repr((sizes, fmt))]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def start():
    """Starts writers, and ends them."""
    processes = []

    def begin(*args, **fmt):
        processes.append(writer(*args, **fmt))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def check_copy(out, sizes, least):
    """Check that a copy has exactly the first frames of what the writer records."""
    with open_scratch(out) as found:
        count, num_positions = found.frames_written, sizes.get("p", 1)
        assert count >= least
        assert found.state == "closed"
        assert find_faults(found.source) == []
        numbers = np.arange(count)
        is_skipped = np.isin(numbers % 50, [7, 8, 9])
        came = numbers[~is_skipped]
        assert [line["n"] for line in found.frame_metadata] == came.tolist()
        skipped = [i for skip in found.skipped for i in skip]
        assert skipped == numbers[is_skipped].tolist()
        for position, array in enumerate(found.arrays):
            here = slice(position, None, num_positions)
            pixels, times = array[...], found.timestamps[position]
            for got, value, missing in (
                (pixels, numbers % 65535 + 1, 0),
                (times, numbers, -1),
            ):
                values = np.where(is_skipped, missing, value)[here]
                expected = np.full(len(got), missing)
                if sizes["t"]:
                    expected[: len(values)] = values
                else:
                    expected[:] = values[-len(got) :]
                is_right = got == expected.reshape(-1, *[1] * (got.ndim - 1))
                assert is_right.all(), (position, np.flatnonzero(~is_right)[:5])
    assert main(["verify", str(out)]) == 0


MODES = {
    "unbounded": ({"t": None}, {"disk_io": "page_cache"}),
    "positions": ({"t": None, "p": 3}, {"disk_io": "page_cache"}),
    "bounded": ({"t": 30_000}, {"disk_io": "page_cache"}),
    "staged": ({"t": None}, {"disk_io": "direct", "max_staging_bytes": 1 << 22}),
    "staged bounded": (
        {"t": 15_000, "p": 2},
        {"disk_io": "direct", "max_staging_bytes": 1 << 22},
    ),
    "ring": ({"t": None}, {"keep_last": 400}),
    "ring of positions": ({"t": None, "p": 2}, {"keep_last": 200}),
}
MODES = {name: mode for name, mode in MODES.items() if not (PORTABLE and "staged" in name)}


@pytest.mark.parametrize("mode", MODES)
def test_copies_of_a_dataset_that_is_being_recorded(start, folder, out, mode):
    sizes, fmt = MODES[mode]
    process = start(folder, sizes, **fmt)
    with open_scratch(folder) as dataset:
        for i in range(4):
            assert dataset.wait(frames=100 * i + 20, timeout_s=60)
            least = dataset.frames_written
            made = dataset.copy(out / str(i))
            check_copy(made, sizes, least)
        assert dataset.state == "recording"
    assert process.poll() is None
    assert sorted(path.name for path in out.iterdir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("mode", MODES)
def test_a_copy_of_a_killed_dataset_is_finished_and_the_dataset_unchanged(
    start, folder, out, mode
):
    sizes, fmt = MODES[mode]
    process = start(folder, sizes, **fmt)
    with open_scratch(folder) as dataset:
        assert dataset.wait(frames=1000, timeout_s=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = content(folder)
    assert ("staging.bin" in before) == ("staged" in mode)
    with open_scratch(folder) as dataset:
        assert dataset.state == "killed"
        dataset.copy(out)
        check_copy(out, sizes, dataset.frames_written)
    assert content(folder) == before
    recover(folder)
    for position, plain in enumerate(read_plain(out)):
        if "ring" not in mode:
            np.testing.assert_array_equal(plain, read_plain(folder)[position])
    assert read_lines(out) == read_lines(folder)


def test_what_comes_during_the_copy_is_not_in_it(make_settings, folder, out, monkeypatch):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        record(stream, 5)
        stream.skip(frames=2)
        copy_frames = copying._Copy._copy_frames

        def copy_late(self, position, *args):
            stream.skip(frames=3)  # behind the others
            record(stream, 4, 100)
            copy_frames(self, position, *args)
            record(stream, 4, 200)

        monkeypatch.setattr(copying._Copy, "_copy_frames", copy_late)
        copy(folder, out)
        assert stream.frames_written == 29
    with open_scratch(out) as found:
        assert found.frames_written == 7
        assert found.skipped == [range(5, 7)]
        assert [line["i"] for line in found.frame_metadata] == list(range(5))
        assert [array.shape[0] for array in found.arrays] == [4, 3]
        assert not found.arrays[1][2].any()
        assert find_faults(found.source) == []
        assert found.timestamps[0].tolist() == [1000, 1002, 1004, -1]


def test_a_dataset_that_is_closed_during_the_copy_is_copied(
    make_settings, folder, out, monkeypatch
):
    fmt = {"disk_io": DISK_IO[-1]}
    stream = create_stream(make_settings(SIZES, root_path=str(folder), format=fmt))
    record(stream, 7)
    copy_frames = copying._Copy._copy_frames

    def close_and_copy(self, position, *args):
        if position == 1:
            stream.close()
        copy_frames(self, position, *args)

    monkeypatch.setattr(copying._Copy, "_copy_frames", close_and_copy)
    copy(folder, out)
    with open_scratch(folder) as dataset, open_scratch(out) as found:
        for array, expected in zip(found.arrays, dataset.arrays, strict=True):
            np.testing.assert_array_equal(array, expected)


@needs_direct_writes
@pytest.mark.filterwarnings("ignore:The disk of")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_slot_that_is_used_again_meanwhile_is_copied_from_the_file(
    make_settings, folder, out, monkeypatch, when
):
    """While a thread appends, so that every slot is used many times."""
    monkeypatch.setattr(policy, "_PIECE_NBYTES", 8192)
    monkeypatch.setattr(policy, "_LEAST_PIECE_NBYTES", 8192)
    fmt = ScratchFormat(disk_io="direct", max_staging_bytes=64 * 8192)
    sizes, ends = {"t": None, "y": 32, "x": 32}, threading.Event()
    stream = create_stream(make_settings(sizes, root_path=str(folder), format=fmt))

    def append():
        while not ends.is_set():
            n = stream.frames_written
            stream.append(np.full((32, 32), n % 65535 + 1, "uint16"))

    thread = threading.Thread(target=append)
    write_all_at = copying.write_all_at

    def write_late(file, start, data):
        n = stream.frames_written
        if when == "before":
            wait_until(lambda: stream.frames_written > n + 200)
        write_all_at(file, start, data)
        if when == "after":
            wait_until(lambda: stream.frames_written > n + 200)

    monkeypatch.setattr(copying, "write_all_at", write_late)
    thread.start()
    try:
        wait_until(lambda: stream.frames_written > 300)
        copy(folder, out)
    finally:
        ends.set()
        thread.join()
        stream.close()
    (array,) = read_plain(out)
    assert len(array) > 300
    expected = np.arange(len(array)) % 65535 + 1
    assert (array == expected[:, None, None]).all()


# ---------------------------------------------------------------------------------- rings


def ring(make_settings, folder, sizes, keep=3):
    fmt = ScratchFormat(keep_last=keep)
    return create_stream(make_settings(sizes, root_path=str(folder), format=fmt))


def test_a_ring_is_copied_with_what_came_meanwhile(make_settings, folder, out, monkeypatch):
    sizes = {"t": None, "c": 2, "y": 4, "x": 5}
    with ring(make_settings, folder, sizes) as stream:
        record(stream, 16)
        copy_records, calls = copying._Copy._copy_ring_records, []

        def record_meanwhile(self, first, cursor):
            copy_records(self, first, cursor)
            calls.append((first, cursor))
            if len(calls) == 1:
                record(stream, 5, 16)

        monkeypatch.setattr(copying._Copy, "_copy_ring_records", record_meanwhile)
        copy(folder, out)
        assert calls == [(10, 16), (16, 21)]
        with open_scratch(folder) as dataset, open_scratch(out) as found:
            assert found.frames_written == 21
            np.testing.assert_array_equal(found.arrays[0], dataset.arrays[0])
            assert not found.arrays[0][2, 1].any()  # has not come
            np.testing.assert_array_equal(found.timestamps[0], dataset.timestamps[0])
            assert [line["i"] for line in found.frame_metadata] == list(range(21))


def test_a_ring_that_is_faster_than_the_copy_is_refused(
    make_settings, folder, out, monkeypatch
):
    with ring(make_settings, folder, {"t": None, "y": 4, "x": 5}) as stream:
        record(stream, 10)
        copy_frames = copying._Copy._copy_frames

        def copy_slowly(self, *args):
            copy_frames(self, *args)
            record(stream, 4)

        monkeypatch.setattr(copying._Copy, "_copy_frames", copy_slowly)
        with pytest.raises(ValueError, match=r"keep_last=3.*Wait until it is closed"):
            copy(folder, out)
    assert left_over(out) == []


# ----------------------------------------------------------------- what fails leaves none


@pytest.fixture
def live(make_settings, folder):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        record(stream, 9)
        yield folder


def fail_at(monkeypatch, number, error):
    """Let a write of the copy fail."""
    count, write_all_at = 0, copying.write_all_at

    def fail(*args):
        nonlocal count
        count += 1
        if count == number:
            raise error
        write_all_at(*args)

    monkeypatch.setattr(copying, "write_all_at", fail)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_copy_that_fails_leaves_nothing(live, out, monkeypatch, number, error):
    fail_at(monkeypatch, number, error)
    with pytest.raises(type(error)) as caught:
        copy(live, out)
    if isinstance(error, OSError):
        assert caught.value.errno == errno.ENOSPC
        assert ".copy.partial" in caught.value.filename
    assert left_over(out) == []
    monkeypatch.undo()
    copy(live, out)


def test_a_device_that_does_not_take_it_leaves_nothing(live, out, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, "broken", str(path))

    monkeypatch.setattr(copying, "sync_file", fail)
    with pytest.raises(OSError, match="broken"):
        copy(live, out)
    assert left_over(out) == []


@pytest.mark.parametrize("is_known", [True, False])
def test_a_disk_that_is_too_small_is_an_error_and_has_nothing_left(
    make_settings, folder, small_disk, monkeypatch, is_known
):
    sizes = {"t": None, "y": 512, "x": 512}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        for i in range(12):
            stream.append(np.full((512, 512), i, "uint16"))
    if not is_known:  # another program uses the space meanwhile
        monkeypatch.setattr(copying, "require_disk", lambda *_: None)
    with pytest.raises(OSError, match=r"." if is_known else "pos_0") as caught:
        copy(folder, small_disk / "copy")
    assert caught.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_a_dataset_that_is_replaced_meanwhile_is_not_copied(
    make_settings, folder, out, monkeypatch
):
    made = make_settings(SIZES, root_path=str(folder), overwrite=True)
    with create_stream(made) as stream:
        record(stream, 5)
    manifest_with_shapes = copying.manifest_with_shapes

    def replace(*args):
        create_stream(made).close()
        return manifest_with_shapes(*args)

    monkeypatch.setattr(copying, "manifest_with_shapes", replace)
    with pytest.raises(DatasetError, match="replaced"):
        copy(folder, out)
    assert left_over(out) == []


FAULTS = """
import ctypes, shutil, sys
from pathlib import Path
from scratchwriter import DatasetError, open_scratch
from scratchwriter._files.repair import find_faults
faults = ctypes.CDLL(None)
faults.faults_what.restype = ctypes.c_char_p
faults.faults_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3]
folder, out, stays = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def copy():
    with open_scratch(folder) as dataset:
        dataset.copy(out)

def check():
    with open_scratch(out) as found:
        assert found.frames_written == 41
        assert find_faults(found.source) == []
        for position, array in enumerate(found.arrays):
            values = [*range(position + 1, 41, 2), 41][: len(array)]
            assert (array[:, 0, 0] == values).all()

struck = []
for n in range(1, 10_000):
    faults.faults_arm(str(folder.parent).encode(), n, 28, stays)
    try:
        copy()
        has_failed = False
    except (OSError, MemoryError, DatasetError) as error:
        assert str(error)
        has_failed = True
    what = faults.faults_what().decode()
    faults.faults_heal()
    if has_failed and not out.exists():
        copy()
    check()
    assert [path.name for path in out.parent.iterdir()] == ["copy"]
    shutil.rmtree(out)
    if not what:
        break
    struck.append(what)
print(*sorted(set(struck)), len(struck))
"""


@takes_a_shim
@pytest.mark.parametrize("stays", [0, 1, 2], ids=["once", "from then on", "half written"])
@pytest.mark.parametrize("disk_io", DISK_IO)
def test_a_call_that_fails_leaves_no_copy_or_a_whole_one(shim, folder, out, disk_io, stays):
    program = f"""
    import os, sys, numpy as np
    from scratchwriter import *
    dims = dims_from_standard_axes({{"t": None, "p": 2, "y": 16, "x": 16}})
    stream = create_stream(AcquisitionSettings(
        root_path=sys.argv[1], dimensions=dims, dtype="uint16",
        format=ScratchFormat(disk_io={disk_io!r}),
    ))
    for i in range(1, 42):
        frame = np.full((16, 16), i, "uint16")
        stream.append(frame, frame_metadata={{"i": i}}, timestamp_ns=i)
    os._exit(9)
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program), folder]
    assert subprocess.run(program, timeout=60).returncode == 9
    before = content(folder)
    ended = subprocess.run(
        [sys.executable, "-c", FAULTS, folder, out, str(stays)],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    *kinds, count = ended.stdout.split()
    assert {"open64", "write", "fsync", "mkdir", "rename"} <= set(kinds)
    assert int(count) > 30
    assert content(folder) == before


# ------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("kind", ["file", "folder", "dataset", "link", "itself"])
def test_what_exists_is_not_replaced(live, out, kind):
    out.parent.mkdir()
    if kind == "file":
        out.write_text("mine")
    elif kind == "folder":
        out.mkdir()
    elif kind == "link":
        out.symlink_to("nowhere")
    elif kind == "dataset":
        copy(live, out)
    target = live if kind == "itself" else out
    before = content(out) if kind == "dataset" else None
    with pytest.raises(FileExistsError, match="another name, or remove it first"):
        copy(live, target)
    with pytest.raises(FileExistsError):
        copy(live, live.parent)  # which holds it
    assert left_over(out) == ([] if kind == "itself" else ["copy"])
    assert before is None or content(out) == before


def test_what_comes_to_exist_meanwhile_is_not_replaced(live, out, monkeypatch):
    monkeypatch.setattr(copying._Copy, "make", lambda _: out.mkdir() or (out / "a").touch())
    with pytest.raises(FileExistsError, match="another name"):
        copy(live, out)
    assert left_over(out) == ["copy"]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_copy_into_the_dataset_is_refused(live, tmp_path):
    (tmp_path / "link").symlink_to(live)
    before = sorted(path.name for path in live.iterdir())
    for out in (live / "copy", live / "a" / "b", tmp_path / "link" / "c"):
        with pytest.raises(ValueError, match="inside of the dataset"):
            copy(live, out)
    assert sorted(path.name for path in live.iterdir()) == before


def test_a_dataset_that_was_released_is_not_copied(live, out):
    dataset = open_scratch(live)
    dataset.close()
    with pytest.raises(ValueError, match="is closed"):
        dataset.copy(out)
    assert not out.parent.exists()


def test_what_ome_writers_recorded_is_refused(folder, out):
    made = ome_writers.AcquisitionSettings(
        root_path=str(folder),
        dimensions=ome_writers.dims_from_standard_axes({"t": 2, "y": 4, "x": 5}),
        dtype="uint16",
        format="scratch",
    )
    with ome_writers.create_stream(made) as stream:
        stream.append(FRAME)
    with pytest.raises(DatasetError, match=r"ome-writers wrote it.*copy the folder"):
        copy(folder, out)
    assert not out.parent.exists()


def test_two_processes_do_not_make_the_same_copy(live, out):
    partial = out.with_name(".copy.partial")
    partial.mkdir(parents=True)
    lock, is_free = lock_folder(partial)
    if not is_free:
        pytest.skip("there are no locks here")
    with lock, pytest.raises(BlockingIOError, match="Another process"):
        copy(live, out)
    copy(live, out)
    assert left_over(out) == ["copy"]


def test_what_a_killed_copy_has_left_is_replaced(live, out):
    partial = out.with_name(".copy.partial")
    partial.mkdir(parents=True)
    (partial / "pos_0.dat").write_bytes(b"x" * 5000)
    (partial / "staging.bin").write_bytes(b"x" * 5000)
    copy(live, out)
    assert left_over(out) == ["copy"]
    assert not (out / "staging.bin").exists()
    with open_scratch(out) as found:
        assert find_faults(found.source) == []


def test_what_is_not_of_a_copy_is_not_removed(live, out):
    partial = out.with_name(".copy.partial")
    partial.mkdir(parents=True)
    (partial / "pos_0.dat").write_text("")
    (partial / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        copy(live, out)
    assert sorted(path.name for path in partial.iterdir()) == ["notes.txt", "pos_0.dat"]


# ----------------------------------------------------------------------- after a restart


@pytest.mark.filterwarnings("ignore:.*was restarted")
def test_a_copy_does_not_hide_that_frames_may_be_missing(folder, out):
    program = f"""
    import os, numpy as np
    from scratchwriter import *
    dims = dims_from_standard_axes({{"t": None, "y": 4, "x": 5}})
    stream = create_stream(AcquisitionSettings(
        root_path={str(folder)!r}, dimensions=dims, dtype="uint16"))
    for i in range(7):
        stream.append(np.full((4, 5), i + 1, "uint16"))
        if i == 3:
            stream.flush()
    os._exit(9)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(24)
        file.write(b"0" * 36)
    copy(folder, out)
    with closing(open_scratch(out)) as found:
        assert (found.state, found.frames_synced) == ("closed", 4)
        (fault,) = find_faults(found.source)
        assert "only the first 4 of its" in fault


# ---------------------------------------------------------------------- the command line


def test_the_command_copies_and_tells_what(live, out, capsys):
    assert main(["copy", str(live), str(out)]) == 0
    assert capsys.readouterr().out == f"copied  {out}, 9 frames\n"
    assert main(["copy", str(live), str(out)]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert str(out) in told
    assert "another name" in told


def test_a_copy_has_the_permissions_of_a_new_folder(live, out):
    copy(live, out)
    mask = os.umask(0)
    os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~mask
