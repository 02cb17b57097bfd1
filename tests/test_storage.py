"""Folders and growth: what is made, what is replaced, where data goes when it grows."""

import contextlib
import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from marks import PORTABLE, needs_page_cache
from reference import Model, read_lines, read_plain
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._files.repair import find_faults
from scratchwriter._writing.arrays import ArraySet
from waiting import remove_recorded, wait_until

FILES = {
    "manifest.json",
    "pos_0.dat",
    "frame_metadata.jsonl",
    "progress.bin",
    "skips.bin",
    "append_times.bin",
}
SIZES = {"t": 3, "y": 4, "x": 5}


def names(folder):
    return {path.name for path in folder.iterdir()}


# --------------------------------------------------------------------- folders


def test_a_dataset_is_a_folder_made_with_its_parents(make_settings, tmp_path, frames):
    folder = tmp_path / "a" / "b" / "data"
    with create_stream(make_settings({"p": 2} | SIZES, root_path=str(folder))) as stream:
        assert stream.path == folder
    assert names(folder) == FILES | {"pos_1.dat"}


def test_memory_leaves_no_file(make_settings, tmp_path, monkeypatch, frames):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with create_stream(make_settings(SIZES)) as stream:
        stream.append(frames[0], frame_metadata={"a": 1})
        assert stream.path is None
    assert names(tmp_path) == set()


def test_the_home_folder_is_expanded(make_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with create_stream(make_settings(SIZES, root_path="~/data")) as stream:
        assert stream.path == tmp_path / "data"
    assert names(tmp_path / "data") == FILES


def test_a_relative_path_stays_where_it_was(make_settings, tmp_path, monkeypatch, frames):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, root_path="d")) as stream:
        monkeypatch.chdir(tmp_path / "elsewhere")
        stream.append(frames[0])
        stream.set_global_metadata("a", {})
    assert names(tmp_path / "d") == FILES
    assert names(tmp_path / "elsewhere") == set()


@pytest.mark.parametrize("content", [[], ["notes.txt"]], ids=["empty", "with a file"])
def test_an_existing_folder_is_refused_and_not_touched(make_settings, tmp_path, content):
    folder = tmp_path / "data"
    folder.mkdir()
    for name in content:
        (folder / name).write_text("precious")
    with pytest.raises(FileExistsError, match="overwrite=True") as error:
        create_stream(make_settings(SIZES, root_path=str(folder)))
    assert error.value.filename == str(folder)
    assert names(folder) == set(content)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_folder_with_a_pipe_in_place_of_a_lock_is_refused(make_settings, tmp_path):
    os.mkfifo(tmp_path / "progress.bin")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        create_stream(make_settings(SIZES, root_path=str(tmp_path)))


def test_overwrite_replaces_a_dataset(make_settings, tmp_path, frames):
    folder = tmp_path / "data"
    with create_stream(make_settings({"p": 4} | SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0], frame_metadata={"old": 1})
    old = stream.arrays[0]
    with create_stream(
        make_settings(SIZES, root_path=str(folder), overwrite=True)
    ) as stream:
        stream.append(frames[1])
    assert names(folder) == FILES
    np.testing.assert_array_equal(read_plain(folder)[0][0], frames[1])
    assert read_lines(folder) == []
    np.testing.assert_array_equal(old[0], frames[0])  # held: still what it was


def test_overwrite_accepts_what_a_writer_left_that_died_as_it_began(
    make_settings, tmp_path, frames
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"), overwrite=True)
    create_stream(settings).close()
    (tmp_path / "d" / "manifest.json").unlink()
    with create_stream(settings) as stream:
        stream.append(frames[0])
    (tmp_path / "d" / "manifest.json").unlink()  # with a frame it is more than that
    with pytest.raises(FileExistsError, match="nothing is deleted"):
        create_stream(settings)


def test_overwrite_follows_a_link_to_a_dataset(make_settings, tmp_path, frames):
    create_stream(make_settings(SIZES, root_path=str(tmp_path / "d"))).close()
    (tmp_path / "link").symlink_to(tmp_path / "d")
    settings = make_settings(SIZES, root_path=str(tmp_path / "link"), overwrite=True)
    with create_stream(settings) as stream:
        stream.append(frames[0])
        assert stream.path == tmp_path / "d"
    assert (read_plain(tmp_path / "link")[0][0] == frames[0]).all()


def test_overwrite_accepts_an_empty_folder(make_settings, tmp_path):
    (tmp_path / "data").mkdir()
    create_stream(
        make_settings(SIZES, root_path=str(tmp_path / "data"), overwrite=True)
    ).close()
    assert names(tmp_path / "data") == FILES


def test_overwrite_keeps_files_that_are_not_of_the_dataset(make_settings, tmp_path):
    folder = tmp_path / "data"
    create_stream(make_settings(SIZES, root_path=str(folder))).close()
    (folder / "notes.txt").write_text("precious")
    create_stream(make_settings(SIZES, root_path=str(folder), overwrite=True)).close()
    assert (folder / "notes.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "content",
    [
        {"notes.txt": "precious"},
        {"manifest.json": "{}", "pos_0.dat": "precious"},
        {"manifest.json": "not JSON"},
        {"pos_0.dat": "precious"},
    ],
)
def test_overwrite_refuses_what_is_no_scratch_dataset(make_settings, tmp_path, content):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).write_text(text)
    with pytest.raises(FileExistsError, match="nothing is deleted"):
        create_stream(make_settings(SIZES, root_path=str(folder), overwrite=True))
    assert {p.name: p.read_text() for p in folder.iterdir()} == content


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("below", ["", "data", "a/b"])
def test_a_file_in_the_way_is_refused_and_not_touched(
    make_settings, tmp_path, overwrite, below
):
    file = tmp_path / "file"
    file.write_text("precious")
    with pytest.raises(OSError, match="file"):
        create_stream(
            make_settings(SIZES, root_path=str(file / below), overwrite=overwrite)
        )
    assert file.read_text() == "precious"
    assert names(tmp_path) == {"file"}


