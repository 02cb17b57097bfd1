"""Lives of a dataset on a disk that records what is written; run by `power_cuts`.

    recorded_life.py FOLDER COUNT LOG SEED

FOLDER is in a file system on a `recording_disk`, COUNT the file with its number of
operations. What is recorded how, and each step, is drawn from the seed. LOG gets a line of
JSON before a call and when it has returned, with the number of operations at that moment.
"""

import json
import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np

from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.repair import recover
from scratchwriter._writing import policy

SHAPES = [(8, 8), (30, 40), (64, 64), (100, 90)]
DIED = 3  # exit code of a writer that ended without closing


def frame_of(number, shape):
    """A frame whose pixels belong to no other frame at that place, and are not zero."""
    pixels = np.arange(shape[0] * shape[1], dtype="uint32").reshape(shape)
    return (pixels << 16) | np.uint32(number % 65535 + 1)


def metadata_of(number):
    return {"number": number, "text": "m" * (number % 50)} if number % 3 else None


def timestamp_of(number):
    return 1000 * number + 7


def choose(rng, folder):
    """Return settings, and how small staging is; the same for the same seed."""
    sizes = {"t": rng.choice([None, None, 40, 400]), "p": rng.choice([1, 1, 2, 3])}
    sizes |= {"c": rng.choice([1, 2])}
    y, x = rng.choice(SHAPES)
    is_staged = rng.random() < 0.5
    order = "acquisition"
    if not is_staged and rng.random() < 0.25:
        order = ["c", "t", "p", "y", "x"]
    settings = AcquisitionSettings(
        root_path=str(folder),
        dimensions=dims_from_standard_axes(sizes | {"y": y, "x": x}),
        dtype="uint32",
        storage_order=order,
        format=ScratchFormat(
            disk_io="direct" if is_staged else rng.choice(["auto", "page_cache"]),
            max_staging_bytes=rng.choice([1, 1 << 20]) if is_staged else 1 << 30,
            durability=rng.choice(["process", "process", "system"]),
            sync_interval_s=0.01,
            timestamps=rng.random() < 0.3,
        ),
    )
    return settings


class Log:
    """What was promised, and when: after how many operations of the disk."""

    def __init__(self, path, count):
        self._file = path.open("a", buffering=1)
        self._count = np.memmap(count, "<i8", "r", shape=(1,))

    def write(self, **what):
        self._file.write(json.dumps({"at": int(self._count[0])} | what) + "\n")


def live(settings, rng, log, *, is_to_die):
    """Record; what was promised is in the log."""
    shape = settings.shape[-2:]
    number, left = 0, settings.num_frames
    log.write(will=0)
    with_times = settings.format.timestamps
    stream = create_stream(settings)
    log.write(created=True)
    for _ in range(rng.randrange(4, 40)):
        count = rng.choice([1, 1, 1, 2, 7, 30])
        count = count if left is None else min(count, left - number)
        if count == 0:
            break
        step = rng.choice(
            ["append"] * 6 + ["extend", "slots", "skip", "flush", "global", "sync"]
        )
        times = [timestamp_of(n) for n in range(number, number + count)]
        frames = [frame_of(n, shape) for n in range(number, number + count)]
        lines = [metadata_of(n) or {} for n in range(number, number + count)]
        if step in ("append", "extend", "slots"):
            log.write(will=number + count)
        if step == "append":
            for n, frame in enumerate(frames, number):
                more = {"timestamp_ns": timestamp_of(n)} if with_times else {}
                stream.append(frame, frame_metadata=metadata_of(n), **more)
        elif step == "extend":
            more = {"timestamps_ns": times} if with_times else {}
            stream.extend(np.array(frames), frame_metadata=lines, **more)
        elif step == "slots":
            for n, frame in enumerate(frames, number):
                more = {"timestamp_ns": timestamp_of(n)} if with_times else {}
                with stream.slot(frame_metadata=metadata_of(n), **more) as slot:
                    slot[...] = frame
        elif step == "skip":
            log.write(will=number + count, skip=[number, number + count])
            stream.skip(frames=count)
        elif step == "global":
            stream.set_global_metadata("life", {"number": number})
            log.write(set=number)
            continue
        elif step == "flush":
            stream.flush()
            log.write(certain=number)
            continue
        else:
            with open_scratch(settings.root_path) as dataset:
                log.write(certain=dataset.frames_synced)
            continue
        number += count
    if is_to_die:
        os._exit(DIED)
    stream.close()
    if settings.format.durability == "system":
        log.write(certain=number, closed=True)


def main(folder, count, log, seed):
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 65536
    warnings.simplefilter("ignore")
    rng = random.Random(seed)
    log = Log(log, count)
    settings = choose(rng, folder / "data")
    is_to_die, is_recovered = rng.random() < 0.5, rng.random() < 0.7
    pid = os.fork()
    if pid == 0:
        live(settings, rng, log, is_to_die=is_to_die)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == (DIED if is_to_die else 0)
    if is_to_die and is_recovered:
        recover(folder / "data")
        log.write(recovered=True)
    with open_scratch(folder / "data") as dataset:
        number = dataset.frames_written
        if hasattr(dataset, "copy") and rng.random() < 0.3:
            dataset.copy(folder / "copy")
            log.write(copied=number)
    if rng.random() < 0.3:
        os.sync()
        if not is_to_die or is_recovered:
            log.write(whole=number)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
