"""Slots and batches: frames written in place, and many in one call."""

import threading
import time

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from marks import PORTABLE
from reference import Model, read_lines, read_plain
from scratchwriter import AcquisitionSettings, ScratchFormat, create_stream
from scratchwriter import dims_from_standard_axes as dims

FRAME = np.arange(20, dtype="uint16").reshape(4, 5)


@pytest.fixture
def stream(make_settings, place):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5}, **place)) as stream:
        yield stream


# ------------------------------------------------------------------------------- slots


def test_a_slot_is_where_the_frame_is_stored(stream):
    for i in range(3):
        with stream.slot() as frame:
            assert (frame.shape, frame.dtype) == ((4, 5), np.dtype("uint16"))
            assert stream.frames_written == i
            frame[...] = FRAME + i
        assert stream.frames_written == i + 1
        # Where arrays move when they grow, it is a copy until then.
        assert np.shares_memory(frame, stream.arrays[0][i]) == (not PORTABLE)
    assert (stream.arrays[0][:, 0, 0] == [0, 1, 2]).all()


def test_a_slot_that_is_left_is_read_only(stream):
    with stream.slot() as frame:
        frame[...] = FRAME
    with pytest.raises(ValueError, match="read-only"):
        frame[0, 0] = 1
    np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_an_exception_gives_a_slot_back_and_leaves_zeros(stream):
    stream.append(FRAME)
    with pytest.raises(KeyError), stream.slot(frame_metadata={"a": 1}) as frame:
        frame[...] = 7
        raise KeyError
    assert stream.frames_written == 1
    stream.skip()
    stream.append(FRAME)
    assert not stream.arrays[0][1].any()
    np.testing.assert_array_equal(stream.arrays[0][2], FRAME)


def test_a_slot_takes_what_is_known_of_its_frame_until_it_is_left(make_settings, tmp_path):
    root_path = str(tmp_path / "d")
    with create_stream(
        make_settings({"t": 2, "y": 4, "x": 5}, root_path=root_path)
    ) as stream:
        slot = stream.slot(frame_metadata={"a": 1})
        with slot as frame:
            frame[...] = FRAME
            slot.timestamp_ns, slot.frame_id = 5, 6
        with stream.slot(timestamp_ns=7, frame_id=8):
            pass
        assert stream.timestamps[0].tolist() == [5, 7]
        assert stream.frame_ids[0].tolist() == [6, 8]
    assert read_lines(tmp_path / "d") == [{"_pos": 0, "_idx": [0], "a": 1}]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"frame_metadata": 5}, TypeError),
        ({"timestamp_ns": -1}, ValueError),
        ({"frame_id": 1.5}, TypeError),
    ],
)
def test_a_slot_whose_fields_are_refused_is_given_back(stream, fields, error):
    with pytest.raises(error), stream.slot(**fields) as frame:
        frame[...] = 9
    assert stream.frames_written == 0
    stream.append(FRAME)
    np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_a_thread_cannot_append_while_it_has_a_slot_open(stream):
    with stream.slot() as frame:
        frame[...] = FRAME
        for action in (
            lambda: stream.append(FRAME),
            stream.skip,
            lambda: stream.extend([FRAME]),
            lambda: stream.slot().__enter__(),
        ):
            with pytest.raises(RuntimeError, match="slot open"):
                action()
        stream.set_global_metadata("here", {"a": 1})  # needs no slot
        stream.stats()
    assert stream.frames_written == 1


def test_others_wait_until_a_slot_is_left(stream):
    with stream.slot() as frame:
        thread = threading.Thread(target=stream.append, args=(FRAME + 1,))
        thread.start()
        time.sleep(0.05)
        assert stream.frames_written == 0
        frame[...] = FRAME
    thread.join()
    assert (stream.arrays[0][:, 0, 0] == [0, 1]).all()