def test_a_folder_that_cannot_be_written_is_a_clear_error(make_settings):
    with pytest.raises(OSError, match="/proc") as error:
        create_stream(make_settings(SIZES, root_path="/proc/data"))
    assert error.value.errno is not None


@pytest.mark.skipif(PORTABLE, reason="it goes with the last reference")
def test_what_fails_half_way_keeps_no_memory_while_its_error_is_kept(
    make_settings, place, monkeypatch
):
    from edges import mapped_nbytes

    def fail(_):
        raise RuntimeError("no thread")

    monkeypatch.setattr(ArraySet, "start_ahead", fail)
    before = mapped_nbytes()
    with pytest.raises(RuntimeError, match="no thread") as error:
        create_stream(make_settings({"t": 256, "y": 512, "x": 512}, **place))
    assert error.tb is not None
    assert mapped_nbytes() < before + (64 << 20)  # of 128 MiB


def test_what_fails_half_way_leaves_no_folder(make_settings, tmp_path, monkeypatch):
    from scratchwriter._writing import dataset_files

    def fail(*_, **__):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(dataset_files, "ManifestDraft", fail)
    with pytest.raises(OSError, match="broken"):
        create_stream(make_settings(SIZES, root_path=str(tmp_path / "data")))
    assert names(tmp_path) == set()


def test_overwriting_what_cannot_fit_keeps_the_old_dataset(make_settings, tmp_path, frames):
    folder = tmp_path / "data"
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0])
    sizes = {"t": 2**40, "y": 512, "x": 512}
    with pytest.raises(OSError, match="free"):
        create_stream(make_settings(sizes, root_path=str(folder), overwrite=True))
    np.testing.assert_array_equal(read_plain(folder)[0][0], frames[0])


# ---------------------------------------------------------------------- growth

UNBOUNDED = {"t": None, "p": ["a", "b"], "c": 2, "y": 4, "x": 5}
STEP_NBYTES = 2 * 2 * 40  # of both positions


def test_files_are_exactly_as_long_as_their_shapes(make_settings, tmp_path, frames):
    folder = tmp_path / "data"
    with create_stream(make_settings(UNBOUNDED, root_path=str(folder))) as stream:
        for frame in frames[:9]:
            stream.append(frame)
    sizes = [(folder / f"pos_{i}.dat").stat().st_size for i in range(2)]
    assert sizes == [3 * 80, 2 * 80]


def test_growth_in_small_windows_is_seamless(make_settings, place, frames, monkeypatch):
    for name in ("_GRANT_NBYTES", "_MEMORY_WINDOW_NBYTES", "_FILE_WINDOW_NBYTES"):
        monkeypatch.setattr(f"scratchwriter._writing.policy.{name}", 1)
    settings = make_settings(UNBOUNDED, **place)
    model = Model(settings)
    with create_stream(settings) as stream:
        for frame in frames:
            stream.append(frame)
            model.append(frame)
            for position, array in enumerate(stream.arrays):
                np.testing.assert_array_equal(array, model.array(position))


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_room_that_another_thread_has_made_meanwhile_is_left_as_it_is(
    make_settings, place, frames, tmp_path
):
    root_path = str(tmp_path / "data") if place == "disk" else ""
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=root_path)
    model = Model(settings)
    with create_stream(settings) as stream:
        for i in range(10):
            stream.append(frames[i])
            model.append(frames[i])
        # What a thread asks for that arrived at the same end, and comes second.
        stream._storage.make_room(0, frames[0].nbytes)
        np.testing.assert_array_equal(stream.arrays[0], model.array(0))


