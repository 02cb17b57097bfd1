"""open_scratch: datasets closed, killed, or still being recorded."""

import errno
import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import ome_writers
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference import Model, read_lines
from scratchwriter import (
    AcquisitionSettings,
    DatasetError,
    Dimension,
    create_stream,
    open_scratch,
)
from scratchwriter._files.repair import recover

SIZES = {"t": None, "p": 2, "c": 2, "y": 4, "x": 5}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def leave_unclosed(folder, code):
    """Record in another process, and kill it; `code` has a `stream` of SIZES."""
    program = """
    import os, signal, sys
    import numpy as np
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    dims = dims_from_standard_axes({sizes})
    stream = create_stream(
        AcquisitionSettings(root_path={path!r}, dimensions=dims, dtype="uint16")
    )
    frame = np.arange(20, dtype="uint16").reshape(4, 5)
    {code}
    os.kill(os.getpid(), signal.SIGKILL)
    """
    program = textwrap.dedent(program).format(sizes=SIZES, path=str(folder), code=code)
    ended = subprocess.run([sys.executable, "-c", program], timeout=60)
    assert ended.returncode == -signal.SIGKILL


# ------------------------------------------------------------------------- what it tells


def test_a_closed_dataset_is_read_as_it_was_recorded(make_settings, folder, frames):
    made = make_settings(SIZES, root_path=str(folder))
    with create_stream(made) as stream:
        for i, frame in enumerate(frames[:9]):
            stream.append(frame, frame_metadata={"i": i} if i % 2 else None)
        stream.skip(frames=3)
        stream.append(frames[12])
        stream.set_global_metadata("mine", {"a": [1, None]})
        expected = [np.array(array) for array in stream.arrays]
    with open_scratch(str(folder)) as dataset:
        assert dataset.state == "closed"
        assert dataset.path == folder
        assert dataset.frames_written == 13
        assert dataset.skipped == [range(9, 12)]
        assert dataset.settings == made
        assert dataset.global_metadata == {"mine": {"a": [1, None]}}
        assert [line["i"] for line in dataset.frame_metadata] == [1, 3, 5, 7]
        for array, wanted in zip(dataset.arrays, expected, strict=True):
            assert array.shape == wanted.shape
            np.testing.assert_array_equal(array, wanted)


