"""Records on a disk that others fill, too, until it is full, several times; run by a test.

    full_disk.py FOLDER SEED

What is recorded how, how large the frames are, what is skipped, who reads meanwhile and
how much room is left is drawn from the seed. Every frame that `append` returned for has to
be there, while it is recorded and after, and every refusal has to be an OSError.
"""

import contextlib
import errno
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._writing import policy

# Looks at the files near their ends, where there may be no blocks yet.
OTHER_PROCESS = """
import mmap, os, random, sys
from pathlib import Path
rng, parent = random.Random(1), os.getppid()
while os.getppid() == parent:
    for path in Path(sys.argv[1]).glob("pos_*.dat"):
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            if nbytes:
                with mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ) as mapped:
                    start = max(0, nbytes - rng.randrange(1, 1 << 23))
                    for at in range(start, min(nbytes, start + (4 << 20)), 4096):
                        mapped[at]
                file.seek(max(0, nbytes - rng.randrange(1, 1 << 23)))
                file.read(4 << 20)
"""


class Ballast:
    """A file of somebody else."""

    def __init__(self, path):
        self._path = path

    def add(self, nbytes):
        with contextlib.suppress(OSError), self._path.open("ab") as file:
            file.write(os.urandom(nbytes))

    def free(self, nbytes):
        with self._path.open("ab") as file:
            file.truncate(max(0, self._path.stat().st_size - nbytes))


def disk_io(rng, fields):
    """Choose how frames come to the disk; at random, where there is a choice."""
    if "storage_order" in fields or rng.random() < 0.5:
        return {}
    return {"disk_io": "direct", "max_staging_bytes": rng.choice([1, 16 << 20, 1 << 30])}


def settings_of(rng, path):
    y, x = rng.choice([(64, 64), (300, 500), (512, 512), (900, 1000), (1024, 1024)])
    sizes = {"t": None, "p": rng.choice([1, 1, 2, 3]), "y": y, "x": x}
    fields = {}
    if rng.random() < 0.3:
        sizes |= {"c": 2, "z": 3}
        fields["storage_order"] = ["t", "p", "z", "c", "y", "x"]
    order = ("t", "p", "c", "z", "y", "x")
    return AcquisitionSettings(
        root_path=str(path),
        dimensions=dims_from_standard_axes({k: sizes[k] for k in order if k in sizes}),
        dtype="uint16",
        format=ScratchFormat(timestamps=rng.random() < 0.3, **disk_io(rng, fields)),
        **fields,
    )


def look(stream, rng, is_over):
    while not is_over.is_set():
        for array in stream.arrays:
            if len(array):
                array[len(array) - 1].sum()
                array[rng.randrange(len(array))].sum()


def record(stream, rng, ballast):
    """Return what was stored: a number for each frame, by which all its pixels are told."""
    stored, number, refusals = {}, 0, 0
    frame = np.empty(stream.arrays[0].shape[-2:], "uint16")
    while refusals < 6:
        if rng.random() < 0.02 and refusals < 3:
            ballast.add(rng.randrange(1 << 20))
        try:
            if rng.random() < 0.05:
                count = rng.randrange(1, 40)
                stream.skip(frames=count)
            else:
                count = 1
                frame[...] = number % 60_000 + 1
                stream.append(frame)
                stored[number] = number % 60_000 + 1
            number += count
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            refusals += 1
            if refusals % 2:
                ballast.free(rng.randrange(1 << 20, 9 << 20))
    assert stream.frames_written == number
    return stored


def check(dataset, stored):
    view = dataset.view()
    for number in range(dataset.frames_written):
        assert (np.asarray(view.frame(number)) == stored.get(number, 0)).all(), number


def main(folder, seed):
    rng = random.Random(seed)
    window_nbytes = rng.choice([4, 16, 64, 256]) << 20  # also more than there is
    policy.file_window_nbytes = lambda folder, needed_nbytes: window_nbytes
    ballast = Ballast(folder / "ballast")
    ballast.add(rng.randrange(40 << 20))
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(create_stream(settings_of(rng, folder / "data")))
        is_over = threading.Event()
        if rng.random() < 0.7:
            reader = threading.Thread(target=look, args=(stream, rng, is_over), daemon=True)
            reader.start()
        if rng.random() < 0.7:
            command = [sys.executable, "-c", OTHER_PROCESS, str(folder / "data")]
            other = stack.enter_context(subprocess.Popen(command))
            stack.callback(other.kill)
        else:
            other = None
        try:
            stored = record(stream, rng, ballast)
            assert other is None or other.poll() is None
        finally:
            is_over.set()
        assert stored
        check(open_scratch(folder / "data"), stored)
    check(open_scratch(folder / "data"), stored)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
