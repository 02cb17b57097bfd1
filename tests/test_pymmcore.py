"""The real MMCore and its demo camera, through pymmcore-plus and through pymmcore alone."""

import json
import logging
import threading
import warnings
from collections.abc import Mapping

import numpy as np
import pytest

useq = pytest.importorskip("useq")
pymmcore_plus = pytest.importorskip("pymmcore_plus")
mm_test_adapters = pytest.importorskip("mm_test_adapters")

from scratchwriter import (
    AcquisitionSettings,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter.bridges import ome_writers as ome_bridge
from scratchwriter.bridges.pymmcore import MDAHandler, record_sequence

SIZE = 64
INFO = {"height": 4, "width": 4, "dtype": "uint16"}
META = {"runner_time_ms": 1.0, "exposure_ms": 1.0}
TIMES = {"interval": 0, "loops": 3}
POSITIONS = [(1, 2, 3), (4, 5, 6)]
STACK = {"range": 2, "step": 1}
SEQUENCES = {
    "times": {"time_plan": TIMES},
    "channels": {"time_plan": TIMES, "channels": ["DAPI", "FITC"]},
    "stack": {"channels": ["DAPI", "FITC"], "z_plan": STACK},
    "positions": {
        "axis_order": "tpcz",
        "time_plan": TIMES,
        "stage_positions": POSITIONS,
        "channels": ["DAPI", "FITC"],
        "z_plan": STACK,
    },
    "grid": {"stage_positions": POSITIONS, "grid_plan": {"rows": 1, "columns": 2}},
}


@pytest.fixture
def core():
    core = pymmcore_plus.CMMCorePlus(adapter_paths=[mm_test_adapters.device_adapter_path()])
    core.loadDevice("Camera", "DemoCamera", "DCam")
    core.loadDevice("XY", "DemoCamera", "DXYStage")
    core.loadDevice("Z", "DemoCamera", "DStage")
    core.loadDevice("Wheel", "DemoCamera", "DWheel")
    core.loadDevice("Shutter", "DemoCamera", "DShutter")
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setXYStageDevice("XY")
    core.setFocusDevice("Z")
    core.setShutterDevice("Shutter")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setProperty("Camera", "OnCameraCCDXSize", str(SIZE))
    core.setProperty("Camera", "OnCameraCCDYSize", str(SIZE))
    for i, name in enumerate(("DAPI", "FITC")):
        core.defineConfig("Channel", name, "Wheel", "State", str(i))
    core.setChannelGroup("Channel")
    core.setExposure(1)
    yield core
    core.unloadAllDevices()


def run(core, seq, output, **options):
    """Run it as a program does that knows nothing of this library; return its frames."""
    frames = []

    def keep(image, event, meta):
        frames.append(image.copy())

    core.mda.events.frameReady.connect(keep)
    core.mda.run(useq.MDASequence(**seq), output=output, **options)
    core.mda.events.frameReady.disconnect(keep)
    if isinstance(output, MDAHandler):
        output.close()  # the relay of pymmcore-plus can lose the end of a sequence
    return np.array(frames)


@pytest.mark.parametrize("name", SEQUENCES)
def test_an_mda_of_pymmcore_plus_uses_this_library_when_it_is_installed(core, name):
    ome_bridge.install()
    try:
        frames = run(core, SEQUENCES[name], "memory")
        backend = core.mda._sink._stream._backend
        assert isinstance(backend, ome_bridge.ScratchwriterBackend)
        view = np.asarray(core.mda.get_view())
    finally:
        ome_bridge.uninstall()
    np.testing.assert_array_equal(view.reshape(frames.shape), frames)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_handler_stores_an_mda_with_its_metadata(core, tmp_path, name):
    handler = MDAHandler(tmp_path / "run")
    frames = run(core, SEQUENCES[name], handler)
    assert handler.error is None
    with open_scratch(tmp_path / "run") as dataset:
        assert dataset.state == "closed"
        np.testing.assert_array_equal(
            np.asarray(dataset.view()).reshape(frames.shape), frames
        )
        assert len(dataset.frame_metadata) == len(frames)
        line = dataset.frame_metadata[-1]
        assert line["exposure_time"] == 0.001
        assert line["delta_t"] > 0
        assert line["mda_event"]["index"]
        assert line["camera_device"] == "Camera"
        summary = dataset.global_metadata["pymmcore_plus"]["summary_metadata"]
        assert summary["image_infos"][0]["width"] == SIZE
        assert "mda_sequence" in summary
    if name == "positions":
        position = line["position_x"], line["position_y"]
        assert position == pytest.approx((4, 5), abs=0.02)  # the stage's resolution
        assert [p.name for p in dataset.settings.positions] == ["0", "1"]


def test_a_handler_can_be_used_again_and_in_memory(core):
    handler = MDAHandler()
    with pytest.raises(RuntimeError, match="output=handler"):
        handler.view()
    for name in ("times", "channels"):
        frames = run(core, SEQUENCES[name], handler)
        np.testing.assert_array_equal(
            np.asarray(handler.view()).reshape(frames.shape), frames
        )


def test_a_sequence_whose_end_is_never_reported_is_closed_with_its_last_frame(tmp_path):
    handler = MDAHandler(tmp_path / "run")
    seq = useq.MDASequence(time_plan={"interval": 0, "loops": 4})
    handler.sequenceStarted(seq, {"image_infos": [INFO]})
    for i, event in enumerate(seq):
        assert not handler.stream.closed
        handler.frameReady(np.full((4, 4), i, "uint16"), event, META)
    assert handler.stream.closed
    with open_scratch(tmp_path / "run") as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 4)
    assert handler.error is None


