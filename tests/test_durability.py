"""What outlives a power cut, full disks, limits of memory, threads, interrupts."""

import contextlib
import errno
import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from marks import PORTABLE
from reference import read_plain
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._files.repair import find_faults
from scratchwriter._region import system
from waiting import wait_until

SIZES = {"t": None, "p": 2, "y": 64, "x": 64}
LINUX = sys.platform == "linux"


def frame_of(number):
    return np.full((64, 64), number + 1, "uint16")


# --------------------------------------------------------------------------- power cuts


class Device:
    """A file system on a device of its own, which can lose its power."""

    def __init__(self, folder):
        self._image, self.folder = folder / "image", folder / "mounted"
        self._folder, self._cuts = folder, 0
        self.folder.mkdir()
        with self._image.open("wb") as file:
            file.truncate(96 << 20)
        make = ["mkfs.ext4", "-q", "-F", "-b", "4096"]  # blocks as those of large disks
        subprocess.run([*make, str(self._image)], check=True)
        self._mount(self._image, self.folder)

    def _mount(self, image, folder):
        command = ["mount", "-o", "loop", str(image), str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")

    @contextlib.contextmanager
    def after_power_cut(self, *, is_closed=False):
        """The dataset that is on the device at this moment, read after a restart."""
        self._cuts += 1
        image, folder = (self._folder / f"{n}{self._cuts}" for n in ("cut", "mounted"))
        shutil.copyfile(self._image, image)  # caches of the file system are not in it
        folder.mkdir()
        self._mount(image, folder)
        warns = contextlib.nullcontext() if is_closed else pytest.warns(match="restarted")
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("scratchwriter._files.progress.boot_id", lambda: "the next")
                with warns:
                    dataset = open_scratch(folder / "data")
                with dataset:
                    yield dataset
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)

    def close(self):
        subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def device(tmp_path):
    if not LINUX or os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        pytest.skip("a device of its own needs root and mkfs.ext4")
    device = Device(tmp_path)
    yield device
    device.close()


