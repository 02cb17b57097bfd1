"""manifest.json and progress.bin."""

import contextlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from marks import needs_page_cache
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    __version__,
    create_stream,
    open_scratch,
)
from scratchwriter._files import manifest
from scratchwriter._files.manifest import read_manifest
from scratchwriter._files.progress import ProgressView
from scratchwriter.errors import DatasetError


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


@needs_page_cache
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


@needs_page_cache
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
    assert list(folder.glob("*manifest*")) == [folder / "manifest.json"]


@needs_page_cache
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
        magic, version, state, pid, boot = struct.unpack_from("=8sIIQ36s", data)
        return magic, version, state, pid, boot, *struct.unpack_from("=qq", data, 64)

    start = (b"scratchw", 1)
    owner = (os.getpid(), Path("/proc/sys/kernel/random/boot_id").read_bytes()[:36])
    with create_stream(settings) as stream:
        assert page() == (*start, 1, *owner, 0, 0)
        stream.append(np.zeros((4, 5), "uint16"))
        assert page()[5:] == (1, 0)
        stream.skip(frames=5)
        assert page()[5:] == (6, 0)
        stream.flush()
        assert page()[5:] == (6, 6)
    assert page() == (*start, 2, *owner, 6, 6)
    progress = ProgressView(folder)
    assert (progress.cursor, progress.synced, progress.is_closed) == (6, 6, True)
    assert progress.writer_pid == os.getpid()
    assert not progress.may_lack_frames
    assert progress.has_writer is False


def test_skips_are_as_documented(make_settings, folder):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.skip()
        stream.skip(frames=2)  # together with the one before
        stream.append(np.zeros((4, 5), "uint16"))
        stream.skip(frames=10**6)
        pairs = np.fromfile(folder / "skips.bin", "i8").reshape(-1, 2)
        assert pairs.tolist() == [[0, 3], [4, 10**6 + 4]]


@pytest.mark.parametrize("data", [b"", b"x" * 100, b"x" * 4096, b"scratchw" + b"\0" * 4088])
def test_a_progress_file_that_is_none_is_refused_by_name(tmp_path, data):
    (tmp_path / "progress.bin").write_bytes(data)
    with pytest.raises(DatasetError, match=r"progress\.bin"):
        ProgressView(tmp_path)


def test_a_negative_cursor_is_refused(make_settings, folder):
    create_stream(make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(folder))).close()
    data = bytearray((folder / "progress.bin").read_bytes())
    data[64:72] = struct.pack("=q", -5)
    (folder / "progress.bin").write_bytes(data)
    with pytest.raises(DatasetError, match=r"progress\.bin"):
        ProgressView(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
@pytest.mark.parametrize("name", ["manifest.json", "progress.bin"])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(DatasetError, match="regular"):
        (read_manifest if name == "manifest.json" else ProgressView)(tmp_path)


GOOD = {
    "version": "1",
    "dtype": "u1",
    "position_shapes": [[1, 2]],
    "dimensions": [{"name": "y", "count": 1}, {"name": "x", "count": 2}],
}


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
    assert read_manifest(tmp_path)[0].position_shapes == [(1, 2)]
    (tmp_path / "manifest.json").write_text(json.dumps(GOOD | change))
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00" * 100, "[" * 100_000])
def test_text_that_is_no_manifest_is_refused_by_name(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.json"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("place", ["memory", "disk"])
def test_metadata_that_no_manifest_can_hold_is_refused_when_it_is_given(
    make_settings, folder, place
):
    settings = make_settings(
        {"t": None, "y": 64, "x": 64},
        root_path="" if place == "memory" else str(folder),
        format=ScratchFormat(max_memory_bytes=100_000, spill_dir=str(folder.parent)),
    )
    frame = np.ones((64, 64), "uint16")
    with create_stream(settings) as stream:
        stream.set_global_metadata("large", {"a": "x" * 8_000_000})
        for name in ("large", "other"):
            with pytest.raises(ValueError, match=r"the limit is 16,777,216.*its name here"):
                stream.set_global_metadata(name, {"a": "x" * 24_000_000})
        with (
            pytest.warns(UserWarning, match="The arrays need")
            if place == "memory"
            else (contextlib.nullcontext())
        ):
            for _ in range(30):
                stream.append(frame)
        path = stream.path
        stream.set_global_metadata("small", {"a": 1})
    with open_scratch(path) as dataset:
        assert dataset.frames_written == 30
        assert dataset.global_metadata == {
            "large": {"a": "x" * 8_000_000},
            "small": {"a": 1},
        }


def test_a_stream_that_could_not_leave_memory_is_refused_before_the_first_frame(
    make_settings, monkeypatch
):
    monkeypatch.setattr(manifest, "MANIFEST_MAX_NBYTES", 5000)
    sizes = {"t": None, "p": 100, "y": 4, "x": 4}
    with pytest.raises(ValueError, match="fewer positions"):
        create_stream(make_settings(sizes))
    create_stream(make_settings(sizes | {"t": 2})).close()  # it never leaves
