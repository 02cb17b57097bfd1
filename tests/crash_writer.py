"""Writers to be killed: a server that forks one, and kills it, for each line it reads.

A line is JSON: folder, mode, delay_s, how. The answer is a line, too, when it is dead.
Each writer counts in folder/counts what has returned: calls, frames, global metadata.
"""

import json
import mmap
import os
import resource
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np

from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
)
from scratchwriter._writing import policy

# Sizes of t (None: unbounded), p, c and the frame, and what else is set.
MODES = {
    "unbounded": {"sizes": (None, 2, 2, 8, 8)},
    "bounded": {"sizes": (1000, 2, 2, 8, 8)},
    "bounded, other order": {"sizes": (1000, 2, 2, 8, 8), "order": "cpt"},
    "unbounded, other order": {"sizes": (None, 2, 2, 8, 8), "order": "cpt"},
    "large frames": {"sizes": (None, 1, 2, 256, 256)},
    "many positions": {"sizes": (None, 40, 1, 8, 8)},
    "overwriting": {"sizes": (5000, 1, 1, 8, 8), "overwrite": True},
    "durable": {"sizes": (300, 1, 2, 8, 8), "durability": "system"},
    "spilled while growing": {"sizes": (None, 2, 2, 8, 8), "memory": 20_000},
    "spilled at once": {"sizes": (1000, 2, 2, 8, 8), "memory": 1},
    "staged": {"sizes": (None, 2, 2, 8, 8), "staging": 1},
    "staged, bounded": {"sizes": (1000, 2, 2, 8, 8), "staging": 1},
    # Such that each slot of the staging is used several times.
    "staged, large frames": {"sizes": (None, 1, 2, 256, 256), "staging": 32 << 20},
    "staged, bounded, large frames": {"sizes": (999, 2, 1, 256, 256), "staging": 1},
    "staged, many positions": {"sizes": (None, 40, 1, 64, 64), "staging": 1},
    "staged, spilled": {"sizes": (None, 2, 2, 64, 64), "memory": 1 << 20, "staging": 1},
    # Flat out, so that most of it has no slot.
    "staged, in the page cache, too": {
        "sizes": (None, 1, 2, 512, 512),
        "staging": 200 << 20,
        "slots": 8 << 20,
    },
    "staged, durable": {
        "sizes": (None, 1, 2, 64, 64),
        "staging": 1,
        "durability": "system",
    },
}
CALLS, FRAMES, GLOBAL, CREATED, CLOSED = range(5)  # of what `counts` has


def call(number):
    """Frames to skip in a call, 0 for an append."""
    return 0 if number % 7 != 3 else number % 3 + 1


def make_settings(folder, mode):
    t, p, c, y, x = mode["sizes"]
    memory = "memory" in mode
    return AcquisitionSettings(
        root_path="" if memory else str(folder / "data"),
        dimensions=dims_from_standard_axes({"t": t, "p": p, "c": c, "y": y, "x": x}),
        dtype="uint32",
        storage_order=[*mode["order"], "y", "x"] if "order" in mode else "acquisition",
        overwrite=mode.get("overwrite", False),
        format=ScratchFormat(
            max_memory_bytes=mode.get("memory", 1 << 30),
            spill_dir=str(folder) if memory else None,
            durability=mode.get("durability", "process"),
            sync_interval_s=0.001,
            disk_io="direct" if "staging" in mode else "auto",
            max_staging_bytes=mode.get("staging"),
        ),
    )


def store(stream, number, frame):
    """Store a frame, by one way in or another."""
    metadata = {"call": number}
    if number % 5 == 1:
        stream.extend([frame], frame_metadata=[metadata])
    elif number % 5 == 2:
        with stream.slot(frame_metadata=metadata) as slot:
            slot[...] = frame
    else:
        stream.append(frame, frame_metadata=metadata)


def record(folder, mode, how, delay_s):
    warnings.simplefilter("ignore")  # of spilling
    with (folder / "counts").open("r+b") as file:
        counts = np.frombuffer(mmap.mmap(file.fileno(), 0), np.int64)
    if how in ("exit", "abort"):
        end = (lambda: os._exit(9)) if how == "exit" else os.abort
        threading.Timer(delay_s, end).start()
    policy._STAGING_NBYTES = mode.get("slots", policy._STAGING_NBYTES)
    policy._KEEP_SLOTS_S = 0.002  # slots are given back, and made again, all the time
    settings = make_settings(folder, mode)
    if settings.overwrite:
        with create_stream(settings) as stream:
            stream.append(np.full(settings.shape[-2:], 99, "uint32"))
    frames = np.arange(1 << 16, dtype="uint32")
    stream = create_stream(settings)
    counts[CREATED] = 1
    left = settings.num_frames or 10**9
    number = 0
    while left >= (skip := call(number)) and left:
        if skip:
            stream.skip(frames=skip)
        else:
            frame = np.broadcast_to(frames[number % 65536 + 1], settings.shape[-2:])
            store(stream, number, frame)
        left -= max(skip, 1)
        counts[FRAMES] += max(skip, 1)
        number += 1
        counts[CALLS] = number
        if number % 50 == 0:
            stream.set_global_metadata("here", {"call": number})
            counts[GLOBAL] = number
    stream.close()
    counts[CLOSED] = 1


def serve():
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            record(Path(job["folder"]), MODES[job["mode"]], job["how"], job["delay_s"])
            os._exit(0)
        time.sleep(job["delay_s"])
        if job["how"] in ("SIGKILL", "SIGTERM"):
            os.kill(pid, getattr(signal, job["how"]))
        os.waitpid(pid, 0)
        print(flush=True)


if __name__ == "__main__":
    serve()