def test_frames_that_never_came_leave_zeros_at_their_place(core):
    handler, seq = MDAHandler(), useq.MDASequence(time_plan={"interval": 0, "loops": 4})
    events = list(seq)
    handler.sequenceStarted(seq, {"image_infos": [INFO]})
    for i in (0, 2):
        handler.frameReady(np.full((4, 4), i + 1, "uint16"), events[i], META)
    handler.sequenceFinished(seq)
    assert np.asarray(handler.view())[:, 0, 0].tolist() == [1, 0, 3]


def test_frames_go_to_the_camera_that_their_event_names_and_none_twice(caplog):
    handler, seq = MDAHandler(), useq.MDASequence(time_plan={"interval": 0, "loops": 3})
    info = INFO | {"num_camera_adapter_channels": 2}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for t, cam in ((0, 0), (0, 1), (1, 1), (2, 0), (1, 0), (2, 1)):
        event = useq.MDAEvent(index={"t": t, "cam": cam})
        handler.frameReady(np.full((4, 4), 10 * t + cam + 1, "uint16"), event, META)
    handler.sequenceFinished(seq)
    assert np.asarray(handler.view())[..., 0, 0].tolist() == [[1, 2], [0, 12], [21, 22]]
    assert "came twice or too late" in str(handler.error)
    assert "came twice or too late" in caplog.text


NOT_OF_THE_SEQUENCE = {
    "axis that an engine adds": ({"t": 0, "q": 1}, r"\{'t': 0, 'q': 1\} is not of this"),
    "before the first": ({"t": -1}, "is not of this sequence"),
    "behind the last": ({"t": 3}, "is not of this sequence"),
    "no axis": ({}, "is not of this sequence"),
    "camera that is none": ({"t": 0, "cam": 1}, "is not of this sequence"),
}


@pytest.mark.parametrize("name", NOT_OF_THE_SEQUENCE)
def test_a_frame_at_an_index_that_is_not_of_the_sequence_is_an_error(name):
    index, message = NOT_OF_THE_SEQUENCE[name]
    handler = MDAHandler()
    handler.setup(useq.MDASequence(time_plan=TIMES), {"image_infos": [INFO]})
    with pytest.raises(ValueError, match=message):
        handler.append(np.ones((4, 4), "uint16"), useq.MDAEvent(index=index), META)
    assert handler.stream.frames_written == 0
    handler.append(np.ones((4, 4), "uint16"), useq.MDAEvent(index={"t": 0}), META)
    assert handler.stream.frames_written == 1
    handler.close()


