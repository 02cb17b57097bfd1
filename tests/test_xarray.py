"""Datasets as dask and xarray have them; exports by a cluster."""

import threading
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

dask = pytest.importorskip("dask")
xarray = pytest.importorskip("xarray")

from scratchwriter import (
    AcquisitionSettings,
    DatasetError,
    Dimension,
    ExportCancelledError,
    Position,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)


@pytest.fixture
def dataset(tmp_path, frames):
    dims = [
        Dimension(name="t", type="time", unit="ms", scale=20, translation=5),
        Dimension(name="p", type="position", coords=["A1", "B2"]),
        Dimension(name="c", type="channel", coords=["DAPI", "FITC", "Cy5"]),
        Dimension(name="angle", count=2, type="other", coords=[0.5, 1.5], unit="rad"),
        Dimension(name="y", count=4, type="space", unit="um", scale=0.1),
        Dimension(name="x", count=5, type="space"),
    ]
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "run7"), dimensions=dims, dtype="uint16"
    )
    with create_stream(settings) as stream:
        for frame in frames[:50]:
            stream.append(frame)
        stream.set_global_metadata("lab", {"who": "me"})
    return open_scratch(tmp_path / "run7")


def test_a_dask_array_has_a_chunk_per_frame_and_the_views_values(dataset):
    array = dataset.to_dask()
    assert array.shape == dataset.view().shape == (5, 2, 3, 2, 4, 5)
    assert array.dtype == "uint16"
    assert array.chunksize == (1, 1, 1, 1, 4, 5)
    expected = np.asarray(dataset.view())
    np.testing.assert_array_equal(array.compute(), expected)
    np.testing.assert_array_equal(array[-2, :, ::2, 1].compute(), expected[-2, :, ::2, 1])
    assert array.max().compute() == expected.max()


def test_a_list_of_indices_reads_no_more_than_its_frames(dataset, monkeypatch):
    from scratchwriter.bridges import dask as bridge

    take, nbytes = bridge._Frames.__getitem__, []

    def taken(self, key):
        chunk = take(self, key)
        nbytes.append(chunk.nbytes)
        return chunk

    monkeypatch.setattr(bridge._Frames, "__getitem__", taken)
    chosen = dataset.to_dask()[..., [0, 2, 4]][[0, 3]].compute()
    expected = np.asarray(dataset.view())[..., [0, 2, 4]][[0, 3]]
    np.testing.assert_array_equal(chosen, expected)
    assert max(nbytes) <= 4 * 5 * 2


def test_its_chunks_are_the_stored_memory_read_only(dataset):
    def tell(block):
        is_copy = block.base is None or block.flags.owndata or block.flags.writeable
        return np.full(block.shape, is_copy)

    assert not dataset.to_dask().map_blocks(tell, dtype=bool).any().compute()


def test_an_xarray_has_names_and_coordinates_with_units(dataset):
    data = dataset.to_xarray()
    assert data.name == "run7"
    assert data.dims == ("t", "p", "c", "angle", "y", "x")
    assert data.attrs == {"lab": {"who": "me"}}
    assert data.t.values.tolist() == [5.0, 25.0, 45.0, 65.0, 85.0]
    assert data.t.attrs == {"units": "millisecond"}
    assert data.p.values.tolist() == ["A1", "B2"]
    assert data.angle.values.tolist() == [0.5, 1.5]
    np.testing.assert_allclose(data.y.values, [0, 0.1, 0.2, 0.3])
    assert data.y.attrs == {"units": "micrometer"}
    assert data.x.values.tolist() == [0, 1, 2, 3, 4]
    chosen = data.sel(c="FITC", p="B2", t=45).values
    np.testing.assert_array_equal(chosen, dataset.view()[2, 1, 1])


def test_what_comes_later_is_not_in_an_array_that_was_taken_before(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "live"))
    with create_stream(settings) as stream:
        stream.append(np.full((4, 5), 1, "uint16"))
        with open_scratch(tmp_path / "live") as dataset:
            before = dataset.to_dask()
            stream.append(np.full((4, 5), 2, "uint16"))
            assert before.compute()[:, 0, 0].tolist() == [1]
            assert dataset.to_dask().compute()[:, 0, 0].tolist() == [1, 2]


@contextmanager
def local_cluster(**options):
    distributed = pytest.importorskip("distributed")
    options = {"threads_per_worker": 1, "dashboard_address": None} | options
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
    ):
        warnings.simplefilter("ignore")
        yield client


@pytest.fixture
def exporting(monkeypatch):
    """Exports in parts of ten frames."""
    pytest.importorskip("zarr")
    from scratchwriter.bridges import export

    monkeypatch.setattr(export.parts, "PART_NBYTES", 1280)
    return export


@pytest.mark.parametrize("name", ["plain", "positions", "chunks in positions"])
def test_a_cluster_computes_and_exports_what_one_process_does(tmp_path, exporting, name):
    from test_export import CASES, record, tree

    sizes, frames, skipped, layout = CASES[name]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    told = []
    options = {"n_workers": 3, "threads_per_worker": 2, "processes": True}
    with local_cluster(**options) as client:
        made = dataset.export(
            tmp_path / "out.ome.zarr", client=client, progress=lambda *n: told.append(n)
        )
        total = client.compute(dataset.to_dask().sum(), sync=True)
    assert tree(made) == tree(whole)
    assert len(told) > 3  # a part each
    assert told == sorted(told)
    assert told[-1] == (frames, frames)
    assert total == np.asarray(dataset.view()).sum()


