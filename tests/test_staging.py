"""Files that are staged and written directly: what is there, when, and for whom."""

import errno
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import scratchwriter
from marks import needs_direct_writes, needs_page_cache
from reference import Model, read_plain
from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from scratchwriter._files import staged
from scratchwriter._files.layout import (
    PROGRESS,
    PROGRESS_HEADER,
    STAGING,
    STAGING_HEADER,
    STAGING_SLOT,
    STAGING_SLOTS_NBYTES,
)
from scratchwriter._files.progress import locked
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._writing import policy
from scratchwriter._writing.arrays import ArraySet
from scratchwriter.stats import DISK_FIELDS, make_disk_stats
from scratchwriter.views import _resolved
from waiting import remove_recorded, wait_until

pytestmark = needs_direct_writes
PIECE_NBYTES = 8192
DIRECT = ScratchFormat(disk_io="direct", max_staging_bytes=64 * PIECE_NBYTES)


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that those of a short acquisition are used again and again."""
    monkeypatch.setattr(policy, "_PIECE_NBYTES", PIECE_NBYTES)
    monkeypatch.setattr(policy, "_LEAST_PIECE_NBYTES", PIECE_NBYTES)


@pytest.fixture
def quiet():
    """Without the warnings that a disk is slow: here it always is."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The disk of", UserWarning)
        yield


def in_files(folder):
    """Return how many frames are in the files of the arrays, as progress.bin says."""
    return int(np.fromfile(folder / PROGRESS, PROGRESS_HEADER, 1)["in_files"][0])


def frame_of(shape, number):
    return np.arange(number, number + shape[0] * shape[1], dtype="uint32").reshape(shape)


# ------------------------------------------------------------------------- the frames

ACQUISITIONS = st.fixed_dictionaries(
    {
        "t": st.sampled_from([None, 12, 90]),
        "p": st.integers(1, 4),
        "c": st.integers(1, 3),
        "y": st.integers(1, 60),
        "x": st.integers(1, 60),
    }
)
STEPS = st.lists(
    st.sampled_from(["append", "append", "extend", "slot", "slots", "skip", "look"]),
    max_size=60,
)


@hypothesis_settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sizes=ACQUISITIONS, steps=STEPS, moves=st.booleans(), slots=st.integers(16, 64))
def test_what_is_stored_by_any_way_in_is_what_everybody_reads(
    make_settings, tmp_path_factory, small_pieces, quiet, sizes, steps, moves, slots
):
    folder = tmp_path_factory.mktemp("staged") / "data"
    # With p first, a position gets many frames in a row.
    is_first = sizes["t"] and not moves
    order = ("p", "t", "c", "y", "x") if is_first else ("t", "p", "c", "y", "x")
    sizes = {name: sizes[name] for name in order}
    settings = make_settings(
        sizes,
        dtype="uint32",
        root_path=str(folder),
        format=DIRECT.model_copy(update={"max_staging_bytes": slots * PIECE_NBYTES}),
    )
    model, shape = Model(settings), (sizes["y"], sizes["x"])
    with create_stream(settings) as stream:
        for step in steps:
            left, number = model.left(), len(model.visited)
            count = 1 if step in ("append", "slot") else min(7, left or 7)
            if left == 0:
                break
            frames = [frame_of(shape, number + i + 1) for i in range(count)]
            if step == "append":
                stream.append(frames[0])
            elif step == "extend":
                stream.extend(frames)
            elif step == "slot":
                with stream.slot() as slot:
                    slot[...] = frames[0]
            elif step == "slots":
                count = 1
                with stream.slots(1) as slot:
                    slot[...] = frames[0]
            elif step == "skip":
                stream.skip(frames=count)
                model.skip(count)
                continue
            else:
                check(stream.arrays, model)
                with open_scratch(folder) as dataset:
                    check(dataset.arrays, model)
                    assert dataset.frames_written == len(model.visited)
                continue
            for frame in frames[:count]:
                model.append(frame)
        check(stream.arrays, model)
        # Skips alone need no memory.
        assert stream.stats().disk_io == "direct" or stream.stats().nbytes == 0
    check(stream.arrays, model)
    assert not (folder / STAGING).exists()
    with open_scratch(folder) as dataset:
        check(dataset.arrays, model)
    for position, array in enumerate(read_plain(folder)):
        np.testing.assert_array_equal(array, model.array(position, order="file"))
        assert array.nbytes == (folder / f"pos_{position}.dat").stat().st_size


def check(arrays, model):
    for position, array in enumerate(arrays):
        np.testing.assert_array_equal(array[...], model.array(position))


