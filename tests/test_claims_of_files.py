"""Files that claim much, are spoiled beside the frames, or come from another machine."""

import gc
import itertools
import mmap
import os
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from scratchwriter._files import records
from scratchwriter._files.layout import RECORD
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._region import view_ring
from scratchwriter.cli import main
from waiting import wait_until

SIZES = {"t": None, "y": 8, "x": 8}
LINUX = sys.platform == "linux"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def frame_of(number, shape=(8, 8)):
    return np.full(shape, number, "uint16")


def patch(path, offset, data):
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def restarted(folder):
    """As if the machine had been restarted while the dataset was recorded."""
    patch(folder / "progress.bin", 12, struct.pack("=I", 1))
    patch(folder / "progress.bin", 24, b"0" * 36)


# -------------------------------------------------------------------------- other pages


@pytest.mark.parametrize("killed", [False, True])
def test_a_ring_of_a_machine_with_larger_pages_is_read_as_it_was_written(folder, killed):
    program = f"""
    import mmap, os
    mmap.ALLOCATIONGRANULARITY = 65536
    import numpy as np
    from scratchwriter import AcquisitionSettings, ScratchFormat, create_stream
    from scratchwriter import dims_from_standard_axes as dims
    stream = create_stream(
        AcquisitionSettings(
            root_path={str(folder)!r}, dtype="uint16",
            dimensions=dims({{"t": None, "y": 32, "x": 32}}),
            format=ScratchFormat(keep_last=4, timestamps=True),
        )
    )
    for i in range(1000):
        stream.append(np.full((32, 32), i, "uint16"), frame_id=i)
    if {killed}:
        os._exit(1)
    stream.close()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=not killed)
    size = (folder / "pos_0.dat").stat().st_size
    assert size == 65536
    expected = [996, 997, 998, 999]
    for _ in range(2):
        with open_scratch(folder) as dataset:
            assert dataset.arrays[0][:, 0, 0].tolist() == expected
            assert dataset.frame_ids[0].tolist() == expected
            assert len(dataset.frame_times_ns()) == 32
            assert find_faults(dataset.source) == [] or killed
        recover(folder)
    assert (folder / "pos_0.dat").stat().st_size == size


def test_a_ring_that_is_no_whole_page_here_is_copied(tmp_path):
    (tmp_path / "a.dat").write_bytes(bytes(range(100)))
    assert bytes(view_ring(tmp_path / "a.dat", 100)) == bytes(range(100)) * 2


@pytest.mark.parametrize("nbytes", [0, 100, 128, mmap.PAGESIZE + 1])
def test_a_ring_whose_file_has_an_impossible_size_is_a_fault(make_settings, folder, nbytes):
    fmt = ScratchFormat(keep_last=2)
    with create_stream(make_settings(SIZES, root_path=str(folder), format=fmt)) as stream:
        stream.append(frame_of(1))
    os.truncate(folder / "pos_0.dat", nbytes)
    with pytest.raises(DatasetError, match=r"pos_0\.dat"):
        open_scratch(folder)


def test_a_ring_whose_records_are_cut_is_a_fault_of_that_file(make_settings, folder):
    fmt = ScratchFormat(keep_last=2, timestamps=True)
    with create_stream(make_settings(SIZES, root_path=str(folder), format=fmt)) as stream:
        for i in range(200):
            stream.append(frame_of(i), frame_id=i)
    os.truncate(folder / "frame_records.bin", 10 * RECORD.itemsize)
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0][:, 0, 0].tolist() == [198, 199]
        for ask in (
            lambda: dataset.timestamps,
            lambda: dataset.frame_ids,
            dataset.frame_times_ns,
            lambda: dataset.frame_records(0, 200),
        ):
            with pytest.raises(DatasetError, match=r"records\.bin: it has 10 records"):
                ask()


# ---------------------------------------------------------------- what is beside frames


def test_after_a_restart_damaged_skips_cost_no_frame(make_settings, folder):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for i in range(3):
            stream.append(frame_of(i))
        stream.skip(frames=2)
        stream.append(frame_of(5))
        stream.flush()
    restarted(folder)
    patch(folder / "skips.bin", 0, bytes(16))  # as a power cut leaves it
    for _ in range(2):
        with pytest.warns(UserWarning, match="restarted"):
            dataset = open_scratch(folder)
        with dataset:
            assert dataset.arrays[0][:, 0, 0].tolist() == [0, 1, 2, 0, 0, 5]
            assert dataset.skipped == []  # of what was not synced, it cannot be known
        recover(folder)


def test_after_a_restart_a_ring_has_all_its_frames(make_settings, folder):
    fmt = ScratchFormat(keep_last=3, timestamps=True)
    with create_stream(make_settings(SIZES, root_path=str(folder), format=fmt)) as stream:
        for i in range(1000):
            stream.append(frame_of(i), frame_id=i)
    restarted(folder)
    for _ in range(2):
        with pytest.warns(UserWarning, match="restarted"):
            dataset = open_scratch(folder)
        with dataset:
            assert (dataset.frames_written, dataset.frames_synced) == (1000, 0)
            assert dataset.arrays[0][:, 0, 0].tolist() == [997, 998, 999]
            assert dataset.frame_ids[0].tolist() == [997, 998, 999]
        recover(folder)


def test_of_a_file_that_went_since_it_was_opened_the_path_is_named(make_settings, folder):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frame_of(0))
    patch(folder / "progress.bin", 88, bytes(16))  # as older versions wrote it
    with open_scratch(folder) as dataset:
        (folder / "pos_0.dat").unlink()
        assert any("pos_0.dat" in fault for fault in find_faults(dataset.source))
        with pytest.raises(DatasetError, match=r"pos_0\.dat"):
            _ = dataset.recording_id


def test_of_a_file_that_becomes_shorter_while_it_is_opened_the_sizes_are_named(
    make_settings, folder, monkeypatch
):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for i in range(100):
            stream.append(frame_of(i))
    need_nbytes = "scratchwriter._files.source.need_nbytes"
    with open_scratch(folder) as dataset:
        monkeypatch.setattr(need_nbytes, lambda *args: None)
        os.truncate(folder / "pos_0.dat", 128)
        with pytest.raises(DatasetError, match=r"pos_0\.dat: it has 128 bytes, not 12800"):
            dataset.arrays[0][0]


# ------------------------------------------------------------------------- large claims


@pytest.mark.skipif(not LINUX, reason="needs sparse files of any size")
def test_a_file_that_claims_many_frames_takes_no_memory_for_them(
    make_settings, folder, capsys
):
    claimed = 1 << 38
    sizes = {"t": None, "y": 1, "x": 1}
    fmt = ScratchFormat(timestamps=True)
    with create_stream(make_settings(sizes, root_path=str(folder), format=fmt)) as stream:
        for i in range(10):
            stream.append(frame_of(i, (1, 1)), frame_id=2 * i)
    try:
        os.truncate(folder / "pos_0.dat", 2 * claimed)
        os.truncate(folder / "frame_records.bin", 1 << 43)
    except OSError as error:
        pytest.skip(f"no such files here: {error}")
    os.truncate(folder / "frame_records.bin", 10 * RECORD.itemsize)  # fast to read
    patch(folder / "progress.bin", 64, struct.pack("=q", claimed))
    manifest = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(manifest.replace(f"{10:>16}", f"{claimed:>16}"))
    with open_scratch(folder) as dataset:
        assert dataset.frames_written == claimed
        assert dataset.dropped == 9
        assert len(dataset.frame_times_ns()) == 10
        for ask in (
            lambda: dataset.timestamps,
            lambda: dataset.frame_ids,
            lambda: dataset.written(0),
        ):
            with pytest.raises(DatasetError, match=r"progress\.bin"):
                ask()
    assert main(["info", str(folder)]) == 0
    assert f"{claimed}" in capsys.readouterr().out.replace(",", "").replace("_", "")


def test_numbers_are_counted_in_pieces_as_all_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    found = np.zeros(1000, RECORD)
    found["frame_id"] = np.cumsum(rng.integers(1, 5, 1000))
    found["frame_id"][500:] -= int(found["frame_id"][500]) - 3  # the camera starts again
    found["timestamp_ns"] = np.arange(1000) * 7
    found["known"] = rng.integers(0, 8, 1000)
    known = found["frame_id"][found["known"] & 2 != 0].tolist()
    pairs = itertools.pairwise(known)
    expected = sum(after - before - 1 for before, after in pairs if after > before)
    for piece in (1, 7, 1000, 10_000):
        monkeypatch.setattr(records, "_PIECE_RECORDS", piece)
        assert records.count_dropped(found) == expected
        times = records.known_times_ns(found)
        assert times.tolist() == found["timestamp_ns"][found["known"] & 1 != 0].tolist()


@pytest.mark.skipif(not LINUX, reason="needs sparse files of any size")
def test_a_line_without_an_end_is_a_fault_before_all_of_it_is_read(make_settings, folder):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frame_of(0), frame_metadata={"a": 1})
    os.truncate(folder / "frame_metadata.jsonl", 1 << 43)  # hours
    with open_scratch(folder) as dataset:
        with pytest.raises(DatasetError, match="a line has more than"):
            len(dataset.frame_metadata)
        assert dataset.arrays[0].shape == (1, 8, 8)


# ------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize("kept", ["view", "coords_changed"])
def test_a_view_alone_is_notified_of_frames(make_settings, folder, kept):
    calls = []
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frame_of(0))
        view = open_scratch(folder).view()
        held = view if kept == "view" else view.coords_changed
        view.coords_changed.connect(lambda: calls.append(1))
        del view
        gc.collect()
        for i in range(5):
            stream.append(frame_of(i))
        wait_until(lambda: calls)
        del held
