"""Rings: acquisitions without an end, of which the newest steps are kept."""

import mmap
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference import Model, read_plain
from scratchwriter import AcquisitionSettings, ScratchFormat, create_stream, open_scratch
from scratchwriter import dims_from_standard_axes as dims
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._region import make_ring

KEEP = 3


def ring_settings(sizes, keep=KEEP, **fields):
    return AcquisitionSettings(
        dimensions=dims(sizes),
        dtype="uint16",
        format=ScratchFormat(keep_last=keep),
        **fields,
    )


def newest(model, position, keep=KEEP):
    array = model.array(position)
    axis = model.storage_names.index("t")
    return array.take(range(max(array.shape[axis] - keep, 0), array.shape[axis]), axis)


def frame_of(i, shape=(4, 5)):
    return np.full(shape, i + 1, "uint16")


@pytest.mark.parametrize("shape", [(4, 5), (64, 32), (32, 1), (100, 70)])
def test_the_newest_steps_are_one_array_in_order(place, shape):
    made = ring_settings({"t": None, "y": shape[0], "x": shape[1]}, **place)
    with create_stream(made) as stream:
        for i in range(3000):
            stream.append(frame_of(i, shape))
            if i % 97 == 5 or i < 10:
                array = stream.arrays[0][...]
                assert array.shape == (min(i + 1, KEEP), *shape)
                assert (array[:, 0, 0] == 1 + np.arange(max(i + 1 - KEEP, 0), i + 1)).all()
                assert not array.flags.writeable
    assert (stream.arrays[0][:, -1, -1] == [2998, 2999, 3000]).all()