def test_arrays_that_were_taken_before_stay_right_when_slots_are_used_again(
    make_settings, tmp_path, small_pieces, quiet
):
    sizes = {"t": None, "p": 2, "y": 32, "x": 33}
    settings = make_settings(
        sizes, dtype="uint32", root_path=str(tmp_path / "data"), format=DIRECT
    )
    with create_stream(settings) as stream:
        taken = []
        for number in range(400):
            stream.append(frame_of((32, 33), number))
            if number % 40 == 1:
                with open_scratch(tmp_path / "data") as dataset:
                    for arrays in (stream.arrays, dataset.arrays):
                        copies = [array[...] for array in arrays]
                        taken.append((number + 1, copies))
    for count, arrays in taken:
        for number in range(count):
            found = arrays[number % 2][number // 2]
            np.testing.assert_array_equal(found, frame_of((32, 33), number))


# -------------------------------------------------------------------------- the choice


@needs_page_cache
@pytest.mark.parametrize("count", [None, 40])
def test_small_datasets_are_in_the_page_cache_and_tell_why(make_settings, tmp_path, count):
    settings = make_settings({"t": count, "y": 8, "x": 8}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        stream.append(np.ones((8, 8), "uint16"))
        assert not (tmp_path / "data" / STAGING).exists() or count is None
        stats = stream.stats()
        np.testing.assert_array_equal(read_plain(tmp_path / "data")[0][0], 1)
        with open_scratch(tmp_path / "data") as dataset:
            assert dataset.disk_io.startswith(("page cache: it ", "page cache: nothing "))
    assert (stats.disk_io, stats.disk) == ("page_cache", None)
    assert "no more than 268.4 MB" in stats.why_not_direct
    with open_scratch(tmp_path / "data") as dataset:
        assert dataset.disk_io.startswith(("page cache: it ", "page cache: nothing "))


def test_in_memory_nothing_goes_to_a_disk(make_settings):
    with create_stream(make_settings({"t": 3, "y": 8, "x": 8})) as stream:
        stats = stream.stats()
    assert (stats.disk_io, stats.why_not_direct) == ("memory", "it is in memory")


def test_the_page_cache_can_be_asked_for(make_settings, tmp_path):
    fmt = ScratchFormat(disk_io="page_cache")
    settings = make_settings(
        {"t": 20, "y": 4096, "x": 4096}, root_path=str(tmp_path / "data"), format=fmt
    )
    with create_stream(settings) as stream:
        assert stream.stats().why_not_direct == "disk_io='page_cache'"
    with open_scratch(tmp_path / "data") as dataset:
        assert dataset.disk_io == "page cache: disk_io='page_cache'"


@pytest.mark.parametrize(
    ("sizes", "fields", "why"),
    [
        ({"t": 9, "c": 2}, {"storage_order": ["c", "t", "y", "x"]}, "order of their bytes"),
        ({"t": None}, {"keep_last": 3}, "keep_last"),
        ({"t": 2, "p": 200}, {}, "200 positions are more than 128"),
    ],
)
def test_what_cannot_be_written_directly_is_refused_with_the_reason(
    make_settings, tmp_path, sizes, fields, why
):
    fields = dict(fields)
    fmt = {k: fields.pop(k) for k in ("keep_last",) if k in fields}
    with pytest.raises(OSError, match=why) as error:
        create_stream(
            make_settings(
                {**sizes, "y": 8, "x": 8},
                root_path=str(tmp_path / "data"),
                format=ScratchFormat(disk_io="direct", **fmt),
                **fields,
            )
        )
    assert error.value.errno == errno.EOPNOTSUPP
    assert "'page_cache'" in str(error.value)
    assert not (tmp_path / "data").exists()


def test_a_file_system_in_memory_is_not_written_directly(make_settings, small_disk):
    settings = make_settings(
        {"t": 4, "y": 8, "x": 8}, root_path=str(small_disk / "data"), format=DIRECT
    )
    with pytest.raises(OSError, match="file system does not take direct writes"):
        create_stream(settings)


def test_an_unbounded_dataset_is_staged_once_it_is_large(
    make_settings, tmp_path, monkeypatch, small_pieces, quiet
):
    monkeypatch.setattr(policy, "_PAGE_CACHE_NBYTES", 8 * PIECE_NBYTES)
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "p": 2, "y": 32, "x": 32}, dtype="uint32", root_path=str(folder)
    )
    ways = []
    with create_stream(settings) as stream:
        for number in range(100):
            if stream.stats().disk_io == "page_cache":
                assert stream.stats().why_not_direct.endswith("65,536 bytes so far")
                # As exact for everybody as ever.
                for position, array in enumerate(read_plain(folder)):
                    for i in range(len(array) if number > position else 0):
                        np.testing.assert_array_equal(
                            array[i], frame_of((32, 32), 2 * i + position)
                        )
            stream.append(frame_of((32, 32), number))
            ways.append(stream.stats().disk_io)
        # A little earlier than it has to: pieces are made ready ahead of the frames.
        assert ways[0] == "page_cache"
        assert ways == sorted(ways, key=["page_cache", "direct"].index)
        assert ways[8 * PIECE_NBYTES // 4096 + 1] == "direct"
    for position, array in enumerate(read_plain(folder)):
        for i in range(50):
            np.testing.assert_array_equal(array[i], frame_of((32, 32), 2 * i + position))


def test_info_tells_how_the_files_are_written(make_settings, tmp_path):
    folder = tmp_path / "data"
    settings = make_settings({"t": 4, "y": 8, "x": 8}, root_path=str(folder), format=DIRECT)
    with create_stream(settings) as stream:
        stream.append(np.ones((8, 8), "uint16"))
        printed = subprocess.run(
            [sys.executable, "-m", "scratchwriter", "info", str(folder)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert "staged, and directly" in printed
        printed = subprocess.run(
            [sys.executable, "-m", "scratchwriter", "info", "--json", str(folder)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert json.loads(printed)["disk_io"] == "staged, and directly"


# ------------------------------------------------------------------ what is in the files


def test_the_files_of_a_slow_camera_are_not_far_behind(make_settings, tmp_path):
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "y": 30, "x": 30}, dtype="uint32", root_path=str(folder), format=DIRECT
    )
    with create_stream(settings) as stream:
        for number in range(3):
            stream.append(frame_of((30, 30), number))
            wait_until(lambda number=number: in_files(folder) == number + 1)
            (plain,) = read_plain(folder)
            assert len(plain) == number + 1
            for i in range(number + 1):
                np.testing.assert_array_equal(plain[i], frame_of((30, 30), i))
            assert stream.stats().disk.staged_nbytes == 0


def test_the_plain_snippet_never_sees_what_is_no_frame(
    make_settings, tmp_path, small_pieces, quiet
):
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "y": 32, "x": 32}, dtype="uint32", root_path=str(folder), format=DIRECT
    )
    faults, stops = [], threading.Event()

    def look():
        while not stops.is_set():
            (plain,) = read_plain(folder)
            # The first step is there from the beginning.
            first = 0 if in_files(folder) > 0 else 1
            wrong = plain[first:, 0, 0] != np.arange(first, len(plain))
            faults.extend(np.flatnonzero(wrong).tolist())

    with create_stream(settings) as stream:
        thread = threading.Thread(target=look)
        thread.start()
        for number in range(3000):
            stream.append(frame_of((32, 32), number))
        stops.set()
        thread.join()
    assert not faults


def test_flush_brings_all_into_the_files_and_says_so(make_settings, tmp_path):
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": 90, "p": 3, "y": 30, "x": 30},
        dtype="uint32",
        root_path=str(folder),
        format=DIRECT,
    )
    with create_stream(settings) as stream:
        for number in range(100):
            stream.append(frame_of((30, 30), number))
        stream.flush()
        assert in_files(folder) == 100
        assert stream.stats().unwritten_nbytes == 0
        plain = read_plain(folder)
        for number in range(100):
            np.testing.assert_array_equal(
                plain[number % 3][number // 3], frame_of((30, 30), number)
            )
        with open_scratch(folder) as dataset:
            assert dataset.frames_synced == 100


def test_the_documented_way_to_read_what_is_staged_finds_all_that_the_files_lack(
    make_settings, tmp_path, small_pieces, quiet, monkeypatch
):
    page = Path(scratchwriter.__file__).parents[2] / "docs" / "format.md"
    if not page.exists():
        pytest.skip("not in a clone")
    text = page.read_text().split("## staging.bin")[1]
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    block += "        found[start] = bytes(newest)\n"
    monkeypatch.chdir(tmp_path)
    code = """
        import os, numpy as np
        from scratchwriter import *
        from scratchwriter._writing import policy
        policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 8192
        dims = dims_from_standard_axes({"t": None, "y": 32, "x": 32})
        fmt = ScratchFormat(disk_io="direct", max_staging_bytes=1)
        stream = create_stream(AcquisitionSettings(
            root_path="root_path", dimensions=dims, dtype="uint32", format=fmt
        ))
        for i in range(301):
            stream.append(np.full((32, 32), i + 1, "uint32"))
        os._exit(9)
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    assert subprocess.run(program).returncode == 9
    found = {}
    exec(block, {"found": found})
    whole = bytearray(Path("root_path/pos_0.dat").read_bytes())
    for start, data in found.items():
        whole[start : start + len(data)] = data
    frames = np.frombuffer(whole, "uint32").reshape(-1, 32, 32)[:301]
    np.testing.assert_array_equal(frames[:, 5, 5], np.arange(1, 302))
    with open_scratch("root_path") as dataset:
        np.testing.assert_array_equal(dataset.arrays[0][...], frames)


KILLED = """
    import os, signal, numpy as np
    from scratchwriter import *
    from scratchwriter._writing import policy
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 8192
    dims = dims_from_standard_axes({"t": None, "p": 2, "y": 32, "x": 32})
    fmt = ScratchFormat(disk_io="direct", max_staging_bytes=1)
    stream = create_stream(AcquisitionSettings(
        root_path="data", dimensions=dims, dtype="uint32", format=fmt
    ))
    for i in range(200):
        stream.append(np.full((32, 32), i + 1, "uint32"))
    stream.flush()
    with open("data/staging.bin", "rb") as file:
        open("old", "wb").write(file.read())
    for i in range(200, 401):
        stream.append(np.full((32, 32), i + 1, "uint32"))
    os.kill(os.getpid(), signal.SIGKILL)  # a sanitizer would make an exit take a second
"""


@pytest.fixture
def killed(tmp_path):
    """A dataset of 401 frames of two positions whose writer was killed."""
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED)]
    assert subprocess.run(program, cwd=tmp_path).returncode == -signal.SIGKILL
    return tmp_path / "data"


def values(dataset):
    """The frames in the order in which they came, by their values."""
    found = [np.asarray(array)[:, 5, 5] for array in dataset.arrays]
    return [int(found[n % 2][n // 2]) for n in range(dataset.frames_written)]


def test_a_run_that_finds_a_killed_one_in_its_place_brings_its_frames_to_the_arrays(
    killed, make_settings
):
    settings = make_settings({"t": None, "y": 32, "x": 32}, root_path=str(killed))
    assert sum(map(len, read_plain(killed))) < 401
    with pytest.raises(FileExistsError, match="The folder exists"):
        create_stream(settings)
    assert not (killed / STAGING).exists()
    assert sum(map(len, read_plain(killed))) == 401
    with open_scratch(killed) as dataset:
        assert dataset.state == "killed"
        assert values(dataset) == list(range(1, 402))


def test_bringing_frames_to_the_arrays_is_finished_by_the_next_try(
    killed, make_settings, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    settings = make_settings({"t": None, "y": 32, "x": 32}, root_path=str(killed))
    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr("scratchwriter._files.repair.replace_shapes", refuse)
            with pytest.raises(FileExistsError, match="The folder exists"):
                create_stream(settings)
        assert (killed / STAGING).exists()
        with open_scratch(killed) as dataset:
            assert values(dataset) == list(range(1, 402))
    with pytest.raises(FileExistsError, match="The folder exists"):
        create_stream(settings)
    assert not (killed / STAGING).exists()
    assert sum(map(len, read_plain(killed))) == 401


def test_a_dataset_that_is_being_repaired_is_not_said_to_be_recorded_by_the_dead(
    killed, make_settings
):
    settings = make_settings(
        {"t": None, "y": 32, "x": 32}, root_path=str(killed), overwrite=True
    )
    with locked(killed):
        with pytest.raises(FileExistsError, match="another process repairs it"):
            create_stream(settings)
        with pytest.raises(BlockingIOError, match="another process repairs it"):
            recover(killed)
    assert recover(killed)


def test_a_run_that_finds_one_that_records_in_its_place_changes_nothing(
    make_settings, tmp_path, small_pieces, quiet
):
    settings = make_settings(
        {"t": None, "y": 32, "x": 32}, root_path=str(tmp_path / "data"), format=DIRECT
    )
    with create_stream(settings) as stream:
        stream.extend(np.ones((50, 32, 32), "uint16"))
        with pytest.raises(FileExistsError, match="is being recorded"):
            create_stream(settings)
        assert (tmp_path / "data" / STAGING).exists()
        stream.append(np.ones((32, 32), "uint16"))
        assert (stream.arrays[0][:51] == 1).all()


def test_staging_is_not_made_in_a_folder_that_has_replaced_the_stream_s_own(
    make_settings, tmp_path, quiet, monkeypatch
):
    # So the writer makes it, and not a thread at some moment.
    monkeypatch.setattr(ArraySet, "start_ahead", lambda _: None)
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": 90, "y": 32, "x": 32},
        root_path=str(folder),
        format=ScratchFormat(disk_io="direct"),
    )
    frames = np.ones((90, 32, 32), "uint16")
    old = create_stream(settings)
    remove_recorded(folder)
    with create_stream(settings) as new:
        old.append(frames[0])
        assert not (folder / STAGING).exists()
        new.extend(frames)
        assert (folder / STAGING).exists()
        with pytest.raises(FileNotFoundError, match="replaced"):
            old.close()
        assert (folder / STAGING).exists()
    np.testing.assert_array_equal(read_plain(folder)[0], frames)


def restart_machine(folder):
    header = np.fromfile(folder / PROGRESS, PROGRESS_HEADER, 1)
    header["boot_id"] = b"another"
    header.tofile(folder / PROGRESS)


@pytest.mark.parametrize("left", ["as it was", "old", "nothing"])
def test_after_a_power_cut_only_what_is_in_the_files_counts(killed, left):
    restart_machine(killed)
    if left == "old":  # its pages reach the device at any time
        (killed / STAGING).write_bytes((killed.parent / "old").read_bytes())
    elif left == "nothing":
        (killed / STAGING).unlink()
    with pytest.warns(UserWarning, match="restarted"), open_scratch(killed) as dataset:
        count = dataset.frames_written
        assert 200 <= dataset.frames_synced <= count <= 401
        assert values(dataset) == list(range(1, count + 1))
    recover(killed)
    # What is there may be all that is left of some frames.
    assert (killed / STAGING).exists() == (left != "nothing")
    for _ in range(2):
        with pytest.warns(UserWarning, match="restarted"), open_scratch(killed) as dataset:
            assert dataset.frames_written == count
            assert values(dataset) == list(range(1, count + 1))
        recover(killed)


DAMAGE = {
    "empty": lambda data: data[:0],
    "cut": lambda data: data[: STAGING_SLOTS_NBYTES + 100],
    "no header": lambda data: bytes(64) + data[64:],
    "no slots": lambda data: data[:64] + bytes(32 * 100) + data[64 + 3200 :],
    "other magic": lambda data: b"staging9" + data[8:],
    "huge slots": lambda data: data[:8] + (1 << 39).to_bytes(8, "little") + data[16:],
    "other position": lambda data: changed(data, "position", 7),
    "far away": lambda data: changed(data, "start", 1 << 62),
    "nothing in it": lambda data: changed(data, "stop", 0),
    "changing": lambda data: changed(data, "generation", 3),
    "never used": lambda data: changed(data, "generation", 0),
    "negative": lambda data: changed(data, "generation", -2),
    "the same bytes": lambda data: changed(changed(data, "start", 0), "stop", 4096),
}


def changed(data, name, value):
    """Change a field of all slots that are in use."""
    count = (len(data) - STAGING_SLOTS_NBYTES) // PIECE_NBYTES
    data = bytearray(data)
    slots = np.frombuffer(data, STAGING_SLOT, count, STAGING_HEADER.itemsize)
    slots[name][slots["generation"] > 0] = value
    return bytes(data)


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_staging_is_an_error_and_never_zeros(killed, damage):
    path = killed / STAGING
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = {file.name: file.read_bytes() for file in killed.iterdir()}
    with open_scratch(killed) as dataset:
        with pytest.raises(DatasetError, match=r"staging\.bin"):
            values(dataset)
        assert any("staging.bin" in text for text in find_faults(dataset.source))
    with pytest.raises(DatasetError, match=r"staging\.bin"):
        recover(killed)
    assert {file.name: file.read_bytes() for file in killed.iterdir()} == before


# Runs a few lines with a stream of 512x512 frames of which 24 may be staged; ends with 9.
ENDS_BADLY = """
    import os, sys, numpy as np
    from scratchwriter import *
    def frame(number):
        return np.full((SIDE, SIDE), number, "uint16")
    dims = dims_from_standard_axes(SIZES | {{"y": SIDE, "x": SIDE}})
    stream = create_stream(AcquisitionSettings(
        root_path="data", dimensions=dims, dtype="uint16",
        format=ScratchFormat(disk_io="direct", max_staging_bytes=1),
    ))
    {lines}
    os._exit(9)
"""
STORED = {
    "a skip longer than what is staged ahead": (
        [*range(1, 11), *[0] * 300, *range(311, 314)],
        "[stream.append(frame(n)) for n in range(1, 11)]; stream.skip(frames=300); "
        "[stream.append(frame(n)) for n in range(311, 314)]",
    ),
    "a batch larger than what may be staged": (
        list(range(1, 301)),
        "stream.extend([frame(n) for n in range(1, 301)])",
    ),
    "slots larger than what may be staged": (
        [*range(1, 201), 7],
        "\nwith stream.slots(200) as slots: slots[...] = [frame(n) for n in range(1, 201)]"
        "\nstream.append(frame(7))",
    ),
    "large frames": (
        list(range(1, 7)),
        "import time; [(time.sleep(0.02), stream.append(frame(n))) for n in range(1, 7)]",
    ),
}


@pytest.mark.parametrize("sizes", [{"t": None}, {"t": 1000}, {"t": None, "p": 2}])
@pytest.mark.parametrize("what", STORED)
def test_what_is_not_in_a_slot_is_in_the_file_after_a_kill(tmp_path, what, sizes):
    if "slots" in what and "p" in sizes:
        pytest.skip("slots are of one position")
    numbers, lines = STORED[what]
    side = 4096 if what == "large frames" else 512
    program = textwrap.dedent(ENDS_BADLY).replace("SIDE", str(side))
    program = program.format(lines=lines).replace("SIZES", repr(sizes))
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(program)]
    assert subprocess.run(command, cwd=tmp_path, timeout=120).returncode == 9
    for _ in range(2):
        with open_scratch(tmp_path / "data") as dataset:
            assert dataset.frames_written == len(numbers)
            view = dataset.view()
            assert [int(view.frame(n)[-1, -1]) for n in range(len(numbers))] == numbers
        recover(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")


# 40 frames of 511x601 in pieces of 64 KiB, and a limit for the length of files.
LIMITED = """
    import os, resource, sys, numpy as np
    from scratchwriter import *
    from scratchwriter._writing import policy
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 1 << 16
    nbytes = 40 * 511 * 601 * 2
    def limit(nbytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, -1))
    limit(nbytes + 200)
    stream = create_stream(AcquisitionSettings(
        root_path="data", dtype="uint16",
        dimensions=dims_from_standard_axes({"t": 40, "y": 511, "x": 601}),
        format=ScratchFormat(disk_io="direct", max_staging_bytes=64 << 16),
    ))
    for number in range(40):
        stream.append(np.full((511, 601), number, "uint16"))
