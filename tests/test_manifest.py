"""manifest.json and progress.bin."""

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from scratchwriter import AcquisitionSettings, ScratchFormat, __version__, create_stream
from scratchwriter.manifest import read_cursor, read_manifest


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def load(folder):
    return json.loads((folder / "manifest.json").read_text())


def test_it_holds_every_field_of_the_settings_defaults_included(make_settings, folder):
    settings = make_settings(
        {"t": 2, "c": ["a", "b"], "y": 4, "x": 5}, root_path=str(folder)
    )
    create_stream(settings).close()
    manifest = load(folder)
    assert manifest["version"] == __version__
    for field in AcquisitionSettings.model_fields:
        assert field in manifest
    assert set(manifest["format"]) == set(ScratchFormat.model_fields)
    loaded = {k: v for k, v in manifest.items() if k in AcquisitionSettings.model_fields}
    assert AcquisitionSettings.model_validate(loaded) == settings


def test_shapes_and_dims_are_those_of_the_files(make_settings, folder):
    settings = make_settings(
        {"t": None, "p": 2, "c": 3, "y": 4, "x": 5},
        root_path=str(folder),
        storage_order=["c", "t", "p", "y", "x"],
    )
    with create_stream(settings) as stream:
        stream.skip(frames=7)
    manifest = load(folder)
    assert manifest["position_shapes"] == [[2, 3, 4, 5], [1, 3, 4, 5]]
    assert manifest["position_dims"] == [["t", "c", "y", "x"]] * 2
    assert stream.arrays[0].shape == (3, 2, 4, 5)


def test_lengths_are_renewed_in_place_with_every_frame(make_settings, folder, frames):
    settings = make_settings({"t": None, "p": 2, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        assert load(folder)["position_shapes"] == [[1, 4, 5], [1, 4, 5]]
        inode = (folder / "manifest.json").stat().st_ino
        for i in range(30):
            stream.append(frames[i])
            lengths = [shape[0] for shape in load(folder)["position_shapes"]]
            assert lengths == [i // 2 + 1, max((i + 1) // 2, 1)]
        assert (folder / "manifest.json").stat().st_ino == inode
        stream.skip(frames=10**5)
        assert load(folder)["position_shapes"][0][0] == 50_015


def test_a_length_is_aligned_so_that_one_store_renews_it(make_settings, folder):
    settings = make_settings({"t": None, "p": 30, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings):
        text = (folder / "manifest.json").read_text()
    starts = [i for i in range(len(text)) if text.startswith(" " * 15 + "1, 4, 5]", i)]
    assert len(starts) == 30
    assert all(start % 16 == 0 for start in starts)


def test_global_metadata_is_there_at_once_and_lengths_go_on(make_settings, folder, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(frames[0])
        stream.set_global_metadata("mine", {"a": np.float32(0.5)})
        assert load(folder)["global_metadata"] == {"mine": {"a": 0.5}}
        stream.append(frames[1])
        assert load(folder)["position_shapes"] == [[2, 4, 5]]
        stream.set_global_metadata("mine", {"b": 1})
    stream.set_global_metadata("later", {"c": "µ"})
    assert load(folder)["global_metadata"] == {"mine": {"b": 1}, "later": {"c": "µ"}}
    assert load(folder)["position_shapes"] == [[2, 4, 5]]


def test_refused_global_metadata_changes_nothing(make_settings, folder):
    settings = make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.set_global_metadata("mine", {"a": 1})
        before = (folder / "manifest.json").read_bytes()
        with pytest.raises(TypeError):
            stream.set_global_metadata("mine", {"a": object()})
        assert (folder / "manifest.json").read_bytes() == before
    assert load(folder)["global_metadata"] == {"mine": {"a": 1}}


def test_no_draft_is_left_behind(make_settings, folder):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.set_global_metadata("mine", {})
    names = {path.name for path in folder.iterdir()}
    assert names == {"manifest.json", "pos_0.dat", "frame_metadata.jsonl", "progress.bin"}


def test_a_manifest_is_replaced_atomically(make_settings, folder, monkeypatch):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(np.zeros((4, 5), "uint16"))
        before = load(folder)

        def fail(*_):
            raise OSError("no")

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", fail)
            with pytest.raises(OSError, match="no"):
                stream.set_global_metadata("mine", {"a": 1})
        assert load(folder) == before
        # The old one is still the live one.
        stream.append(np.zeros((4, 5), "uint16"))
        assert load(folder)["position_shapes"] == [[2, 4, 5]]
    assert load(folder)["global_metadata"] == {}


def test_progress_is_as_documented(make_settings, folder):
    settings = make_settings({"t": 9, "y": 4, "x": 5}, root_path=str(folder))

    def page():
        data = (folder / "progress.bin").read_bytes()
        assert len(data) == 4096
        magic, version, state, pid = struct.unpack_from("=8sIIQ", data)
        return magic, version, state, pid, *struct.unpack_from("=q", data, 64)

    import os

    with create_stream(settings) as stream:
        assert page() == (b"scratchw", 1, 1, os.getpid(), 0)
        stream.append(np.zeros((4, 5), "uint16"))
        assert page()[4] == 1
        stream.skip(frames=5)
        assert page()[4] == 6
    assert page() == (b"scratchw", 1, 2, os.getpid(), 6)
    assert read_cursor(folder) == (6, True)


def test_a_dataset_without_progress_has_an_unknown_cursor(tmp_path):
    assert read_cursor(tmp_path) is None


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"x" * 4096, b"scratchw" + b"\0" * 4088])
def test_a_progress_file_that_is_none_is_refused_by_name(tmp_path, data):
    (tmp_path / "progress.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"progress\.bin"):
        read_cursor(tmp_path)


def test_a_negative_cursor_is_refused(make_settings, folder):
    create_stream(make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(folder))).close()
    data = bytearray((folder / "progress.bin").read_bytes())
    data[64:72] = struct.pack("=q", -5)
    (folder / "progress.bin").write_bytes(data)
    with pytest.raises(ValueError, match=r"progress\.bin"):
        read_cursor(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
@pytest.mark.parametrize("name", ["manifest.json", "progress.bin"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="regular"):
        (read_manifest if name == "manifest.json" else read_cursor)(tmp_path)


GOOD = {"version": "1", "dtype": "u1", "position_shapes": [[1, 2]], "dimensions": []}


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "object"},
        {"dtype": "nonsense"},
        {"dtype": 3},
        {"position_shapes": [[-1, 2]]},
        {"position_shapes": "12"},
        {"position_shapes": None},
        {"position_dims": [["y"]]},
        {"version": None},
        {"dimensions": [1]},
    ],
)
def test_a_manifest_that_is_none_is_refused_by_name(tmp_path, change):
    (tmp_path / "manifest.json").write_text(json.dumps(GOOD))
    assert read_manifest(tmp_path).position_shapes == [(1, 2)]
    (tmp_path / "manifest.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00" * 100, "[" * 100_000])
def test_text_that_is_no_manifest_is_refused_by_name(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        read_manifest(tmp_path)
