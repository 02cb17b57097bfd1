"""The real MMCore and its demo camera, through pymmcore-plus and through pymmcore alone."""

import json
import logging

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
    meta = {"runner_time_ms": 1.0, "exposure_ms": 1.0}
    info = {"height": 4, "width": 4, "dtype": "uint16"}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for i, event in enumerate(seq):
        assert not handler.stream.closed
        handler.frameReady(np.full((4, 4), i, "uint16"), event, meta)
    assert handler.stream.closed
    with open_scratch(tmp_path / "run") as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 4)
    handler.frameReady(np.zeros((4, 4), "uint16"), event, meta)
    assert (handler.num_refused, handler.error) == (1, None)


def test_frames_that_never_came_leave_zeros_at_their_place(core):
    handler, seq = MDAHandler(), useq.MDASequence(time_plan={"interval": 0, "loops": 4})
    info = {"height": 4, "width": 4, "dtype": "uint16"}
    events = list(seq)
    meta = {"runner_time_ms": 1.0, "exposure_ms": 1.0}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for i in (0, 2):
        handler.frameReady(np.full((4, 4), i + 1, "uint16"), events[i], meta)
    handler.sequenceFinished(seq)
    assert np.asarray(handler.view())[:, 0, 0].tolist() == [1, 0, 3]


def test_frames_go_to_the_camera_that_their_event_names_and_none_twice(caplog):
    handler, seq = MDAHandler(), useq.MDASequence(time_plan={"interval": 0, "loops": 3})
    info = {"height": 4, "width": 4, "dtype": "uint16", "num_camera_adapter_channels": 2}
    meta = {"runner_time_ms": 1.0, "exposure_ms": 1.0}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for t, cam in ((0, 0), (0, 1), (1, 1), (2, 0), (1, 0), (2, 1)):
        event = useq.MDAEvent(index={"t": t, "cam": cam})
        handler.frameReady(np.full((4, 4), 10 * t + cam + 1, "uint16"), event, meta)
    handler.sequenceFinished(seq)
    assert np.asarray(handler.view())[..., 0, 0].tolist() == [[1, 2], [0, 12], [21, 22]]
    assert (handler.num_refused, handler.error) == (1, None)
    assert "came twice or too late" in caplog.text


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
    info = {"height": 4, "width": 4, "dtype": "uint16", "num_camera_adapter_channels": 2}
    meta = {"runner_time_ms": 1.0, "exposure_ms": 1.0}
    handler.sequenceStarted(seq, {"image_infos": [info]})
    for i, event in enumerate(seq):
        handler.frameReady(np.full((4, 4), i, "uint16"), event, meta)
    handler.sequenceFinished(seq)
    assert handler.error is None
    assert np.asarray(handler.view())[:, 0, 0].tolist() == list(range(3 * 2 * 3))


def test_events_without_a_sequence_are_stored_frame_by_frame(core):
    handler, frames = MDAHandler(), []
    core.mda.events.frameReady.connect(lambda image, *_: frames.append(image.copy()))
    core.mda.run(iter([useq.MDAEvent(exposure=1), useq.MDAEvent()]), output=handler)
    handler.close()
    np.testing.assert_array_equal(np.asarray(handler.view()), frames)


def test_an_error_is_kept_and_reported_and_the_run_continues(core, tmp_path, caplog):
    run(core, SEQUENCES["times"], MDAHandler(tmp_path / "run"))
    handler = MDAHandler(tmp_path / "run")
    assert len(run(core, SEQUENCES["times"], handler)) == 3
    assert isinstance(handler.error, FileExistsError)
    assert "No more frames of this sequence are stored" in caplog.text
    with pytest.raises(RuntimeError, match=r"No stream was made.*exists"):
        handler.view()
    handler = MDAHandler(tmp_path / "run", overwrite=True)
    run(core, SEQUENCES["times"], handler)
    assert handler.error is None


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