"""


def run_limited(folder, lines):
    program = textwrap.dedent(LIMITED) + textwrap.dedent(lines)
    command = [sys.executable, "-W", "ignore", "-c", program]
    subprocess.run(command, cwd=folder, timeout=120, check=True)
    with open_scratch(folder / "data") as dataset:
        assert dataset.state == "closed"
        assert (dataset.arrays[0][:, -1, -1] == np.arange(40)).all()


def test_a_file_may_be_limited_to_a_length_within_its_last_block(tmp_path):
    assert 40 * 511 * 601 * 2 % 4096 not in (0, *range(4096 - 200, 4096))
    run_limited(tmp_path, "stream.close()")


def test_after_a_failed_close_a_flush_counts_no_frame_that_is_in_no_file(tmp_path):
    lines = """
        import errno
        limit(4096)
        for call in (stream.close, stream.flush, stream.flush):
            try:
                call()
            except OSError as error:
                assert error.errno == errno.EFBIG, error
            else:
                raise AssertionError(call)
            with open_scratch("data") as dataset:
                assert dataset.frames_synced < dataset.frames_written == 40
        limit(-1)
        stream.flush()
        with open_scratch("data") as dataset:
            assert dataset.frames_synced == dataset.frames_written == 40
        stream.close()
    """
    run_limited(tmp_path, lines)


@pytest.mark.parametrize(
    ("disk_nbytes_per_s", "staged_nbytes", "seconds"),
    [(0, 100, 9), (0, 1, np.inf), (50, 100, 18), (50, 0, 20), (100, 900, np.inf)],
)
def test_how_long_it_takes_until_frames_wait(disk_nbytes_per_s, staged_nbytes, seconds):
    measured = dict.fromkeys(DISK_FIELDS, 0) | {
        "camera_nbytes_per_s": 100,
        "disk_nbytes_per_s": disk_nbytes_per_s,
        "staged_nbytes": staged_nbytes,
        "max_staged_nbytes": 1000,
    }
    assert make_disk_stats(measured).seconds_left == seconds


@pytest.mark.parametrize(
    ("disk_nbytes_per_s", "told"),
    [(50, "takes 50 bytes/s, and frames come at 100 bytes/s"), (150, "is behind")],
)
def test_rates_that_explain_nothing_are_not_told(disk_nbytes_per_s, told):
    measured = dict.fromkeys(DISK_FIELDS, 600) | {
        "camera_nbytes_per_s": 100,
        "disk_nbytes_per_s": disk_nbytes_per_s,
        "max_staged_nbytes": 1000,
    }
    text = policy.slow_disk_text(Path("data"), make_disk_stats(measured))
    assert f"The disk of data {told}" in text
    assert "600 bytes wait for the disk, of at most 1,000 bytes" in text


# Follows all frames, and looks at older ones between; tells what it has seen.
FOLLOWER = """
    import random, sys, time
    from pathlib import Path
    from scratchwriter import open_scratch
    while not Path("data/manifest.json").exists():
        time.sleep(0.001)
    with open_scratch("data") as dataset:
        number = 0
        for number, frame in enumerate(dataset.follow(), 1):
            assert frame.min() == frame.max() == number
            older = random.randrange(number)
            assert (dataset.arrays[0][older] == older + 1).all()
        print(dataset.state, number)