def test_a_slot_that_is_lost_is_given_back_and_its_array_is_read_only(stream):
    slot = stream.slot()
    frame = slot.__enter__()
    frame[...] = 3
    del slot
    stream.append(FRAME)
    with pytest.raises(ValueError, match="read-only"):
        frame[...] = 777
    np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_a_thread_that_opens_slots_all_the_time_lets_others_go_first(stream):
    is_over = threading.Event()

    def camera():
        while not is_over.is_set():
            with stream.slot() as frame:
                frame[...] = 1
                time.sleep(0.002)

    thread = threading.Thread(target=camera)
    thread.start()
    try:
        others = [threading.Thread(target=stream.append, args=(FRAME,)) for _ in range(5)]
        for other in others:
            other.start()
        for other in others:
            other.join(60)
            assert not other.is_alive()
    finally:
        is_over.set()
        thread.join()


@pytest.mark.skipif(PORTABLE, reason="a slot is a copy there")
def test_arrays_do_not_move_while_a_slot_is_open(stream):
    # Another thread may have asked for room before the slot was opened.
    storage = stream._storage
    with stream.slot() as frame:
        storage.make_room(0, storage.writer.writable_nbytes(0) + frame.nbytes)
        storage.make_steps(1000)
        frame[...] = FRAME
    np.testing.assert_array_equal(stream.arrays[0][0], FRAME)


def test_a_slot_is_used_once(stream):
    slot = stream.slot(frame_id=1)
    assert repr(slot) == "<Slot of 1 frames, not open yet>"
    with slot, pytest.raises(RuntimeError, match="open or was used"):
        assert "open" in repr(slot)
        slot.__enter__()
    with pytest.raises(RuntimeError, match="not open"):
        slot.__exit__(None, None, None)
    with pytest.raises(RuntimeError, match="take another one"):
        slot.__enter__()
    assert repr(slot) == "<Slot of 1 frames, left>"
    assert stream.frames_written == 1
    stream.append(FRAME)


def test_a_slot_is_no_array(stream):
    slot = stream.slot()
    for act in (
        lambda: slot[0],
        lambda: slot.__setitem__(0, 1),
        lambda: np.asarray(slot),
        lambda: stream.append(slot),
    ):
        with pytest.raises(TypeError, match=r"`with stream\.slot\(\) as frame:`"):
            act()
    assert stream.frames_written == 0


@pytest.mark.parametrize(
    ("n", "fields"),
    [
        (1, {"timestamp_ns": -5}),
        (1, {"timestamp_ns": 1.5}),
        (1, {"frame_metadata": 5}),
        (2, {"timestamps_ns": [1]}),
        (2, {"frame_ids": [1, -9]}),
        (2, {"frame_metadata": [{}]}),
        (2, {"frame_metadata": {"a": 1}}),
    ],
    ids=str,
)
def test_what_is_given_with_a_slot_is_refused_before_a_camera_fills_it(stream, n, fields):
    slot = stream.slot(**fields) if n == 1 else stream.slots(n, **fields)
    with pytest.raises((TypeError, ValueError)):
        slot.__enter__()
    stream.append(FRAME)  # no slot is open


def test_the_metadata_of_slots_may_come_from_an_iterator(make_settings, tmp_path):
    made = make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        metadata = ({"i": i} for i in range(2))
        with stream.slots(2, frame_metadata=metadata) as frames:
            frames[...] = 1
    assert [line["i"] for line in read_lines(tmp_path / "d")] == [0, 1]


def test_close_takes_a_slot_back_and_what_is_stored_there_goes_nowhere(
    make_settings, place, tmp_path
):
    stream = create_stream(make_settings({"t": None, "y": 64, "x": 64}, **place))
    stream.append(np.ones((64, 64), "uint16"))
    with pytest.raises(ValueError, match="closed"), stream.slot() as frame:
        stream.close()
        if not PORTABLE:
            frame[...] = 7  # a driver that has not heard of it
    assert stream.frames_written == 1
    assert stream.arrays[0].shape == (1, 64, 64)
    assert (stream.arrays[0][...] == 1).all()


def test_a_slot_that_close_takes_back_is_zeros_in_what_was_planned(make_settings, place):
    stream = create_stream(make_settings({"t": 4, "y": 4, "x": 5}, **place))
    stream.append(FRAME)
    with pytest.raises(ValueError, match="closed"), stream.slot() as frame:
        frame[...] = 7
        stream.close()
    np.testing.assert_array_equal(stream.arrays[0][0], FRAME)
    assert not stream.arrays[0][1:].any()


