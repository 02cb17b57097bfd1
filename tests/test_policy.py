"""How much memory and disk may be taken, and what is said when it may not."""

import errno
import gc
import shutil
import tempfile
import warnings
from pathlib import Path

import pytest

from marks import needs_direct_writes
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
)
from scratchwriter._files import folders
from scratchwriter._writing import policy
from scratchwriter.errors import size_text
from scratchwriter.plan import make_plan

FRAME_NBYTES = 40  # 4 x 5 uint16


def test_over_the_limit_without_spilling_is_a_memory_error_with_both_remedies(
    make_settings,
):
    settings = make_settings(
        {"t": 11, "y": 4, "x": 5},
        format=ScratchFormat(max_memory_bytes=10 * FRAME_NBYTES, spill_to_disk=False),
    )
    with pytest.raises(MemoryError) as error:
        create_stream(settings)
    for part in ("440 bytes", "400 bytes", "root_path", "max_memory_bytes"):
        assert part in str(error.value)


def test_exactly_the_limit_is_not_over_it(make_settings):
    settings = make_settings(
        {"t": 10, "y": 4, "x": 5},
        format=ScratchFormat(max_memory_bytes=10 * FRAME_NBYTES, spill_to_disk=False),
    )
    create_stream(settings).close()


def test_the_bytes_of_all_positions_count_together(make_settings):
    settings = make_settings(
        {"p": 3, "t": 5, "y": 4, "x": 5},
        format=ScratchFormat(max_memory_bytes=10 * FRAME_NBYTES, spill_to_disk=False),
    )
    with pytest.raises(MemoryError, match="600 bytes"):
        create_stream(settings)


def test_sizes_are_estimated_exactly_beyond_64_bits(make_settings):
    sizes = {"t": 2**24, "c": 2**24, "z": 2**24, "y": 1, "x": 2}
    no_spill = ScratchFormat(spill_to_disk=False, max_memory_bytes=2**73 - 1)
    with pytest.raises(MemoryError, match=r"9,444,732,965,739\.2 GB"):
        create_stream(make_settings(sizes, dtype="uint8", format=no_spill))


def test_more_than_the_disk_has_is_refused_before_anything_is_made(make_settings, tmp_path):
    settings = make_settings(
        {"t": 2**40, "y": 512, "x": 512}, root_path=str(tmp_path / "a" / "data")
    )
    with pytest.raises(OSError, match="free") as error:
        create_stream(settings)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_more_than_the_temporary_disk_has_is_refused_without_a_trace(
    make_settings, tmp_path
):
    fmt = ScratchFormat(spill_dir=str(tmp_path))
    with pytest.raises(OSError, match="free"):
        create_stream(make_settings({"t": 2**40, "y": 512, "x": 512}, format=fmt))
    assert list(tmp_path.iterdir()) == []


def test_over_what_the_machine_has_is_over_the_limit(make_settings, monkeypatch):
    monkeypatch.setattr(policy, "available_memory_nbytes", lambda: 399)
    fmt = ScratchFormat(spill_to_disk=False)
    with pytest.raises(
        MemoryError, match=r"400 bytes.*machine has available \(399 bytes\)"
    ):
        create_stream(make_settings({"t": 10, "y": 4, "x": 5}, format=fmt))


def test_an_unknown_amount_of_memory_is_no_limit(make_settings, monkeypatch):
    monkeypatch.setattr(policy, "available_memory_nbytes", lambda: None)
    create_stream(make_settings({"t": 10, "y": 4, "x": 5})).close()


def test_spilling_warns_with_size_limit_and_folder_at_the_callers_line(
    make_settings, tmp_path
):
    fmt = ScratchFormat(max_memory_bytes=400, spill_dir=str(tmp_path))
    with pytest.warns(UserWarning, match="440 bytes") as caught:
        stream = create_stream(make_settings({"t": 11, "y": 4, "x": 5}, format=fmt))
    stream.close()
    (warning,) = caught
    assert warning.filename == __file__
    assert "max_memory_bytes=400" in str(warning.message)
    assert str(stream.path) in str(warning.message)