"""
RECORD_FAST = """
    import os, sys, numpy as np
    from scratchwriter import *
    from scratchwriter._writing import policy
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 8192
    policy._KEEP_SLOTS_S = 0.001  # they are given back, and made again
    dims = dims_from_standard_axes({"t": None, "y": 32, "x": 32})
    with create_stream(AcquisitionSettings(
        root_path="data", dimensions=dims, dtype="uint32",
        format=ScratchFormat(disk_io="direct", max_staging_bytes=16 * 8192),
    )) as stream:
        for number in range(1, 3001):
            stream.append(np.full((32, 32), number, "uint32"))
        if sys.argv[1] == "killed":
            os._exit(9)
"""


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_two_processes_follow_what_a_third_stages_and_see_every_frame(tmp_path, end):
    follow = [sys.executable, "-c", textwrap.dedent(FOLLOWER)]
    record = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(RECORD_FAST), end]
    with ExitStack() as stack:
        followers = [
            stack.enter_context(
                subprocess.Popen(follow, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
            )
            for _ in range(2)
        ]
        code = subprocess.run(record, cwd=tmp_path, timeout=120).returncode
        assert code == (9 if end == "killed" else 0)
        said = [follower.communicate(timeout=120)[0].split() for follower in followers]
    assert said == [[end, "3000"]] * 2


def num_mappings(folder):
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(str(folder) in line for line in lines)


def test_a_reader_that_follows_for_long_keeps_few_mappings_and_descriptors(
    make_settings, tmp_path, small_pieces, quiet
):
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "y": 32, "x": 32}, dtype="uint32", root_path=str(folder), format=DIRECT
    )
    most_fds = len(os.listdir("/proc/self/fd")) + 30  # noqa: PTH208
    num_pieces = DIRECT.max_staging_bytes // PIECE_NBYTES
    with create_stream(settings) as stream, open_scratch(folder) as dataset:
        for number in range(2000):  # 1,000 pieces
            stream.append(frame_of((32, 32), number))
            np.testing.assert_array_equal(
                dataset.arrays[0][number], frame_of((32, 32), number)
            )
            if number % 100 == 99:
                # Each piece that is staged may be mapped twice, between parts of the file.
                assert num_mappings(folder) < 4 * num_pieces + 30
                assert len(os.listdir("/proc/self/fd")) < most_fds  # noqa: PTH208


def test_positions_that_are_not_visited_keep_nothing_from_the_disk(make_settings, tmp_path):
    # The last piece of each stack is not full, until the position is visited again.
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "p": 2, "z": 99, "y": 30, "x": 30},
        dtype="uint32",
        root_path=str(folder),
        format=DIRECT,
    )
    with create_stream(settings) as stream:
        for number in range(130):
            stream.append(frame_of((30, 30), number))
        wait_until(lambda: in_files(folder) >= 99)


def test_many_positions_are_staged_when_they_are_large(
    make_settings, tmp_path, monkeypatch, quiet
):
    monkeypatch.setattr(policy, "_PAGE_CACHE_NBYTES", 20 << 20)
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "p": 20, "y": 512, "x": 512}, root_path=str(folder)
    )
    frame = np.ones((512, 512), "uint16")
    with create_stream(settings) as stream:
        for _ in range(200):
            stream.append(frame)
        assert stream.stats().disk_io == "direct"
        wait_until(lambda: len(read_plain(folder)[19]) == 10)


def test_staging_that_finds_room_later_loses_nothing(make_settings, tmp_path, monkeypatch):
    monkeypatch.setattr(policy, "_PAGE_CACHE_NBYTES", 16 << 20)
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "y": 1024, "x": 1024},
        root_path=str(folder),
        format=ScratchFormat(max_staging_bytes=48 << 20),
    )
    with warnings.catch_warnings(), create_stream(settings) as stream:
        warnings.simplefilter("ignore")
        (folder / STAGING).mkdir()  # in its way
        for number in range(100):
            stream.append(np.full((1024, 1024), number + 1, "uint16"))
            if number == 60:
                (folder / STAGING).rmdir()
    (plain,) = read_plain(folder)
    np.testing.assert_array_equal(plain[:, 7, 7], np.arange(1, 101))


def test_without_descriptors_files_are_in_the_page_cache(make_settings, tmp_path):
    settings = make_settings(
        {"t": 40, "p": 60, "y": 256, "x": 256}, root_path=str(tmp_path / "data")
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 30, hard))
    try:
        with create_stream(settings) as stream:
            stream.append(np.ones((256, 256), "uint16"))
            stats = stream.stats()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (stats.disk_io, stats.why_not_direct) == (
        "page_cache",
        "staging failed (Too many open files)",
    )


def test_to_resolve_an_index_takes_no_time_per_frame():
    assert _resolved(slice(None), 1 << 60) == slice(0, 1 << 60)
    assert _resolved(slice(None, None, -2), 1 << 60) == slice(1, 1 << 60)
    assert _resolved(-1, 1 << 60) == slice((1 << 60) - 1, 1 << 60)
    assert _resolved(slice(5, 5), 1 << 60) == slice(0)


def test_frames_that_are_gone_with_staging_are_an_error_and_no_zeros(tmp_path):
    code = """
        import os, resource, numpy as np
        from scratchwriter import *
        dims = dims_from_standard_axes({"t": None, "y": 32, "x": 32})
        fmt = ScratchFormat(disk_io="direct")
        stream = create_stream(AcquisitionSettings(
            root_path="data", dimensions=dims, dtype="uint32", format=fmt
        ))
        stream.append(np.ones((32, 32), "uint32"))
        stream.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, -1))  # so that no more is written
        stream.extend(np.ones((300, 32, 32), "uint32"))
        os._exit(9)
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    assert subprocess.run(program, cwd=tmp_path).returncode == 9
    folder = tmp_path / "data"
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0][...].sum() == 301 * 32 * 32
    (folder / STAGING).unlink()
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0].shape == (301, 32, 32)
        np.testing.assert_array_equal(dataset.arrays[0][0], 1)  # that was flushed
        with pytest.raises(DatasetError, match=r"staging.bin is missing: it had bytes"):
            dataset.arrays[0][1]
        assert any("staging.bin is missing" in text for text in find_faults(dataset.source))
    with pytest.raises(DatasetError, match=r"staging.bin is missing"):
        recover(folder)