def test_slots_of_a_closed_or_full_stream_are_refused(make_settings, place):
    with create_stream(make_settings({"t": 1, "y": 4, "x": 5}, **place)) as stream:
        stream.append(FRAME)
        with pytest.raises(IndexError, match="exceed"):
            stream.slot().__enter__()
    with pytest.raises(ValueError, match="closed"):
        stream.slot().__enter__()


def test_several_slots_are_one_array(stream):
    slots = stream.slots(8, timestamps_ns=range(8))
    with slots as frames:
        assert frames.shape == (8, 4, 5)
        frames[...] = np.arange(8)[:, None, None]
    with stream.slots(8) as frames:
        frames[...] = 8 + np.arange(8)[:, None, None]
    assert (stream.arrays[0][:, 0, 0] == np.arange(16)).all()
    assert stream.timestamps[0].tolist() == [*range(8), *[-1] * 8]


@pytest.mark.parametrize("filled", [0, 3])
def test_slots_that_were_not_filled_are_given_back(stream, filled):
    slots = stream.slots(8)
    with slots as frames:
        frames[...] = 7
        slots.num_filled = filled
    assert stream.frames_written == filled
    stream.skip(frames=5)
    assert not stream.arrays[0][filled:].any()
    slots = stream.slots(8)
    with pytest.raises(ValueError, match="num_filled=9"), slots:
        slots.num_filled = 9
    assert stream.frames_written == filled + 5


def test_slots_that_are_apart_are_refused(make_settings, place):
    sizes = {"t": None, "p": 2, "c": 3, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, **place)) as stream:
        stream.append(FRAME)
        with stream.slots(2) as frames:
            frames[...] = FRAME
        for n in (4, 10):
            with pytest.raises(ValueError, match="one behind the other"):
                stream.slots(n).__enter__()
        for n in (0, 65537, 2**70):
            with pytest.raises(ValueError, match="from 1 to 65536"):
                stream.slots(n)
        assert stream.frames_written == 3


def test_what_is_known_of_slots_may_be_set_while_they_are_open_and_for_all(stream):
    metadata = [{"i": i} for i in range(8)]
    slots = stream.slots(8, timestamps_ns=range(8), frame_metadata=metadata)
    with slots as frames:
        frames[...] = 1
        slots.frame_ids = np.arange(8)
        slots.num_filled = 3
    assert stream.timestamps[0].tolist() == [0, 1, 2]
    assert stream.frame_ids[0].tolist() == [0, 1, 2]
    assert slots.timestamps_ns == range(8)


def test_a_single_slot_that_was_not_filled_is_given_back(stream):
    slot = stream.slot()
    with slot as frame:
        frame[...] = 1
        slot.num_filled = 0
    assert stream.frames_written == 0
    slot = stream.slot()
    with pytest.raises(ValueError, match=r"num_filled=2.* from 0 to 1"), slot:
        slot.num_filled = 2


# ----------------------------------------------------------------------------- batches

BATCHES = {
    "an array": lambda batch: batch,
    "a list": list,
    "an iterator": iter,
    "padded": lambda batch: np.pad(batch, ((0, 0), (0, 0), (0, 3)))[:, :, :5],
    "strided": lambda batch: np.repeat(batch, 2, 0)[::2],
    "of another dtype": lambda batch: batch.astype("uint8"),
    "bytes": lambda batch: [frame.tobytes() for frame in batch],
    "a buffer": memoryview,
    "an array interface": lambda batch: Interface(batch),
    "DLPack": lambda batch: Exporter(batch),
}


class Interface:
    def __init__(self, array):
        self.array = array
        self.__array_interface__ = array.__array_interface__


class Exporter:
    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