def test_a_spill_warning_turned_into_an_error_leaves_nothing_behind(
    make_settings, tmp_path
):
    fmt = ScratchFormat(max_memory_bytes=400, spill_dir=str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            create_stream(make_settings({"t": 11, "y": 4, "x": 5}, format=fmt))
    assert list(tmp_path.iterdir()) == []
    # Nothing is left open either: warnings of that would be errors here.
    gc.collect()


def test_positions_share_the_limit_evenly_and_the_first_get_the_rest():
    settings = AcquisitionSettings(
        dimensions=dims_from_standard_axes({"t": None, "p": 3, "y": 4, "x": 5}),
        dtype="uint16",
        format=ScratchFormat(max_memory_bytes=40 * 8 + 39),
    )
    plan = make_plan(settings)
    steps = [policy.memory_steps(plan, settings.format, p) for p in range(3)]
    assert steps == [3, 3, 2]


def test_the_remedy_is_one_that_helps(monkeypatch):
    assert "raise max_memory" in str(policy.memory_error(101, policy.limit_text(100)))
    monkeypatch.setattr(policy, "available_memory_nbytes", lambda: 50)
    limit = policy.machine_shortage(60)
    assert "max_memory" not in str(policy.memory_error(60, limit))


def test_addresses_are_left_to_others_where_a_process_has_few(monkeypatch):
    monkeypatch.setattr(policy, "addresses_nbytes", lambda: 4 << 30)
    assert policy.reserve_nbytes() == 1 << 30
    monkeypatch.setattr(policy, "addresses_nbytes", lambda: None)
    assert policy.reserve_nbytes() >= 1 << 40


def test_files_are_allocated_not_far_ahead_on_a_small_disk(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)._replace(free=8000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert policy.file_window_nbytes(tmp_path / "new" / "folder", 0) == 1000
    assert policy.file_window_nbytes(tmp_path / "new" / "folder", 4000) == 500
    assert policy.file_window_nbytes(tmp_path, 9000) == 0  # it is refused elsewhere
    monkeypatch.setattr(policy, "_FILE_WINDOW_NBYTES", 10)
    assert policy.file_window_nbytes(tmp_path, 0) == 10


@needs_direct_writes
def test_staging_takes_little_of_a_small_disk_and_of_little_memory(monkeypatch, tmp_path):
    def staged(free_nbytes, available_nbytes=32 << 30):
        monkeypatch.setattr(policy, "available_nbytes", lambda: available_nbytes)
        usage = shutil.disk_usage(tmp_path)._replace(free=free_nbytes + 2 * 512 * 512)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        settings = AcquisitionSettings(
            dimensions=dims_from_standard_axes({"t": None, "y": 512, "x": 512}),
            dtype="uint16",
            format=ScratchFormat(max_staging_bytes=4 << 30),
        )
        staging, why_not = policy.stage(tmp_path, make_plan(settings), settings.format)
        assert why_not == ""
        nbytes = staging.most_slots * staging.piece_nbytes
        return nbytes >> 20, staging.piece_nbytes >> 20, staging.allocated_nbytes >> 20

    assert staged(1 << 40) == (1024, 8, 128)
    assert staged(1 << 40, available_nbytes=4 << 30) == (256, 8, 128)
    assert staged(2 << 30) == (256, 8, 128)
    assert staged(800 << 20) == (96, 8, 100)
    assert staged(80 << 20) == (12, 2, 10)
    assert staged(0) == (12, 2, 0)  # frames find no room either


def test_the_spill_folder_is_chosen_by_setting_then_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "env"))
    (tmp_path / "env").mkdir()
    tempfile.gettempdir()  # which remembers what it found
    assert folders.spill_parent(ScratchFormat(spill_dir="/a/b")) == Path("/a/b")
    assert folders.spill_parent(ScratchFormat(spill_dir=Path("/a/b"))) == Path("/a/b")
    assert folders.spill_parent(ScratchFormat(spill_dir="~/b")) == Path.home() / "b"
    assert folders.spill_parent(ScratchFormat()) == tmp_path / "env"
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    assert folders.spill_parent(ScratchFormat()) != tmp_path / "nowhere"


def test_without_a_choice_a_folder_in_memory_is_avoided(monkeypatch, tmp_path):
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert folders.spill_parent(ScratchFormat()) == tmp_path
    monkeypatch.setattr(folders, "is_ram_backed", lambda folder: folder == tmp_path)
    assert folders.spill_parent(ScratchFormat()) != tmp_path
    monkeypatch.setattr(folders, "is_ram_backed", lambda folder: True)
    assert folders.spill_parent(ScratchFormat()) == tmp_path  # better than nowhere


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (999_999, "999,999 bytes"),
        (1_000_000, "1.0 MB"),
        (12_345_678_901, "12.3 GB"),
        (10**400, f"{10**391:,}.0 GB"),
    ],
)
def test_sizes_are_said_for_people(nbytes, text):
    assert size_text(nbytes) == text
