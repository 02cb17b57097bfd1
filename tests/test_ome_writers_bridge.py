"""ome-writers' own scratch format on this library."""

import json
import math
import os

import numpy as np
import pytest

ome_writers = pytest.importorskip("ome_writers")

from scratchwriter import open_scratch
from scratchwriter.bridges import ome_writers as bridge
from waiting import wait_until

NUM_SEQUENCES = int(os.environ.get("SCRATCHWRITER_SEQUENCES", "500"))


@pytest.fixture
def installed():
    bridge.install()
    yield
    bridge.uninstall()


def settings_of(sizes, **fields):
    fields = {"dtype": "uint16", "format": "scratch"} | fields
    dims = ome_writers.dims_from_standard_axes(sizes)
    return ome_writers.AcquisitionSettings(dimensions=dims, **fields)


def record(settings, frames):
    with ome_writers.create_stream(settings) as stream:
        for i, frame in enumerate(frames):
            stream.append(frame, frame_metadata={"n": i})
            if i == 3:
                stream.skip(frames=2)
    return stream


def test_streams_of_ome_writers_are_written_by_this_library(installed, tmp_path, frames):
    settings = settings_of(
        {"t": None, "p": ["A", "B"], "c": 2, "y": 4, "x": 5}, root_path=str(tmp_path / "d")
    )
    stream = record(settings, frames[:12])
    assert isinstance(stream, ome_writers.OMEStream)
    with open_scratch(tmp_path / "d") as dataset:
        assert dataset.counts_frames
        assert dataset.frames_written == 14
        assert [line["n"] for line in dataset.frame_metadata] == list(range(12))


@pytest.mark.parametrize("order", ["acquisition", ["c", "t", "y", "x"]])
def test_arrays_views_and_files_are_those_of_ome_writers(tmp_path, frames, order):
    stored = {}
    for name in ("theirs", "ours"):
        if name == "ours":
            bridge.install()
        try:
            settings = settings_of(
                {"t": 5, "p": ["A", "B"], "c": 2, "y": 4, "x": 5},
                root_path=str(tmp_path / name),
                storage_order=[*order[:2], "p", *order[2:]]
                if isinstance(order, list)
                else order,
            )
            stream = record(settings, frames[:18])
        finally:
            bridge.uninstall()
        view = stream.view(dynamic_shape=False)
        files = [(tmp_path / name / f"pos_{i}.dat").read_bytes() for i in (0, 1)]
        lines = (tmp_path / name / "frame_metadata.jsonl").read_text().splitlines()
        manifest = json.loads((tmp_path / name / "manifest.json").read_text())
        stored[name] = (
            np.asarray(view).tolist(),
            view.dims,
            files,
            [json.loads(line) for line in lines],
            manifest["position_shapes"],
        )
    assert stored["ours"] == stored["theirs"]


def test_a_frame_that_is_refused_loses_its_place_as_with_ome_writers(installed, frames):
    with ome_writers.create_stream(settings_of({"t": None, "y": 4, "x": 5})) as stream:
        stream.append(frames[0])
        for _ in range(2):
            with pytest.raises(ValueError, match="expected"):
                stream.append(np.zeros((3, 3), "uint16"))
        stream.append(frames[3])
        with pytest.raises(ValueError, match="expected"):
            stream.append(np.zeros((3, 3), "uint16"))
        stream.skip(frames=2)
        stream.append(frames[7])
        view = np.asarray(stream.view(dynamic_shape=False))
    empty = np.zeros((4, 5), "uint16")
    expected = [frames[0], empty, empty, frames[3], empty, empty, empty, frames[7]]
    np.testing.assert_array_equal(view, expected)