# ------------------------------------------------------------------- a disk that is slow


def test_frames_wait_for_a_slow_disk_and_it_is_said_once(
    make_settings, tmp_path, small_pieces
):
    # Pieces of 8 KiB, each written by itself, are slower than any camera.
    folder = tmp_path / "data"
    settings = make_settings(
        {"t": None, "y": 64, "x": 64}, root_path=str(folder), format=DIRECT
    )
    frame = np.ones((64, 64), "uint16")
    with pytest.warns(UserWarning, match="The disk of") as warned:  # noqa: SIM117
        with create_stream(settings) as stream:
            while stream.stats().disk is None or stream.stats().disk.waited_frames < 50:
                stream.extend([frame] * 20)
            stats = stream.stats()
    assert stats.disk.waited_s > 0
    assert stats.disk.disk_nbytes_per_s > 0
    assert stats.disk.staged_nbytes <= stats.disk.max_staged_nbytes + 20 * frame.nbytes
    texts = [str(warning.message) for warning in warned]
    waits = [text for text in texts if "append waits, too" in text]
    assert len([text for text in waits if "slower than the camera" in text]) == 1
    assert len(texts) <= 2
    assert all("max_staging_bytes" in text and str(folder) in text for text in texts)
    with open_scratch(folder) as dataset:
        assert dataset.disk_stats.waited_frames == stream.stats().disk.waited_frames
        assert dataset.disk_stats.staged_nbytes == stream.stats().disk.staged_nbytes == 0
        assert dataset.disk_stats.seconds_left == stream.stats().disk.seconds_left == np.inf
        assert (dataset.arrays[0][...] == 1).all()


