"""Who recovers, replaces or reclaims a dataset has it alone, in whatever order."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from scratchwriter import (
    AcquisitionSettings,
    DatasetError,
    create_stream,
    open_scratch,
)
from scratchwriter import dims_from_standard_axes as dims
from scratchwriter._files import folders, progress, repair
from scratchwriter._files.progress import Progress, locked
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._region import system
from scratchwriter._writing.storage import Storage
from scratchwriter.plan import make_plan
from waiting import remove_recorded

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")
SIZES = {"t": None, "y": 64, "x": 64}
FRAME = np.arange(64 * 64, dtype="uint16").reshape(64, 64)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


def settings_of(folder, **fields):
    return AcquisitionSettings(
        dimensions=dims(SIZES), dtype="uint16", root_path=str(folder), **fields
    )


def killed(folder, num_frames=50):
    program = f"""
    import os, signal
    import numpy as np
    from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
    stream = create_stream(
        AcquisitionSettings(
            root_path={str(folder)!r},
            dimensions=dims_from_standard_axes({SIZES!r}),
            dtype="uint16",
        )
    )
    for i in range({num_frames}):
        stream.append(np.full((64, 64), i, "uint16"))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], timeout=60)
    assert ended.returncode == -signal.SIGKILL


@contextmanager
def held_up(code):
    """Run code in another process, which stops in `wait()` until the test continues it.

    Yields a function that lets it, and returns what it printed at last.
    """
    program = f"""
    import sys
    from pathlib import Path
    waited = []
    def wait():
        if not waited:
            waited.append(True)
            print("waits", flush=True)
            sys.stdin.readline()
    def attempt(function, *args):
        try:
            function(*args)
        except Exception as error:
            print(type(error).__name__, error)
        else:
            print("done")
    {textwrap.indent(textwrap.dedent(code), " " * 4).strip()}
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "waits\n"
            yield lambda: process.communicate("\n", timeout=60)[0]
        finally:
            process.kill()


def record_over(folder, make_settings):
    return create_stream(make_settings(SIZES, root_path=str(folder), overwrite=True))


RECOVER_LATE = """
from scratchwriter._files import progress, repair
real = progress.lock_file
def lock_file(file, **how):
    wait()
    return real(file, **how)
progress.lock_file = lock_file
attempt(repair.recover, Path({folder!r}))
"""


def test_recovering_what_is_being_replaced_leaves_the_new_dataset_alone(
    make_settings, folder
):
    killed(folder)
    with held_up(RECOVER_LATE.format(folder=str(folder))) as go_on:
        with record_over(folder, make_settings) as stream:
            stream.append(FRAME)
            out = go_on()
            assert "BlockingIOError" in out
            assert f"by process {os.getpid()}" in out
            for _ in range(100):
                stream.append(FRAME)
        with open_scratch(folder) as dataset:
            assert dataset.frames_written == 101
            assert find_faults(dataset.source) == []


RECOVER_WITHOUT_LOCK = """
from scratchwriter._files import repair
real = repair.open_source
def open_source(*args, **how):
    wait()
    return real(*args, **how)
repair.open_source = open_source
attempt(repair.recover, Path({folder!r}))
"""


def test_recovering_what_has_just_been_deleted_leaves_the_new_dataset_alone(
    make_settings, folder
):
    folder.mkdir()
    with held_up(RECOVER_WITHOUT_LOCK.format(folder=str(folder))) as go_on:
        with record_over(folder, make_settings) as stream:
            stream.append(FRAME)
            assert "BlockingIOError" in go_on()
            for _ in range(100):
                stream.append(FRAME)
        with open_scratch(folder) as dataset:
            assert dataset.frames_written == 101


RECOVER_SLOWLY = """
from scratchwriter._files import repair
real = repair._trim
def trim(*args, **how):
    wait()
    return real(*args, **how)
repair._trim = trim
attempt(repair.recover, Path({folder!r}))
"""


def test_what_is_being_recovered_is_not_replaced(make_settings, folder):
    killed(folder)
    with held_up(RECOVER_SLOWLY.format(folder=str(folder))) as go_on:
        with pytest.raises(FileExistsError, match="another process repairs it"):
            record_over(folder, make_settings)
        with open_scratch(folder) as dataset:
            assert dataset.frames_written == 50
        assert go_on() == "done\n"
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 50)
    record_over(folder, make_settings).close()


REPLACE_SLOWLY = """
from scratchwriter import AcquisitionSettings, create_stream, dims_from_standard_axes
real = Path.unlink
def unlink(self, **how):
    real(self, **how)
    wait()