def test_a_frame_that_comes_again_is_an_error():
    handler, event = MDAHandler(), useq.MDAEvent(index={"t": 0})
    handler.setup(useq.MDASequence(time_plan=TIMES), {"image_infos": [INFO]})
    handler.append(np.ones((4, 4), "uint16"), event, META)
    with pytest.raises(ValueError, match=r"\{'t': 0\} came twice.*1 frames are stored"):
        handler.append(np.ones((4, 4), "uint16"), event, META)
    handler.close()


def test_a_run_of_an_engine_that_adds_an_axis_ends_at_its_first_frame(core, tmp_path):
    class Twice(pymmcore_plus.mda.MDAEngine):
        def exec_event(self, event):
            for payload in super().exec_event(event):
                image, ran, meta = payload
                for q in range(2):
                    index = {**ran.index, "q": q}
                    yield image, ran.model_copy(update={"index": index}), meta

    before = core.mda.engine
    core.register_mda_engine(Twice(core))
    handler = MDAHandler(tmp_path / "run")
    try:
        with pytest.raises(ValueError, match="'q': 0} is not of this sequence"):
            core.mda.run(useq.MDASequence(time_plan=TIMES), output=handler)
    finally:
        core.register_mda_engine(before)  # this core may be the instance of all
    assert handler.stream.closed
    assert handler.stream.frames_written == 0


@pytest.mark.filterwarnings("ignore:Unable to generate")
@pytest.mark.parametrize("overlap", [True, False])
def test_points_that_are_drawn_when_they_are_visited_are_all_stored(core, caplog, overlap):
    points = {"num_points": 9, "max_width": 5, "max_height": 5, "allow_overlap": overlap}
    points |= {"fov_width": 1, "fov_height": 1}
    seq = {"stage_positions": [(0, 0)], "grid_plan": points, "channels": ["DAPI"]}
    handler = MDAHandler()
    with caplog.at_level(logging.WARNING):
        frames = run(core, seq, handler)
    assert handler.error is None
    assert handler.stream.frames_written == len(frames)
    assert ("give the plan a random_seed" in caplog.text) == (not overlap)
    if overlap:
        (places,) = (d.coords for d in handler.stream.settings.dimensions if d.name == "p")
        assert {(at.x_coord, at.y_coord) for at in places} == {(None, None)}


def test_a_sequence_that_no_array_has_room_for_is_stored_frame_by_frame(core, caplog):
    handler = MDAHandler()
    seq = {
        "time_plan": TIMES,
        "channels": ["DAPI", {"config": "FITC", "acquire_every": 2}],
    }
    with caplog.at_level(logging.WARNING):
        frames = run(core, seq, handler)
    assert "one after the other" in caplog.text
    assert handler.view().dims == ("t", "y", "x")
    np.testing.assert_array_equal(np.asarray(handler.view()), frames)
    assert len(frames) == 5


def test_several_cameras_in_a_sequence_with_no_dimension_left_are_stored_frame_by_frame():
    stack = {"time_plan": TIMES, "channels": ["DAPI", "FITC"], "z_plan": STACK}
    handler, seq = MDAHandler(), useq.MDASequence(**stack)
    info = INFO | {"num_camera_adapter_channels": 2}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for i, event in enumerate(seq):
        handler.frameReady(np.full((4, 4), i, "uint16"), event, META)
    handler.sequenceFinished(seq)
    assert handler.error is None
    assert np.asarray(handler.view())[:, 0, 0].tolist() == list(range(3 * 2 * 3))


def test_events_without_a_sequence_are_stored_frame_by_frame(core):
    handler, frames = MDAHandler(), []
    core.mda.events.frameReady.connect(lambda image, *_: frames.append(image.copy()))
    core.mda.run(iter([useq.MDAEvent(exposure=1), useq.MDAEvent()]), output=handler)
    handler.close()
    np.testing.assert_array_equal(np.asarray(handler.view()), frames)


