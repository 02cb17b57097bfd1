"""Where gevent has replaced threads by greenlets, which take turns on one."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("gevent")

PROGRAM = """
    import warnings
    warnings.simplefilter("ignore")
    from gevent import monkey
    monkey.patch_all()
    import faulthandler
    faulthandler.dump_traceback_later(60, exit=True)
    import sys, time
    import numpy as np
    from scratchwriter import *

    path, fields = sys.argv[1], eval(sys.argv[2])
    settings = AcquisitionSettings(
        root_path=path,
        dimensions=dims_from_standard_axes({"t": None, "y": 64, "x": 64}),
        dtype="uint16",
        format=ScratchFormat(**fields),
    )
    got, expanded = [], []
    with create_stream(settings) as stream:
        stream.on("coords_changed", lambda update: got.append(update.frame_number))
        stream.view().coords_changed.connect(lambda: expanded.append(1))
        for i in range(100):
            stream.append(np.full((64, 64), i, "uint16"))
        while len(got) < 100:
            time.sleep(0.01)  # others have their turn
        stream.flush()
        for i in range(100, 200):
            stream.append(np.full((64, 64), i, "uint16"))
    assert got == list(range(200)), got[-1]
    assert expanded
    if stream.path is not None:
        dataset = open_scratch(stream.path)
        assert dataset.wait(frames=200, timeout_s=1)
        assert [int(np.asarray(dataset.view())[i, 0, 0]) for i in (0, 199)] == [0, 199]
    print("done")
"""
FIELDS = {
    "memory": ("", {}),
    "leaves memory": ("", {"max_memory_bytes": 1 << 18}),
    "disk": ("data", {"durability": "system", "sync_interval_s": 0.02}),
    "disk, directly": ("data", {"disk_io": "auto", "max_staging_bytes": 1 << 20}),
}


@pytest.mark.parametrize("name", FIELDS)
def test_callbacks_come_and_nothing_hangs(tmp_path, name):
    path, fields = FIELDS[name]
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), path, repr(fields)]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr


FOLLOW = """
    import warnings
    warnings.simplefilter("ignore")
    from gevent import monkey, spawn, joinall
    monkey.patch_all()
    import faulthandler
    faulthandler.dump_traceback_later(60, exit=True)
    import time
    import numpy as np
    from scratchwriter import *

    settings = AcquisitionSettings(
        root_path="data",
        dimensions=dims_from_standard_axes({"t": None, "y": 8, "x": 8}),
        dtype="uint16",
    )
    stream, followed = create_stream(settings), []

    def record():
        for i in range(20):
            stream.append(np.full((8, 8), i, "uint16"))
            time.sleep(0.005)
        stream.close()

    def follow():
        with open_scratch("data") as dataset:
            followed.extend(int(frame[0, 0]) for frame in dataset.follow())

    joinall([spawn(follow), spawn(record)], raise_error=True)
    assert followed == list(range(20)), followed
    print("done")
"""


def test_a_greenlet_follows_what_another_records(tmp_path):
    program = [sys.executable, "-c", textwrap.dedent(FOLLOW)]
    ran = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "done\n"), ran.stderr
