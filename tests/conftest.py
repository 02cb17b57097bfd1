import os
import subprocess
import sys
import tempfile
from pathlib import Path

import hypothesis
import numpy as np
import pytest

try:
    import resource
except ImportError:  # not on Windows
    resource = None


from scratchwriter import AcquisitionSettings, dims_from_standard_axes
from scratchwriter._writing import policy

# How long something takes decides no test.
hypothesis.settings.register_profile("scratchwriter", deadline=None)
hypothesis.settings.load_profile("scratchwriter")

# How much of what a test made may stay to find out why it has failed, and how
# much of all tests together.
KEPT_FILE_NBYTES = 1 << 20
KEPT_NBYTES = 50 << 20


def _files_in(folder):
    """The size on the disk of every file, also while other programs remove some."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                yield path, path.lstat().st_blocks * 512
            except FileNotFoundError:
                continue


def _remove_large(files):
    for path, nbytes in files:
        if nbytes > KEPT_FILE_NBYTES:
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session", autouse=True)
def temporary_folder(tmp_path_factory):
    """Everything temporary is in pytest's own folder, which pytest removes.

    A test that kills a program cannot rely on that program to clean up.
    """
    folder = tmp_path_factory.mktemp("tmp", numbered=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_core_files():
    """Programs that a test aborts leave no image of their memory."""
    if resource is not None:
        _, most = resource.getrlimit(resource.RLIMIT_CORE)
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    """A library to be put before the C library; see faults.c."""
    library = tmp_path_factory.mktemp("shim") / "faults.so"
    source = str(Path(__file__).parent / "faults.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"]
    subprocess.run(command, check=True)
    return str(library)


@pytest.fixture
def tmp_path(tmp_path):
    """The test's own folder; of a test that fails, only what is small stays in it."""
    yield tmp_path
    _remove_large(_files_in(tmp_path))


@pytest.hookimpl(tryfirst=True)  # before pytest removes the folder
def pytest_sessionfinish(session, exitstatus):
    """Fail a run that leaves more than a little in the temporary folder, and remove it."""
    folder = session.config._tmp_path_factory.getbasetemp()
    files = sorted(_files_in(folder), key=lambda file: -file[1])
    left = sum(nbytes for _, nbytes in files)
    was_interrupted = exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    if left > KEPT_NBYTES and not was_interrupted:
        print(f"\nThe tests leave {left:,} bytes in {folder}, the most is {KEPT_NBYTES:,}:")
        print(*(f"{nbytes:>13,} {path}" for path, nbytes in files[:10]), sep="\n")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    _remove_large(files)


@pytest.fixture(autouse=True)
def small_datasets_are_staged(monkeypatch):
    """With SCRATCHWRITER_STAGED=1: those that the page cache would have, but for it."""
    if os.environ.get("SCRATCHWRITER_STAGED") == "1":
        monkeypatch.setattr(policy, "_PAGE_CACHE_NBYTES", 0)
        monkeypatch.setattr(policy, "_KEEP_SLOTS_S", 0.01)


@pytest.fixture(autouse=True)
def tracer_stays():
    """A test that traces by itself does not end the measuring of coverage."""
    tracer = sys.gettrace()
    yield
    if sys.gettrace() is not tracer:
        sys.settrace(tracer)


@pytest.fixture
def make_settings():
    """Settings from sizes of standard axes, uint16 unless told."""

    def make(sizes, **fields):
        fields.setdefault("dtype", "uint16")
        return AcquisitionSettings(dimensions=dims_from_standard_axes(sizes), **fields)

    return make


@pytest.fixture(params=["memory", "disk"])
def place(request, tmp_path):
    """Fields of the settings that put an acquisition in memory, or on disk."""
    return {} if request.param == "memory" else {"root_path": str(tmp_path / "data")}


@pytest.fixture
def frames():
    """Distinct frames of 4 x 5 uint16."""
    return [np.arange(20, dtype="uint16").reshape(4, 5) + 100 * i for i in range(60)]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB of its own."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
