"""The thread ahead of the writer: what is ready when a frame comes."""

import contextlib
import ctypes
import itertools
import mmap
import os
import re
import resource
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from marks import PORTABLE, needs_page_cache
from reference import Model, read_plain
from scratchwriter import ScratchFormat, create_stream
from scratchwriter._region.system import is_ram_backed
from waiting import wait_until

needs_thread = pytest.mark.skipif(PORTABLE, reason="the portable region has none")

WINDOW_NBYTES = 64 << 20
FRAME = np.arange(256 * 512, dtype="uint16").reshape(256, 512)  # 256 KiB


def wait_for_populated(stream, nbytes):
    wait_until(lambda: stream.stats().populated_ahead_nbytes >= nbytes)


@pytest.fixture(params=["in order", "in another order"])
def sizes_and_order(request):
    if request.param == "in order":
        return {}
    return {"storage_order": ["c", "t", "y", "x"]}


@needs_thread
@pytest.mark.parametrize("count", [None, 400])
def test_no_append_takes_a_page_fault(make_settings, place, count, sizes_and_order):
    settings = make_settings(
        {"t": count, "c": 2, "y": 256, "x": 512}, **place, **sizes_and_order
    )
    with create_stream(settings) as stream:
        stream.append(FRAME)
        faults = []
        for _ in range(5):
            wait_for_populated(stream, 80 * FRAME.nbytes)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            for _ in itertools.repeat(None, 80):
                stream.append(FRAME)
            faults.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)
    # At least 10 each time if it did (of huge pages). Python's own memory may take one, and
    # a `sync` of somebody else makes the pages of a file read-only for a moment.
    assert np.median(faults) <= 2


@needs_page_cache
@needs_thread
def test_it_keeps_up_while_python_holds_the_gil(make_settings, place):
    sleep_with_the_gil = ctypes.PyDLL(None).usleep
    with create_stream(make_settings({"t": None, "y": 256, "x": 512}, **place)) as stream:
        for _ in range(10):  # on a busy machine half a second may be too short
            wait_for_populated(stream, 200 * FRAME.nbytes)
            for _ in range(100):
                stream.append(FRAME)
            sleep_with_the_gil(500_000)
            # One look, without a moment for any other thread of Python.
            if stream.stats().populated_ahead_nbytes >= 200 * FRAME.nbytes:
                return
        pytest.fail("it never kept up")


def resident_nbytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer needs addresses")
@needs_thread
@pytest.mark.parametrize("positions", [1, 1000])
def test_memory_stays_within_the_data_and_a_window(make_settings, positions):
    settings = make_settings({"t": None, "p": positions, "y": 16, "x": 16})
    frame = np.ones((16, 16), "uint16")
    before = resident_nbytes()
    with create_stream(settings) as stream:
        for _ in range(positions):
            stream.append(frame)
        wait_for_populated(stream, 1)
        time.sleep(0.3)
        pages = positions * resource.getpagesize()
        assert resident_nbytes() - before < 1.5 * WINDOW_NBYTES + pages


def test_files_are_no_longer_than_a_window_ahead(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 256, "x": 512}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        stream.append(FRAME)
        time.sleep(0.3)
        assert (tmp_path / "d" / "pos_0.dat").stat().st_size < 300 << 20
    assert (tmp_path / "d" / "pos_0.dat").stat().st_size == FRAME.nbytes


def _switches():
    """How often the threads of this process went to sleep by themselves, so far."""
    count = 0
    for status in Path("/proc/self/task").glob("*/status"):
        with contextlib.suppress(OSError):
            for line in status.read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    count += int(line.split()[1])
    return count


@needs_thread
def test_it_sleeps_while_no_frames_come(make_settings, place):
    with create_stream(make_settings({"t": None, "y": 256, "x": 512}, **place)) as stream:
        stream.append(FRAME)
        wait_for_populated(stream, 100 * FRAME.nbytes)
        time.sleep(0.5)
        before = _switches()
        time.sleep(1)
        assert _switches() - before < 250  # two threads that look 50 times a second


def test_skips_are_followed(make_settings, place):
    settings = make_settings({"t": None, "y": 256, "x": 512}, **place)
    model = Model(settings)
    with create_stream(settings) as stream:
        for frames in (1, 1000, 3, 70):
            stream.append(FRAME + frames)
            model.append(FRAME + frames)
            stream.skip(frames=frames)
            model.skip(frames)
            if not PORTABLE:
                wait_for_populated(stream, FRAME.nbytes)
        np.testing.assert_array_equal(stream.arrays[0], model.array(0))


@pytest.mark.parametrize("window", [1, 100_000, 1 << 20])
@pytest.mark.parametrize("order", [None, ["p", "c", "t", "y", "x"]])
@pytest.mark.parametrize("count", [None, 150])
def test_it_never_writes_over_a_frame(
    make_settings, place, monkeypatch, window, order, count
):
    # Windows so small that the writer and the thread are at the same place all the time.
    for name in ("_MEMORY_WINDOW_NBYTES", "_FILE_WINDOW_NBYTES", "_GRANT_NBYTES"):
        monkeypatch.setattr(f"scratchwriter._writing.policy.{name}", window)
    fields = place | ({"storage_order": order} if order else {})
    settings = make_settings({"t": count, "p": 2, "c": 3, "y": 40, "x": 30}, **fields)
    frames = [np.full((40, 30), i + 1, "uint16") for i in range(900)]
    with create_stream(settings) as stream:
        for frame in frames:
            stream.append(frame)
    values = np.arange(1, 901).reshape(150, 2, 3)
    for position in range(2):
        expected = values[:, position]
        if order:
            expected = expected.T
        stored = np.asarray(stream.arrays[position])
        np.testing.assert_array_equal(stored[..., 0, 0], expected)
        np.testing.assert_array_equal(stored[..., -1, -1], expected)
        assert (stored == stored[..., :1, :1]).all()


