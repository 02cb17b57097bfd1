"""An acquisition in which the n-th call of the operating system fails, for every n.

Run with the library of faults.c preloaded:
fault_scenarios.py FOLDER SCENARIO ERRNO STAYS EVERY
Prints how many faults there were, and which calls failed.
"""

import ctypes
import json
import shutil
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from reference import read_plain
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.repair import find_faults
from scratchwriter._writing import policy

SCENARIOS = {
    "unbounded on disk": {"t": None},
    "bounded on disk": {"t": 30},
    "bounded in another order": {"t": 30, "order": ["c", "t", "p", "y", "x"]},
    "durable": {"t": None, "durability": "system"},
    "without fallocate": {"t": None, "fallocate": False},
    "in another order without fallocate": {
        "t": 30,
        "order": ["c", "t", "p", "y", "x"],
        "fallocate": False,
    },
    "spilling": {"t": None, "memory": 50_000},
    "in memory": {"t": None, "memory": 1 << 30},
    "staged": {"t": None, "staged": True},
    "staged, bounded": {"t": 30, "staged": True},
    "staged, durable": {"t": None, "staged": True, "durability": "system"},
    "staged, spilling": {"t": None, "memory": 50_000, "staged": True},
    "in memory, all at once": {"t": 30, "memory": 1 << 30, "populate": "all"},
}
faults = ctypes.CDLL(None)


def make_settings(folder, what):
    return AcquisitionSettings(
        root_path="" if "memory" in what else str(folder / "data"),
        dimensions=dims_from_standard_axes(
            {"t": what["t"], "p": 2, "c": 2, "y": 32, "x": 32}
        ),
        dtype="uint16",
        storage_order=what.get("order", "acquisition"),
        format=ScratchFormat(
            max_memory_bytes=what.get("memory", 1 << 30),
            populate=what.get("populate", "ahead"),
            spill_dir=str(folder),
            durability=what.get("durability", "process"),
            sync_interval_s=60,  # what happens is to happen in one thread
            disk_io="direct" if "staged" in what else "page_cache",
            max_staging_bytes=1 if "staged" in what else None,
        ),
    )


lost = []  # what a device did not take, in a run


def loss_of(action):
    """Do something; return the error, if it tells that a device has not taken all."""
    try:
        action()
    except OSError as error:
        if "device has not taken" not in str(error):
            raise
        return error
    return None


def flush(stream):
    """Bring the data to the device; what it has not taken once is told for ever."""
    if (error := loss_of(stream.flush)) is not None:
        lost.append(error)
    else:
        assert not lost, "a loss was forgotten"


def close(stream):
    """Close the stream; a loss is told then, too, and ends nothing."""
    loss_of(stream.close)
    assert stream.closed


def attempt(action, unchanged=lambda: None):
    """Do something; if it fails, then cleanly, and it can be done when all is well."""
    before = unchanged()
    try:
        return action()
    except (OSError, MemoryError) as error:
        told = str(error)
    assert told, "an error without a word"
    assert unchanged() == before, f"{told!r} left {before} as {unchanged()}"
    faults.faults_heal()
    return action()


def run(folder, what):
    """Record, step by step, with a fault armed; return what must be there."""
    settings = make_settings(folder, what)

    def files():
        return sorted(path.name for path in folder.iterdir())

    stream = attempt(lambda: create_stream(settings), files)

    def state():
        return stream.frames_written, stream.skipped, [a.shape for a in stream.arrays]

    expected = []
    for number in range(100):
        if number % 10 == 7:
            attempt(stream.skip, state)
            expected.append(0)
        else:
            frame = np.full((32, 32), number + 1, "uint16")
            attempt(
                lambda frame=frame, number=number: stream.append(
                    frame, frame_metadata={"number": number}
                ),
                state,
            )
            expected.append(number + 1)
        if number % 40 == 30:
            attempt(lambda: stream.set_global_metadata("here", {"a": 1}), state)
        if number in (20, 60):
            attempt(lambda: flush(stream), state)
        for i in {0, number // 2, number}:
            check_frame(stream.arrays, i, expected[i])
    if lost:
        try:
            stream.close()
        except OSError:
            lost.clear()
        assert not lost, "a loss was forgotten"
    attempt(lambda: close(stream), state)
    faults.faults_heal()
    close(stream)
    assert stream.closed
    for i, value in enumerate(expected):
        check_frame(stream.arrays, i, value)
    return stream, expected


def check_frame(arrays, number, value):
    t, p, c = np.unravel_index(number, (25, 2, 2))
    array = arrays[p]
    array = array[...] if array.shape[1] == 2 else array[...].swapaxes(0, 1)
    assert (array[t, c] == value).all(), f"frame {number}"


def check_dataset(folder, expected):
    with open_scratch(folder) as dataset:
        assert dataset.state == "closed"
        assert find_faults(dataset.source) == []
        assert dataset.frames_written == 100
        for i, value in enumerate(expected):
            check_frame(dataset.arrays, i, value)
        numbers = [line["number"] for line in dataset.frame_metadata]
        assert numbers == [value - 1 for value in expected if value]
        skipped = [i for ranges in dataset.skipped for i in ranges]
        assert skipped == [i for i, value in enumerate(expected) if not value]
        assert dataset.global_metadata == {"here": {"a": 1}}
    for array in read_plain(folder):
        assert array.nbytes == Path(array.filename).stat().st_size


def main(folder, scenario, code, stays, every):
    faults.faults_what.restype = ctypes.c_char_p
    faults.faults_arm.argtypes = [ctypes.c_char_p, *[ctypes.c_int64] * 3]
    what = SCENARIOS[scenario]
    # Far enough to be busy all the time, near enough to be quick.
    policy._FILE_WINDOW_NBYTES = policy._MEMORY_WINDOW_NBYTES = 1 << 15
    policy._GRANT_NBYTES = 1 << 16
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 1 << 13  # all are used again
    warnings.simplefilter("ignore")
    faults.faults_without_fallocate(not what.get("fallocate", True))
    failed = Counter()
    with_data = 0
    for n in range(1, 10_000, every):
        place = folder / str(n)
        place.mkdir()
        print(f"fault {n}", file=sys.stderr, flush=True)
        faults.faults_arm(str(place).encode(), n, code, stays)
        try:
            stream, expected = run(place, what)
        finally:
            struck = faults.faults_what().decode()
            print(f"  was {struck}", file=sys.stderr)
        if stream.path is not None:
            check_dataset(stream.path, expected)
            with_data += 1
        del stream
        shutil.rmtree(place)
        if not struck:
            break
        failed[struck] += 1
    print(json.dumps({"failed": failed, "datasets": with_data}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