def test_an_append_that_would_cross_the_limit_is_a_memory_error(make_settings, frames):
    fmt = ScratchFormat(max_memory_bytes=3 * STEP_NBYTES, spill_to_disk=False)
    settings = make_settings(UNBOUNDED, format=fmt)
    model = Model(settings)
    with create_stream(settings) as stream:
        for frame in frames[:12]:
            stream.append(frame)
            model.append(frame)
        for _ in range(2):
            with pytest.raises(MemoryError, match="max_memory_bytes=480") as error:
                stream.append(frames[12])
            assert "root_path" in str(error.value)
            assert stream.frames_written == 12
    for position, array in enumerate(stream.arrays):
        np.testing.assert_array_equal(array, model.array(position))


def test_a_growing_stream_goes_on_on_disk(make_settings, tmp_path, frames):
    fmt = ScratchFormat(max_memory_bytes=3 * STEP_NBYTES, spill_dir=str(tmp_path / "spill"))
    settings = make_settings(UNBOUNDED, format=fmt)
    model = Model(settings)
    with create_stream(settings) as stream:
        for i, frame in enumerate(frames[:12]):
            stream.append(frame, frame_metadata={"i": i})
            model.append(frame)
        assert stream.path is None
        held = stream.arrays[0][:2]
        stream.set_global_metadata("mine", {"a": 1})
        with pytest.warns(UserWarning, match="max_memory_bytes=480") as caught:
            stream.append(frames[12], frame_metadata={"i": 12})
        model.append(frames[12])
        assert caught[0].filename == __file__
        assert stream.path.parent == tmp_path / "spill"
        assert stat.S_IMODE(stream.path.stat().st_mode) == 0o700
        for i, frame in enumerate(frames[13:30], start=13):
            stream.append(frame, frame_metadata={"i": i})
            model.append(frame)
        np.testing.assert_array_equal(held, model.array(0)[:2])
    for position, plain in enumerate(read_plain(stream.path)):
        np.testing.assert_array_equal(plain, model.array(position))
        np.testing.assert_array_equal(stream.arrays[position], model.array(position))
    assert [line["i"] for line in read_lines(stream.path)] == list(range(30))


def test_metadata_that_was_kept_in_memory_is_all_in_the_file(
    make_settings, tmp_path, frames
):
    fmt = ScratchFormat(max_memory_bytes=40 * 2000, spill_dir=str(tmp_path))
    settings = make_settings({"t": None, "y": 4, "x": 5}, format=fmt)
    with create_stream(settings) as stream, pytest.warns(UserWarning, match="max_memory"):
        for i in range(10_000):  # more than a block of lines before the limit and behind
            metadata = {"i": i, "text": "x" * (i % 100)}
            if i == 1500:
                metadata["text"] = "x" * 200_000
            stream.append(frames[i % 60], frame_metadata=metadata)
    lines = read_lines(stream.path)
    assert [line["i"] for line in lines] == list(range(10_000))
    assert [line["_idx"] for line in lines] == [[i] for i in range(10_000)]
    assert len(lines[1500]["text"]) == 200_000


def test_a_spill_warning_turned_into_an_error_loses_nothing(
    make_settings, tmp_path, frames
):
    fmt = ScratchFormat(max_memory_bytes=80, spill_dir=str(tmp_path))
    settings = make_settings({"t": None, "y": 4, "x": 5}, format=fmt)
    with create_stream(settings) as stream:
        stream.append(frames[0])
        stream.append(frames[1])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning):
                stream.append(frames[2])
        assert stream.frames_written == 2
        stream.append(frames[2])
    np.testing.assert_array_equal(stream.arrays[0], frames[:3])


def test_too_little_memory_left_in_the_machine_spills(
    make_settings, tmp_path, frames, monkeypatch
):
    fmt = ScratchFormat(spill_dir=str(tmp_path))
    settings = make_settings({"t": None, "y": 4, "x": 5}, format=fmt)
    for name in ("_GRANT_NBYTES", "_MEMORY_WINDOW_NBYTES", "_FILE_WINDOW_NBYTES"):
        monkeypatch.setattr(f"scratchwriter._writing.policy.{name}", 1)
    monkeypatch.setattr(
        "scratchwriter._writing.policy.available_memory_nbytes", lambda: 2 * 40
    )
    with create_stream(settings) as stream:
        stream.append(frames[0])  # half of that, and then the machine is asked again
        monkeypatch.setattr(
            "scratchwriter._writing.policy.available_memory_nbytes", lambda: 39
        )
        with pytest.warns(UserWarning, match="available"):
            stream.append(frames[1])
    np.testing.assert_array_equal(stream.arrays[0], frames[:2])


def test_a_bounded_dataset_over_the_limit_begins_in_a_private_folder(
    make_settings, tmp_path, frames
):
    fmt = ScratchFormat(max_memory_bytes=100, spill_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="120 bytes"):
        stream = create_stream(make_settings(SIZES, format=fmt))
    with stream:
        assert stream.path.parent == tmp_path
        assert stat.S_IMODE(stream.path.stat().st_mode) == 0o700
        for frame in frames[:3]:
            stream.append(frame)
    assert names(stream.path) == FILES | {".scratchwriter-temporary"}
    np.testing.assert_array_equal(read_plain(stream.path)[0], frames[:3])


