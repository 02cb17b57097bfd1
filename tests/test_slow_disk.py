"""A disk that takes its time, and file systems and limits that refuse a part of staging.

Each test is a process of its own, in which a library stands before the C library and lets
each write to the disk take longer, or fail.
"""

import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from marks import needs_direct_writes, takes_a_shim
from scratchwriter import open_scratch

pytestmark = [needs_direct_writes, takes_a_shim]

HEAD = """
    import ctypes, errno, os, resource, signal, time, warnings
    import numpy as np
    from scratchwriter import *
    from scratchwriter._files.layout import PROGRESS, PROGRESS_HEADER
    from scratchwriter._writing import policy

    disk = ctypes.CDLL(os.environ["LD_PRELOAD"])

    def create(sizes, **options):
        return create_stream(AcquisitionSettings(
            root_path="data", dtype="uint16", dimensions=dims_from_standard_axes(sizes),
            format=ScratchFormat(**{"disk_io": "direct", **options}),
        ))

    def record(stream, count, shape=(512, 512)):
        for number in range(count):
            stream.append(np.full(shape, number, "uint16"))

    def record_beyond_slots(count, max_staging_bytes=200 << 20, slow_us=30_000):
        policy._STAGING_NBYTES, policy._PIECE_NBYTES = 8 << 20, 2 << 20
        sizes = {"t": count, "y": 512, "x": 512}
        stream = create(sizes, max_staging_bytes=max_staging_bytes)
        disk.faults_slow_disk(slow_us)
        record(stream, count)
        return stream
"""