def test_what_is_given_out_cannot_be_written(make_settings, folder, frames):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0])
    with open_scratch(folder) as dataset:
        array = dataset.arrays[0][...]
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_a_dataset_grows_while_it_is_recorded(make_settings, folder, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream, open_scratch(folder) as dataset:
        (array,) = dataset.arrays
        assert dataset.state == "recording"
        assert (dataset.frames_written, array.shape) == (0, (1, 4, 5))
        for i, frame in enumerate(frames):
            stream.append(frame, frame_metadata={"i": i})
            assert dataset.frames_written == i + 1
            np.testing.assert_array_equal(array, frames[: i + 1])
            assert dataset.frame_metadata[-1]["i"] == i
        stream.skip(frames=10_000)
        assert array.shape == (10_060, 4, 5)
        assert not array[-1].any()
        stream.set_global_metadata("mine", {"a": 1})
        assert dataset.global_metadata == {"mine": {"a": 1}}
        stream.close()
        assert dataset.state == "closed"
        assert array.shape == (10_060, 4, 5)


def test_a_dataset_is_followed_from_another_thread(make_settings, folder):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    done = threading.Event()
    seen = []

    def follow():
        with open_scratch(folder) as dataset:
            (array,) = dataset.arrays
            while not done.is_set():
                frames = dataset.frames_written
                if frames:
                    assert (array[frames - 1] == frames).all()
                    seen.append(frames)

    with create_stream(settings) as stream:
        thread = threading.Thread(target=follow)
        thread.start()
        for i in range(3000):
            stream.append(np.full((4, 5), i + 1, "uint16"))
        while not seen or seen[-1] < 3000:
            assert thread.is_alive()
        done.set()
        thread.join()
    assert seen == sorted(seen)


def test_a_killed_dataset_is_reported_as_such_and_has_every_frame(folder):
    leave_unclosed(
        folder,
        "[stream.append(frame + i, frame_metadata={'i': i}) for i in range(5)];"
        "stream.skip(frames=2); stream.append(frame + 7);"
        "stream.set_global_metadata('mine', {'a': 1})",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the machine was not restarted since
        dataset = open_scratch(folder)
    with dataset:
        assert dataset.state == "killed"
        assert dataset.frames_written == 8
        assert dataset.skipped == [range(5, 7)]
        assert dataset.global_metadata == {"mine": {"a": 1}}
        assert [line["i"] for line in dataset.frame_metadata] == list(range(5))
        frame = np.arange(20, dtype="uint16").reshape(4, 5)
        assert [array.shape for array in dataset.arrays] == [(2, 2, 4, 5)] * 2
        for number in (0, 1, 2, 3, 4, 7):
            t, p, c = np.unravel_index(number, (2, 2, 2))
            np.testing.assert_array_equal(dataset.arrays[p][t, c], frame + number)


def test_a_dataset_of_a_machine_that_was_restarted_opens_with_a_warning(folder):
    leave_unclosed(folder, "stream.append(frame); stream.flush(); stream.append(frame)")
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(24)
        file.write(b"0" * 36)
    with pytest.warns(UserWarning, match="Of its 2 frames the first 1 are certain"):
        dataset = open_scratch(folder)
    assert (dataset.frames_written, dataset.frames_synced) == (2, 1)


def test_without_locks_a_dataset_that_is_not_closed_is_not_called_killed(
    folder, monkeypatch
):
    leave_unclosed(folder, "stream.append(frame)")

    def flock(fd, operation):
        raise OSError(38, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    with open_scratch(folder) as dataset:
        assert dataset.state == "recording"


def test_written_tells_frames_from_zeros_that_nobody_saw(make_settings, folder, frames):
    settings = make_settings({"t": 3, "c": 2, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream, open_scratch(folder) as dataset:
        stream.append(np.zeros((4, 5), "uint16"))
        stream.skip(frames=2)
        stream.append(frames[0])
        assert stream.skipped == [range(1, 3)] == dataset.skipped
        expected = [[True, False], [False, True], [False, False]]
        np.testing.assert_array_equal(dataset.written(0), expected)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.permutations(
        [
            ("t", "time", st.none() | st.integers(1, 3)),
            ("p", "position", st.integers(1, 3)),
            ("c", "channel", st.integers(1, 3)),
            ("z", "space", st.integers(1, 2)),
        ]
    ).flatmap(
        lambda axes: st.tuples(*(st.tuples(st.just(a), st.just(b), c) for a, b, c in axes))
    ),
    reverse=st.booleans(),
    calls=st.lists(st.integers(0, 4), max_size=12),
)
def test_random_datasets_are_read_as_the_model_has_them(
    tmp_path_factory, sizes, reverse, calls
):
    if any(count is None for _, _, count in sizes[1:]):
        sizes = [(n, k, 2 if c is None else c) for n, k, c in sizes]
    dims = [Dimension(name=n, type=k, count=c) for n, k, c in sizes]
    dims += [Dimension(name="y", count=2), Dimension(name="x", count=3)]
    order = [name for name, _, _ in sizes]
    folder = tmp_path_factory.mktemp("random") / "data"
    made = AcquisitionSettings(
        root_path=str(folder),
        dimensions=dims,
        dtype="uint8",
        storage_order=[*order[::-1], "y", "x"] if reverse else "acquisition",
    )
    model, skipped, number = Model(made), set(), 0
    with create_stream(made) as stream, open_scratch(folder) as dataset:
        for n in calls:
            left = model.left()
            if left is not None and left < max(n, 1):
                break
            if n:
                stream.skip(frames=n)
                model.skip(n)
                skipped |= set(range(number, number + n))
            else:
                frame = np.full((2, 3), number + 1, "uint8")
                stream.append(frame)
                model.append(frame)
            number += max(n, 1)
        for live in (True, False):
            if not live:
                stream.close()
            ranges = dataset.skipped
            assert {i for r in ranges for i in r} == skipped
            assert all(a.stop < b.start for a, b in itertools.pairwise(ranges))
            for position, array in enumerate(dataset.arrays):
                expected = model.array(position)
                np.testing.assert_array_equal(array, expected)
                # Frames are not zero in this test; what is zero was not written.
                written = dataset.written(position)
                np.testing.assert_array_equal(written, expected.any(axis=(-2, -1)))


# ------------------------------------------------------------------------ frame metadata


@pytest.fixture
def dataset(make_settings, folder, frames):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for i in range(12):
            metadata = {"i": i, "exposure_ms": i / 2, "on": i > 3, "name": f"n{i}"}
            stream.append(frames[i], frame_metadata=metadata if i != 5 else None)
    with open_scratch(folder) as dataset:
        yield dataset


def test_frame_metadata_is_a_sequence_in_acquisition_order(dataset, folder):
    lines = read_lines(folder)
    metadata = dataset.frame_metadata
    assert list(metadata) == lines == metadata[:]
    assert len(metadata) == 11
    assert metadata[-1] == lines[-1]
    assert metadata[2:9:3] == lines[2:9:3]
    with pytest.raises(IndexError):
        _ = metadata[11]


def test_frame_metadata_is_found_by_position_and_index(dataset):
    metadata = dataset.frame_metadata
    for i in range(12):
        t, p, c = map(int, np.unravel_index(i, (3, 2, 2)))
        found = metadata.at(p, t, c)
        assert found is None if i == 5 else found["i"] == i
    assert metadata.at(7, 0, 0) is None


def test_frame_metadata_in_columns_is_what_a_table_takes(dataset):
    columns = dataset.frame_metadata.columns()
    kinds = {name: column.dtype.kind for name, column in columns.items()}
    assert kinds == {
        "_pos": "i",
        "_idx_t": "i",
        "_idx_c": "i",
        "i": "i",
        "exposure_ms": "f",
        "on": "b",
        "name": "O",
    }
    numbers = [i for i in range(12) if i != 5]
    np.testing.assert_array_equal(columns["i"], numbers)
    t, p, c = np.unravel_index(numbers, (3, 2, 2))
    for name, index in (("_idx_t", t), ("_pos", p), ("_idx_c", c)):
        np.testing.assert_array_equal(columns[name], index)


GAPS = [
    {"int": 1, "float": 0.5, "text": "a\ud800", "on": True, "large": 2**70, "mixed": 1},
    {"text": None, "list": [1], "dict": {"a": None}, "mixed": "b", "int": None},
]


def record_gaps(make_settings, folder, frames):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0], frame_metadata=GAPS[0], timestamp_ns=1000, frame_id=7)
        stream.append(frames[1], frame_metadata=GAPS[1], frame_id=9)
        stream.append(frames[2], timestamp_ns=3000)  # without metadata
    return open_scratch(folder)


def test_a_value_that_some_frames_lack_is_nan_or_none_in_its_column(
    make_settings, folder, frames
):
    columns = record_gaps(make_settings, folder, frames).frame_metadata.columns()
    nan = np.nan
    expected = {
        "int": [1.0, nan],
        "float": [0.5, nan],
        "on": [1.0, nan],
        "large": [2.0**70, nan],
        "timestamp_ns": [1000.0, nan],
        "frame_id": [7, 9],
        "text": ["a?", None],
        "list": [None, "[1]"],
        "dict": [None, '{"a": null}'],
        "mixed": ["1", '"b"'],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(columns[name], np.array(values, columns[name].dtype))
    assert columns["frame_id"].dtype == np.int64
    assert columns["int"].dtype == columns["on"].dtype == np.float64
    assert columns.keys() == {*expected, "_pos", "_idx_t", "_idx_c"}


def test_where_a_frame_is_and_when_it_came_goes_before_names_in_its_metadata(
    make_settings, folder, frames
):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for number in range(2):
            own = {"_idx_t": "mine", "timestamp_ns": "noon", "frame_id": 5.5}
            stream.append(frames[number], frame_metadata=own, timestamp_ns=number)
    with open_scratch(folder) as dataset:
        columns = dataset.frame_metadata.columns()
    assert columns["_idx_t"].tolist() == [0, 0]
    assert columns["timestamp_ns"].tolist() == [0, 1]
    assert columns["frame_id"].tolist() == [5.5, 5.5]


@pytest.mark.parametrize("other", [None, 1, 10**400])
def test_numbers_that_no_array_holds_are_text_in_their_column(
    make_settings, folder, frames, other
):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for value in (10**400, other):
            stream.append(frames[0], frame_metadata={"large": value, "b": 1})
    with open_scratch(folder) as dataset:
        column = dataset.frame_metadata.columns()["large"]
    assert column.tolist() == [str(10**400), None if other is None else str(other)]


def test_a_line_at_no_index_is_a_damaged_dataset(make_settings, folder, frames):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        for number in range(3):
            stream.append(frames[number], frame_metadata={"a": 1}, timestamp_ns=number)
    path = folder / "frame_metadata.jsonl"
    lines = path.read_text().splitlines()
    for where in ({"_pos": 9, "_idx": [0, 0]}, {"_pos": 0, "_idx": [0]}):
        path.write_text("\n".join([lines[0], json.dumps(where), lines[2], ""]))
        with (
            open_scratch(folder) as dataset,
            pytest.raises(DatasetError, match=r"frame_metadata\.jsonl: no slot"),
        ):
            dataset.frame_metadata.columns()


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_tables_of_others_take_the_columns_and_save_them(
    make_settings, folder, frames, tmp_path, library
):
    pytest.importorskip("pyarrow")
    table = pytest.importorskip(library)
    columns = record_gaps(make_settings, folder, frames).frame_metadata.columns()
    if library == "polars":  # takes no text that begins with None
        columns = {k: v for k, v in columns.items() if v[0] is not None}
    saved = table.DataFrame(columns)
    path = tmp_path / "table.parquet"
    (saved.to_parquet if library == "pandas" else saved.write_parquet)(path)
    found = table.read_parquet(path)
    assert list(found["frame_id"]) == [7, 9]
    assert list(found["mixed"]) == ["1", '"b"']
    assert np.isnan(found["int"][1])


def test_threads_may_ask_for_frame_metadata_at_the_same_time(dataset):
    expected = list(dataset.frame_metadata)
    for _ in range(50):
        with open_scratch(dataset.path) as fresh:
            start, found = threading.Barrier(4), []

            def ask(fresh=fresh, start=start, found=found):
                start.wait()
                fresh.frame_metadata.at(0, 0, 0)
                found.append(list(fresh.frame_metadata))

            threads = [threading.Thread(target=ask) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert found == [expected] * 4


def test_a_line_whose_frame_did_not_come_is_not_counted(dataset, folder):
    with (folder / "frame_metadata.jsonl").open("a") as file:
        file.write('{"_pos": 0, "_idx": [3, 0], "i": 12}\n{"_pos": 0, "_id')
    assert len(dataset.frame_metadata) == 11
    assert len(list(dataset.frame_metadata)) == 11


def test_a_dataset_without_any_frame_metadata_has_none(make_settings, folder):
    create_stream(make_settings(SIZES, root_path=str(folder))).close()
    with open_scratch(folder) as dataset:
        assert list(dataset.frame_metadata) == []
        assert dataset.frame_metadata.columns() == {}
        assert dataset.frame_metadata.at(0, 0, 0) is None


# ---------------------------------------------------------------------- of ome-writers


def theirs(folder, sizes, ending="stream.close()", frames=6, order="acquisition"):
    program = f"""
    import os
    import numpy as np
    from ome_writers import AcquisitionSettings, create_stream, dims_from_standard_axes
    stream = create_stream(AcquisitionSettings(
        root_path={str(folder)!r}, dimensions=dims_from_standard_axes({sizes!r}),
        dtype="uint16", format="scratch", storage_order={order!r},
    ))
    for i in range({frames}):
        stream.append(np.full((4, 5), i + 1, "uint16"), frame_metadata={{"i": i}})
    {ending}
    os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


def test_a_dataset_of_ome_writers_can_be_opened(folder):
    theirs(folder, {"t": None, "c": 2, "y": 4, "x": 5})
    with open_scratch(folder) as dataset:
        assert dataset.state == "closed"
        assert dataset.version == ome_writers.__version__
        assert dataset.frames_written == 6
        assert dataset.skipped == []
        assert dataset.arrays[0].shape == (3, 2, 4, 5)
        assert (dataset.arrays[0][:, :, 0, 0] == [[1, 2], [3, 4], [5, 6]]).all()
        assert [line["i"] for line in dataset.frame_metadata] == list(range(6))
        with pytest.raises(DatasetError, match=r"does not record how many frames came"):
            dataset.written(0)


def test_a_killed_dataset_of_ome_writers_can_be_opened_with_a_warning(folder):
    theirs(folder, {"t": None, "c": 2, "y": 4, "x": 5}, ending="")
    with pytest.warns(UserWarning, match=r"pos_0\.dat.*not close.*space for"):
        dataset = open_scratch(folder)
    with dataset:
        (array,) = dataset.arrays
        assert len(array) >= 3
        assert (array[:3, :, 0, 0] == [[1, 2], [3, 4], [5, 6]]).all()
        assert not array[3:].any()


def test_a_closed_dataset_of_ome_writers_is_as_long_as_it_says(folder):
    # Its file is longer: 6 frames, 5 of them told when its capacity was 6.
    theirs(folder, {"t": None, "y": 4, "x": 5}, frames=5)
    assert (folder / "pos_0.dat").stat().st_size > 5 * 40
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0].shape == (5, 4, 5)
        assert dataset.frames_written == 5


def test_a_bounded_dataset_of_ome_writers_that_was_killed_can_be_opened(folder):
    theirs(folder, {"t": 4, "c": 2, "y": 4, "x": 5}, ending="")
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0].shape == (4, 2, 4, 5)
        assert (dataset.arrays[0][:3, :, 0, 0] == [[1, 2], [3, 4], [5, 6]]).all()


@pytest.mark.parametrize("ending", ["stream.close()", ""])
def test_a_dataset_of_ome_writers_whose_frames_are_mixed_up_is_refused(folder, ending):
    sizes, order = {"t": None, "c": 2, "y": 4, "x": 5}, ["c", "t", "y", "x"]
    theirs(folder, sizes, ending, order=order)
    warned = nullcontext() if ending else pytest.warns(UserWarning, match="not close")
    with warned, pytest.raises(DatasetError, match=r"growing axis 't' inside.*mixed up"):
        open_scratch(folder)


def test_one_that_never_grew_is_not(folder):
    order = ["c", "t", "y", "x"]
    theirs(folder, {"t": None, "c": 2, "y": 4, "x": 5}, frames=2, order=order)
    with open_scratch(folder) as dataset:
        assert dataset.arrays[0][:, 0, 0, 0].tolist() == [1, 2]


# ---------------------------------------------------------------------------------- life


def test_arrays_stay_readable_after_close_and_the_dataset_refuses(
    make_settings, folder, frames
):
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0])
    with open_scratch(folder) as dataset:
        taken = dataset.arrays[0][0, 0]
        array = dataset.arrays[0]
    np.testing.assert_array_equal(taken, frames[0])
    with pytest.raises(ValueError, match="closed"):
        _ = array[0]


@pytest.mark.skipif(
    sys.platform != "linux" or os.environ.get("SCRATCHWRITER_REGION") == "portable",
    reason="Python's mmap keeps a file open",
)
def test_arrays_of_many_positions_need_no_open_files(make_settings, folder):
    sizes = {"t": None, "p": 2000, "y": 2, "x": 2}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        stream.append(np.ones((2, 2), "uint16"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with open_scratch(folder) as dataset:
        kept = [array[...] for array in dataset.arrays]
        assert len(list(Path("/proc/self/fd").iterdir())) < before + 10
    assert kept[0].all()
    assert not kept[1999].any()


def test_no_folder_and_no_dataset_are_different_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        open_scratch(tmp_path / "nothing")
    with pytest.raises(DatasetError, match=r"not a scratch dataset: it has no manifest"):
        open_scratch(tmp_path)


def test_our_dataset_without_its_progress_is_damaged(make_settings, folder):
    create_stream(make_settings(SIZES, root_path=str(folder))).close()
    (folder / "progress.bin").unlink()
    with pytest.raises(DatasetError, match=r"progress\.bin.*missing"):
        open_scratch(folder)


def test_it_says_what_it_is(dataset, folder):
    assert repr(dataset) == f"<ScratchDataset closed, 12 frames, {folder}>"


def test_datasets_of_the_version_before_can_be_opened(make_settings, folder, frames):
    """Those have no skips.bin, and no boot id: only the beginning of progress.bin."""
    with create_stream(make_settings(SIZES, root_path=str(folder))) as stream:
        stream.append(frames[0])
    (folder / "skips.bin").unlink()
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(24)
        file.write(b"\0" * 36)
    with open_scratch(folder) as dataset:
        assert dataset.skipped == []
        assert (
            json.loads((folder / "manifest.json").read_text())["position_shapes"]
            == [[1, 2, 4, 5]] * 2
        )


def test_a_live_reader_of_another_machine_or_container_grows(
    make_settings, folder, monkeypatch
):
    settings = make_settings({"t": None, "y": 64, "x": 64}, root_path=str(folder))
    frame = np.ones((64, 64), "uint16")
    with create_stream(settings) as stream:
        stream.append(frame)
        monkeypatch.setattr("scratchwriter._files.progress.boot_id", lambda: "another")
        with open_scratch(folder) as dataset:
            room = (folder / "pos_0.dat").stat().st_size // frame.nbytes
            for _ in range(room + 10):
                stream.append(frame)
            assert dataset.frames_written == room + 11
            assert dataset.arrays[0].shape == (room + 11, 64, 64)


def test_a_position_that_is_not_there_is_an_error(make_settings, folder):
    settings = make_settings({"t": 3, "p": 2, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(np.ones((4, 5), "uint16"))
    with open_scratch(folder) as dataset:
        assert dataset.written(-2).sum() == 1
        for position in (2, 7, -3):
            with pytest.raises(IndexError):
                dataset.written(position)


def test_a_folder_that_cannot_be_locked_for_writing_as_on_nfs_is_used_all_the_same(
    make_settings, folder, monkeypatch
):
    def flock(fd, operation):
        access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        if operation & fcntl.LOCK_EX and access == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        real(fd, operation)

    real = fcntl.flock
    monkeypatch.setattr("scratchwriter._region.system.fcntl.flock", flock)
    settings = make_settings(
        {"t": 3, "y": 4, "x": 5}, root_path=str(folder), overwrite=True
    )
    for _ in range(2):
        with create_stream(settings) as stream:
            stream.append(np.ones((4, 5), "uint16"))
            with pytest.raises(FileExistsError, match="being recorded by process"):
                create_stream(settings)
    assert recover(folder) == []