def test_events_and_global_metadata_go_on_working(installed, tmp_path, frames):
    settings = settings_of({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    told = []
    with ome_writers.create_stream(settings) as stream:
        stream.on("coords_expanded", told.append)
        for frame in frames[:5]:
            stream.append(frame)
        # ome-writers tells in any order, and not what is pending when it is closed.
        wait_until(lambda: any(u.max_coords["t"] == range(5) for u in tuple(told)))
        stream.set_global_metadata("lab", {"who": "me"})
    assert open_scratch(tmp_path / "d").global_metadata == {"lab": {"who": "me"}}


def test_it_is_installed_and_uninstalled_as_often_as_one_likes():
    for _ in range(2):
        bridge.install()
        bridge.install()
        assert bridge.is_installed()
        with ome_writers.create_stream(settings_of({"t": 1, "y": 4, "x": 5})) as stream:
            assert isinstance(stream._backend, bridge.ScratchwriterBackend)
        bridge.uninstall()
        bridge.uninstall()
        assert not bridge.is_installed()
        with ome_writers.create_stream(settings_of({"t": 1, "y": 4, "x": 5})) as stream:
            assert not isinstance(stream._backend, bridge.ScratchwriterBackend)


@pytest.mark.parametrize(
    "version", ["0.3.1", "0.3.1.post1", "0.4.0", "0.30.2", "1.0", "uninstalled"]
)
def test_other_versions_are_refused(monkeypatch, version):
    monkeypatch.setattr(ome_writers, "__version__", version)
    with pytest.raises(RuntimeError, match=rf"ome-writers {version} .*pip install"):
        bridge.install()
    assert not bridge.is_installed()


def test_what_is_there_is_not_replaced(installed, tmp_path, frames):
    settings = settings_of({"t": 1, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    record(settings, frames[:1])
    with pytest.raises(FileExistsError):
        ome_writers.create_stream(settings)


@pytest.mark.parametrize(
    "version", ["0.3.2", "0.3.3rc1", "0.3.2.post1", "0.3.12", "0.3.3.dev7+gbac0f39"]
)
def test_releases_and_builds_around_them_are_supported(monkeypatch, version):
    monkeypatch.setattr(ome_writers, "__version__", version)
    bridge.need_supported()


# ------------------------------------------------ sequences that ome-writers mixes up


def are_misplaced(events, dims):
    """Return whether dimensions have a frame elsewhere than its index says."""
    names = [dim.name for dim in dims[:-2]]
    counts = [dim.count for dim in dims[:-2]]
    if len(events) != math.prod(counts):
        return True
    for number, event in enumerate(events):
        index = dict(zip(names, np.unravel_index(number, counts), strict=True))
        index.pop("p", None)
        if any(event.index.get(name, 0) != i for name, i in index.items()):
            return True
    return False


def have_wrong_coordinates(events, dims):
    """Return whether a position of dimensions is not where the stage goes."""
    names = [dim.name for dim in dims[:-2]]
    counts = [dim.count for dim in dims[:-2]]
    positions = next((dim.coords for dim in dims if dim.name == "p"), None)
    for number, event in enumerate(events if positions else ()):
        place = np.unravel_index(number, counts)[names.index("p")]
        at = positions[place]
        pairs = (at.x_coord, event.x_pos), (at.y_coord, event.y_pos)
        if any(None not in pair and abs(pair[0] - pair[1]) > 1e-6 for pair in pairs):
            return True
    return False


@pytest.mark.filterwarnings("ignore::UserWarning")  # of useq, and of ome-writers
def test_a_sequence_that_ome_writers_mixes_up_is_reported_and_no_other(installed, caplog):
    pytest.importorskip("useq")
    from random_sequences import random_sequence

    mixed_up, elsewhere = 0, 0
    for seed in range(NUM_SEQUENCES):
        if (found := random_sequence(seed)) is None:
            continue
        seq, events = found
        caplog.clear()
        try:
            asked = ome_writers.useq_to_acquisition_settings(seq, 8, 8)
        except (NotImplementedError, ValueError):
            continue
        dims = asked["dimensions"]
        if are_misplaced(events, dims):
            assert "at wrong places" in caplog.text, seed
            mixed_up += 1
        elif have_wrong_coordinates(events, dims):
            # Frames of positions in another order are not where the stage goes, either.
            assert "at wrong places" in caplog.text or "coordinates" in caplog.text, seed
            elsewhere += 1
        else:
            assert not caplog.text, seed
    assert mixed_up > NUM_SEQUENCES / 200
    assert elsewhere > NUM_SEQUENCES / 200