@pytest.mark.parametrize("kind", BATCHES)
@pytest.mark.parametrize("order", [None, ["c", "p", "t", "y", "x"]])
def test_a_batch_is_stored_frame_by_frame(make_settings, place, kind, order):
    fields = {"storage_order": order} if order else {}
    made = make_settings({"t": None, "p": 2, "c": 3, "y": 4, "x": 5}, **fields, **place)
    model = Model(made)
    batch = np.arange(10 * 20, dtype="uint16").reshape(10, 4, 5)
    with create_stream(made) as stream:
        for _ in range(2):
            stream.extend(BATCHES[kind](batch))
            for frame in BATCHES[kind](batch) if kind == "of another dtype" else batch:
                model.append(frame)
            for position in range(2):
                expected = model.array(position)
                np.testing.assert_array_equal(stream.arrays[position], expected)


def test_a_batch_keeps_what_is_known_of_its_frames(make_settings, tmp_path):
    made = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(made) as stream:
        stream.extend(
            np.stack([FRAME] * 3),
            frame_metadata=[{"a": 1}, None, {"a": 3}],
            timestamps_ns=[10, 20, 30],
            frame_ids=np.array([1, 2, 5]),
        )
        assert stream.timestamps[0].tolist() == [10, 20, 30]
        assert stream.frame_ids[0].tolist() == [1, 2, 5]
        assert stream.stats().dropped == 2
    assert [(line["_idx"], line["a"]) for line in read_lines(tmp_path / "d")] == [
        ([0], 1),
        ([2], 3),
    ]


def test_an_iterator_may_use_the_same_memory_for_each_frame(stream):
    def camera():
        buffer = np.empty((4, 5), "uint16")
        for i in range(5):
            buffer[...] = i
            yield buffer

    stream.extend(camera())
    assert stream.arrays[0][:, 0, 0].tolist() == list(range(5))


def test_in_a_batch_minus_one_is_not_known(stream):
    stream.extend([FRAME] * 3, timestamps_ns=[5, -1, 7], frame_ids=[-1, 3, 4])
    assert stream.timestamps[0].tolist() == [5, -1, 7]
    assert stream.frame_ids[0].tolist() == [-1, 3, 4]