def test_it_is_said_before_a_frame_has_to_wait(make_settings, tmp_path, monkeypatch):
    # A piece of 1 MiB that no frame completes waits; more than half of what may.
    monkeypatch.setattr(policy, "_PIECE_NBYTES", 1 << 20)
    settings = make_settings(
        {"t": None, "p": 2, "y": 512, "x": 512},
        root_path=str(tmp_path / "data"),
        format=DIRECT,
    )
    frame = np.ones((512, 512), "uint16")
    with pytest.warns(UserWarning, match="The disk of") as warned:  # noqa: SIM117
        with create_stream(settings) as stream:
            for _ in range(4000):
                stream.append(frame)
                if any(
                    "append will wait, too" in str(warning.message) for warning in warned
                ):
                    break
    assert any("append will wait, too" in str(warning.message) for warning in warned)


def test_a_warning_that_is_an_error_leaves_all_as_it_was(
    make_settings, tmp_path, small_pieces
):
    settings = make_settings(
        {"t": None, "y": 64, "x": 64}, root_path=str(tmp_path / "data"), format=DIRECT
    )
    refused = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with create_stream(settings) as stream:
            for number in range(2000):
                frame = np.full((64, 64), number, "uint16")
                try:
                    stream.append(frame)
                except UserWarning:
                    assert stream.frames_written == number
                    stream.append(frame)
                    refused += 1
    assert refused == 1
    assert (stream.arrays[0][:, 0, 0] == np.arange(2000)).all()


