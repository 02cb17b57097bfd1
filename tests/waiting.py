"""Waiting for what another thread or process does: as long as it takes, up to a limit."""

import shutil
import time


def wait_until(condition, timeout_s=60):
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "it never came"
        time.sleep(0.002)


def remove_recorded(folder):
    """Remove the folder of a stream, whose threads may make a file in it meanwhile."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
