"""A descriptor closes itself, whatever happens to the code that opened it."""

import errno
import gc
import itertools
import os
import shutil
import sys
import warnings
import weakref
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

import scratchwriter
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter._files import folders
from scratchwriter._files.append_times import AppendTimesFile
from scratchwriter._files.progress import Progress, ProgressView, locked
from scratchwriter._files.repair import recover
from scratchwriter._region.descriptor import Descriptor
from scratchwriter._region.system import (
    descriptor_of_regular,
    is_lock_free,
    lock_file,
    lock_folder,
    open_regular,
    sync_file,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
PACKAGE = Path(scratchwriter.__file__).parent
TRACED = tuple(f"{PACKAGE / name}{os.sep}" for name in ("_files", "_region"))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    return path


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def test_it_opens_files_and_folders_and_makes_files(path, tmp_path):
    with Descriptor(path, os.O_RDONLY) as file:
        assert os.read(file.fileno(), 99) == b"content"
        assert not os.get_inheritable(file.fileno())
    if os.name == "posix":
        with Descriptor(tmp_path, os.O_RDONLY) as folder:
            assert os.listdir(folder.fileno()) == ["file"]  # noqa: PTH208
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    with Descriptor(tmp_path / "new", flags, 0o600) as file:
        os.write(file.fileno(), b"x")
    assert (tmp_path / "new").read_bytes() == b"x"
    with pytest.raises(FileExistsError):
        Descriptor(tmp_path / "new", flags)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        Descriptor(tmp_path / "nowhere", os.O_RDONLY)
    assert raised.value.filename == str(tmp_path / "nowhere")
    assert raised.value.errno == errno.ENOENT
    with pytest.raises(ValueError, match="null"):
        Descriptor("a\0b", os.O_RDONLY)


@pytest.mark.parametrize("closed_in_children", [False, True])
def test_it_is_closed_once_and_when_it_is_dropped(path, closed_in_children):
    file = Descriptor(path, os.O_RDONLY, closed_in_children=closed_in_children)
    fd = file.fileno()
    file.close()
    assert file.closed
    assert not is_open(fd)
    other = os.open(path, os.O_RDONLY)  # of the same number
    file.close()
    assert is_open(other)
    with pytest.raises(ValueError, match="closed"):
        file.fileno()
    del file
    assert is_open(other)
    os.close(other)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        file = Descriptor(path, os.O_RDONLY, closed_in_children=closed_in_children)
        fd, dropped = file.fileno(), weakref.ref(file)
        del file
    assert dropped() is None
    assert not is_open(fd)
    assert not caught


@needs_fork
def test_a_forked_child_has_no_lock_and_closes_no_file_of_its_own(path):
    lock = Descriptor(path, os.O_RDWR, closed_in_children=True)
    plain = Descriptor(path, os.O_RDWR)
    assert lock_file(lock)
    told, tell = os.pipe()
    go_on, let_go_on = os.pipe()
    child = os.fork()
    if child == 0:
        ok = lock.closed and not plain.closed
        own = os.open(path, os.O_RDONLY)  # it gets the number that is free again
        lock.close()
        del lock
        ok = ok and is_open(own)
        os.write(tell, b"1" if ok else b"0")
        os.read(go_on, 1)
        os._exit(0)
    try:
        assert os.read(told, 1) == b"1"
        with Descriptor(path, os.O_RDWR) as other:
            assert is_lock_free(other) is False
            lock.close()  # the child lives
            assert is_lock_free(other) is True
    finally:
        os.write(let_go_on, b"x")
        os.waitpid(child, 0)
        for fd in (told, tell, go_on, let_go_on):
            os.close(fd)


# ------------------------------------------------------------- an interrupt at every line


def make_progress(folder):
    Progress(folder / "progress.bin").release()


def hold_a_lock(folder):
    with locked(folder / "whole") as lock:
        assert lock.writer_pid is None


def look_at_progress(folder):
    view = ProgressView(folder / "whole")
    assert view.is_in(folder / "whole")


def look_at_live_progress(folder):
    progress = Progress(folder / "progress.bin")
    view = ProgressView(folder)
    assert view.has_writer
    progress.mark_closed()
    assert view.is_closed


def claim(folder):
    new = folder / "new"
    try:
        with ExitStack() as undo:
            with folders.claimed(new, 0, False, undo):
                pass
            undo.pop_all()
    except KeyboardInterrupt:
        assert not new.exists()
        raise


def claim_what_exists(folder):
    with ExitStack() as undo, folders.claimed(folder / "whole", 0, True, undo):
        pass


def spill(folder):
    made = folders.make_spill_folder(ScratchFormat(spill_dir=str(folder)), 0, id)
    folders.remove_spill_folder(made)


def reclaim(folder):
    (folder / "scratchwriter_x").mkdir(0o700)
    folders.reclaim_spill_folders(folder)


def read_and_sync(folder):
    (folder / "a").write_bytes(b"x")
    with open_regular(folder / "a") as file:
        file.read()
    sync_file(folder / "a")
    descriptor_of_regular(folder / "a", writable=True)
    lock_folder(folder)


def make_append_times(folder):
    AppendTimesFile(folder)


def read_a_dataset(folder):
    with open_scratch(folder / "whole") as dataset:
        dataset.arrays[0][:]
        list(dataset.frame_metadata)
        dataset.skipped, dataset.dropped, dataset.append_times  # noqa: B018
        dataset.global_metadata  # noqa: B018


def recover_a_dataset(folder):
    recover(folder / "whole")


def descriptors():
    return set(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    "use",
    [
        *(make_progress, hold_a_lock, look_at_progress, look_at_live_progress, claim),
        *(claim_what_exists, spill, reclaim, read_and_sync, make_append_times),
        *(read_a_dataset, recover_a_dataset),
    ],
)
def test_an_interrupt_at_any_line_leaves_nothing_open_or_locked(
    make_settings, tmp_path, use
):
    whole = tmp_path / "whole"
    with create_stream(
        make_settings({"t": None, "y": 4, "x": 5}, root_path=str(whole))
    ) as stream:
        stream.append(np.ones((4, 5), "uint16"), frame_metadata={"i": 1}, frame_id=3)
    del stream
    gc.collect()
    before = descriptors()
    for number in itertools.count():
        folder = tmp_path / str(number)
        shutil.copytree(whole, folder / "whole")
        countdown = itertools.count(number, -1)

        def trace(frame, event, arg, countdown=countdown):
            if not frame.f_code.co_filename.startswith(TRACED):
                return None
            if event == "line" and next(countdown) == 0:
                raise KeyboardInterrupt
            return trace

        before_trace = sys.gettrace()
        is_done = False
        sys.settrace(trace)
        try:
            use(folder)
            is_done = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before_trace)
        for made in list(folders._spill_folders):  # those stay until the process ends
            folders.remove_spill_folder(made)
        # Garbage of other tests may go meanwhile.
        assert descriptors() <= before, f"interrupted at line {number}"
        if is_done:
            assert number > 1
            return