Path.unlink = unlink
settings = AcquisitionSettings(
    root_path={folder!r},
    dimensions=dims_from_standard_axes({sizes!r}),
    dtype="uint16",
    overwrite=True,
)
attempt(lambda: create_stream(settings).close())
"""


def test_what_is_being_replaced_is_not_recovered(folder):
    killed(folder)
    code = REPLACE_SLOWLY.format(folder=str(folder), sizes=SIZES)
    with held_up(code) as go_on:
        with pytest.raises(BlockingIOError):
            recover(folder)
        assert go_on() == "done\n"
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 0)


def test_a_deletion_that_ends_half_way_can_be_done_again(
    make_settings, folder, monkeypatch
):
    killed(folder, 1)
    num_files = len(list(folder.iterdir()))
    for _ in range(num_files):
        real = type(folder).unlink

        def unlink(path, real=real, done=[], **how):  # noqa: B006
            if done:
                raise OSError("no more")
            done.append(real(path, **how))

        with monkeypatch.context() as patch:
            patch.setattr(type(folder), "unlink", unlink)
            with pytest.raises(OSError, match="no more"), ExitStack() as undo:
                undo.enter_context(folders.claimed(folder, 0, True, undo))
                raise OSError("no more")
    assert list(folder.iterdir()) == []
    record_over(folder, make_settings).close()


def test_a_lock_is_one_of_the_file_that_has_the_name(tmp_path, monkeypatch):
    Progress(tmp_path / "progress.bin").release()
    made, real = [], progress.lock_file

    def lock_late(file, **how):
        if not made:  # another dataset comes in between
            monkeypatch.setattr(progress, "lock_file", real)
            (tmp_path / "progress.bin").unlink()
            made.append(Progress(tmp_path / "progress.bin"))
        return real(file, **how)

    monkeypatch.setattr(progress, "lock_file", lock_late)
    with locked(tmp_path) as lock:
        assert lock.writer_pid == os.getpid()
    made[0].release()


def test_the_lock_of_a_dataset_that_is_gone_is_none(tmp_path, monkeypatch):
    Progress(tmp_path / "progress.bin").release()
    real = progress.lock_file

    def lock_late(file, **how):
        (tmp_path / "progress.bin").unlink()
        return real(file, **how)

    monkeypatch.setattr(progress, "lock_file", lock_late)
    with locked(tmp_path) as lock:
        assert lock.writer_pid is None
        assert lock.is_at(tmp_path / "progress.bin")
        monkeypatch.setattr(progress, "lock_file", real)
        Progress(tmp_path / "progress.bin").release()
        assert not lock.is_at(tmp_path / "progress.bin")


@pytest.mark.parametrize("again", [True, False])
def test_a_folder_is_locked_that_has_the_name(tmp_path, monkeypatch, again):
    folder, real = tmp_path / "folder", system.lock_file
    folder.mkdir()

    def lock_late(file, **how):
        monkeypatch.setattr(system, "lock_file", real)
        folder.rmdir()
        if again:
            folder.mkdir()
        return real(file, **how)

    monkeypatch.setattr(system, "lock_file", lock_late)
    if not again:
        with pytest.raises(FileNotFoundError):
            system.lock_folder(folder)
        return
    lock, is_free = system.lock_folder(folder)
    assert is_free
    assert system.is_at(lock, folder)
    _, is_free = system.lock_folder(folder, patience_s=0)
    assert is_free is False


def test_a_folder_that_is_removed_before_it_is_claimed_is_made_again(
    make_settings, folder, monkeypatch
):
    folder.mkdir()
    real = folders.lock_folder

    def lock_late(path, **how):
        monkeypatch.setattr(folders, "lock_folder", real)
        path.rmdir()  # the stream that made it could not begin
        return real(path, **how)

    monkeypatch.setattr(folders, "lock_folder", lock_late)
    with record_over(folder, make_settings) as stream:
        stream.append(FRAME)
    with open_scratch(folder) as dataset:
        assert dataset.frames_written == 1


def test_a_temporary_folder_is_not_reclaimed_while_it_is_recovered(tmp_path, monkeypatch):
    folder = tmp_path / "scratchwriter_x"
    killed(folder)
    folder.chmod(0o700)
    (folder / folders._SPILL_MARK).touch()
    copy = tmp_path / "scratchwriter_y"
    shutil.copytree(folder, copy)
    copy.chmod(0o700)
    reclaimed, real = [], repair._finish

    def finish(source):
        reclaimed.extend(folders.reclaim_spill_folders(tmp_path))
        return real(source)

    monkeypatch.setattr(repair, "_finish", finish)
    done = recover(folder)
    assert reclaimed == [copy]
    assert done[-1] == f"{folder}: no longer temporary, it stays"
    assert folders.reclaim_spill_folders(tmp_path) == []
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 50)


def test_a_temporary_folder_that_cannot_be_recovered_stays_temporary(tmp_path):
    folder = tmp_path / "scratchwriter_x"
    killed(folder)
    folder.chmod(0o700)
    (folder / folders._SPILL_MARK).touch()
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(DatasetError):
        recover(folder)
    assert folders.reclaim_spill_folders(tmp_path) == [folder]


# -------------------------------------------------------- two streams in the same folder


def test_a_dataset_that_came_before_the_folder_was_locked_is_refused_not_deleted(
    folder, monkeypatch
):
    lock_folder = folders.lock_folder

    def late(path, **options):
        monkeypatch.setattr(folders, "lock_folder", lock_folder)
        with create_stream(settings_of(folder, overwrite=True)) as other:
            other.append(FRAME)
        return lock_folder(path, **options)

    monkeypatch.setattr(folders, "lock_folder", late)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        create_stream(settings_of(folder))
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 1)


def test_what_is_undone_is_removed_before_others_can_have_the_folder(folder, monkeypatch):
    refused = []

    def remove_late(path):
        with pytest.raises(FileExistsError, match="is being recorded"):
            create_stream(settings_of(folder, overwrite=True))
        refused.append(path)
        folders.remove_files(path)

    monkeypatch.setattr("scratchwriter._writing.storage.remove_files", remove_late)
    settings = settings_of(folder)
    storage = Storage(settings, make_plan(settings))
    storage.begin()
    storage.abandon()
    assert refused == [folder]
    assert not folder.exists()


def test_what_is_undone_is_not_what_another_stream_has_made_meanwhile(folder):
    settings = settings_of(folder)
    storage = Storage(settings, make_plan(settings))
    storage.begin()
    remove_recorded(folder)
    with create_stream(settings) as other:
        other.append(FRAME)
        storage.abandon()
        other.append(FRAME)
    with open_scratch(folder) as dataset:
        assert (dataset.state, dataset.frames_written) == ("closed", 2)
