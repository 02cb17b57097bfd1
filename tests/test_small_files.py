"""What is closed keeps neither descriptors nor mappings of the small files."""

import ctypes
import os
import struct
import subprocess
import sys
import textwrap
import weakref

import numpy as np
import pytest

from scratchwriter import DatasetError, create_stream, open_scratch
from scratchwriter._files.append_times import AppendTimesFile
from scratchwriter._files.manifest import ManifestDraft, dump_settings
from scratchwriter._files.mapped_file import MappedFile
from scratchwriter._files.progress import Progress, ProgressView
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._writing import policy
from scratchwriter.plan import make_plan
from waiting import wait_until

SIZES = {"t": None, "y": 4, "x": 5}
FRAME = np.arange(20, dtype="uint16").reshape(4, 5)

needs_proc = pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get("SCRATCHWRITER_REGION") == "portable",
    reason="looks into /proc; portable mappings keep a descriptor",
)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def kept(folder):
    """Descriptors and mappings of the files in a folder."""
    fds = []
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            fds.append(os.readlink(f"/proc/self/fd/{fd}"))  # noqa: PTH115
        except FileNotFoundError:
            continue  # that of the listing itself
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        lines = [line.split(maxsplit=5)[-1].strip() for line in maps]
    return [path for path in fds + lines if path.startswith(str(folder))]


def record(make_settings, folder, **fields):
    settings = make_settings(SIZES, root_path=str(folder), **fields)
    with create_stream(settings) as stream:
        stream.append(FRAME, frame_metadata={"i": 1}, frame_id=1)


@needs_proc
def test_the_writer_of_progress_keeps_nothing_once_it_is_closed(tmp_path):
    progress = Progress(tmp_path / "progress.bin")
    assert len(kept(tmp_path)) == 2  # the lock, and the mapping
    owner = progress.file
    progress.mark_closed()
    assert len(kept(tmp_path)) == 1
    ctypes.c_int64.from_address(owner.address + 64).value = 7  # mapped while it is had
    del owner
    assert kept(tmp_path) == []
    assert progress.is_in(tmp_path)
    progress.mark_synced(5)  # a flush after the close
    view = ProgressView(tmp_path)
    assert (view.is_closed, view.cursor, view.synced) == (True, 7, 5)
    with pytest.raises(ValueError, match="closed"):
        _ = progress.file


def test_a_closed_progress_is_not_taken_for_another_of_the_same_number(tmp_path):
    path = tmp_path / "progress.bin"
    progress = Progress(path)
    progress.mark_closed()
    view = ProgressView(tmp_path)
    assert progress.is_in(tmp_path)
    assert view.is_in(tmp_path)
    data = bytearray(path.read_bytes())
    data[88:104] = os.urandom(16)  # as if the file system had given the number again
    path.write_bytes(data)
    assert not progress.is_in(tmp_path)
    assert not view.is_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="Another"):
        progress.mark_synced(5)
    path.write_bytes(data[:100])
    assert not view.is_in(tmp_path)


@needs_proc
def test_append_times_and_drafts_are_mapped_as_long_as_somebody_has_them(
    make_settings, tmp_path
):
    times = AppendTimesFile(tmp_path)
    settings = make_settings(SIZES)
    draft = ManifestDraft(tmp_path, dump_settings(settings), make_plan(settings), 0, {})
    assert len(kept(tmp_path)) == 2
    draft.discard()
    del times, draft
    assert kept(tmp_path) == []


@needs_proc
def test_a_mapped_file_is_unmapped_when_it_is_dropped(tmp_path):
    (tmp_path / "file").write_bytes(bytes(4096))
    with Descriptor(tmp_path / "file", os.O_RDWR) as file:
        one, other = MappedFile(file), MappedFile(file)
    one.record(np.dtype([("a", "i8")]))["a"] = 3
    assert other.record(np.dtype([("a", "i8")]))["a"] == 3
    assert len(kept(tmp_path)) == 2
    del one
    assert len(kept(tmp_path)) == 1
    del other
    assert kept(tmp_path) == []