def check_after_power_cut(device, at_least, **options):
    with device.after_power_cut(**options) as dataset:
        frames = dataset.frames_synced
        assert at_least <= frames <= dataset.frames_written
        for number in range(frames):
            array = dataset.arrays[number % 2]
            if number == 3:
                assert range(3, 4) in dataset.skipped
            else:
                assert (array[number // 2] == number + 1).all()
        lines = {line["number"] for line in dataset.frame_metadata}
        assert lines >= set(range(frames)) - {3}
        return dataset.global_metadata


@pytest.mark.parametrize("count", [None, 40])
def test_what_was_flushed_outlives_a_power_cut(make_settings, device, count):
    settings = make_settings(SIZES | {"t": count}, root_path=str(device.folder / "data"))
    with create_stream(settings) as stream:
        for number in range(41):
            if number == 3:
                stream.skip()
            else:
                stream.append(frame_of(number), frame_metadata={"number": number})
            if number in (20, 40):
                stream.set_global_metadata("here", {"number": number})
                stream.flush()
                found = check_after_power_cut(device, number + 1)
                assert found == {"here": {"number": number}}


def test_a_durable_dataset_loses_no_more_than_an_interval_and_nothing_after_close(
    make_settings, device
):
    fmt = ScratchFormat(durability="system", sync_interval_s=0.05)
    settings = make_settings(SIZES, root_path=str(device.folder / "data"), format=fmt)
    with create_stream(settings) as stream:
        for number in range(20):
            if number == 3:
                stream.skip()
            else:
                stream.append(frame_of(number), frame_metadata={"number": number})
        with open_scratch(device.folder / "data") as dataset:
            wait_until(lambda: dataset.frames_synced == 20)
        check_after_power_cut(device, 20)
        for number in range(20, 30):
            stream.append(frame_of(number), frame_metadata={"number": number})
    check_after_power_cut(device, 30, is_closed=True)
    with device.after_power_cut(is_closed=True) as dataset:
        assert dataset.state == "closed"
        assert find_faults(dataset.source) == []


def test_frames_are_reported_as_synced_only_when_their_number_is_on_the_device(
    make_settings, tmp_path, monkeypatch
):
    reported = []

    def sync(path):
        system.sync_file(path)
        reported.append(dataset.frames_synced)

    with create_stream(make_settings(SIZES, root_path=str(tmp_path / "data"))) as stream:
        stream.append(frame_of(0))
        dataset = open_scratch(tmp_path / "data")
        monkeypatch.setattr("scratchwriter._files.progress.sync_file", sync)
        stream.flush()
        assert (reported, dataset.frames_synced) == ([0], 1)


def test_the_default_does_not_wait_for_the_device(make_settings, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(system.os, "fsync", synced.append)
    with create_stream(make_settings(SIZES, root_path=str(tmp_path / "data"))) as stream:
        stream.append(frame_of(0))
        stream.set_global_metadata("here", {})
    assert synced == []


@pytest.mark.parametrize("durability", ["process", "system"])
def test_the_names_of_all_folders_that_were_made_are_brought_to_the_device(
    make_settings, tmp_path, monkeypatch, durability
):
    synced = []
    for place in ("_writing.storage", "_writing.dataset_files", "_files.manifest"):
        monkeypatch.setattr(f"scratchwriter.{place}.sync_file", synced.append)
    fmt = ScratchFormat(durability=durability, sync_interval_s=60)
    folder = tmp_path / "new" / "newer" / "data"
    with create_stream(make_settings(SIZES, root_path=str(folder), format=fmt)) as stream:
        assert (tmp_path in synced) == (durability == "system")
        stream.flush()
        assert {tmp_path, tmp_path / "new", tmp_path / "new" / "newer", folder} <= set(
            synced
        )


def test_flush_in_memory_has_nothing_to_do(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        stream.append(frame_of(0))
        stream.flush()


def test_flush_after_close_brings_the_dataset_to_the_device(make_settings, tmp_path):
    with create_stream(make_settings(SIZES, root_path=str(tmp_path / "data"))) as stream:
        stream.append(frame_of(0))
    stream.flush()
    with open_scratch(tmp_path / "data") as dataset:
        assert (dataset.frames_synced, dataset.state) == (1, "closed")


def test_what_a_device_has_not_taken_is_an_error_of_every_flush_and_of_close(
    make_settings, tmp_path, monkeypatch
):
    def fsync(fd):
        raise OSError(errno.EIO, "broken")

    fmt = ScratchFormat(durability="system", sync_interval_s=0.01)
    settings = make_settings(SIZES, root_path=str(tmp_path / "data"), format=fmt)
    stream = create_stream(settings)
    stream.append(frame_of(0))
    stream.flush()
    stream.append(frame_of(1))
    with monkeypatch.context() as patch, pytest.warns(UserWarning, match="device") as told:
        patch.setattr(system.os, "fsync", fsync)
        # The thread that syncs may be half-way through the files, and come to it first.
        with pytest.raises(OSError, match=r"Input/output error.*data") as first:
            stream.flush()
        wait_until(lambda: told.list)
        # The system takes the pages for written from now on, and does not tell again.
    stream.append(frame_of(2))
    for action in (stream.flush, stream.close):
        with pytest.raises(OSError, match="device has not taken") as again:
            action()
        assert again.value.filename == first.value.filename
    with open_scratch(tmp_path / "data") as dataset:
        assert dataset.state == "closed"
        assert dataset.frames_synced == 1
        for i in range(3):
            np.testing.assert_array_equal(dataset.arrays[i % 2][i // 2], frame_of(i))


# --------------------------------------------------------------------------- full disks


def test_global_metadata_that_does_not_fit_on_the_disk_is_an_error(
    make_settings, small_disk
):
    settings = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(small_disk / "d"))
    with create_stream(settings) as stream:
        stream.set_global_metadata("here", {"a": 1})
        (small_disk / "ballast").write_bytes(bytes(3 << 20))
        with pytest.raises(OSError, match=r"No space.*are needed.*manifest") as error:
            stream.set_global_metadata("here", {"a": "x" * (2 << 20)})
        assert error.value.errno == errno.ENOSPC
        assert str(small_disk) in error.value.filename
        with open_scratch(small_disk / "d") as dataset:
            assert dataset.global_metadata == {"here": {"a": 1}}
        (small_disk / "ballast").unlink()
        stream.set_global_metadata("here", {"a": 2})
    with open_scratch(small_disk / "d") as dataset:
        assert dataset.global_metadata == {"here": {"a": 2}}


def test_what_cannot_fit_is_refused_before_it_begins(make_settings, small_disk):
    settings = make_settings(
        {"t": 100, "y": 512, "x": 512}, root_path=str(small_disk / "d")
    )
    with pytest.raises(OSError, match=r"need 52\.4 MB, the disk has .* free") as error:
        create_stream(settings)
    assert error.value.errno == errno.ENOSPC
    assert list(small_disk.iterdir()) == []


def test_another_process_that_fills_the_disk_costs_no_bounded_frame(
    make_settings, small_disk
):
    settings = make_settings({"t": 100, "y": 64, "x": 64}, root_path=str(small_disk / "d"))
    with create_stream(settings) as stream:
        with contextlib.suppress(OSError), (small_disk / "ballast").open("wb") as file:
            while True:
                file.write(bytes(4096))
        for number in range(100):  # its blocks were its own from the beginning
            stream.append(frame_of(number))
        with contextlib.suppress(OSError):
            stream.close()
        (small_disk / "ballast").unlink()
    (plain,) = read_plain(small_disk / "d")
    assert [int(frame[0, 0]) for frame in plain] == list(range(1, 101))


@pytest.mark.skipif(PORTABLE, reason="may be killed there, see docs/durability.md")
@pytest.mark.parametrize("seed", range(12))
def test_frames_outlive_a_full_disk_and_readers_at_its_end(device, seed):
    # Pages and blocks of an ext4 come in sizes of their own: none may be without the other.
    program = str(Path(__file__).with_name("full_disk.py"))
    ended = subprocess.run(
        [sys.executable, program, str(device.folder), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr


def run(code, **more):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        **more,
    )


BEGIN = """
import resource, sys, errno, warnings
import numpy as np
from scratchwriter import *
def settings(sizes, **more):
    dims = dims_from_standard_axes(sizes)
    return AcquisitionSettings(dimensions=dims, dtype="uint16", **more)
frame = np.ones((512, 512), "uint16")
"""


@pytest.mark.skipif(not LINUX, reason="limits of Unix")
def test_a_limit_of_file_sizes_is_an_error_and_no_signal(tmp_path):
    out = run(
        BEGIN
        + f"""
resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, -1))
sizes = {{"t": None, "y": 512, "x": 512}}
with create_stream(settings(sizes, root_path={str(tmp_path / "d")!r})) as stream:
    try:
        for number in range(100):
            stream.append(frame)
    except OSError as error:
        assert error.errno == errno.EFBIG, error
        assert "ulimit -f" in str(error) and "pos_0.dat" in str(error), error
        frames = stream.frames_written
    assert 10 < frames <= 16
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    stream.append(frame)
print(frames)
"""
    )
    assert out.returncode == 0, out.stderr
    (plain,) = read_plain(tmp_path / "d")
    assert plain.shape == (int(out.stdout) + 1, 512, 512)
    assert (plain == 1).all()


# ------------------------------------------------------------------------- short memory


@pytest.mark.skipif(not LINUX, reason="limits of Unix")
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer needs addresses")
def test_a_limit_of_addresses_is_a_memory_error_and_the_frames_are_there():
    out = run(
        BEGIN
        + """
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))
fmt = ScratchFormat(spill_to_disk=False, max_memory_bytes=1 << 40)
stream = create_stream(settings({"t": None, "y": 512, "x": 512}, format=fmt))
try:
    while True:
        stream.append(frame)
except MemoryError as error:
    assert str(error), "no word"
frames = stream.frames_written
array = stream.arrays[0]
assert array.shape == (frames, 512, 512)
assert array[-1].all() and array[0].all()
stream.close()
print(frames)
"""
    )
    assert out.returncode == 0, out.stderr
    assert int(out.stdout) > 100


@pytest.fixture
def cgroup():
    """A control group of 600 MB, and the file that takes processes into it."""
    root = Path("/sys/fs/cgroup")
    v1 = (root / "memory").is_dir()
    for line in Path("/proc/self/cgroup").read_text().splitlines() if LINUX else []:
        _, controllers, path = line.split(":", 2)
        if controllers == ("memory" if v1 else ""):
            group = (root / "memory" if v1 else root) / path.lstrip("/")
            group /= f"scratchwriter_test_{os.getpid()}"
            try:
                group.mkdir()
                limit = "memory.limit_in_bytes" if v1 else "memory.max"
                (group / limit).write_text(str(600 << 20))
            except OSError:
                break
            yield group / "cgroup.procs"
            group.rmdir()
            return
    pytest.skip("a control group cannot be made here")


def test_a_control_group_is_a_memory_error_and_no_dead_process(cgroup):
    out = run(
        BEGIN
        + f"""
import os
open({str(cgroup)!r}, "w").write(str(os.getpid()))
fmt = ScratchFormat(spill_to_disk=False, max_memory_bytes=1 << 40)
stream = create_stream(settings({{"t": None, "y": 512, "x": 512}}, format=fmt))
try:
    while True:
        stream.append(frame)
except MemoryError as error:
    assert "available" in str(error), error
frames = stream.frames_written
assert stream.arrays[0][...].all()
stream.close()
print(frames)
"""
    )
    assert out.returncode == 0, (out.returncode, out.stderr)
    assert int(out.stdout) > 50


# ------------------------------------------------------------------------------ threads


def test_frames_of_several_threads_come_whole_while_others_look_and_one_closes(
    make_settings, tmp_path
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "data"))
    stream = create_stream(settings)
    sent = [[] for _ in range(4)]
    stop = threading.Event()

    def camera(n):
        with contextlib.suppress(ValueError):  # closed
            for i in range(10_000):
                value = n * 10_000 + i
                frame = np.full((64, 64), value, "uint16")
                stream.append(frame, frame_metadata={"value": value})
                sent[n].append(value)

    def look():
        while not stop.is_set():
            stream.stats()
            frames = stream.frames_written
            if frames > 2:
                frame = stream.arrays[0][frames // 2 - 1]
                assert (frame == frame[0, 0]).all()
            stream.set_global_metadata("here", {"frames": frames})
            stream.flush()
            _ = stream.skipped

    cameras = [threading.Thread(target=camera, args=(n,)) for n in range(4)]
    looker = threading.Thread(target=look)
    for thread in [*cameras, looker]:
        thread.start()
    time.sleep(0.5)
    stop.set()
    looker.join()
    stream.close()  # in the middle of all of them
    for thread in cameras:
        thread.join()
    with open_scratch(tmp_path / "data") as dataset:
        assert find_faults(dataset.source) == []
        frames = dataset.frames_written
        arrays = [array[...] for array in dataset.arrays]
        stored = [arrays[i % 2][i // 2] for i in range(frames)]
        assert all((frame == frame[0, 0]).all() for frame in stored)
        values = [int(frame[0, 0]) for frame in stored]
        assert [line["value"] for line in dataset.frame_metadata] == values
    # Each frame is in one slot, those of a thread in their order, none is lost.
    assert sorted(values) == sorted(value for values_ in sent for value in values_)
    for n, own in enumerate(sent):
        assert [value for value in values if value // 10_000 == n] == own


def test_a_flush_while_a_stream_leaves_memory_loses_no_line(make_settings, tmp_path):
    frames = 20_000
    fmt = ScratchFormat(max_memory_bytes=128 * frames, spill_dir=str(tmp_path))
    frame = np.ones((8, 8), "uint16")
    for _ in range(4):
        stream = create_stream(make_settings({"t": None, "y": 8, "x": 8}, format=fmt))
        for i in range(frames):
            stream.append(frame, frame_metadata={"i": i, "pad": "x" * 200})
        stop = threading.Event()

        def flush(stream=stream, stop=stop):
            while not stop.is_set():
                stream.flush()

        flusher = threading.Thread(target=flush)
        flusher.start()
        with pytest.warns(UserWarning, match="max_memory_bytes"):
            for i in range(frames, frames + 50):
                stream.append(frame, frame_metadata={"i": i})
        stream.flush()
        stop.set()
        flusher.join()
        stream.close()
        with open_scratch(stream.path) as dataset:
            numbers = [line["i"] for line in dataset.frame_metadata]
            assert numbers == list(range(frames + 50))


# --------------------------------------------------------------------------- interrupts


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of Unix")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Python's own
def test_interrupts_leave_frames_and_metadata_in_step(make_settings, tmp_path):
    settings = make_settings(SIZES, root_path=str(tmp_path / "data"))
    done, interrupted, rng = 0, 0, random.Random(0)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with create_stream(settings) as stream:
            while interrupted < 1000:
                try:
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 5e-4))
                    while True:
                        number = stream.frames_written
                        if number % 5 == 4:
                            stream.skip()
                        else:
                            metadata = {"number": number}
                            stream.append(frame_of(number % 1000), frame_metadata=metadata)
                except KeyboardInterrupt:
                    interrupted += 1
            done = stream.frames_written
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()  # what was interrupted while it was opened
    with open_scratch(tmp_path / "data") as dataset:
        assert find_faults(dataset.source) == []
        assert dataset.frames_written == done
        assert [line["number"] for line in dataset.frame_metadata] == [
            number for number in range(done) if number % 5 != 4
        ]
        arrays = [array[...] for array in dataset.arrays]
        for number in range(done):
            expected = 0 if number % 5 == 4 else number % 1000 + 1
            assert (arrays[number % 2][number // 2] == expected).all()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of Unix")
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # Python's own
def test_an_interrupted_close_can_be_closed_again(make_settings, tmp_path):
    interrupted = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for number in range(60):
            folder = tmp_path / str(number)
            stream = create_stream(make_settings(SIZES, root_path=str(folder)))
            stream.append(frame_of(0), frame_metadata={"number": 0})
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.00003 * (number + 1))
                stream.close()
                time.sleep(0.01)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            stream.close()
            with open_scratch(folder) as dataset:
                assert dataset.state == "closed"
                assert find_faults(dataset.source) == []
                assert dataset.frames_written == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    gc.collect()
    assert interrupted


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of this library that is run."""

    def __init__(self, at):
        self.lines, self._at = 0, at

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exc_info):
        sys.settrace(None)

    def _trace(self, frame, event, arg):
        if "/scratchwriter/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._at:
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize(
    "place", ["memory", "disk", "leaving memory", "leaving the machine"]
)
def test_an_interrupt_at_any_line_while_arrays_grow_costs_nothing(
    make_settings, tmp_path, place, monkeypatch
):
    monkeypatch.setattr("scratchwriter._writing.policy._GRANT_NBYTES", 4 * 8192)
    monkeypatch.setattr("scratchwriter._writing.policy._MEMORY_WINDOW_NBYTES", 4 * 8192)
    monkeypatch.setattr("scratchwriter._writing.policy._FILE_WINDOW_NBYTES", 4 * 8192)
    fmt = ScratchFormat(
        spill_dir=str(tmp_path),
        max_memory_bytes=10 * 8192 if place == "leaving memory" else 1 << 30,
    )
    step = 7 if place == "leaving memory" else 13
    for at in range(1, 10_000, step):
        root_path = str(tmp_path / str(at)) if place == "disk" else ""
        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(
                "scratchwriter._writing.policy.available_nbytes", lambda: 12 * 8192
            )
            if "machine" not in place:
                patch.undo()
            settings = make_settings(SIZES, root_path=root_path, format=fmt)
            stream = create_stream(settings)
            if "machine" in place:
                patch.setattr(
                    "scratchwriter._writing.policy.available_nbytes",
                    lambda stream=stream: 0 if stream.frames_written > 20 else 12 * 8192,
                )
            interrupter = Interrupter(at)
            interrupted = False
            while (number := stream.frames_written) < 60:
                metadata = {"number": number}
                if interrupter.lines >= at:
                    stream.append(frame_of(number), frame_metadata=metadata)
                    continue
                try:
                    with interrupter:
                        stream.append(frame_of(number), frame_metadata=metadata)
                except KeyboardInterrupt:
                    interrupted = True
            stream.close()
        for number in range(60):
            assert (stream.arrays[number % 2][number // 2] == number + 1).all(), number
        if stream.path is not None:
            with open_scratch(stream.path) as dataset:
                assert find_faults(dataset.source) == []
                numbers = [line["number"] for line in dataset.frame_metadata]
                assert numbers == list(range(60))
        if not interrupted:
            break
    assert not interrupted
    assert at > 3 * step
    if "leaving" in place:
        assert stream.path is not None