@pytest.mark.parametrize("order", [None, ["c", "p", "t", "y", "x"]])
def test_going_on_in_files_copies_no_byte_and_moves_no_array(
    make_settings, tmp_path, order
):
    fmt = ScratchFormat(max_memory_bytes=20 * 2 * 3 * 2400, spill_dir=tmp_path)
    fields = {"storage_order": order} if order else {}
    settings = make_settings(
        {"t": None, "p": 2, "c": 3, "y": 40, "x": 30}, format=fmt, **fields
    )
    model = Model(settings)
    held = []
    with create_stream(settings) as stream, pytest.warns(UserWarning, match="max_memory"):
        for i in range(600):
            frame = np.full((40, 30), i + 1, "uint16")
            stream.append(frame)
            model.append(frame)
            if i % 60 == 59:  # whole steps
                held.append((stream.arrays[0][...], model.array(0).copy()))
    for now, then in held:
        np.testing.assert_array_equal(now, then)
    addresses = {now.__array_interface__["data"][0] for now, _ in held}
    assert PORTABLE or len(addresses) == 1
    for position, plain in enumerate(read_plain(stream.path)):
        np.testing.assert_array_equal(plain, model.array(position, order="file"))
        np.testing.assert_array_equal(stream.arrays[position], model.array(position))


@pytest.mark.skipif(PORTABLE, reason="Python's mmap keeps a file open")
def test_many_positions_need_few_open_files(make_settings, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    settings = make_settings(
        {"t": None, "p": 300, "y": 4, "x": 5}, root_path=str(tmp_path / "d")
    )
    in_use = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 20, hard))
    try:
        with create_stream(settings) as stream:
            for i in range(900):
                stream.append(np.full((4, 5), i, "uint16"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for position, plain in enumerate(read_plain(tmp_path / "d")):
        assert plain[:, 0, 0].tolist() == [position, position + 300, position + 600]


def _count_threads():
    return sum(1 for _ in Path("/proc/self/task").iterdir())


@needs_thread
def test_its_threads_end_with_the_stream(make_settings, place):
    before = _count_threads()
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, **place)):
        assert _count_threads() > before
    assert _count_threads() == before


def rss_file_nbytes():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"RssFile:\s+(\d+) kB", status)[1]) * 1024


def cached_nbytes(path):
    command = ["fincore", "--bytes", "--noheadings", "--output", "RES", str(path)]
    return int(subprocess.run(command, capture_output=True, check=True).stdout)


@needs_thread
@pytest.mark.skipif(shutil.which("fincore") is None, reason="asks fincore (util-linux)")
def test_what_is_written_directly_is_not_in_memory_and_is_still_read(
    make_settings, tmp_path
):
    if is_ram_backed(tmp_path):
        pytest.skip("files in memory stay there")
    folder = tmp_path / "d"
    settings = make_settings(
        {"t": 400, "y": 256, "x": 512},
        root_path=str(folder),
        format=ScratchFormat(disk_io="direct", max_staging_bytes=48 << 20),
    )
    model = Model(settings)
    before_nbytes = rss_file_nbytes()
    with warnings.catch_warnings(), create_stream(settings) as stream:
        warnings.simplefilter("ignore")  # of a disk that is slower than this loop
        for i in range(400):
            stream.append(FRAME + i)
            model.append(FRAME + i)
        wait_until(lambda: stream.stats().disk.staged_nbytes == 0)
        # The staging, mapped twice.
        assert rss_file_nbytes() - before_nbytes < (2 * 48 + 8) << 20
        assert cached_nbytes(folder / "pos_0.dat") < 8 << 20
        assert np.array_equal(stream.arrays[0][:], model.array(0))
    assert np.array_equal(read_plain(folder)[0], model.array(0))


def _huge_nbytes_of_files():
    sizes = re.findall(r"FilePmdMapped: +(\d+) kB", Path("/proc/self/smaps").read_text())
    return sum(map(int, sizes)) * 1024


@needs_thread
def test_a_file_in_order_is_mapped_by_huge_pages_where_the_system_has_them(
    make_settings, tmp_path
):
    nbytes = 16 << 20
    with (tmp_path / "plain").open("w+b") as file:
        file.write(bytes(nbytes))
        file.flush()
        plain = mmap.mmap(file.fileno(), nbytes)
        for at in range(0, nbytes, 4096):
            plain[at] = 1
        if not _huge_nbytes_of_files():
            pytest.skip("the system has no huge pages for files here")
        plain.close()
    frame = np.ones((900, 1000), "uint16")  # of no power of two
    settings = make_settings(
        {"t": None, "y": 900, "x": 1000}, root_path=str(tmp_path / "d")
    )
    with create_stream(settings) as stream:
        for _ in range(20):
            stream.append(frame)
        wait_for_populated(stream, nbytes)
        assert _huge_nbytes_of_files() > nbytes