@needs_proc
def test_a_closed_dataset_keeps_nothing_but_its_arrays(make_settings, folder):
    record(make_settings, folder)
    before = kept(folder)
    dataset = open_scratch(folder)
    assert dataset.frames_written == 1
    assert dataset.frame_ids[0].tolist() == [1]
    assert list(dataset.frame_metadata) == [{"_pos": 0, "_idx": [0], "i": 1}]
    assert dataset.append_times is not None
    assert kept(folder) == before
    array = dataset.arrays[0][:]
    assert kept(folder) == [*before, str(folder / "pos_0.dat")]
    dataset.close()
    np.testing.assert_array_equal(array[0], FRAME)


@needs_proc
@pytest.mark.parametrize("close", [True, False])
def test_a_dataset_that_is_closed_while_one_has_it_is_let_go(
    make_settings, folder, monkeypatch, close
):
    # A thread opens the files of arrays for a moment, as long as they are not ready ahead.
    monkeypatch.setattr(policy, "_FILE_WINDOW_NBYTES", 1)
    stream = create_stream(make_settings(SIZES, root_path=str(folder)))
    stream.append(FRAME)
    wait_until(lambda: stream.stats().populated_ahead_nbytes)
    before = sorted(kept(folder))
    dataset = open_scratch(folder)
    assert dataset.state == "recording"
    progress = str(folder / "progress.bin")
    assert sorted(kept(folder)) == sorted([*before, progress, progress])
    if close:  # the dataset that is had, not the recording
        dataset.close()
        assert sorted(kept(folder)) == before
        assert (dataset.state, dataset.frames_written) == ("recording", 1)
        stream.close()
    else:
        stream.append(FRAME)
        stream.close()
        before = [path for path in before if path != progress]
        assert (dataset.state, dataset.frames_written) == ("closed", 2)
        count = kept(folder).count(progress)
        open_scratch(folder)
        assert kept(folder).count(progress) == count
        assert f"{progress}" not in [
            os.path.realpath(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")  # noqa: PTH208
        ]


def test_a_dropped_dataset_is_gone_at_once(make_settings, folder):
    record(make_settings, folder)
    dataset = open_scratch(folder)
    list(dataset.frame_metadata)
    gone = weakref.ref(dataset.source)
    del dataset
    assert gone() is None


def test_a_closed_dataset_notices_that_it_was_replaced(make_settings, folder):
    record(make_settings, folder)
    dataset = open_scratch(folder)
    record(make_settings, folder, overwrite=True)
    with pytest.raises(DatasetError, match="replaced by another"):
        _ = dataset.skipped
    with open_scratch(folder) as other:
        assert other.recording_id != dataset.recording_id


def test_frames_that_are_synced_after_the_close_are_seen(make_settings, folder):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(FRAME)
    dataset = open_scratch(folder)
    assert dataset.frames_synced == 0
    stream.flush()
    assert dataset.frames_synced == 1
    dataset.close()
    assert dataset.frames_synced == 1


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit")
def test_a_thousand_closed_datasets_in_a_list_need_no_thousand_descriptors(
    make_settings, folder
):
    record(make_settings, folder)
    program = f"""
    import resource
    from scratchwriter import open_scratch
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    datasets = [open_scratch({str(folder)!r}) for _ in range(1000)]
    assert all(dataset.frames_written == 1 for dataset in datasets)
    assert all(len(dataset.frame_metadata) == 1 for dataset in datasets)
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=120
    )


def test_a_progress_file_is_read_whole_or_refused(make_settings, folder):
    record(make_settings, folder)
    path = folder / "progress.bin"
    data = path.read_bytes()
    assert struct.unpack_from("=I", data, 12) == (2,)
    path.write_bytes(data + b"\0")
    with pytest.raises(DatasetError, match="4097 bytes, not 4096"):
        ProgressView(folder)


def test_the_lock_is_free_once_it_is_released_though_the_file_is_still_mapped(tmp_path):
    progress = Progress(tmp_path / "progress.bin")
    owner = progress.file
    view = ProgressView(tmp_path)
    assert view.has_writer is True
    progress.release()
    assert view.has_writer is False
    del owner


def test_a_close_that_was_interrupted_is_done_again(tmp_path):
    progress = Progress(tmp_path / "progress.bin")
    view = ProgressView(tmp_path)
    progress.release()
    progress.mark_closed()
    progress.mark_closed()
    assert view.is_closed