@pytest.fixture
def run(shim, tmp_path):
    """Run lines in a process whose disk can be made slow; return the dataset's frames."""

    def run(lines, warn="ignore"):
        program = textwrap.dedent(HEAD) + textwrap.dedent(lines)
        ended = subprocess.run(
            [sys.executable, "-W", warn, "-c", program],
            env={**os.environ, "LD_PRELOAD": shim},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr[-3000:]
        with open_scratch(tmp_path / "data") as dataset:
            assert dataset.state == "closed"
            assert not (tmp_path / "data" / "staging.bin").exists()
            found = [array[:, -1, -1].copy() for array in dataset.arrays]
        shutil.rmtree(tmp_path / "data")
        return found

    return run


@pytest.mark.parametrize("call", ["flush", "close"])
def test_a_call_that_waits_for_the_disk_can_be_interrupted_and_called_again(run, call):
    (found,) = run(f"""
        class Interrupt(Exception):
            pass

        def interrupt(*_):
            raise Interrupt

        signal.signal(signal.SIGALRM, interrupt)
        disk.faults_slow_disk(300_000)  # 40 pieces take 12 s
        stream = create({{"t": None, "y": 512, "x": 512}}, max_staging_bytes=1 << 30)
        record(stream, 640)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            stream.{call}()
        except Interrupt:
            left = stream.stats().disk.staged_nbytes if "{call}" == "flush" else 1
        else:
            raise AssertionError("it did not wait")
        assert left > 0
        disk.faults_slow_disk(0)
        stream.{call}()
        stream.close()
    """)
    np.testing.assert_array_equal(found, np.arange(640))


@pytest.mark.parametrize("call", ["flush", "append"])
def test_a_failure_is_reported_once_also_if_a_write_fails_after_the_remedy(run, call):
    (found,) = run(f"""
        policy._STAGING_NBYTES, policy._PIECE_NBYTES = 8 << 20, 1 << 20
        disk.faults_slow_disk(200_000)
        stream = create({{"t": 64, "y": 512, "x": 512}}, max_staging_bytes=1)
        record(stream, 2)
        disk.faults_full_disk(1)
        try:
            if "{call}" == "flush":
                stream.flush()
            for number in range(2, 64):
                stream.append(np.full((512, 512), number, "uint16"))
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        else:
            raise AssertionError("the disk was not full")
        time.sleep(0.1)  # the next try to write is under way, and fails
        disk.faults_full_disk(0)
        for number in range(stream.frames_written, 64):
            stream.append(np.full((512, 512), number, "uint16"))
            if "{call}" == "flush":
                stream.flush()
                disk.faults_slow_disk(0)
        stream.close()
    """)
    np.testing.assert_array_equal(found, np.arange(64))


@pytest.mark.parametrize("end", ["interrupted", "overtaken by the thread ahead"])
def test_a_wait_that_has_ended_leaves_no_error_to_a_later_append(run, end):
    run(f"""
        class Interrupt(Exception):
            pass

        def interrupt(*_):
            raise Interrupt

        frame = np.ones((512, 512), "uint16")
        signal.signal(signal.SIGALRM, interrupt)
        policy._STAGING_NBYTES, policy._PIECE_NBYTES = 8 << 20, 2 << 20
        stream = create({{"t": None, "y": 512, "x": 512}}, max_staging_bytes=1)
        if "{end}" == "interrupted":
            disk.faults_slow_disk(400_000)
            signal.setitimer(signal.ITIMER_REAL, 0.15)
            try:
                while True:
                    stream.append(frame)
            except Interrupt:
                pass
        else:
            disk.faults_slow_disk(700)
            end_s = time.monotonic() + 1
            while time.monotonic() < end_s:
                stream.append(frame)
        assert stream.stats().disk.waited_frames > 0
        disk.faults_slow_disk(200_000)
        disk.faults_full_disk(1)
        try:
            stream.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
        else:
            raise AssertionError("the disk was not full")
        disk.faults_full_disk(0)
        for _ in range(30):
            stream.append(frame)
        disk.faults_slow_disk(0)
        stream.close()
    """)


def test_others_learn_piece_by_piece_what_is_in_the_files_after_a_pause_too(run):
    run("""
        disk.faults_slow_disk(20_000)
        stream = create({"t": None, "y": 512, "x": 512}, max_staging_bytes=1 << 30)
        record(stream, 400)
        disk.faults_slow_disk(150_000)  # a pause, longer than files may lag
        time.sleep(0.2)
        disk.faults_slow_disk(20_000)
        seen = set()
        while 400 not in seen:
            header = np.fromfile("data/" + PROGRESS, PROGRESS_HEADER, 1)
            seen.add(int(header["in_files"][0]))
            time.sleep(0.002)
        assert len(seen) >= 6, seen
        stream.close()
    """)


def test_staging_gives_back_what_it_no_longer_needs_and_takes_it_again(run):
    (found,) = run("""
        def used_mib():
            return os.stat("data/staging.bin").st_blocks * 512 >> 20

        policy._KEEP_SLOTS_S, policy._PIECE_NBYTES = 0.3, 2 << 20
        stream = create({"t": None, "y": 512, "x": 512}, max_staging_bytes=1 << 30)
        used = []
        for _ in range(3):
            disk.faults_slow_disk(30_000)
            start = stream.frames_written
            for number in range(start, start + 200):
                stream.append(np.full((512, 512), number, "uint16"))
            used.append(used_mib())
            disk.faults_slow_disk(0)
            stream.flush()
            with open_scratch("data") as dataset:
                while used_mib() > 40:
                    for number in (start, start + 199):  # what is read meanwhile
                        assert (stream.arrays[0][number] == number).all(), number
                        assert (dataset.arrays[0][number] == number).all(), number
                    time.sleep(0.01)
        assert min(used) > 60, used
        stream.close()
    """)
    np.testing.assert_array_equal(found, np.arange(600))


def test_what_waits_in_the_page_cache_is_left_to_the_kernel_at_close(run):
    (found,) = run("""
        stream = record_beyond_slots(400, max_staging_bytes=1 << 30)
        before = disk.faults_write_backs()
        assert stream.stats().disk.staged_nbytes > 100 << 20  # most of it has no slot
        stream.close()
        assert disk.faults_write_backs() <= before + 1  # one was under way
    """)
    np.testing.assert_array_equal(found, np.arange(400))


def test_what_waits_in_the_page_cache_is_counted_like_what_is_staged(run):
    run("""
        stream = record_beyond_slots(200, slow_us=100_000)
        before = disk.faults_write_backs()
        while disk.faults_write_backs() < before + 10:  # no slot waits any more
            time.sleep(0.01)
        stats = stream.stats()
        written = disk.faults_direct_writes() + disk.faults_write_backs()  # 2 MiB at most
        assert stats.disk.staged_nbytes >= 200 * 512 * 512 * 2 - (written << 21)
        assert stats.unwritten_nbytes >= stats.disk.staged_nbytes - (8 << 20)
        disk.faults_slow_disk(0)
        stream.close()
        assert stream.stats().disk.staged_nbytes == 0
    """)


def test_frames_that_a_device_has_refused_are_not_certain_and_stay_in_memory(run):
    (found,) = run("""
        stream = record_beyond_slots(200)
        disk.faults_refuse_write_backs(1)
        for call in (stream.flush, stream.flush, stream.close):
            try:
                call()
            except OSError as error:
                assert error.errno == errno.EIO, error
            else:
                raise AssertionError(call)
        with open_scratch("data") as dataset:
            assert dataset.frames_synced == 0
    """)
    np.testing.assert_array_equal(found, np.arange(200))


def test_positions_that_are_not_visited_are_written_in_pieces_not_in_frames(run):
    found = run("""
        stream = create({"t": None, "p": 16, "y": 64, "x": 64})
        before = disk.faults_direct_writes()
        for number in range(4800):
            stream.append(np.full((64, 64), number // 16, "uint16"))
            if number % 16 == 15:
                time.sleep(0.002)
        assert stream.stats().disk_io == "direct"
        assert disk.faults_direct_writes() - before < 4800 // 4
        stream.close()
    """)
    for array in found:
        np.testing.assert_array_equal(array, np.arange(300))


def test_where_files_get_no_blocks_ahead_frames_go_through_the_page_cache(run):
    (found,) = run("""
        disk.faults_arm(os.getcwd().encode(), 1 << 30, errno.EIO, 0)  # nothing fails
        disk.faults_without_fallocate(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with create({"t": 600, "y": 512, "x": 512}, disk_io="auto") as stream:
                record(stream, 600)
                assert stream.stats().disk_io == "page_cache"
                while not caught:
                    time.sleep(0.01)
        texts = [str(warning.message) for warning in caught]
        assert any("cannot allocate blocks ahead" in text for text in texts), texts
    """)
    np.testing.assert_array_equal(found, np.arange(600))


@pytest.mark.parametrize("spare_mib", [300, 700, 3000])
def test_a_process_that_has_few_addresses_records_all_the_same(run, spare_mib):
    (found,) = run(f"""
        status = open("/proc/self/status").read().split("VmSize:")[1]
        nbytes = int(status.split()[0]) << 10
        nbytes += 320_000_000 + ({spare_mib} << 20)  # the array's, and more
        resource.setrlimit(resource.RLIMIT_AS, (nbytes, -1))
        with create({{"t": 600, "y": 512, "x": 512}}, disk_io="auto") as stream:
            record(stream, 600)
    """)
    np.testing.assert_array_equal(found, np.arange(600))