def test_a_cluster_follows_a_recording(tmp_path, exporting):
    from test_export import start_recording, tree

    told = []

    def go_on(done, total):
        told.append(done)
        if done == 200:
            writer.stdin.write(b"go\n")
            writer.stdin.flush()

    with (
        start_recording(tmp_path / "data") as writer,
        local_cluster(n_workers=2, processes=True) as client,
    ):
        watchdog = threading.Timer(120, writer.kill)  # it waits for ever if not followed
        watchdog.start()
        dataset = open_scratch(tmp_path / "data")
        made = dataset.export(tmp_path / "out.ome.zarr", client=client, progress=go_on)
        watchdog.cancel()
    assert told[-1] == 400
    assert tree(made) == tree(dataset.export(tmp_path / "whole" / "out.ome.zarr"))


def test_cancelling_does_not_wait_for_workers_that_there_are_not(tmp_path, exporting):
    from test_export import CASES, nothing_unfinished, record, tree

    sizes, frames, skipped, layout = CASES["plain"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    cancel, out = threading.Event(), tmp_path / "out.ome.zarr"
    with local_cluster(n_workers=0, processes=True) as client:
        submit, tasks = client.submit, []

        def submit_and_cancel(*args, **options):
            tasks.append(submit(*args, **options))
            if len(tasks) == 5:
                cancel.set()
            return tasks[-1]

        client.submit = submit_and_cancel
        with pytest.raises(ExportCancelledError):
            dataset.export(out, client=client, cancel=cancel)
        assert len(tasks) == 5
    assert not out.exists()
    dataset.export(out)
    assert tree(out) == tree(dataset.export(tmp_path / "whole" / "out.ome.zarr"))
    assert nothing_unfinished(tmp_path)


def test_a_part_that_fails_in_a_worker_is_reported_and_the_export_continues(
    tmp_path, monkeypatch, exporting
):
    from test_export import CASES, record, tree

    sizes, frames, skipped, layout = CASES["plain"]
    dataset = record(tmp_path / "data", sizes, frames, skipped, layout)
    whole = dataset.export(tmp_path / "whole" / "out.ome.zarr")
    out = tmp_path / "out.ome.zarr"
    with local_cluster(n_workers=2, processes=False) as client:
        write = exporting.parts._Work.write

        def fail(work, dataset, job, start, stop):
            if start == 40:
                raise OSError("a bad disk")
            return write(work, dataset, job, start, stop)

        monkeypatch.setattr(exporting.parts._Work, "write", fail)
        with pytest.raises(OSError, match="a bad disk"):
            dataset.export(out, client=client)
        assert not out.exists()
        monkeypatch.setattr(exporting.parts._Work, "write", write)
        dataset.export(out, client=client)
    assert tree(out) == tree(whole)


def test_an_array_of_a_recording_is_none_of_a_later_one(dataset, frames):
    before = dataset.to_dask()
    settings = dataset.settings.model_copy(update={"overwrite": True})
    with create_stream(settings) as stream:
        for frame in frames[:50]:
            stream.append(frame + 1)
    with pytest.raises(DatasetError, match="another recording"):
        before.compute()
    after = open_scratch(dataset.path).to_dask()
    assert after.name != before.name
    assert after[0, 0, 0, 0].compute()[0, 0] == frames[0][0, 0] + 1


def test_what_is_missing_is_named_with_the_extra_that_has_it(dataset, monkeypatch):
    from scratchwriter import _integrations

    monkeypatch.setattr(_integrations, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"xarray, dask.*scratchwriter\[xarray\]"):
        dataset.to_xarray()
    with pytest.raises(ImportError, match=r"ome_writers.*scratchwriter\[export\]"):
        dataset.export("x.ome.zarr")


def test_dims_are_those_of_standard_axes_too(make_settings, tmp_path):
    dims = dims_from_standard_axes({"t": 2, "y": 4, "x": 5})
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "d"), dimensions=dims, dtype="uint16"
    )
    with create_stream(settings) as stream:
        stream.append(np.ones((4, 5), "uint16"))
    data = open_scratch(tmp_path / "d").to_xarray()
    assert data.sum().compute() == 20


def test_places_of_the_stage_are_coordinates_of_the_positions(make_settings, tmp_path):
    positions = [
        Position(name="A", x_coord=1.0, y_coord=2.0),
        Position(name="B", x_coord=3.0),
    ]
    settings = AcquisitionSettings(
        root_path=str(tmp_path / "data"),
        dimensions=[
            Dimension(name="p", type="position", coords=positions),
            Dimension(name="t", count=2, type="time", scale=0.0, unit="s"),
            Dimension(name="z", count=3, type="space", scale=-2, translation=10, unit="um"),
            *dims_from_standard_axes({"y": 4, "x": 5}),
        ],
        dtype="uint16",
    )
    with create_stream(settings) as stream:
        stream.extend(np.ones((12, 4, 5), "uint16"))
    data = open_scratch(tmp_path / "data").to_xarray()
    np.testing.assert_array_equal(data.x_coord, [1, 3])
    np.testing.assert_array_equal(data.y_coord, [2, np.nan])
    assert "z_coord" not in data.coords
    assert data.z.values.tolist() == [10, 8, 6]
    assert data.z.attrs == {"units": "micrometer"}
    assert data.t.values.tolist() == [0, 1]  # numbers: no scale is known
    assert data.t.attrs == {}
    assert float(data.sel(z=8, p="B").x_coord) == 3