@pytest.mark.skipif(PORTABLE, reason="grows by copying, with other limits")
@pytest.mark.parametrize("order", ["acquisition", ["c", "t", "y", "x"]], ids=str)
def test_frames_behind_a_spill_for_lack_of_memory_have_their_place_on_the_disk(
    make_settings, small_disk, monkeypatch, order
):
    # The thread ahead is far ahead in memory when the array goes on in a file.
    nbytes = 64 << 10
    window_nbytes = 64 * nbytes
    monkeypatch.setattr(
        "scratchwriter._writing.policy._MEMORY_WINDOW_NBYTES", window_nbytes
    )
    monkeypatch.setattr("scratchwriter._writing.policy._FILE_WINDOW_NBYTES", 4 * nbytes)
    monkeypatch.setattr("scratchwriter._writing.policy._GRANT_NBYTES", 20 * nbytes)
    available_nbytes = window_nbytes + 20 * nbytes
    monkeypatch.setattr(
        "scratchwriter._writing.policy.available_memory_nbytes", lambda: available_nbytes
    )
    fmt = ScratchFormat(spill_dir=str(small_disk))
    sizes = {"t": None, "c": 2, "y": 128, "x": 256}
    settings = make_settings(sizes, format=fmt, storage_order=order)
    with create_stream(settings) as stream:
        for number in range(20):
            stream.append(np.full((128, 256), number + 1, "uint16"))
        half_nbytes = window_nbytes // 2
        wait_until(lambda: stream.stats().populated_ahead_nbytes >= half_nbytes)
        available_nbytes = window_nbytes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # Until the disk is full: an error then, and no signal.
            number = 20
            with pytest.raises(OSError, match="free"):
                while True:
                    stream.append(np.full((128, 256), number + 1, "uint16"))
                    number += 1
        assert number > 40
        array = stream.arrays[0][...]
        array = array if order == "acquisition" else array.swapaxes(0, 1)
        stored = array.reshape(-1, 128, 256)[:number]
        assert (stored == np.arange(1, number + 1, dtype="uint16")[:, None, None]).all()
        # What is in memory has no room, unless the thread that saves it was quicker.
        with contextlib.suppress(OSError):
            stream.close()
        for path in small_disk.glob("ballast*"):
            path.unlink()
        subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
        stream.close()
    assert open_scratch(stream.path).state == "closed"
    (plain,) = read_plain(stream.path)
    plain = plain.reshape(-1, 128, 256)[:number]
    assert (plain == np.arange(1, number + 1, dtype="uint16")[:, None, None]).all()


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "open"])
@pytest.mark.parametrize("growing", [True, False], ids=["grown", "from the beginning"])
def test_temporary_folders_are_removed_at_exit(tmp_path, closed, growing):
    code = f"""
    import warnings, numpy as np
    from scratchwriter import *
    warnings.simplefilter("ignore")
    dims = dims_from_standard_axes({{"t": {None if growing else 9}, "y": 4, "x": 5}})
    stream = create_stream(AcquisitionSettings(dimensions=dims, dtype="uint16", format=
        ScratchFormat(max_memory_bytes=80, spill_dir={str(tmp_path)!r})))
    for _ in range(5):
        stream.append(np.ones((4, 5), "uint16"))
    assert stream.path.is_dir()
    if {closed}:
        stream.close()
    print("done")
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert (run.stdout, run.stderr, run.returncode) == ("done\n", "", 0)
    assert names(tmp_path) == set()


# ------------------------------------------------------------------------ skips


def test_a_long_skip_makes_long_arrays_and_sparse_files(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        stream.append(frames[0])
        stream.skip(frames=10**9)
        stream.append(frames[1])
        array = stream.arrays[0]
        assert array.shape == (10**9 + 2, 4, 5)
        np.testing.assert_array_equal(array[-1], frames[1])
        np.testing.assert_array_equal(array[0], frames[0])
        assert not array[5 * 10**8].any()
    status = (tmp_path / "d" / "pos_0.dat").stat()
    assert status.st_size == (10**9 + 2) * 40
    if hasattr(status, "st_blocks"):
        assert status.st_blocks * 512 < 200 << 20  # of 40 GB: what was allocated ahead


def test_a_skip_beyond_all_bounds_is_refused_and_consumes_nothing(
    make_settings, place, frames
):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, **place)) as stream:
        stream.append(frames[0])
        for n in (10**15, 2**62, 2**100):
            with pytest.raises((MemoryError, OSError)):
                stream.skip(frames=n)
        assert stream.frames_written == 1
        stream.append(frames[1])
        np.testing.assert_array_equal(stream.arrays[0], frames[:2])


# ------------------------------------------------------------------- full disks


def test_a_disk_that_fills_up_is_an_error_and_what_came_before_is_whole(
    make_settings, small_disk
):
    settings = make_settings(
        {"t": None, "y": 256, "x": 512}, root_path=str(small_disk / "d")
    )
    frame = np.arange(256 * 512, dtype="uint16").reshape(256, 512)
    with create_stream(settings) as stream:
        with pytest.raises(OSError, match="No space") as error:
            for i in range(100):
                stream.append(frame + i)
        assert error.value.errno == errno.ENOSPC
        count = stream.frames_written
        assert 10 < count < 16
        (small_disk / "d" / "progress.bin").read_bytes()
    (plain,) = read_plain(small_disk / "d")
    assert plain.shape == (count, 256, 512)
    for i in range(count):
        np.testing.assert_array_equal(plain[i], frame + i)


def test_after_space_is_freed_the_next_append_works(make_settings, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    settings = make_settings(
        {"t": None, "y": 256, "x": 512}, root_path=str(small_disk / "d")
    )
    frame = np.ones((256, 512), "uint16")
    with create_stream(settings) as stream:
        with pytest.raises(OSError, match="No space"):
            for _ in range(100):
                stream.append(frame)
        count = stream.frames_written
        ballast.unlink()
        stream.append(frame + 1)
        assert stream.frames_written == count + 1
        np.testing.assert_array_equal(stream.arrays[0][-1], frame + 1)


def test_metadata_that_does_not_fit_is_an_error_and_consumes_nothing(
    make_settings, small_disk
):
    settings = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(small_disk / "d"))
    frame = np.ones((4, 5), "uint16")
    with create_stream(settings) as stream:
        stream.append(frame, frame_metadata={"a": 1})
        with pytest.raises(OSError, match=r"frame_metadata\.jsonl"):
            stream.append(frame, frame_metadata={"a": "x" * (5 << 20)})
        assert stream.frames_written == 1
        stream.append(frame, frame_metadata={"a": 2})
    assert [line["a"] for line in read_lines(small_disk / "d")] == [1, 2]


def test_a_spill_to_a_full_disk_can_be_tried_again(make_settings, small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(3 << 20))
    fmt = ScratchFormat(max_memory_bytes=2 << 20, spill_dir=str(small_disk))
    settings = make_settings({"t": None, "p": 2, "y": 256, "x": 512}, format=fmt)
    with create_stream(settings) as stream:
        for i in range(8):
            stream.append(np.full((256, 512), i, "uint16"), frame_metadata={"i": i})
        with pytest.raises(OSError, match="free"):
            stream.append(np.full((256, 512), 8, "uint16"), frame_metadata={"i": 8})
        assert stream.frames_written == 8
        ballast.unlink()
        with pytest.warns(UserWarning, match="max_memory_bytes"):
            stream.append(np.full((256, 512), 8, "uint16"), frame_metadata={"i": 8})
    assert [int(a[i, 0, 0]) for i in range(4) for a in read_plain(stream.path)] == list(
        range(8)
    )
    assert len(read_lines(stream.path)) == 9


def test_a_removed_folder_is_an_error_at_close_and_the_arrays_stay(
    make_settings, tmp_path, frames
):
    stream = create_stream(make_settings(SIZES, root_path=str(tmp_path / "d")))
    stream.append(frames[0])
    remove_recorded(tmp_path / "d")
    if Path(tmp_path / "d").exists():
        pytest.skip("files in use cannot be removed here")
    with pytest.raises(FileNotFoundError):
        stream.close()
    assert stream.closed
    np.testing.assert_array_equal(stream.arrays[0][0], frames[0])


# ------------------------------------------------------------- one writer per dataset


def test_a_dataset_that_is_being_recorded_is_not_overwritten(
    make_settings, tmp_path, frames
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"), overwrite=True)
    with create_stream(settings) as stream:
        stream.append(frames[0])
        with pytest.raises(FileExistsError, match=f"process {os.getpid()}"):
            create_stream(settings)
        stream.append(frames[1])
    np.testing.assert_array_equal(read_plain(tmp_path / "d")[0][0], frames[0])
    create_stream(settings).close()


def test_a_dataset_that_another_process_records_is_not_overwritten(make_settings, tmp_path):
    with _writer_process(tmp_path / "d") as process:
        settings = make_settings(SIZES, root_path=str(tmp_path / "d"), overwrite=True)
        with pytest.raises(FileExistsError, match=f"process {process.pid}"):
            create_stream(settings)
        process.kill()
        process.wait()
        create_stream(settings).close()  # the lock went with the process


WRITER = """
import os, sys, numpy as np
from scratchwriter import *
sizes = {"t": None, "p": 2, "y": 8, "x": 8}
stream = create_stream(AcquisitionSettings(
    dimensions=dims_from_standard_axes(sizes), dtype="uint32", root_path=sys.argv[1]))