# --------------------------------------------------------------------------------- ends


def test_a_stream_that_is_abandoned_leaves_nothing(make_settings, tmp_path, monkeypatch):
    def refuse(*_):
        raise RuntimeError("refused")

    monkeypatch.setattr(
        "scratchwriter._writing.storage.Storage._warn_at_the_beginning", refuse
    )
    settings = make_settings(
        {"t": 9, "y": 8, "x": 8}, root_path=str(tmp_path / "data"), format=DIRECT
    )
    before = threading.enumerate()
    with pytest.raises(RuntimeError, match="refused"):
        create_stream(settings)
    assert not (tmp_path / "data").exists()
    assert set(threading.enumerate()) <= set(before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_child_reads_what_the_parent_had_and_disturbs_nothing(
    make_settings, tmp_path, small_pieces, quiet
):
    settings = make_settings(
        {"t": None, "y": 32, "x": 32},
        dtype="uint32",
        root_path=str(tmp_path / "data"),
        format=DIRECT,
    )
    with create_stream(settings) as stream:
        for count in range(50, 2000, 100):
            for number in range(count - 50, count):
                stream.append(frame_of((32, 32), number))
            taken = stream.arrays[0]
            pid = os.fork()  # some frames are in no file but staging.bin, most times
            if pid == 0:
                found = np.stack([taken[:count, 0, 0], stream.arrays[0][:count, 0, 0]])
                stream.stats()  # waits for no lock that a thread of the parent held
                os._exit(0 if (found == np.arange(count)).all() else 1)
            for number in range(count, count + 50):  # slots are used again meanwhile
                stream.append(frame_of((32, 32), number))
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    np.testing.assert_array_equal(stream.arrays[0][:, 0, 0], np.arange(2000))


@pytest.mark.parametrize("end", ["close", "kill"])
def test_a_slot_that_was_given_back_is_zeros_whatever_was_written_meanwhile(tmp_path, end):
    program = f"""
        import os, sys, time
        from scratchwriter import *
        stream = create_stream(AcquisitionSettings(
            root_path="data", dtype="uint16", format=ScratchFormat(disk_io="direct"),
            dimensions=dims_from_standard_axes({{"t": 10, "y": 50, "x": 50}}),
        ))
        for number in range(3):
            stream.append(np.full((50, 50), number + 1, "uint16"))
        try:
            with stream.slot() as frame:
                frame[...] = 7777
                while np.fromfile("data/" + PROGRESS, PROGRESS_HEADER, 1)["in_files"] < 3:
                    time.sleep(0.01)  # its first bytes share a block with the frame before
                raise KeyError
        except KeyError:
            pass
        assert not stream.arrays[0][3:].any()
        if "{end}" == "kill":
            os._exit(9)
        stream.close()
        assert not stream.arrays[0][3:].any()
    """
    head = """
        import numpy as np
        from scratchwriter._files.layout import PROGRESS, PROGRESS_HEADER
    """
    command = [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(program)]
    assert subprocess.run(command, cwd=tmp_path).returncode == (9 if end == "kill" else 0)
    folder = tmp_path / "data"
    for _ in range(2):
        with open_scratch(folder) as dataset:
            assert dataset.frames_written == 3
            assert not dataset.arrays[0][3:].any()
        recover(folder)
    (plain,) = read_plain(folder)
    np.testing.assert_array_equal(plain[:, -1, -1], [1, 2, 3] + 7 * [0])


def test_a_slot_that_is_used_again_while_a_reader_looks_is_no_damage(killed, monkeypatch):
    # As a reader sees it whose thread is held up: a slot is missing, and has changed.
    looks, entries_of = [], staged._entries

    def one_is_missed(slots, position):
        found = sorted(entries_of(slots, position))
        looks.append(position)
        if len(looks) == 1:
            missed = found.pop(-2)
            at = STAGING_HEADER.itemsize + missed.number * STAGING_SLOT.itemsize
            with (killed / STAGING).open("r+b") as file:
                file.seek(at + STAGING_SLOT.fields["generation"][1])
                file.write((missed.generation + 2).to_bytes(8, sys.byteorder))
        return iter(found)

    monkeypatch.setattr(staged, "_entries", one_is_missed)
    with open_scratch(killed) as dataset:
        assert values(dataset) == list(range(1, 402))
    assert len(looks) > 2