REFUSED = {
    "wrong shape": (lambda: np.zeros((2, 5, 4), "uint16"), {}, ValueError),
    "one frame": (lambda: FRAME, {}, ValueError),
    "wrong dtype": (lambda: np.zeros((2, 4, 5)), {}, ValueError),
    "last one wrong": (lambda: [FRAME, FRAME[:2]], {}, ValueError),
    "too many": (lambda: np.zeros((9, 4, 5), "uint16"), {}, IndexError),
    "metadata of one": (lambda: [FRAME, FRAME], {"frame_metadata": [{}]}, ValueError),
    "metadata one mapping": (lambda: [FRAME], {"frame_metadata": {"a": 1}}, TypeError),
    "metadata no mapping": (lambda: [FRAME], {"frame_metadata": [5]}, TypeError),
    "times of one": (lambda: [FRAME, FRAME], {"timestamps_ns": [1]}, ValueError),
    "negative time": (lambda: [FRAME], {"timestamps_ns": [-2]}, ValueError),
    "bytes": (lambda: FRAME.tobytes(), {}, ValueError),
    "ids no integers": (lambda: [FRAME], {"frame_ids": [1.5]}, ValueError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_batch_that_is_refused_stores_nothing(make_settings, place, case):
    make, fields, error = REFUSED[case]
    with create_stream(make_settings({"t": 8, "y": 4, "x": 5}, **place)) as stream:
        with pytest.raises(error):
            stream.extend(make(), **fields)
        assert stream.frames_written == 0
        assert not stream.arrays[0][...].any()
        stream.extend([])
        stream.extend([FRAME] * 8)
        assert stream.frames_written == 8


def test_a_batch_that_a_disk_has_no_room_for_stores_nothing(make_settings, small_disk):
    frame = np.ones((64, 64), "uint16")
    made = make_settings({"t": None, "y": 64, "x": 64}, root_path=str(small_disk / "d"))
    (small_disk / "ballast").write_bytes(bytes(1 << 16))
    with create_stream(made) as stream:
        stream.append(frame)
        with pytest.raises(OSError, match="No space"):
            stream.extend([frame] * 600, frame_metadata=[{"a": 1}] * 600)
        assert stream.frames_written == 1
        stream.extend([frame] * 10)  # which have their room since
        (small_disk / "ballast").unlink()
        stream.extend([frame] * 10, frame_metadata=[{"a": 1}] * 10)
        assert stream.frames_written == 21
    assert (read_plain(small_disk / "d")[0] == 1).all()
    assert [line["_idx"] for line in read_lines(small_disk / "d")] == [
        [i] for i in range(11, 21)
    ]


def test_a_batch_may_leave_memory(make_settings, tmp_path):
    fmt = ScratchFormat(max_memory_bytes=10 * 8192, spill_dir=str(tmp_path))
    batch = np.arange(40, dtype="uint16")[:, None, None] + np.zeros((64, 64), "uint16")
    with create_stream(make_settings({"t": None, "y": 64, "x": 64}, format=fmt)) as stream:
        stream.extend(batch[:5], timestamps_ns=range(5))
        with pytest.warns(UserWarning, match="max_memory_bytes"):
            stream.extend(batch[5:], timestamps_ns=range(5, 40))
        np.testing.assert_array_equal(stream.arrays[0], batch)
        assert stream.timestamps[0].tolist() == list(range(40))
    np.testing.assert_array_equal(read_plain(stream.path)[0], batch)


ACTIONS = st.one_of(
    st.just(("append", 1)),
    st.tuples(st.just("extend"), st.integers(0, 7)),
    st.tuples(st.just("list"), st.integers(0, 7)),
    st.just(("slot", 1)),
    st.tuples(st.just("slots"), st.integers(1, 4)),
    st.just(("give back", 1)),
    st.tuples(st.just("skip"), st.integers(1, 5)),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(ACTIONS, max_size=25),
    length=st.sampled_from([None, 6]),
    order=st.sampled_from(["acquisition", ["c", "p", "t", "y", "x"]]),
    on_disk=st.booleans(),
)
def test_any_mixture_of_ways_in_stores_what_the_model_does(
    tmp_path_factory, actions, length, order, on_disk
):
    folder = tmp_path_factory.mktemp("d") / "data"
    made = AcquisitionSettings(
        dimensions=dims({"t": length, "p": 2, "c": 3, "y": 4, "x": 5}),
        dtype="uint16",
        storage_order=order,
        root_path=str(folder) if on_disk else "",
    )
    model, stamps, count = Model(made), [], 0
    with create_stream(made) as stream:
        for action, n in actions:
            left = model.left()
            if left is not None and n > left:
                continue
            batch = FRAME + np.arange(count, count + n, dtype="uint16")[:, None, None]
            stamp = list(range(count, count + n))
            if action == "append":
                stream.append(batch[0], timestamp_ns=stamp[0])
            elif action in ("extend", "list"):
                frames = batch if action == "extend" else list(batch)
                stream.extend(frames, timestamps_ns=stamp)
            elif action == "slot":
                with stream.slot(timestamp_ns=stamp[0]) as frame:
                    frame[...] = batch[0]
            elif action == "slots":
                try:
                    with stream.slots(n, timestamps_ns=stamp) as frames:
                        frames[...] = batch
                except ValueError:
                    continue  # apart
            elif action == "give back":
                with pytest.raises(KeyError), stream.slot() as frame:
                    frame[...] = 9999
                    raise KeyError
                continue
            else:
                stream.skip(frames=n)
                model.skip(n)
                stamps += [-1] * n
                count += n
                continue
            for frame in batch:
                model.append(frame)
            stamps += stamp
            count += n
        assert stream.frames_written == count
        found = stream.timestamps
    for position in range(2):
        np.testing.assert_array_equal(stream.arrays[position], model.array(position))
        expected = np.full(found[position].shape, -1)
        for (at, index), stamp in zip(model.visited, stamps, strict=True):
            if at == position:
                expected[tuple(index[name] for name in model.storage_names)] = stamp
        np.testing.assert_array_equal(found[position], expected)