for i in range(10**6):
    stream.append(np.full((8, 8), i + 1, "uint32"))
    os.write(1, b".")
"""


@contextlib.contextmanager
def _writer_process(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)],
        stdout=subprocess.PIPE,
    )
    try:
        process.stdout.read(10)
        yield process
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_closed_stream_leaves_the_dataset_alone_that_replaced_its_own(
    make_settings, tmp_path, frames
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"), overwrite=True)
    create_stream(settings).close()
    with create_stream(settings) as old:
        old.append(frames[0])
    with create_stream(settings) as new:
        new.append(frames[1])
        with pytest.raises(FileNotFoundError, match="replaced"):
            old.set_global_metadata("mine", {"a": 1})
    assert "mine" not in (tmp_path / "d" / "manifest.json").read_text()
    np.testing.assert_array_equal(old.arrays[0][0], frames[0])


def test_an_open_stream_leaves_the_dataset_alone_that_replaced_its_own(
    make_settings, tmp_path, frames
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"))
    old = create_stream(settings)
    old.append(frames[0])
    remove_recorded(tmp_path / "d")
    with create_stream(settings) as new:
        with pytest.raises(FileNotFoundError, match="replaced"):
            old.close()
        for frame in frames[: settings.num_frames]:
            new.append(frame)
    np.testing.assert_array_equal(
        read_plain(tmp_path / "d")[0].reshape(-1, 4, 5)[-1], frames[settings.num_frames - 1]
    )


def test_a_dataset_that_is_recorded_is_named_with_its_process_also_without_overwrite(
    make_settings, tmp_path
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"))
    with (
        create_stream(settings),
        pytest.raises(FileExistsError, match=f"recorded by process {os.getpid()}"),
    ):
        create_stream(settings)


@pytest.mark.parametrize("place", ["nothing", "empty folder", "dataset"])
def test_of_many_streams_that_begin_in_one_folder_one_has_it(
    make_settings, tmp_path, place, frames
):
    for number in range(20):
        folder = tmp_path / str(number)
        settings = make_settings(SIZES, root_path=str(folder), overwrite=True)
        if place == "empty folder":
            folder.mkdir()
        elif place == "dataset":
            create_stream(settings).close()
        streams, errors = [], []
        start = threading.Barrier(4)

        def begin(settings=settings, streams=streams, errors=errors, start=start):
            start.wait()
            try:
                streams.append(create_stream(settings))
            except FileExistsError as error:
                errors.append(str(error))

        threads = [threading.Thread(target=begin) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(streams), len(errors)) == (1, 3), errors
        with streams[0] as stream:
            stream.append(frames[0], frame_metadata={"i": 0})
        with open_scratch(folder) as dataset:
            assert find_faults(dataset.source) == []
            np.testing.assert_array_equal(dataset.arrays[0][0], frames[0])


def test_a_growing_stream_writes_nothing_into_what_has_replaced_its_folder(
    make_settings, tmp_path
):
    folder = tmp_path / "d"
    frame = np.ones((256, 512), "uint16")  # 256 KiB: soon at the end of what is ready
    settings = make_settings({"t": None, "y": 256, "x": 512}, root_path=str(folder))
    old = create_stream(settings)
    old.append(frame)
    remove_recorded(folder)
    with create_stream(settings) as new:
        for _ in range(1200):
            new.append(2 * frame)
        with pytest.raises(OSError, match=r"pos_0\.dat"):  # at the end of the window
            for _ in range(2000):
                old.append(frame)
        time.sleep(0.05)  # for the thread ahead
        assert (new.arrays[0][...] == 2).all()
        with pytest.raises(OSError, match="replaced"):
            old.close()
    assert (read_plain(folder)[0] == 2).all()


def test_a_recorded_dataset_that_was_moved_stays_locked_and_whole(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    frame = np.ones((4, 5), "uint16")
    with create_stream(settings) as stream:
        stream.append(frame, frame_metadata={"i": 0})
        (tmp_path / "d").rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match="removed"):
            stream.flush()
        with pytest.raises(FileNotFoundError, match="removed"):
            stream.set_global_metadata("here", {"a": 1})
        stream.append(frame, frame_metadata={"i": 1})
        with open_scratch(tmp_path / "moved") as dataset:
            assert dataset.state == "recording"
            assert [line["i"] for line in dataset.frame_metadata] == [0, 1]
        (tmp_path / "moved").rename(tmp_path / "d")
        stream.flush()
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.state == "closed"
        assert find_faults(dataset.source) == []


def test_many_threads_may_close(make_settings, tmp_path):
    frame = np.ones((256, 512), "uint16")
    for number in range(20):
        folder = tmp_path / str(number)
        sizes = {"t": None, "y": 256, "x": 512}
        stream = create_stream(make_settings(sizes, root_path=str(folder)))
        for _ in range(5):
            stream.append(frame)
        start = threading.Barrier(4)

        def close(stream=stream, start=start, folder=folder):
            start.wait()
            stream.close()
            assert (folder / "pos_0.dat").stat().st_size == 5 * frame.nbytes

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with open_scratch(folder) as dataset:
            assert find_faults(dataset.source) == []
        shutil.rmtree(folder)


@needs_page_cache
def test_an_interrupt_behind_the_renaming_of_a_manifest_leaves_its_lengths_exact(
    make_settings, tmp_path, monkeypatch
):
    from scratchwriter._files.manifest import ManifestDraft

    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    replace = ManifestDraft.replace

    def replace_and_be_interrupted(draft):
        replace(draft)
        raise KeyboardInterrupt

    with create_stream(settings) as stream:
        stream.append(np.ones((4, 5), "uint16"))
        monkeypatch.setattr(ManifestDraft, "replace", replace_and_be_interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.set_global_metadata("here", {"a": 1})
        monkeypatch.undo()
        for _ in range(4):
            stream.append(np.ones((4, 5), "uint16"))
        assert len(read_plain(tmp_path / "d")[0]) == 5
        stream.set_global_metadata("here", {"a": 2})
        stream.append(np.ones((4, 5), "uint16"))
        assert len(read_plain(tmp_path / "d")[0]) == 6
    assert names(tmp_path / "d") == FILES


def test_a_saver_that_fails_says_so_and_close_does_it_again(
    make_settings, tmp_path, monkeypatch, frames
):
    region = "scratchwriter._writing.storage.Storage._save"
    fmt = ScratchFormat(max_memory_bytes=100, spill_dir=str(tmp_path))
    stream = create_stream(make_settings({"t": None, "y": 4, "x": 5}, format=fmt))
    told = []
    monkeypatch.setattr("scratchwriter._writing.storage.warn_in_thread", told.append)

    def fail(storage):
        raise OSError(errno.EIO, "no", "pos_0.dat")

    with monkeypatch.context() as broken:
        broken.setattr(region, fail)
        with pytest.warns(UserWarning, match="max_memory_bytes"):
            for frame in frames[:9]:
                stream.append(frame)
        while not told:
            time.sleep(0.001)
    assert "not complete yet" in told[0]
    stream.close()
    np.testing.assert_array_equal(read_plain(stream.path)[0], frames[:9])
    with open_scratch(stream.path) as dataset:
        assert dataset.state == "closed"


def test_a_folder_named_as_a_file_of_a_dataset_is_not_half_overwritten(
    make_settings, tmp_path
):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"), overwrite=True)
    create_stream(settings).close()
    (tmp_path / "d" / "pos_1.dat").mkdir()
    before = names(tmp_path / "d")
    with pytest.raises(FileExistsError, match="pos_1"):
        create_stream(settings)
    assert names(tmp_path / "d") == before


def test_a_refused_frame_leaves_nothing_in_a_slot_that_is_skipped(
    make_settings, small_disk, frames
):
    settings = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(small_disk / "d"))
    with create_stream(settings) as stream:
        stream.append(frames[1])
        ballast = small_disk / "ballast"
        with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        with pytest.raises(OSError, match="No space"):
            stream.append(frames[2], frame_metadata={"long": "x" * 10_000})
        ballast.unlink()
        stream.skip()
        stream.append(frames[3])
    np.testing.assert_array_equal(
        read_plain(small_disk / "d")[0], [frames[1], 0 * frames[0], frames[3]]
    )


def test_growth_after_close_does_nothing(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    stream = create_stream(settings)
    stream.append(frames[0])
    stream.close()
    # As a thread does that asked for room when another one closed.
    stream._storage.make_room(0, 1 << 20)
    stream._storage.make_steps(1 << 20)
    assert (tmp_path / "d" / "pos_0.dat").stat().st_size == 40


def test_global_metadata_of_many_threads_is_all_kept(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:

        def note(thread):
            for i in range(20):
                stream.set_global_metadata(f"{thread}.{i}", {"i": i})

        threads = [threading.Thread(target=note, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        count = 0
        while any(thread.is_alive() for thread in threads):
            stream.append(frames[count % 60])
            count += 1
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_text())
    assert len(manifest["global_metadata"]) == 80
    assert manifest["position_shapes"] == [[max(count, 1), 4, 5]]


@pytest.mark.parametrize("length", [3, None])
def test_a_disk_that_is_full_keeps_no_dataset_from_being_closed(
    make_settings, small_disk, frames, length
):
    sizes = {"t": length, "y": 4, "x": 5}
    settings = make_settings(sizes, root_path=str(small_disk / "d"))
    stream = create_stream(settings)
    stream.append(frames[0])
    stream.set_global_metadata("mine", {"long": "x" * 20_000})
    ballast = small_disk / "ballast"
    with pytest.raises(OSError, match="No space"), ballast.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    stream.close()
    with open_scratch(small_disk / "d") as dataset:
        assert (dataset.frames_written, dataset.state) == (1, "closed")
        assert dataset.global_metadata["mine"] == {"long": "x" * 20_000}
        assert find_faults(dataset.source) == []


def test_a_skip_past_the_memory_limit_is_a_memory_error(make_settings, frames):
    fmt = ScratchFormat(max_memory_bytes=10 * 40, spill_to_disk=False)
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, format=fmt)) as stream:
        stream.append(frames[0])
        with pytest.raises(MemoryError, match="max_memory_bytes=400"):
            stream.skip(frames=10)
        stream.skip(frames=8)
        stream.append(frames[1])
        assert stream.arrays[0].shape == (10, 4, 5)


# ------------------------------------------------------------------------ forks

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")


@needs_fork
@pytest.mark.parametrize("ending", ["sys.exit(0)", "del stream; import gc; gc.collect()"])
@pytest.mark.parametrize("count", [None, 40])
def test_a_forked_child_leaves_the_dataset_to_its_parent(tmp_path, ending, count):
    code = f"""
    import os, sys, warnings, numpy as np
    from scratchwriter import *
    sizes = {{"t": {count}, "y": 64, "x": 64}}
    stream = create_stream(AcquisitionSettings(
        dimensions=dims_from_standard_axes(sizes), dtype="uint16",
        root_path={str(tmp_path / "d")!r}))
    for i in range(5):
        stream.append(np.full((64, 64), i, "uint16"), frame_metadata={{"i": i}})
    pid = os.fork()
    if pid == 0:
        for use in (lambda: stream.append(np.zeros((64, 64), "uint16")), stream.skip,
                    lambda: stream.set_global_metadata("mine", {{}})):
            try:
                use()
            except ValueError as error:
                assert "forked" in str(error)
            else:
                os._exit(7)
        assert stream.arrays[0][4, 0, 0] == 4
        stream.close()
        {ending}
    else:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        for i in range(5, 40):
            stream.append(np.full((64, 64), i, "uint16"), frame_metadata={{"i": i}})
        stream.close()
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.stderr, run.returncode) == ("", 0)
    (plain,) = read_plain(tmp_path / "d")
    np.testing.assert_array_equal(plain[:, 3, 3], np.arange(40))
    assert [line["i"] for line in read_lines(tmp_path / "d")] == list(range(40))


