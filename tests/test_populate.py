"""`populate="all"`: all memory of a bounded acquisition is ready before the first frame."""

import gc
import mmap
import resource
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edges import mapped_nbytes, num_threads
from marks import PORTABLE
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._region import PortableRegion
from scratchwriter._writing import arrays
from scratchwriter._writing.policy import place as place_of
from scratchwriter.plan import make_plan
from waiting import wait_until

needs_pagemap = pytest.mark.skipif(
    not Path("/proc/self/pagemap").exists(), reason="looks into /proc/self/pagemap"
)
ALL = ScratchFormat(populate="all")
SIZES = {"t": 128, "y": 256, "x": 512}  # 32 MiB
NBYTES = 128 * 256 * 512 * 2
PIECE_NBYTES = 1 << 20


@pytest.fixture(autouse=True)
def small_pieces_and_windows(monkeypatch):
    """Progress after each mebibyte; of what is ahead of the frames only a little."""
    monkeypatch.setattr(arrays, "_POPULATE_NBYTES", PIECE_NBYTES)
    monkeypatch.setattr(arrays, "_TELL_S", 0)
    policy = "scratchwriter._writing.policy"
    monkeypatch.setattr(f"{policy}._MEMORY_WINDOW_NBYTES", 4 << 20)


def resident_pages(array):
    """How many of the pages of an array are in memory, and how many it has."""
    address = array.__array_interface__["data"][0]
    first = address // mmap.PAGESIZE
    count = (address + array.nbytes - 1) // mmap.PAGESIZE - first + 1
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * count), "uint64")
    return int(np.count_nonzero(entries >> np.uint64(63))), count


@needs_pagemap
@pytest.mark.parametrize("order", [None, ["c", "t", "p", "y", "x"]])
def test_all_pages_are_in_memory_when_create_stream_returns(make_settings, order):
    sizes = {"t": 32, "p": 2, "c": 2, "y": 256, "x": 512}
    fields = {"storage_order": order} if order else {}
    with create_stream(make_settings(sizes, format=ALL, **fields)) as stream:
        for array in stream.arrays:
            array = np.asarray(array)
            resident, count = resident_pages(array)
            assert resident == count >= array.nbytes // mmap.PAGESIZE
            assert not array.any()