def test_a_handler_that_cannot_store_makes_the_run_fail_before_its_first_event(
    core, tmp_path
):
    run(core, SEQUENCES["times"], MDAHandler(tmp_path / "run"))
    handler, events = MDAHandler(tmp_path / "run"), []
    core.mda.events.eventStarted.connect(events.append)
    with pytest.raises(FileExistsError, match="The folder exists"):
        run(core, SEQUENCES["times"], handler)
    assert (events, core.mda.is_running()) == ([], False)
    assert isinstance(handler.error, FileExistsError)
    with pytest.raises(RuntimeError, match=r"No stream was made.*exists"):
        handler.view()
    handler = MDAHandler(tmp_path / "run", overwrite=True)
    run(core, SEQUENCES["times"], handler)
    assert handler.error is None


def test_a_frame_that_cannot_be_stored_ends_the_run_with_the_error(core, tmp_path):
    handler = MDAHandler(tmp_path / "run")

    def change_the_camera(image, event, meta):
        core.setProperty("Camera", "OnCameraCCDXSize", "32")

    core.mda.engine.use_hardware_sequencing = False  # one frame after the other
    core.mda.events.frameReady.connect(change_the_camera)
    with pytest.raises(ValueError, match=r"\(64, 32\)"):
        core.mda.run(useq.MDASequence(time_plan=TIMES), output=handler)
    assert isinstance(handler.error, ValueError)
    assert core.mda.status.finish_reason == "errored"
    with open_scratch(tmp_path / "run") as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 1)


def test_frames_are_stored_on_the_thread_of_the_acquisition(core, monkeypatch):
    handler, threads, append = MDAHandler(), [], MDAHandler.append

    def note(*args):
        append(*args)
        threads.append((threading.get_ident(), handler.stream.frames_written))

    monkeypatch.setattr(MDAHandler, "append", note)
    core.mda.run(useq.MDASequence(time_plan=TIMES), output=handler)
    assert threads == [(threading.get_ident(), n) for n in (1, 2, 3)]
    assert handler.stream.closed


def test_a_handler_is_called_beside_other_outputs(core, tmp_path):
    class Listener:
        images = ()

        def frameReady(self, image):  # noqa: N802
            self.images += (image.copy(),)

    handler, listener = MDAHandler(tmp_path / "ours"), Listener()
    core.mda.run(
        useq.MDASequence(time_plan=TIMES),
        output=[handler, listener, str(tmp_path / "theirs.ome.zarr")],
    )
    np.testing.assert_array_equal(handler.view(), listener.images)
    np.testing.assert_array_equal(core.mda.get_view(), listener.images)
    assert (tmp_path / "theirs.ome.zarr").exists()


