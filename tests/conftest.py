import os
import subprocess

import hypothesis
import numpy as np
import pytest

from scratchwriter import AcquisitionSettings, dims_from_standard_axes

# How long something takes decides no test.
hypothesis.settings.register_profile("scratchwriter", deadline=None)
hypothesis.settings.load_profile("scratchwriter")


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