@needs_pagemap
@pytest.mark.skipif(PORTABLE, reason="memory of numpy, which may have been used before")
def test_ahead_leaves_what_is_far_from_the_frames_untouched(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        stream.append(np.ones((256, 512), "uint16"))
        wait_until(lambda: stream.stats().populated_ahead_nbytes >= 4 << 20)
        resident, count = resident_pages(np.asarray(stream.arrays[0]))
        assert resident < count / 2


@pytest.mark.skipif(sys.platform != "linux", reason="counts faults as Linux does")
def test_no_append_takes_a_page_fault_from_the_first_on(make_settings):
    frame = np.arange(256 * 512, dtype="uint16").reshape(256, 512)
    with create_stream(make_settings(SIZES, format=ALL)) as stream:
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        for _ in range(128):
            stream.append(frame)
        after = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    # At least 16 if it did (of huge pages); Python's own memory may take one.
    assert after - before <= 10
    assert (np.asarray(stream.arrays[0]) == frame).all()


@needs_pagemap
def test_records_are_ready_too(make_settings):
    fmt = ScratchFormat(populate="all", timestamps=True)
    with create_stream(make_settings({"t": 5000, "y": 8, "x": 8}, format=fmt)) as stream:
        records = stream._storage.arrays.record_array(5000)
        assert resident_pages(records)[0] == resident_pages(records)[1] > 10


def test_all_of_the_rest_is_ready_ahead_whatever_the_window_is(make_settings):
    with create_stream(make_settings(SIZES, format=ALL)) as stream:
        for count in range(128):
            expected = NBYTES - count * NBYTES // 128
            assert stream.stats().populated_ahead_nbytes == expected
            stream.append(np.ones((256, 512), "uint16"))
        assert stream.stats().populated_ahead_nbytes == 0
    assert stream.stats().populated_ahead_nbytes == 0


# ------------------------------------------------------------------------------ progress


def test_progress_is_told_until_all_is_done(make_settings):
    told = []
    create_stream(
        make_settings({"p": 2, "t": 33, "y": 256, "x": 256}, format=ALL),
        on_populate=lambda done, total: told.append((done, total)),
    ).close()
    total = 2 * 33 * 256 * 256 * 2
    done = [done for done, _ in told]
    assert {total for _, total in told} == {total}
    assert done == sorted(set(done))
    assert done[-1] == total
    assert len(done) == 2 * 5  # pieces; the last one of each position is smaller


def test_progress_is_told_a_few_times_per_second_and_at_the_end(make_settings, monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(arrays, "monotonic", lambda: next(clock) / 20)  # of a second
    monkeypatch.setattr(arrays, "_TELL_S", 0.25)
    done = []
    create_stream(
        make_settings(SIZES, format=ALL), on_populate=lambda nbytes, _: done.append(nbytes)
    ).close()
    looks = next(clock)
    assert 1 < len(done) <= 1 + looks / 20 / 0.25
    assert done[-1] == NBYTES


def test_a_single_piece_is_told_once(make_settings):
    told = []
    settings = make_settings({"t": 3, "y": 4, "x": 5}, format=ALL)
    create_stream(settings, on_populate=lambda *nbytes: told.append(nbytes)).close()
    assert told == [(120, 120)]


def test_progress_is_told_in_the_thread_that_makes_the_stream(make_settings):
    threads = set()
    create_stream(
        make_settings(SIZES, format=ALL),
        on_populate=lambda *_: threads.add(threading.get_ident()),
    ).close()
    assert threads == {threading.get_ident()}


# ------------------------------------------------------------------------- it is undone


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("way", ["callback raises", "interrupt", "handler raises"])
def test_an_exception_or_interrupt_half_way_leaves_nothing(make_settings, tmp_path, way):
    fmt = ScratchFormat(populate="all", spill_dir=str(tmp_path), timestamps=True)
    settings = make_settings(SIZES, format=fmt)
    done = []

    def stop(done_nbytes, total_nbytes):
        done.append(done_nbytes)
        if done_nbytes < total_nbytes // 2:
            return
        if way == "callback raises":
            raise LookupError("the user has had enough")
        signal.raise_signal(signal.SIGINT if way == "interrupt" else signal.SIGUSR1)

    def handle(signum, frame):
        raise LookupError("the handler has had enough")

    handlers = {
        signal.SIGINT: signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.SIGUSR1: signal.signal(signal.SIGUSR1, handle),
    }
    gc.collect()
    num_threads_before, nbytes_before = num_threads(), mapped_nbytes()

    def check_nothing_is_left():
        assert num_threads() == num_threads_before
        assert mapped_nbytes() < nbytes_before + NBYTES // 2
        assert list(tmp_path.iterdir()) == []

    expected = KeyboardInterrupt if way == "interrupt" else LookupError
    try:
        with pytest.raises(expected) as error:
            create_stream(settings, on_populate=stop)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert NBYTES // 2 <= done[-1] < NBYTES // 2 + 2 * PIECE_NBYTES
    if not PORTABLE:
        check_nothing_is_left()  # also while the traceback is kept
    del error
    gc.collect()
    check_nothing_is_left()
    create_stream(settings).close()


class _SignalledRegion(PortableRegion):
    """A signal arrives while its third piece is touched."""

    def populate(self, start, stop):
        assert start <= 2 * PIECE_NBYTES, "it went on"
        if start == 2 * PIECE_NBYTES:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(sys.platform == "win32", reason="raises a signal of POSIX")
def test_a_signal_between_pieces_needs_no_callback(make_settings, monkeypatch):
    monkeypatch.setattr(arrays, "make_region", lambda *_, **__: _SignalledRegion())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            create_stream(make_settings(SIZES, format=ALL))
    finally:
        signal.signal(signal.SIGINT, before)


class _RefusedRegion(PortableRegion):
    """The system has no memory for its second piece."""

    def populate(self, start, stop):
        if start > 0:
            raise MemoryError(f"the system refuses {stop - start} bytes of memory")


def test_memory_that_the_system_refuses_is_an_error_with_the_remedies(
    make_settings, monkeypatch
):
    monkeypatch.setattr(arrays, "make_region", lambda *_, **__: _RefusedRegion())
    with pytest.raises(MemoryError) as error:
        create_stream(make_settings(SIZES, format=ALL))
    for part in ("33.5 MB", "1048576 bytes", "populate='all'", "fewer frames", "root_path"):
        assert part in str(error.value)


def test_a_memory_error_of_the_callback_stays_as_it_is(make_settings):
    raised = MemoryError("of the callback")

    def fail(*_):
        raise raised

    with pytest.raises(MemoryError) as error:
        create_stream(make_settings(SIZES, format=ALL), on_populate=fail)
    assert error.value is raised


# ----------------------------------------------------------------------- elsewhere: ahead


def fail(*_):
    pytest.fail("nothing is made ready as a whole")


@pytest.mark.parametrize(
    ("sizes", "fields"),
    [
        ({"t": None}, {}),
        ({"t": None}, {"keep_last": 3}),
        ({"t": 3}, {"max_memory_bytes": 10}),  # spilled from the beginning
    ],
    ids=["unbounded", "ring", "spilled"],
)
@pytest.mark.filterwarnings("ignore:The arrays need")
def test_what_has_no_end_or_is_in_files_is_made_ready_ahead(
    make_settings, tmp_path, sizes, fields
):
    fmt = ScratchFormat(populate="all", spill_dir=str(tmp_path), **fields)
    settings = make_settings({**sizes, "y": 64, "x": 64}, format=fmt)
    assert not place_of(settings, make_plan(settings)).populates_all
    with create_stream(settings, on_populate=fail) as stream:
        for value in (1, 2, 3):
            stream.append(np.full((64, 64), value, "uint16"))
    assert np.asarray(stream.arrays[0])[:, 0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("count", [None, 3])
def test_a_dataset_on_disk_is_made_ready_ahead_and_keeps_what_was_asked(
    make_settings, tmp_path, count
):
    folder = str(tmp_path / "data")
    settings = make_settings({"t": count, "y": 64, "x": 64}, format=ALL, root_path=folder)
    assert not place_of(settings, make_plan(settings)).populates_all
    with create_stream(settings, on_populate=fail) as stream:
        stream.append(np.ones((64, 64), "uint16"))
    with open_scratch(folder) as dataset:
        assert dataset.settings.format.populate == "all"


def test_without_asking_nothing_is_made_ready_as_a_whole(make_settings):
    create_stream(make_settings(SIZES), on_populate=fail).close()