def test_a_handler_that_listens_logs_what_goes_wrong(core, tmp_path, caplog):
    """As in programs that connect handlers by themselves."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").touch()
    handler = MDAHandler(tmp_path / "run")
    with pymmcore_plus.mda.mda_listeners_connected(handler, mda_events=core.mda.events):
        core.mda.run(useq.MDASequence(time_plan=TIMES))
    assert isinstance(handler.error, OSError)
    assert "Frames are not stored: [Errno 17]" in caplog.text


def test_what_never_came_at_the_end_is_skipped(core):
    """As a camera that is triggered, and misses the last frames."""

    class Engine(pymmcore_plus.mda.MDAEngine):
        def exec_event(self, event):
            for payload in super().exec_event(event):
                yield payload if event.index["t"] == 0 else None

    core.mda.set_engine(Engine(core, use_hardware_sequencing=False))
    handler = MDAHandler()
    core.mda.run(useq.MDASequence(time_plan=TIMES), output=handler)
    assert handler.stream.frames_written == 3
    assert np.asarray(handler.view()).any(axis=(1, 2)).tolist() == [True, False, False]


WELLS = useq.WellPlatePlan(
    plate="96-well",
    a1_center_xy=(0, 0),
    selected_wells=([0, 1], [0, 1]),
    well_points_plan={"rows": 1, "columns": 2, "fov_width": 1, "fov_height": 1},
)
FIELD = {"rows": 2, "columns": 2, "fov_width": 1, "fov_height": 1}
RICH = {
    "wells": {"stage_positions": WELLS, "channels": ["DAPI", "FITC"]},
    "wells of positions": {
        "stage_positions": [
            {"x": n, "y": 0, "plate_row": 0, "plate_col": n} for n in (0, 1)
        ],
        "grid_plan": FIELD,
        "time_plan": TIMES,
    },
    "grids of positions": {
        "axis_order": "tcp",
        "time_plan": TIMES,
        "channels": ["DAPI", "FITC"],
        "stage_positions": [{"x": 1, "y": 1, "sequence": {"grid_plan": FIELD}}, (5, 6, 0)],
    },
    "phases and uneven heights": {
        "time_plan": [{"interval": 0, "loops": 2}, {"interval": 0.01, "loops": 3}],
        "z_plan": {"absolute": [0, 1, 5]},
        "metadata": {"mask": np.zeros((3, 3))},
    },
    "heights first": {
        "axis_order": "zctpg",
        "z_plan": STACK,
        "channels": ["DAPI", "FITC"],
        "time_plan": TIMES,
    },
}


@pytest.mark.parametrize("name", RICH)
def test_every_frame_of_a_real_sequence_is_at_the_index_of_its_event(core, tmp_path, name):
    seq, found = useq.MDASequence(**RICH[name]), []
    core.mda.events.frameReady.connect(
        lambda image, event: found.append((dict(event.index), event.x_pos, image.copy()))
    )
    core.mda.run(seq, output=MDAHandler(tmp_path / "run"))
    dataset = open_scratch(tmp_path / "run")
    view, positions = np.asarray(dataset.view()), dataset.settings.positions
    assert dataset.frames_written == len(found) == len(list(seq))
    for index, x, image in found:
        at = [index.get(dim) for dim in dataset.view().dims[:-2]]
        if "p" in dataset.view().dims:
            axis = dataset.view().dims.index("p")
            here = [i for i, p in enumerate(positions) if p.x_coord == pytest.approx(x)]
            frames = [view[(*at[:axis], i, *at[axis + 1 :])] for i in here]
            assert any((frame == image).all() for frame in frames)
        else:
            np.testing.assert_array_equal(view[tuple(at)], image)


# --------------------------------------------------------------------------- metadata


class Opaque:
    """What has no JSON."""


LARGE = np.zeros((64, 64))
SMALL = np.arange(4).reshape(2, 2)
METADATA = {
    "small array": ({"mask": SMALL}, {"mask": [[0, 1], [2, 3]]}, None),
    "large array": ({"mask": LARGE, "a": 1}, {"a": 1}, "mda_event.metadata.mask"),
    "object": ({"a": {"b": Opaque(), "c": 1}}, {"a": {"c": 1}}, "mda_event.metadata.a.b"),
    "quantity": ({"took": np.timedelta64(5, "ms")}, {"took": "5 milliseconds"}, None),
}


@pytest.mark.parametrize("name", METADATA)
def test_pixels_are_stored_whatever_the_metadata_of_events_are(core, tmp_path, name):
    given, stored, left_out = METADATA[name]
    events = [useq.MDAEvent(index={"t": t}, metadata=dict(given)) for t in range(3)]
    handler = MDAHandler(tmp_path / "run")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        core.mda.run(iter(events), output=handler)
    texts = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert len(texts) == (left_out is not None)
    assert left_out is None or repr(left_out) in texts[0]
    with open_scratch(tmp_path / "run") as dataset:
        assert dataset.frames_written == 3
        for t, line in enumerate(dataset.frame_metadata):
            assert line["mda_event"]["metadata"] == stored
            assert line["mda_event"]["index"] == {"t": t}
            assert line["camera_device"] == "Camera"


@pytest.mark.filterwarnings("error")
def test_pixels_are_stored_if_warnings_are_errors(core):
    handler = MDAHandler()
    core.mda.run(iter([useq.MDAEvent(metadata={"a": Opaque()})]), output=handler)
    assert handler.stream.frames_written == 1


def test_an_image_for_a_modulator_keeps_no_frame_from_being_stored(tmp_path):
    handler = MDAHandler(tmp_path / "run")
    seq = useq.MDASequence(time_plan=TIMES)
    handler.setup(seq, {"image_infos": [INFO]})
    for data in (SMALL, LARGE):
        event = useq.MDAEvent(
            index={"t": handler.stream.frames_written},
            slm_image=useq.SLMImage(data=data, device="SLM"),
        )
        if data is LARGE:
            with pytest.warns(
                UserWarning, match=r"'mda_event.slm_image.data'.*4,096 items"
            ):
                handler.append(np.zeros((4, 4), "uint16"), event, META)
        else:
            handler.append(np.zeros((4, 4), "uint16"), event, META)
    handler.close()
    with open_scratch(tmp_path / "run") as dataset:
        small, large = (line["mda_event"]["slm_image"] for line in dataset.frame_metadata)
    assert small == {"device": "SLM", "data": SMALL.tolist()}
    assert large == {"device": "SLM"}


def test_a_sequence_with_arrays_in_its_metadata_is_stored(core, tmp_path):
    handler = MDAHandler(tmp_path / "run")
    metadata = {"flat": np.zeros((512, 512)), "gain": np.float32(2), "here": SMALL}
    seq = useq.MDASequence(time_plan=TIMES, metadata=metadata)
    with pytest.warns(UserWarning, match=r"'summary_metadata.mda_sequence.metadata.flat'"):
        core.mda.run(seq, output=handler)
    with open_scratch(tmp_path / "run") as dataset:
        assert dataset.frames_written == 3
        summary = dataset.global_metadata["pymmcore_plus"]["summary_metadata"]
    assert summary["mda_sequence"]["metadata"] == {"gain": 2, "here": SMALL.tolist()}
    assert summary["mda_sequence"]["time_plan"]["loops"] == 3


def test_of_a_summary_that_no_manifest_holds_the_largest_is_left_out(tmp_path):
    handler = MDAHandler(tmp_path / "run")
    summary = {"image_infos": [INFO], "a": "b" * (1 << 25), "c": {"d": "e" * (1 << 23)}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handler.setup(useq.MDASequence(time_plan=TIMES), summary | {"f": "[" * 300})
    left_out = [str(w.message).split("'")[1] for w in caught]
    assert left_out == ["summary_metadata.a", "summary_metadata.c.d"]
    handler.append(np.ones((4, 4), "uint16"), useq.MDAEvent(index={"t": 0}), META)
    handler.close()
    with open_scratch(tmp_path / "run") as dataset:
        assert dataset.frames_written == 1
        found = dataset.global_metadata["pymmcore_plus"]["summary_metadata"]
    assert found == {"image_infos": [INFO], "c": {}, "f": "[" * 300}


LONG = {"list": "[" * 300, "mixed": '"{[' * 300, "text": "é" * 300}


@pytest.mark.parametrize("name", LONG)
def test_a_run_is_stored_whatever_a_text_in_it_is(core, tmp_path, name):
    value = LONG[name]
    handler = MDAHandler(tmp_path / "run")
    seq = useq.MDASequence(time_plan=TIMES, metadata={"k": value, "l": 1})
    core.mda.run(seq, output=handler)
    with open_scratch(tmp_path / "run") as dataset:
        assert dataset.frames_written == 3
        summary = dataset.global_metadata["pymmcore_plus"]["summary_metadata"]
        assert summary["mda_sequence"]["metadata"] == {"k": value, "l": 1}


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"runner_time_ms": None, "exposure_ms": "?"},
        {"position": None, "_pos": 9},
        {"position": "unknown"},
    ],
)
def test_frames_without_the_usual_metadata_are_stored(tmp_path, meta):
    handler = MDAHandler(tmp_path / "run")
    handler.setup(useq.MDASequence(time_plan=TIMES), {"image_infos": [INFO]})
    event = useq.MDAEvent(index={"t": 0})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        handler.append(np.ones((4, 4), "uint16"), event, meta)
    assert [str(w.message)[:27] for w in caught] == (
        ["Metadata '_pos' are left ou"] if "_pos" in meta else []
    )
    handler.close()
    with open_scratch(tmp_path / "run") as dataset:
        (line,) = dataset.frame_metadata
    assert "delta_t" not in line
    assert "exposure_time" not in line
    assert line["mda_event"]["index"] == {"t": 0}


class NamesRaise(Mapping):
    def __len__(self):
        return 1

    def __iter__(self):
        raise OSError("the file is closed")

    def __getitem__(self, key):
        return 1


def test_a_frame_whose_metadata_cannot_be_read_is_stored():
    handler, event = MDAHandler(), useq.MDAEvent(index={"t": 0})
    handler.setup(useq.MDASequence(time_plan=TIMES), {"image_infos": [INFO]})
    with pytest.warns(UserWarning, match=r"'of the frame' are left out: OSError: the file"):
        handler.append(np.ones((4, 4), "uint16"), event, NamesRaise())
    handler.close()
    assert handler.stream.frames_written == 1


def test_what_a_summary_does_not_say_is_one_camera_without_colours():
    info = INFO | {"plane_shape": None, "num_camera_adapter_channels": None}
    handler = MDAHandler()
    handler.setup(useq.MDASequence(time_plan=TIMES), {"image_infos": [info]})
    handler.close()
    assert handler.stream.settings.shape == (3, 4, 4)


def test_a_line_of_metadata_does_not_grow_with_the_sequence(core, tmp_path):
    nbytes = []
    for count in (2, 300):
        seq = {"stage_positions": [(i, i, 0) for i in range(count)]}
        events = list(useq.MDASequence(**seq))[:2]
        handler = MDAHandler(tmp_path / f"{count}")
        handler.setup(useq.MDASequence(**seq), {"image_infos": [INFO]})
        for event in events:
            handler.append(np.ones((4, 4), "uint16"), event, META)
        handler.close()
        path = tmp_path / f"{count}" / "frame_metadata.jsonl"
        nbytes.append(path.stat().st_size)
    assert nbytes[0] == nbytes[1]


@pytest.mark.parametrize("pixel_type", ["32bitRGB", "64bitRGB"])
def test_a_colour_camera_is_refused_before_the_first_frame(core, pixel_type):
    core.setProperty("Camera", "PixelType", pixel_type)
    with pytest.raises(NotImplementedError, match=r"\(64, 64, 3\).*PixelType to '8bit'"):
        core.mda.run(useq.MDASequence(time_plan=TIMES), output=MDAHandler())


def test_an_engine_without_a_summary_is_refused_before_the_first_frame():
    with pytest.raises(ValueError, match="no image_infos"):
        MDAHandler().setup(useq.MDASequence(time_plan=TIMES), None)


def test_a_channel_with_fewer_planes_is_stored_frame_by_frame(core, caplog):
    channels = ["DAPI", {"config": "FITC", "do_stack": False}]
    frames = run(core, {"channels": channels, "z_plan": STACK}, handler := MDAHandler())
    assert "do_stack=False" in caplog.text
    np.testing.assert_array_equal(handler.view(), frames)
    assert len(frames) == 4


@pytest.mark.filterwarnings("ignore:Only some of the positions:UserWarning")
def test_positions_of_which_only_some_are_in_wells_are_stored_at_their_index(core):
    positions = [{"x": 1, "plate_row": 0, "plate_col": 1}, {"x": 2}]
    seq = {"stage_positions": positions, "z_plan": STACK}
    frames = run(core, seq, handler := MDAHandler())
    assert handler.view().dims == ("p", "z", "y", "x")
    np.testing.assert_array_equal(np.asarray(handler.view()).reshape(frames.shape), frames)


@pytest.mark.parametrize("axis_order", ["tpcz", "tcz"])
def test_wells_are_stored_whether_or_not_they_are_visited(core, axis_order):
    plan = useq.WellPlatePlan(
        plate="96-well", a1_center_xy=(0, 0), selected_wells=([0, 1], [0, 1])
    )
    seq = {"axis_order": axis_order, "time_plan": TIMES, "stage_positions": plan}
    frames = run(core, seq, handler := MDAHandler())
    assert handler.error is None
    assert len(frames) == (6 if "p" in axis_order else 3)
    np.testing.assert_array_equal(np.asarray(handler.view()).reshape(frames.shape), frames)


@pytest.mark.parametrize("is_sequenced", [False, True])
@pytest.mark.parametrize(
    "seq",
    [
        {"time_plan": {"interval": 0, "loops": 20}},
        {"z_plan": {"range": 19, "step": 1}},
        {"stage_positions": POSITIONS, "z_plan": {"range": 9, "step": 1}},
    ],
)
def test_hardware_sequences_are_stored_like_others(core, tmp_path, seq, is_sequenced):
    core.mda.engine.use_hardware_sequencing = is_sequenced
    core.setProperty("Z", "UseSequences", "Yes")
    handler = MDAHandler(tmp_path / "run")
    frames = run(core, seq, handler)
    assert handler.error is None
    assert len(frames) == 20
    with open_scratch(tmp_path / "run") as dataset:
        view = np.asarray(dataset.view())
        np.testing.assert_array_equal(view.reshape(frames.shape), frames)
        lines = dataset.frame_metadata
        triggered = {line.get("hardware_triggered", False) for line in lines}
    assert triggered == {is_sequenced}


# -------------------------------------------------------------------- pymmcore alone


def stream_for(frames, **fields):
    dims = dims_from_standard_axes({"t": frames, "y": SIZE, "x": SIZE})
    return create_stream(AcquisitionSettings(dimensions=dims, dtype="uint16", **fields))


@pytest.mark.parametrize("with_tags", [False, True])
def test_a_sequence_acquisition_is_recorded_with_times_and_numbers(
    core, tmp_path, with_tags
):
    with stream_for(None, root_path=str(tmp_path / "data")) as stream:
        assert record_sequence(core, stream, 50, with_tags=with_tags) == 50
        assert record_sequence(core, stream, 10) == 10
    with open_scratch(tmp_path / "data") as dataset:
        assert dataset.frames_written == 60
        assert dataset.frame_ids[0][:50].tolist() == list(range(50))
        assert (np.diff(dataset.timestamps[0][:50]) > 0).all()
        assert np.asarray(dataset.arrays[0])[:, 0, 0].any()
        assert len(dataset.frame_metadata) == (50 if with_tags else 0)
        if with_tags:
            assert dataset.frame_metadata[7]["ImageNumber"] == "7"
    assert not core.isSequenceRunning()


def test_it_runs_until_it_is_stopped(core):
    with stream_for(None) as stream:
        done = record_sequence(core, stream, until=lambda: stream.frames_written >= 20)
        assert done == stream.frames_written >= 20


def test_a_camera_that_gives_nothing_is_an_error(core):
    core.setExposure(3000)
    with stream_for(5) as stream, pytest.raises(RuntimeError, match=r"gave 0 frames"):
        record_sequence(core, stream, 5, timeout_s=0.2)
    assert not core.isSequenceRunning()


def test_a_full_stream_ends_it_with_the_error_of_the_stream(core):
    with stream_for(5) as stream:
        with pytest.raises(IndexError):
            record_sequence(core, stream, 2000)
        assert not core.isSequenceRunning()


def test_the_metadata_is_json(core, tmp_path):
    run(core, SEQUENCES["positions"], MDAHandler(tmp_path / "run"))
    for line in (tmp_path / "run" / "frame_metadata.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["property_values"], list)
