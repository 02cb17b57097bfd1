"""What is left of a stream, or of a dataset, after its end; and what a failed end costs."""

import contextlib
import ctypes
import gc
import os
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from edges import (
    check_dataset,
    check_frames,
    descriptors,
    frame_of,
    in_child,
    mappings,
    settings_of,
)
from marks import PORTABLE
from scratchwriter import create_stream, open_scratch

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="forks, and looks into /proc"
)
MANY, FRAMES = 300, 6
SMALL_FILES = ("progress.bin", "append_times.bin", "manifest.json", "skips.bin", ".jsonl")


def close_many(folder, place, then):
    """Close more streams than descriptors may be open, and keep all of them."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept, before = [], len(descriptors())
    for number in range(MANY):
        with create_stream(
            settings_of(place, Path(folder) / str(number), size=8)
        ) as stream:
            stream.append(frame_of(0, 8), timestamp_ns=1, frame_metadata={"a": 1})
        kept.append(stream)
        if then == "metadata":
            stream.set_global_metadata("here", {"a": 1})
        elif then == "flush":
            stream.flush()
        elif then == "dataset":
            dataset = open_scratch(stream.path)
            assert dataset.frame_metadata[0]["a"] == 1
            check_frames(dataset.arrays[0], 1)
            assert dataset.timestamps[0].ravel()[0] == 1
            dataset.close()
            kept[-1] = dataset
    assert len(descriptors()) <= before
    for name in SMALL_FILES:
        assert mappings(name) == []
    # The arrays are mapped, and no more: once each, a ring behind itself.
    assert len(mappings("pos_0.dat")) <= MANY * (2 if "ring" in place else 1)
    if then != "dataset":
        for stream in kept:
            check_frames(stream.arrays[0], 1)


@pytest.mark.parametrize(
    ("place", "then"),
    [
        ("memory", "nothing"),
        ("memory, ring", "metadata"),
        ("disk", "nothing"),
        ("disk", "metadata"),
        ("disk, bounded", "nothing"),
        ("disk, bounded", "flush"),
        ("disk, ring", "metadata"),
        ("disk", "dataset"),
        ("disk, bounded", "dataset"),
    ],
)
def test_what_is_closed_has_no_file_open_but_its_arrays(tmp_path, place, then):
    if PORTABLE and "memory" not in place:
        pytest.skip("a mapping of Python's mmap keeps its file open")
    in_child(close_many, tmp_path, place, then)


def close_datasets_whose_arrays_live_on(folder):
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with create_stream(settings_of("disk", Path(folder) / "d")) as stream:
        stream.append(frame_of(0))
    kept, before = [], len(descriptors())
    for _ in range(MANY):
        with open_scratch(stream.path) as dataset:
            kept.append(dataset.arrays[0][...])
    assert len(descriptors()) <= before
    for name in SMALL_FILES:
        assert mappings(name) == []
    for array in kept:
        check_frames(array, 1)


@pytest.mark.skipif(PORTABLE, reason="a mapping of Python's mmap keeps its file open")
def test_arrays_that_outlive_their_dataset_have_no_file_open(tmp_path):
    in_child(close_datasets_whose_arrays_live_on, tmp_path)


# ------------------------------------------------------------------- an end that failed


def compiled(source, folder):
    if shutil.which("cc") is None or "LD_PRELOAD" in os.environ:
        pytest.skip("puts itself before the C library, and needs a C compiler for that")
    library = folder / f"{source}.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library)]
    command += [str(Path(__file__).with_name(f"{source}.c")), "-ldl"]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture(scope="module")
def faults(tmp_path_factory):
    return compiled("faults", tmp_path_factory.mktemp("faults"))


def fail_to_close(folder, place, at):
    """Return a stream whose `close` has failed from the n-th call on; all is well now."""
    library = ctypes.CDLL(None)
    library.faults_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3]
    stream = create_stream(settings_of(place, folder / "d"))
    for number in range(FRAMES):
        stream.append(frame_of(number), frame_metadata={"i": number})
    library.faults_arm(str(folder).encode(), at, 28, 1)
    try:
        stream.close()
    except OSError:
        failed = True
    else:
        failed = False
    library.faults_heal()
    return stream, failed


def drop_after_a_close_that_failed(folder, place):
    gc.freeze()
    for at in range(1, 200):
        stream, failed = fail_to_close(Path(folder) / str(at), place, at)
        path, arrays = stream.path, stream.arrays
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            del stream
            gc.collect()
        check_frames(arrays[0], FRAMES)
        check_dataset(path, FRAMES)
        if not failed:
            break
    assert at > 2


@pytest.mark.parametrize("place", ["disk", "disk, bounded", "left memory"])
def test_dropping_a_stream_that_failed_to_close_tries_again(tmp_path, place, faults):
    for at in range(1, 200):
        (tmp_path / str(at)).mkdir()
    in_child(drop_after_a_close_that_failed, tmp_path, place, preload=faults)


def exit_after_a_close_that_failed(folder, place, at, held):
    stream, failed = fail_to_close(Path(folder), place, at)
    (Path(folder) / "failed").write_text(str(failed))
    if held == "held":
        sys.modules["kept"] = stream  # until the very end


@pytest.mark.parametrize("held", ["held", "local"])
@pytest.mark.parametrize("place", ["disk", "disk, bounded"])
def test_the_end_of_python_tries_again_to_close(tmp_path, place, held, faults):
    failures = 0
    for at in range(1, 20):
        folder = tmp_path / str(at)
        folder.mkdir()
        in_child(exit_after_a_close_that_failed, folder, place, at, held, preload=faults)
        check_dataset(folder / "d", FRAMES)
        if (folder / "failed").read_text() == "False":
            break
        failures += 1
    assert failures


def leave_memory_for_a_full_disk(folder):
    folder = Path(folder)
    stream = create_stream(settings_of("left memory", folder, size=512))
    for number in range(4):
        stream.append(frame_of(number, 512))
    with contextlib.suppress(OSError), (folder / "ballast").open("wb") as ballast:
        while True:
            ballast.write(bytes(1 << 16))
    with contextlib.suppress(OSError):
        stream.append(frame_of(4, 512))
    frames = stream.frames_written
    with (
        pytest.raises(OSError, match="No space")
        if stream.path
        else contextlib.nullcontext()
    ):
        stream.close()
    path, arrays = stream.path, stream.arrays
    (folder / "ballast").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        del stream
        gc.collect()
    check_frames(arrays[0], frames)
    if path is not None:
        check_dataset(path, frames)


def test_a_close_that_found_a_full_disk_is_done_when_there_is_space(small_disk):
    in_child(leave_memory_for_a_full_disk, small_disk)


# ---------------------------------------------------------------------- an error of a disk


@pytest.fixture(scope="module")
def sync_library(tmp_path_factory):
    return compiled("edge_sync", tmp_path_factory.mktemp("sync"))


def lose_data_that_leaves_memory(folder, durability):
    library = ctypes.CDLL(None)
    # 20 MB in memory: more than what is brought to the device at a time.
    fmt = {"durability": durability, "sync_interval_s": 60}
    settings = settings_of("left memory", Path(folder), size=512, **fmt)
    settings.format.max_memory_bytes = 40 << 19
    warnings.filterwarnings("ignore", category=UserWarning)
    library.sync_fails(1)
    stream = create_stream(settings)
    for number in range(60):
        stream.append(frame_of(number, 512))
    errors = []
    for action in (stream.flush, stream.flush, stream.close):
        try:
            action()
        except OSError as error:
            errors.append(error)
    assert library.sync_failed() == 1
    assert len(errors) == 3, errors
    assert stream.closed
    check_frames(stream.arrays[0], 60)


@pytest.mark.skipif(PORTABLE, reason="what spills is written at once there")
@pytest.mark.parametrize("durability", ["process", "system"])
def test_what_the_device_did_not_take_of_data_that_left_memory_is_an_error_from_then_on(
    tmp_path, sync_library, durability
):
    in_child(lose_data_that_leaves_memory, tmp_path, durability, preload=sync_library)