ACTIONS = st.one_of(
    st.just(("append", 1)),
    st.tuples(st.just("extend"), st.integers(1, 9)),
    st.just(("slot", 1)),
    st.tuples(st.sampled_from(["slots", "give back"]), st.integers(1, 7)),
    st.tuples(st.just("skip"), st.integers(1, 40)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(ACTIONS, max_size=25),
    sizes=st.sampled_from([{}, {"p": 2}, {"c": 2}, {"p": 2, "c": 3}, {"c": 2, "p": 2}]),
    reverse=st.booleans(),
    on_disk=st.booleans(),
    keep=st.integers(1, 4),
)
def test_any_ring_shows_what_the_model_has_last(
    tmp_path_factory, actions, sizes, reverse, on_disk, keep
):
    folder = tmp_path_factory.mktemp("d") / "data"
    names = ["t", *sizes]
    order = [*reversed(names), "y", "x"] if reverse else "acquisition"
    made = ring_settings(
        {"t": None, **sizes, "y": 4, "x": 5},
        keep,
        storage_order=order,
        root_path=str(folder) if on_disk else "",
    )
    model, count, stamps = Model(made), 0, []
    with create_stream(made) as stream:
        for action, n in actions:
            stamp = range(count, count + n)
            if action == "append":
                stream.append(frame_of(count), timestamp_ns=count)
            elif action == "extend":
                batch = np.stack([frame_of(i) for i in stamp])
                stream.extend(batch, timestamps_ns=stamp)
            elif action == "slot":
                with stream.slot(timestamp_ns=count) as frame:
                    frame[...] = frame_of(count)
            elif action in ("slots", "give back"):
                if not fill_slots(stream, stamp, action):
                    n, stamp = 0, range(0)
            else:
                stream.skip(frames=n)
                model.skip(n)
            for i in stamp:
                if action != "skip":
                    model.append(frame_of(i))
            stamps += [-1] * n if action == "skip" else stamp
            count += n
            for position in range(model.num_positions):
                expected = newest(model, position, keep)
                np.testing.assert_array_equal(stream.arrays[position], expected)
        assert stream.frames_written == count
        times = stream.timestamps
        if on_disk:
            with open_scratch(folder) as dataset:
                assert dataset.state == "recording"
                check_dataset(dataset, model, keep)
    for position in range(model.num_positions):
        shape = stream.arrays[position].shape[:-2]
        expected = np.full(shape, -1)
        axis = model.storage_names.index("t")
        last = max((s["t"] for p, s in model.visited if p == position), default=0)
        for (at, index), stamp in zip(model.visited, stamps, strict=True):
            place = [index[name] for name in model.storage_names]
            place[axis] -= max(last + 1 - keep, 0)
            if at == position and place[axis] >= 0:
                expected[tuple(place)] = stamp
        np.testing.assert_array_equal(times[position], expected)
    if on_disk:
        with open_scratch(folder) as dataset:
            assert dataset.state == "closed"
            assert find_faults(dataset.source) == []
            check_dataset(dataset, model, keep)
        assert [len(a) <= keep for a in read_plain(folder)] == [True] * model.num_positions


def fill_slots(stream, stamp, action):
    """Whether so many slots were to be had, and filled."""
    shown = [np.array(array) for array in stream.arrays]
    try:
        with stream.slots(len(stamp), timestamps_ns=stamp) as frames:
            frames[...] = np.array([frame_of(i) for i in stamp])
            for array, before in zip(stream.arrays, shown, strict=True):
                has_come = before != 0
                assert (np.asarray(array)[has_come] == before[has_come]).all()
            if action == "give back":
                raise KeyError
    except (ValueError, KeyError):
        return False
    return True


def check_dataset(dataset, model, keep):
    for position in range(model.num_positions):
        expected = newest(model, position, keep)
        np.testing.assert_array_equal(dataset.arrays[position], expected)
        written = (expected != 0).any((-2, -1))
        np.testing.assert_array_equal(dataset.written(position), written)


def test_a_ring_does_not_grow(tmp_path, place):
    with create_stream(ring_settings({"t": None, "y": 64, "x": 64}, **place)) as stream:
        folder = stream.path

        def size():
            if folder is None:
                return 0
            return sum(path.stat().st_size for path in folder.iterdir())

        before = size()
        for i in range(1000):
            stream.append(frame_of(i, (64, 64)))
        assert size() == before
        addresses = {stream.arrays[0][...].nbytes}
        assert addresses == {KEEP * 8192}


def test_several_slots_are_those_of_the_step_that_is_recorded(place):
    with create_stream(
        ring_settings({"t": None, "c": 2, "y": 4, "x": 5}, **place)
    ) as stream:
        for i in range(20):
            with stream.slots(2) as frames:
                frames[0], frames[1] = frame_of(2 * i), frame_of(2 * i + 1)
        assert stream.arrays[0][-1, :, 0, 0].tolist() == [39, 40]
        with pytest.raises(ValueError, match="keep_last still shows"):
            stream.slots(3).__enter__()


def test_the_region_of_a_ring_has_one_size_and_one_file(tmp_path, place):
    ring = make_ring(mmap.PAGESIZE, tmp_path / "a.dat" if place else None)
    ring.extend(mmap.PAGESIZE)
    ring.trim(0)
    ring.end(0)
    ring.save()
    assert (ring.nbytes, ring.is_saved) == (mmap.PAGESIZE, True)
    for action in (
        lambda: ring.extend(mmap.PAGESIZE + 1),
        lambda: ring.allocate(0, mmap.PAGESIZE + 1),
        lambda: ring.spill(tmp_path / "b.dat", 0),
        lambda: ring.save_as(tmp_path / "b.dat", 1),
    ):
        with pytest.raises(MemoryError, match="a ring"):
            action()
    assert not (tmp_path / "b.dat").exists()


@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="a sanitizer keeps freed memory")
def test_a_ring_in_memory_does_not_grow_with_metadata():
    with create_stream(ring_settings({"t": None, "y": 4, "x": 5})) as stream:
        metadata = {"text": "x" * 1000}

        def record():
            for i in range(20_000):
                stream.append(frame_of(i), frame_metadata=metadata)
            return resident_nbytes()

        record()
        assert record() - record() > -5e6  # of 20 MB of lines