@needs_fork
@pytest.mark.parametrize("durability", ["process", "system"])
def test_a_child_forked_while_threads_are_at_work_can_exit(tmp_path, durability):
    code = f"""
    import os, sys, threading, numpy as np
    from scratchwriter import *
    stream = create_stream(AcquisitionSettings(
        dimensions=dims_from_standard_axes({{"t": None, "y": 512, "x": 512}}),
        dtype="uint16", root_path={str(tmp_path / "d")!r},
        format=ScratchFormat(durability={durability!r}, sync_interval_s=0.0001)))
    frame, stop = np.ones((512, 512), "uint16"), threading.Event()
    def camera():
        while not stop.is_set():
            stream.append(frame)
    thread = threading.Thread(target=camera)
    thread.start()
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            stream.close()
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    stop.set()
    thread.join()
    stream.close()
    """
    subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        check=True,
        timeout=60,
    )
    assert (read_plain(tmp_path / "d")[0] == 1).all()


@needs_fork
def test_a_forked_child_leaves_temporary_folders_to_its_parent(
    make_settings, tmp_path, frames
):
    fmt = ScratchFormat(max_memory_bytes=0, spill_dir=tmp_path)
    with pytest.warns(UserWarning, match="max_memory_bytes=0"):
        stream = create_stream(make_settings(SIZES, format=fmt))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads, by Python 3.12
        pid = os.fork()
    if pid == 0:
        try:
            from scratchwriter._files.folders import _remove_spill_folders

            _remove_spill_folders()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    stream.append(frames[0])
    stream.close()
    np.testing.assert_array_equal(read_plain(stream.path)[0][0], frames[0])


def test_a_child_forked_while_a_stream_is_being_made_does_not_keep_its_lock(tmp_path):
    program = f"""
    import os, signal, sys
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    from scratchwriter._files import manifest
    from scratchwriter._writing import dataset_files
    made = manifest.ManifestDraft
    def fork_and_make(*args, **kwargs):
        pid = os.fork()
        if pid == 0:
            signal.pause()
        print(pid, flush=True)
        return made(*args, **kwargs)
    dataset_files.ManifestDraft = fork_and_make
    dims = dims_from_standard_axes({{"t": 3, "y": 4, "x": 5}})
    stream = create_stream(
        AcquisitionSettings(root_path={str(tmp_path / "d")!r}, dimensions=dims, dtype="u2")
    )
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE
    )
    with ended:
        pid = int(ended.stdout.readline())
        ended.wait(timeout=30)
        try:
            # The child gives the lock back as soon as it runs, which may be after the kill.
            def is_killed():
                with open_scratch(tmp_path / "d") as dataset:
                    return dataset.state == "killed"

            wait_until(is_killed)
        finally:
            os.kill(pid, 9)
