"""What verify finds, what recover finishes, what clean removes."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import ome_writers
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from marks import PORTABLE, needs_page_cache
from reference import Model, read_plain
from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch
from scratchwriter._files.folders import reclaim_spill_folders
from scratchwriter._files.holes import zeros_at_end
from scratchwriter._files.manifest import replace_shapes
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import holes
from scratchwriter.cli import main

FRAME = np.arange(20, dtype="uint16").reshape(4, 5)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill(folder, sizes, code):
    """Record in another process, which kills itself in the middle."""
    program = f"""
    import os, signal
    import numpy as np
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    dims = dims_from_standard_axes({sizes})
    stream = create_stream(
        AcquisitionSettings(root_path={str(folder)!r}, dimensions=dims, dtype="uint16")
    )
    frame = np.arange(20, dtype="uint16").reshape(4, 5)
    {code}
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL


@pytest.fixture
def whole(make_settings, folder):
    sizes = {"t": None, "p": 2, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        for i in range(5):
            stream.append(FRAME + i, frame_metadata={"i": i})
        stream.skip(frames=3)
    return folder


# ------------------------------------------------------------------------------- verify


def test_a_closed_dataset_is_whole(whole, capsys):
    with open_scratch(whole) as dataset:
        assert find_faults(dataset.source) == []
    assert main(["verify", str(whole)]) == 0
    assert capsys.readouterr().out == (
        f"{whole}: closed, 8 frames\nskipped: 3 frames, 5 to 7\nwhole\n"
    )


def test_a_dataset_that_is_being_recorded_is_whole(make_settings, folder, capsys):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(FRAME, frame_metadata={"i": 1})
        assert main(["verify", str(folder)]) == 0
    assert "being recorded" in capsys.readouterr().out


def test_verify_changes_nothing(whole):
    before = content(whole)
    main(["verify", str(whole)])
    assert content(whole) == before


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda f: append_bytes(f / "pos_0.dat", b"x" * 40), r"pos_0.dat has 200 bytes"),
        (lambda f: append_bytes(f / "frame_metadata.jsonl", b"{]\n"), "frame_metadata"),
        (lambda f: append_bytes(f / "frame_metadata.jsonl", b'{"a": 1}\n'), "which frame"),
        (lambda f: append_bytes(f / "frame_metadata.jsonl", LINE_0), "out of order"),
        (lambda f: append_bytes(f / "skips.bin", b"\0" * 16), "skips.bin.*not in order"),
    ],
    ids=["long array", "no json", "no place", "again", "skips"],
)
def test_verify_names_the_file_and_the_fault(whole, damage, fault, capsys):
    damage(whole)
    assert main(["verify", str(whole)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "not whole"
    (line,) = (line for line in lines if line.startswith("fault: "))
    assert re.search(fault, line)


LINE_0 = b'{"_pos": 0, "_idx": [0], "i": 0}\n'


def append_bytes(path, data):
    with path.open("ab") as file:
        file.write(data)


def test_verify_of_what_is_no_dataset_fails_with_one_line(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# ------------------------------------------------------------------------------ recover

KILLED = [
    (
        {"t": None, "p": 2, "y": 4, "x": 5},
        "[stream.append(frame + i, frame_metadata={'i': i}) for i in range(5)];"
        "stream.skip(frames=3)",
        8,
    ),
    ({"t": None, "y": 4, "x": 5}, "", 0),
    ({"t": 6, "c": 2, "y": 4, "x": 5}, "stream.append(frame); stream.skip()", 2),
    ({"t": None, "y": 4, "x": 5}, "[stream.append(frame) for i in range(5000)]", 5000),
]


@pytest.mark.parametrize(("sizes", "code", "frames"), KILLED)
def test_recover_finishes_a_killed_dataset(folder, sizes, code, frames, capsys):
    kill(folder, sizes, code)
    append_bytes(folder / "frame_metadata.jsonl", b'{"_pos": 0, "_i')
    append_bytes(folder / "skips.bin", b"\0" * 9)
    (folder / ".manifest.json.123").write_text("half a")
    with open_scratch(folder) as dataset:
        assert dataset.state == "killed"
        arrays = [np.array(array) for array in dataset.arrays]
        metadata, skipped = list(dataset.frame_metadata), dataset.skipped
    assert main(["verify", str(folder)]) == 1
    assert "scratchwriter recover" in capsys.readouterr().out

    assert main(["recover", str(folder)]) == 0
    out = capsys.readouterr().out
    assert f"marked as closed, with {frames} frames" in out
    assert ".manifest.json.123: removed" in out
    assert main(["verify", str(folder)]) == 0
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", frames)
        assert list(dataset.frame_metadata) == metadata
        assert dataset.skipped == skipped
    for array, plain in zip(arrays, read_plain(folder), strict=True):
        np.testing.assert_array_equal(plain, array)
    for path in folder.glob("pos_*.dat"):  # no byte more than the shapes say
        assert path.stat().st_size == arrays[int(path.stem[4:])].nbytes
    assert (folder / "frame_metadata.jsonl").read_text().count("\n") == len(metadata)


def restart(folder):
    """Let a dataset look as if the machine had been restarted since."""
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(24)
        file.write(b"0" * 36)


def test_recover_cuts_no_array_of_a_machine_that_was_restarted(folder):
    code = "[stream.append(frame + i) for i in range(4)]; stream.flush()"
    code += "; [stream.append(frame + i) for i in range(4, 7)]"
    kill(folder, {"t": None, "y": 4, "x": 5}, code)
    restart(folder)
    # The number that came to the device is older than the frames that did.
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(64)
        file.write((5).to_bytes(8, "little"))
    before = (folder / "pos_0.dat").read_bytes()
    with pytest.warns(UserWarning, match="Of its 5 frames the first 4 are certain"):
        open_scratch(folder).close()
    recover(folder)
    assert (folder / "pos_0.dat").read_bytes() == before
    # It stays known that not all of them are certain.
    with (
        pytest.warns(UserWarning, match="Of its 5 frames the first 4 are certain"),
        open_scratch(folder) as dataset,
    ):
        assert dataset.state == "closed"
        (fault,) = find_faults(dataset.source)
        assert "only the first 4 of its 5 frames are certain" in fault
        assert (dataset.arrays[0][4] == FRAME + 4).all()
    (left,) = recover(folder)
    assert "left longer" in left


def test_a_number_of_frames_that_the_files_did_not_reach_is_not_believed(folder):
    code = "[stream.append(frame + i) for i in range(4)]; stream.flush()"
    code += "; [stream.append(frame + i) for i in range(4, 7)]"
    kill(folder, {"t": None, "y": 4, "x": 5}, code)
    restart(folder)
    os.truncate(folder / "pos_0.dat", 5 * 40)  # as long as it was on the device
    with (
        pytest.warns(UserWarning, match="Of its 5 frames the first 4 are certain"),
        open_scratch(folder) as dataset,
    ):
        assert dataset.state == "killed"
        assert (dataset.arrays[0][4] == FRAME + 4).all()
    recover(folder)
    os.truncate(folder / "pos_0.dat", 3 * 40)  # what was certain is gone
    with pytest.raises(DatasetError, match=r"pos_0\.dat"):
        open_scratch(folder)


@pytest.mark.filterwarnings("ignore:.*ome-writers did not close")
@pytest.mark.parametrize("ending", ["close", "kill"])
def test_recover_leaves_a_dataset_of_ome_writers_as_it_is(folder, ending):
    made = ome_writers.AcquisitionSettings(
        root_path=str(folder),
        dimensions=ome_writers.dims_from_standard_axes({"t": None, "y": 4, "x": 5}),
        dtype="uint16",
        format="scratch",
    )
    stream = ome_writers.create_stream(made)
    for i in range(5):
        stream.append(FRAME + i)
    if ending == "close":
        stream.close()
    before = content(folder)
    with pytest.raises(DatasetError, match="ome-writers wrote it"):
        recover(folder)
    with open_scratch(folder) as dataset:
        faults = find_faults(dataset.source)
    assert ["did not close it" in fault for fault in faults] == [True] * (ending == "kill")
    assert main(["verify", str(folder)]) == (ending == "kill")
    assert content(folder) == before
    stream.close()


@pytest.mark.skipif(os.name != "posix", reason="pipes, links")
@pytest.mark.parametrize("use", ["recover", "overwrite"])
def test_a_pipe_in_place_of_a_lock_is_not_waited_for(make_settings, whole, use):
    (whole / "progress.bin").unlink()
    os.mkfifo(whole / "progress.bin")
    with pytest.raises(DatasetError, match=r"progress\.bin: not a regular file"):
        if use == "recover":
            recover(whole)
        else:
            create_stream(
                make_settings(
                    {"t": 3, "y": 4, "x": 5}, root_path=str(whole), overwrite=True
                )
            )


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_in_place_of_a_draft_is_not_followed(make_settings, folder, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    sizes = {"t": None, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        stream.append(FRAME)
        (folder / f".manifest.json.{os.getpid()}").symlink_to(precious)
        stream.set_global_metadata("here", {"a": 1})
    (folder / f".manifest.json.{os.getpid()}").symlink_to(precious)
    replace_shapes(folder, [(1, 4, 5)])
    assert precious.read_text() == "mine"
    with open_scratch(folder) as dataset:
        assert dataset.global_metadata == {"here": {"a": 1}}


def test_without_locks_recover_leaves_a_dataset_alone_whose_writer_lives(
    make_settings, folder, monkeypatch
):
    sizes = {"t": None, "y": 4, "x": 5}
    monkeypatch.setattr("scratchwriter._files.progress.lock_file", lambda fd, **_: None)
    with pytest.warns(UserWarning, match="cannot be locked"):
        stream = create_stream(make_settings(sizes, root_path=str(folder)))
    stream.append(FRAME)
    with pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        recover(folder)
    stream.close()
    recover(folder)


def test_recover_again_has_nothing_to_do(whole, capsys):
    before = content(whole)
    assert main(["recover", str(whole)]) == 0
    assert capsys.readouterr().out == "nothing to do\n"
    assert content(whole) == before


@needs_page_cache
def test_recover_leaves_a_dataset_alone_that_is_being_recorded(make_settings, folder):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(FRAME)
        before = {
            name: data for name, data in content(folder).items() if name[0] not in "pa"
        }
        with pytest.raises(BlockingIOError, match=f"by process {os.getpid()}"):
            recover(folder)
        after = content(folder)
        assert {name: after[name] for name in before} == before


def test_recover_follows_no_symbolic_link(whole, tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes((whole / "pos_0.dat").read_bytes() + b"more")
    (whole / "pos_0.dat").unlink()
    (whole / "pos_0.dat").symlink_to(outside)
    with pytest.raises(DatasetError, match=r"pos_0\.dat"):
        recover(whole)
    assert outside.read_bytes().endswith(b"more")


@pytest.mark.parametrize(("cursor", "num_faults"), [(1, 2), (2, 1)])
def test_a_manifest_that_counts_other_frames_than_a_killed_writer_is_set_right(
    folder, cursor, num_faults
):
    """It may lack the frames of the call that the writer died in, and have no others."""
    kill(folder, {"t": None, "y": 4, "x": 5}, "stream.append(frame); stream.append(frame)")
    if cursor == 1:
        with (folder / "progress.bin").open("r+b") as file:
            file.seek(64)
            file.write((1).to_bytes(8, sys.byteorder))
    else:
        replace_shapes(folder, [(0, 4, 5)])
    with open_scratch(folder) as dataset:
        faults = find_faults(dataset.source)
        assert len(faults) == num_faults  # that it was killed is one
    recover(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["position_shapes"] == [[cursor, 4, 5]]
    assert (folder / "pos_0.dat").stat().st_size == 40 * cursor


# -------------------------------------------------------------------------------- clean

SPILL = """
import os, sys, time, warnings
import numpy as np
from scratchwriter import AcquisitionSettings, ScratchFormat, create_stream
from scratchwriter import dims_from_standard_axes
warnings.simplefilter("ignore")
settings = AcquisitionSettings(
    dimensions=dims_from_standard_axes({"t": None, "y": 4, "x": 5}),
    dtype="uint16",
    format=ScratchFormat(max_memory_bytes=200, spill_dir=sys.argv[1]),
)
stream = create_stream(settings)
for i in range(50):
    stream.append(np.full((4, 5), i, "uint16"))
print(stream.path, flush=True)
time.sleep(60)
"""


@pytest.fixture
def spilled(tmp_path):
    """A process with a temporary folder, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SPILL, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def test_a_temporary_folder_is_private(spilled):
    _, folder = spilled
    assert folder.stat().st_mode & 0o777 == 0o700


def test_clean_removes_the_folders_of_the_dead_and_no_others(spilled, tmp_path, capsys):
    process, folder = spilled
    others = tmp_path / "scratchwriter_other"
    others.mkdir(mode=0o700)
    (others / "notes.txt").write_text("not ours")
    assert main(["clean", str(tmp_path)]) == 0
    assert folder.exists()
    process.kill()
    process.wait()
    assert main(["clean", str(tmp_path)]) == 0
    assert f"{folder}: removed\n1 temporary folders" in capsys.readouterr().out
    assert not folder.exists()
    assert (others / "notes.txt").exists()


def test_a_later_run_reclaims_the_folders_of_killed_ones(spilled, tmp_path):
    process, folder = spilled
    process.kill()
    process.wait()
    assert folder.exists()
    later = subprocess.Popen(
        [sys.executable, "-c", SPILL, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        new = Path(later.stdout.readline().strip())
        assert new.exists()
        assert not folder.exists()
    finally:
        later.kill()
        later.communicate()


@pytest.mark.parametrize("is_open", [True, False])
def test_a_dataset_of_the_user_that_looks_like_a_temporary_one_is_not_removed(
    make_settings, tmp_path, is_open
):
    parent = tmp_path / "scratchwriter_mine"
    parent.mkdir(mode=0o700)
    stream = create_stream(
        make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(parent), overwrite=True)
    )
    stream.append(FRAME)
    if not is_open:
        stream.close()
    assert reclaim_spill_folders(tmp_path) == []
    stream.close()
    assert (read_plain(parent)[0][0] == FRAME).all()


def test_what_others_could_write_is_not_reclaimed(tmp_path):
    open_to_all = tmp_path / "scratchwriter_open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "pos_0.dat").write_bytes(b"data")
    (tmp_path / "scratchwriter_link").symlink_to(elsewhere)
    assert reclaim_spill_folders(tmp_path) == []
    assert open_to_all.exists()
    assert (elsewhere / "pos_0.dat").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="giving folders to others needs root")
def test_what_belongs_to_another_user_is_not_reclaimed(tmp_path):
    theirs = tmp_path / "scratchwriter_theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, 1000, 1000)
    assert reclaim_spill_folders(tmp_path) == []
    assert theirs.exists()


# -------------------------------------------------- what a power cut leaves, and recover


def set_cursor(folder, cursor):
    with (folder / "progress.bin").open("r+b") as file:
        file.seek(64)
        file.write(cursor.to_bytes(8, "little"))


RECORD_6 = "[stream.append(frame + i, frame_metadata={'i': i}) for i in range(6)]"


@pytest.mark.filterwarnings("ignore:.*was restarted")
def test_lines_of_frames_that_are_not_counted_are_not_returned_and_are_cut(folder):
    kill(folder, {"t": None, "y": 4, "x": 5}, RECORD_6)
    restart(folder)
    set_cursor(folder, 2)
    with open_scratch(folder) as dataset:
        assert [line["i"] for line in dataset.frame_metadata] == [0, 1]
    done = recover(folder)
    assert any("[(6, 4, 5)] -> [(2, 4, 5)]" in what for what in done)
    with open_scratch(folder) as dataset:
        assert len(find_faults(dataset.source)) == 1  # the restart
    assert (folder / "frame_metadata.jsonl").read_text().count("\n") == 2


ALL_IS_WHOLE = "[stream.append(frame + i, frame_metadata={'i': i}) for i in range(3)]; "
ALL_IS_WHOLE += "stream.skip(); stream.flush(); "
LATER = "stream.append(frame + 4, frame_metadata={'i': 4}); stream.skip(frames=2)"


@pytest.mark.filterwarnings("ignore:.*was restarted")
@pytest.mark.parametrize("name", ["frame_metadata.jsonl", "skips.bin"])
def test_of_a_restarted_machine_what_a_file_lacks_at_its_end_is_not_counted(folder, name):
    kill(folder, {"t": None, "y": 4, "x": 5}, ALL_IS_WHOLE + LATER)
    restart(folder)
    path = folder / name
    nbytes = path.stat().st_size - (16 if name == "skips.bin" else 30)
    with path.open("r+b") as file:  # the length came to the device, the end did not
        file.seek(nbytes)
        file.write(bytes(path.stat().st_size - nbytes))
    for _ in range(2):
        with open_scratch(folder) as dataset:
            assert [line["i"] for line in dataset.frame_metadata][:3] == [0, 1, 2]
            assert dataset.skipped[0] == range(3, 4)
            assert len(dataset.frame_metadata) == (3 if "metadata" in name else 4)
            assert len(dataset.skipped) == (1 if "skips" in name else 2)
            assert all(
                "was restarted" in f or "died" in f for f in find_faults(dataset.source)
            )
        recover(folder)
    assert b"\0" * 16 not in path.read_bytes()


def closed(make_settings, folder):
    sizes = {"t": None, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        for i in range(4):
            stream.append(FRAME + i)
            if i == 2:
                stream.flush()


def test_a_dataset_that_was_closed_before_a_restart_is_whole(make_settings, folder):
    closed(make_settings, folder)
    restart(folder)
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.may_lack_frames) == ("closed", False)
        assert find_faults(dataset.source) == []
    assert recover(folder) == []


@pytest.mark.filterwarnings("ignore:.*was restarted")
@pytest.mark.parametrize("what", ["longer", "shorter", "shapes"])
def test_power_that_is_cut_just_after_close_leaves_what_was_synced(
    make_settings, folder, what
):
    """The mark that it is closed reaches the device before all else that close does."""
    closed(make_settings, folder)
    restart(folder)
    if what == "shapes":
        replace_shapes(folder, [[3, 4, 5]])
    else:
        os.truncate(folder / "pos_0.dat", 4096 if what == "longer" else 3 * 40)
    frames = 3 if what == "shorter" else 4
    with open_scratch(folder) as dataset:
        assert dataset.may_lack_frames
        assert (dataset.frames_written, dataset.frames_synced) == (frames, 3)
        assert (dataset.arrays[0][2] == FRAME + 2).all()
        (fault,) = find_faults(dataset.source)
        assert f"only the first 3 of its {frames} frames are certain" in fault
    recover(folder)
    with open_scratch(folder) as dataset:
        assert (dataset.frames_written, dataset.frames_synced) == (frames, 3)
        assert dataset.may_lack_frames
    assert read_plain(folder)[0].shape == (frames, 4, 5)


@pytest.mark.filterwarnings("ignore:.*was restarted")
@pytest.mark.parametrize(
    ("name", "at"), [("frame_metadata.jsonl", -17), ("skips.bin", -16)]
)
def test_recover_finishes_the_frames_though_a_file_beside_them_is_damaged(folder, name, at):
    kill(folder, {"t": None, "y": 4, "x": 5}, RECORD_6 + "; stream.skip()")
    with (folder / name).open("r+b") as file:
        file.seek(at, os.SEEK_END)
        file.write(bytes(16))  # as after a power cut: a block that was never written
    before = (folder / name).read_bytes()
    assert any("left unchanged" in what and name in what for what in recover(folder))
    assert (folder / name).read_bytes() == before
    with open_scratch(folder) as dataset:
        assert dataset.state == "closed"
        assert (dataset.arrays[0][5] == FRAME + 5).all()
        (fault,) = find_faults(dataset.source)
    assert fault.count(name) == 1


def test_recover_writes_no_manifest_that_cannot_be_read(folder):
    code = "stream.set_global_metadata('flat', {'px': [0] * 4_000_000})"
    kill(folder, {"t": None, "y": 4, "x": 5}, f"{RECORD_6}; {code}")
    set_cursor(folder, 5)  # a frame was being stored
    recover(folder)
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 5)
        assert len(dataset.global_metadata["flat"]["px"]) == 4_000_000


def test_a_temporary_folder_that_was_recovered_stays(make_settings, tmp_path):
    program = f"""
    import os, signal, time, warnings
    import numpy as np
    from scratchwriter import (
        AcquisitionSettings, ScratchFormat, create_stream, dims_from_standard_axes
    )
    warnings.simplefilter("ignore")
    stream = create_stream(
        AcquisitionSettings(
            dimensions=dims_from_standard_axes({{"t": None, "y": 4, "x": 5}}),
            dtype="uint16",
            format=ScratchFormat(max_memory_bytes=400, spill_dir={str(tmp_path)!r}),
        )
    )
    for i in range(20):
        stream.append(np.full((4, 5), i, "uint16"))
    while not (stream.path / "manifest.json").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    (folder,) = tmp_path.iterdir()
    assert any("stays" in what for what in recover(folder))
    assert reclaim_spill_folders(tmp_path) == []
    fmt = {"spill_dir": str(tmp_path)}
    create_stream(make_settings({"t": None, "y": 4, "x": 5}, format=fmt)).close()
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 20)


# ------------------------------------------------------ frames that nobody has stored

PAGE = (32, 64)  # a frame of 4096 bytes


def page(value):
    return np.full(PAGE, value, "uint16")


def make_holes(path, ranges):
    """Leave ranges of a file out, so that they are holes in it."""
    data = path.read_bytes()
    path.unlink()
    with path.open("xb") as file:
        file.truncate(len(data))
        at = 0
        for start, stop in [*sorted(ranges), (len(data), None)]:
            file.seek(at)
            file.write(data[at:start])
            at = stop


def has_holes(folder):
    """Whether a file system tells where files have holes."""
    path = folder / "sparse"
    path.touch()
    os.truncate(path, 1 << 20)
    with Descriptor(path, os.O_RDONLY) as file:
        return any(holes(file, 1 << 20))


@pytest.fixture(autouse=True)
def needs_holes(request, tmp_path):
    if "holes" in request.node.name and not has_holes(tmp_path):
        pytest.skip("this file system does not tell where files have holes")


def faults_and_done(folder):
    """What verify and recover tell about a dataset."""
    with open_scratch(folder) as dataset:
        faults = find_faults(dataset.source)
    return faults, recover(folder)


def record_pages(make_settings, folder, sizes, count, **fields):
    sizes = {**sizes, "y": PAGE[0], "x": PAGE[1]}
    stream = create_stream(make_settings(sizes, root_path=str(folder), **fields))
    for i in range(count):
        stream.append(page(i + 1))
    return stream


def test_holes_where_frames_should_be_are_a_fault(make_settings, folder, capsys):
    record_pages(make_settings, folder, {"t": None}, 20).close()
    make_holes(folder / "pos_0.dat", [(4 * 4096, 7 * 4096), (19 * 4096, 20 * 4096)])
    before = content(folder)
    (fault,), (done,) = faults_and_done(folder)
    assert fault == done
    assert f"{folder / 'pos_0.dat'}: it has holes where 4 frames should be" in fault
    assert "4 to 19: they read as zeros" in fault
    assert content(folder) == before
    assert main(["verify", str(folder)]) == 1
    told = capsys.readouterr().out
    assert "zeros: " in told
    assert "its newest 1 frames, 19 to 19" in told
    assert told.endswith("not whole\n")


HOLES = st.sets(st.integers(0, 40), min_size=1, max_size=30)


@hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=8),
    count=st.sampled_from([None, 7]),
    sizes=st.sampled_from([{}, {"p": 2}, {"c": 3}, {"p": 2, "c": 3}, {"c": 2, "p": 3}]),
    reverse=st.booleans(),
    keep=st.sampled_from([None, 1, 3]),
    slots=HOLES,
)
def test_any_holes_are_the_frames_that_were_there(
    make_settings, tmp_path_factory, steps, count, sizes, reverse, keep, slots
):
    folder = tmp_path_factory.mktemp("holes") / "data"
    names = ["t", *sizes]
    made = make_settings(
        {"t": count, **sizes, "y": PAGE[0], "x": PAGE[1]},
        root_path=str(folder),
        storage_order=[*reversed(names), "y", "x"] if reverse else "acquisition",
        format=ScratchFormat(keep_last=None if count else keep),
    )
    model = Model(made)
    with create_stream(made) as stream:
        for is_skip, n in steps:
            n = n if model.left() is None else min(n, model.left())
            if is_skip and n:
                stream.skip(frames=n)
                model.skip(n)
            for _ in range(0 if is_skip else n):
                stream.append(page(7))
                model.append(page(7))
    expected = []
    for position in range(model.num_positions):
        path = folder / f"pos_{position}.dat"
        num_slots = path.stat().st_size // 4096
        shape = model.array(position, order="file").shape[:-2]
        ring_steps = num_slots // int(np.prod(shape[1:]))
        here = {slot for slot in slots if slot < num_slots}
        make_holes(path, [(slot * 4096, slot * 4096 + 4096) for slot in here])
        missing = []
        for number, (p, index) in enumerate(model.visited):
            if p != position or (p, tuple(sorted(index.items()))) not in model.frames:
                continue
            at = [index[name] for name in model.file_names]
            if keep and not count:
                if at[0] < shape[0] - keep:
                    continue
                at[0] %= ring_steps
            dims = (ring_steps, *shape[1:]) if keep and not count else shape
            if int(np.ravel_multi_index(at, dims)) in here:
                missing.append(number)
        if missing:
            text = f"{len(missing)} frames should be, {missing[0]} to {missing[-1]}:"
            expected.append((position, text))
    faults, done = faults_and_done(folder)
    assert done == faults
    assert len(faults) == len(expected)
    for fault, (position, text) in zip(faults, expected, strict=True):
        assert f"pos_{position}.dat" in fault
        assert text in fault


@pytest.mark.parametrize("ending", ["close", "kill"])
@pytest.mark.parametrize("disk_io", ["page_cache", "direct"])
@pytest.mark.parametrize("length", [None, 60])
def test_frames_that_are_zeros_are_no_holes(folder, ending, disk_io, length, capsys):
    if disk_io == "direct" and PORTABLE:
        pytest.skip("a portable region is not staged")
    program = f"""
    import os, sys, numpy as np
    from scratchwriter import *
    dims = dims_from_standard_axes({{"t": {length}, "p": 2, "y": 64, "x": 64}})
    stream = create_stream(AcquisitionSettings(
        root_path=sys.argv[1], dimensions=dims, dtype="uint16",
        format=ScratchFormat(disk_io={disk_io!r})))
    stream.extend(np.zeros((30, 64, 64), "uint16"))
    for i in range(5):
        with stream.slot() as slot:
            slot[...] = 0
    stream.skip(frames=40)
    for i in range(6):
        stream.append(np.zeros((64, 64), "uint16"))
    {"stream.close()" if ending == "close" else ""}
    os._exit(9)
    """
    program = [sys.executable, "-c", textwrap.dedent(program), str(folder)]
    assert subprocess.run(program, timeout=60).returncode == 9
    with open_scratch(folder) as dataset:
        faults = find_faults(dataset.source)
    assert ["its writer died" in fault for fault in faults] == [True] * (ending == "kill")
    assert not any("holes" in what for what in recover(folder))
    assert main(["verify", str(folder)]) == 0
    assert "its newest" in capsys.readouterr().out
    os.sync()
    assert main(["verify", str(folder)]) == 0


def test_a_part_of_a_frame_may_be_holes(make_settings, folder):
    """Programs that copy leave out blocks of zeros, which many frames have."""
    sizes = {"t": None, "y": 64, "x": 64}
    with create_stream(make_settings(sizes, root_path=str(folder))) as stream:
        for _ in range(4):
            stream.append(np.ones((64, 64), "uint16"))
    make_holes(folder / "pos_0.dat", [(4096, 12288), (20480, 24576)])
    assert faults_and_done(folder) == ([], [])
    make_holes(folder / "pos_0.dat", [(4096, 16384)])
    (fault,), _ = faults_and_done(folder)
    assert "1 frames should be, 1 to 1:" in fault


def test_small_frames_in_holes_are_judged_if_all_of_them_is(make_settings, folder):
    with create_stream(
        make_settings({"t": None, "y": 4, "x": 5}, root_path=str(folder))
    ) as stream:
        stream.extend(np.ones((1000, 4, 5), "uint16"))
    make_holes(folder / "pos_0.dat", [(4096, 8192)])
    (fault,), _ = faults_and_done(folder)
    assert "101 frames should be, 103 to 203:" in fault  # of 40 bytes


def test_a_long_skip_in_holes_is_no_fault_and_takes_no_time(make_settings, folder):
    stream = record_pages(make_settings, folder, {"t": None, "p": 2}, 4)
    with stream:
        stream.skip(frames=100_000)
        stream.append(page(1))
    began_s = time.monotonic()
    assert faults_and_done(folder) == ([], [])
    assert time.monotonic() - began_s < 5


def copy_file_by_file(folder, out, meanwhile):
    """Copy a dataset as other programs do: arrays first, then how many frames there are."""
    out.mkdir()
    shutil.copy(folder / "pos_0.dat", out)
    meanwhile()
    for name in ("manifest.json", "progress.bin", "skips.bin", "frame_metadata.jsonl"):
        shutil.copy(folder / name, out)


@needs_page_cache
@pytest.mark.parametrize("length", [None, 200])
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_copy_made_file_by_file_is_noticed_also_after_recover(
    make_settings, folder, tmp_path, capsys, is_sparse, length
):
    stream, out = record_pages(make_settings, folder, {"t": length}, 50), tmp_path / "copy"
    copy_file_by_file(folder, out, lambda: record_more(stream, 30))
    stream.close()
    if is_sparse:  # as of a program that looks for holes
        nbytes = (out / "pos_0.dat").stat().st_size
        make_holes(out / "pos_0.dat", [(50 * 4096, nbytes)])
    assert main(["verify", str(out)]) == 1
    assert "died before closing" in capsys.readouterr().out
    assert main(["recover", str(out)]) == 0
    told = capsys.readouterr().out
    zeros = "its newest 30 frames, 50 to 79, are zeros"
    assert zeros in told
    assert "scratchwriter copy" in told
    status = main(["verify", str(out)])
    told = capsys.readouterr().out
    assert zeros in told
    if is_sparse and has_holes(tmp_path):
        assert "holes where 30 frames should be, 50 to 79:" in told
        assert status == 1
    else:
        assert told.endswith("whole, if the camera gave these zeros\n")
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.endswith("whole\n")


@needs_page_cache
def test_a_copy_made_file_by_file_may_be_too_short_to_open(make_settings, folder, tmp_path):
    stream, out = record_pages(make_settings, folder, {"t": None}, 50), tmp_path / "copy"

    def outgrow():
        record_more(stream, (out / "pos_0.dat").stat().st_size // 4096)

    copy_file_by_file(folder, out, outgrow)
    stream.close()
    for read in (open_scratch, recover):
        with pytest.raises(DatasetError, match="Only `scratchwriter copy` copies"):
            read(out)


def record_more(stream, count):
    for _ in range(count):
        stream.append(page(stream.frames_written + 1))


def test_a_copy_whose_file_is_too_short_is_an_error_that_names_the_way(
    make_settings, folder, capsys
):
    record_pages(make_settings, folder, {"t": None}, 20).close()
    os.truncate(folder / "pos_0.dat", 19 * 4096)
    for command in ("verify", "recover"):
        assert main([command, str(folder)]) == 1
        told = capsys.readouterr().err
        assert "it has 77824 bytes, 81920 are expected" in told
        assert "scratchwriter copy" in told
        assert told.count("\n") == 1


def test_newest_frames_of_zeros_are_told_for_each_position(make_settings, folder):
    stream = record_pages(make_settings, folder, {"t": None, "p": 3}, 9)
    with stream:
        stream.append(page(0))
        stream.skip()
        stream.append(page(1))
        stream.append(page(0))
        stream.skip(frames=500)
    with open_scratch(folder) as dataset:
        (told,) = zeros_at_end(dataset.source)
        assert "pos_0.dat: its newest 2 frames, 9 to 12, are zeros" in told
        assert find_faults(dataset.source) == []


# ---------------------------------------------------------------------- the command line


def test_verify_tells_what_was_skipped_and_what_never_came(make_settings, folder, capsys):
    settings = make_settings({"t": 10, "y": 4, "x": 5}, root_path=str(folder))
    with create_stream(settings) as stream:
        stream.append(FRAME)
        stream.skip(frames=2)
    assert main(["verify", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "skipped: 2 frames, 1 to 2",
        "never came: 7 frames, 3 to 9",
        "whole",
    ]


def test_clean_of_a_folder_that_is_not_there_fails(tmp_path, capsys):
    assert main(["clean", str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_errors_and_warnings_of_commands_are_lines_that_no_terminal_obeys(folder, capsys):
    kill(folder, {"t": None, "y": 4, "x": 5}, RECORD_6)
    restart(folder)
    assert main(["info", str(folder)]) == 0
    err = capsys.readouterr().err
    assert err.startswith("scratchwriter: warning: ")
    assert err.count("\n") == 1
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["format"] = {"\x1b]0;owned\x07": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["info", str(folder)]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "owned" in err