def resident_nbytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_dropped_frames_are_those_since_the_beginning(place):
    ids = [0, 1, 5, 6, 7, 8, 9, 20, 21, 22]
    with create_stream(ring_settings({"t": None, "y": 4, "x": 5}, **place)) as stream:
        for i in ids:
            stream.append(frame_of(i), frame_id=i)
        assert stream.stats().dropped == 13
        path = stream.path
        if path is not None:
            with open_scratch(path) as dataset:
                assert dataset.dropped == 13
    if path is not None:
        with open_scratch(path) as dataset:
            assert dataset.dropped == 13


def test_what_is_not_known_of_a_frame_is_zero_in_its_record(tmp_path):
    folder = tmp_path / "d"
    made = ring_settings({"t": None, "y": 64, "x": 32}, root_path=str(folder))
    with create_stream(made) as stream:
        for i in range(20):
            stream.append(frame_of(i, (64, 32)), timestamp_ns=i + 1, frame_id=i + 1)
        for _ in range(10):
            stream.append(frame_of(0, (64, 32)))
        stream.skip(frames=20)
    assert not np.fromfile(folder / "frame_records.bin", "i8").any()


@pytest.mark.parametrize("sizes", [{}, {"c": 2}, {"p": 2}, {"p": 2, "c": 3}], ids=str)
def test_an_array_stays_as_it_was_for_two_steps(sizes):
    made = ring_settings({"t": None, **sizes, "y": 64, "x": 32})
    step_frames = int(np.prod([*sizes.values()], dtype=int))
    for extra in range(step_frames):
        with create_stream(made) as stream:
            for i in range(30 * step_frames + extra):
                stream.append(frame_of(i, (64, 32)))
            array = stream.arrays[0][...]
            # What is still to come of its last step is shown when it comes.
            complete = array if extra == 0 else array[:-1]
            before = np.array(complete)
            for i in range(2 * step_frames):
                stream.append(frame_of(1000 + i, (64, 32)))
                np.testing.assert_array_equal(complete, before)


def test_a_skip_of_any_length_takes_no_time_and_leaves_zeros(place):
    made = ring_settings({"t": None, "c": 2, "y": 4, "x": 5}, **place)
    with create_stream(made) as stream:
        for i in range(100):
            stream.append(frame_of(i))
        stream.skip(frames=10**12)
        assert not stream.arrays[0][...].any()
        stream.append(frame_of(6))
        assert stream.frames_written == 10**12 + 101
        assert stream.arrays[0][-1, 0, 0, 0] == 7
        with pytest.raises(MemoryError, match="skip fewer"):
            stream.skip(frames=10**18)


def test_a_killed_ring_is_read_as_it_was(tmp_path):
    folder = tmp_path / "d"
    program = f"""
    import os, signal
    import numpy as np
    from scratchwriter import *
    stream = create_stream(
        AcquisitionSettings(
            root_path={str(folder)!r},
            dimensions=dims_from_standard_axes({{"t": None, "y": 4, "x": 5}}),
            dtype="uint16",
            format=ScratchFormat(keep_last=3),
        )
    )
    for i in range(5000):
        stream.append(np.full((4, 5), i, "uint16"), timestamp_ns=i)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL
    for state in ("killed", "closed"):
        with open_scratch(folder) as dataset:
            assert (dataset.state, dataset.frames_written) == (state, 5000)
            assert (dataset.arrays[0][:, 0, 0] == [4997, 4998, 4999]).all()
            assert dataset.timestamps[0].tolist() == [4997, 4998, 4999]
        recover(folder)
    assert read_plain(folder)[0].shape == (3, 4, 5)


def test_a_ring_that_does_not_fit_is_refused(small_disk):
    made = ring_settings(
        {"t": None, "y": 512, "x": 512}, 20, root_path=str(small_disk / "d")
    )
    with pytest.raises(OSError, match="disk has"):
        create_stream(made)
    assert list(small_disk.iterdir()) == []


def test_only_an_acquisition_without_an_end_has_a_ring():
    with pytest.raises(ValueError, match=r"keep_last=3.*unbounded"):
        create_stream(ring_settings({"t": 10, "y": 4, "x": 5}))
