"""What a stream takes, it gives back: memory, addresses, descriptors, threads."""

import ctypes
import gc
import os
import shutil
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from scratchwriter import ScratchFormat, create_stream, open_scratch

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="another malloc"),
]
LIVES = 30


class _Mallinfo2(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(7)] + [
        ("uordblks", ctypes.c_size_t),
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


def taken():
    """Bytes of the C heap in use, mappings, descriptors, threads."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    return (
        mallinfo2().uordblks,
        len(Path("/proc/self/maps").read_text().splitlines()),
        len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        len(os.listdir("/proc/self/task")) + threading.active_count(),  # noqa: PTH208
    )


def live(make_settings, folder, place):
    """Be created, fed, skipped, looked at, flushed, closed and opened again."""
    fields = {
        "memory": {},
        "disk": {"root_path": str(folder), "overwrite": True},
        "durable": {
            "root_path": str(folder),
            "overwrite": True,
            "format": ScratchFormat(durability="system"),
        },
        "spilling": {
            "format": ScratchFormat(max_memory_bytes=20_000, spill_dir=str(folder.parent))
        },
    }[place]
    frame = np.ones((64, 64), "uint16")
    with create_stream(make_settings({"t": None, "p": 2, "y": 64, "x": 64}, **fields)) as s:
        for number in range(40):
            s.append(frame, frame_metadata={"number": number})
            with pytest.raises(ValueError, match="shape"):
                s.append(frame[1:])
            s.skip(frames=3)
        assert s.arrays[0][0, 0, 0] == 1
        s.set_global_metadata("here", {"a": [1, 2, 3]})
        s.flush()
        s.stats()
    if s.path is not None:
        with open_scratch(s.path) as dataset:
            assert len(dataset.frame_metadata) == 40
            assert dataset.written(0).sum() == 40
            assert dataset.arrays[0][...].any()
            shutil.rmtree(dataset.copy(folder.with_name("copy")))


@pytest.mark.parametrize("place", ["memory", "disk", "durable", "spilling"])
def test_a_stream_gives_back_what_it_took(make_settings, tmp_path, place):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of spilling
        looks = []
        for _ in range(5):
            for _ in range(LIVES):
                live(make_settings, tmp_path / "data", place)
            looks.append(taken())
    # What is lost in each life is lost in each look; caches are filled some time.
    grown = np.diff(looks, axis=0).min(axis=0)
    nbytes, mappings, descriptors, threads = grown.tolist()
    # A temporary folder is kept until the end, with its lock and its name.
    kept = LIVES if place == "spilling" else 0
    # Less than one small object in each life. Python's arenas are mappings, too.
    assert nbytes < LIVES * 64 + kept * 128
    assert mappings < LIVES // 4
    assert descriptors == kept
    assert threads <= 0  # other tests' may end meanwhile
