"""Power cuts, replayed: what a disk may hold at any moment of a dataset's life.

    power_cuts.py [--file-system ext4|xfs|btrfs] [--states N] [--seed N]

A random life (`recorded_life`) runs on a file system whose disk records all writes and
flushes (`recording_disk`). Then the disk is rebuilt as it may be after a power cut: all
that was written before a flush, and of what came after it any part. It is mounted, and the
dataset is opened: what was promised by then has to hold.

It needs root, loop devices, FUSE, and the file system's mkfs.
"""

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np

import recorded_life
from recorded_life import frame_of, metadata_of, timestamp_of
from recording_disk import FLUSH, OPERATION
from scratchwriter import DatasetError, open_scratch
from scratchwriter._files.repair import find_faults, recover

HERE = Path(__file__).parent
# What makes one, with blocks as those of large disks, and the least size that it takes.
FILE_SYSTEMS = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-b", "4096"], 96 << 20),
    "xfs": (["mkfs.xfs", "-q", "-f"], 300 << 20),
    "btrfs": (["mkfs.btrfs", "-q", "-f"], 128 << 20),
}
SECTOR_NBYTES = 512  # what a disk writes at once
BLOCK_NBYTES = 4096


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    if done.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
    return done.stdout.strip()


@contextlib.contextmanager
def mounted(image, folder):
    """Mount a disk, and unmount it whatever happens."""
    device = run("losetup", "--find", "--show", image)
    try:
        run("mount", device, folder)
        try:
            yield
        finally:
            try:
                run("umount", folder)
            except OSError:  # the traceback of a failure has files of it
                run("umount", "--lazy", folder)
    finally:
        run("losetup", "--detach", device)


# -------------------------------------------------------------------------------- recorded


class Recording:
    """All that was written to a disk, and what was promised meanwhile."""

    def __init__(self, log, nbytes):
        self.nbytes = nbytes
        self.operations = np.fromfile(log / "operations", OPERATION)
        self._writes = np.memmap(log / "writes", np.uint8, "r")
        lines = (log / "promises").read_text().splitlines()
        self.promises = [json.loads(line) for line in lines]
        (self.begun, *_) = (p["at"] for p in self.promises if "begun" in p)

    def data(self, row):
        return self._writes[row["at"] : row["at"] + row["nbytes"]]


def record(file_system, seed, work):
    """Run a life; return what was recorded."""
    make, nbytes = FILE_SYSTEMS[file_system]
    disk, log, folder = work / "disk", work / "log", work / "mounted"
    for path in (disk, log, folder):
        path.mkdir()
    recorder = subprocess.Popen(
        [sys.executable, HERE / "recording_disk.py", disk, str(nbytes), log]
    )
    try:
        deadline_s = time.monotonic() + 20
        while not (disk / "disk").exists():
            if recorder.poll() is not None or time.monotonic() > deadline_s:
                raise OSError("no file system can be made by FUSE here")
            time.sleep(0.01)
        run(*make, disk / "disk")
        with mounted(disk / "disk", folder):
            os.sync()
            count = int(np.fromfile(log / "count", "<i8")[0])
            (log / "promises").write_text(json.dumps({"at": count, "begun": True}) + "\n")
            life = [recorded_life.__file__, folder, log / "count", log / "promises", seed]
            run(sys.executable, *life)
    finally:
        with contextlib.suppress(OSError):
            run("umount", disk)
        recorder.wait(20)
    return Recording(log, nbytes)


# -------------------------------------------------------------------------------- replayed


class Disk:
    """What a disk holds after some operations, for moments that come later and later."""

    def __init__(self, recording):
        self._recording = recording
        self._pixels = np.zeros(recording.nbytes, np.uint8)
        self._touched = np.zeros(-(-recording.nbytes // BLOCK_NBYTES), bool)
        self._done = 0

    def _write(self, offset, data):
        self._pixels[offset : offset + len(data)] = data
        self._touched[offset // BLOCK_NBYTES : -(-(offset + len(data)) // BLOCK_NBYTES)] = 1

    def image(self, path, moment, rng):
        """Write the disk as it may be after a power cut when so many operations were done.

        Everything up to the last flush is there, and a part of what was written after it.
        """
        rows = self._recording.operations
        flushes = np.flatnonzero(rows["offset"][:moment] == FLUSH)
        flushed = int(flushes[-1]) if len(flushes) else 0
        for row in rows[self._done : flushed]:
            if row["offset"] != FLUSH:
                self._write(row["offset"], self._recording.data(row))
        self._done = max(self._done, flushed)
        before = []
        kept = rng.choice([0.0, 0.5, 0.5, 0.9, 1.0])
        is_torn = rng.random() < 0.3
        for row in rows[flushed:moment]:
            if row["offset"] == FLUSH or rng.random() >= kept:
                continue
            data = self._recording.data(row)
            if is_torn and rng.random() < 0.1:
                data = data[: rng.randrange(len(data) // SECTOR_NBYTES + 1) * SECTOR_NBYTES]
            where = slice(row["offset"], row["offset"] + len(data))
            before.append((row["offset"], self._pixels[where].copy()))
            self._write(row["offset"], data)
        self._save(path)
        for offset, data in reversed(before):
            self._write(offset, data)
        return f"moment {moment}, flushed {flushed}, kept {kept}, torn {is_torn}"

    def _save(self, path):
        edges = np.flatnonzero(np.diff(self._touched, prepend=False, append=False))
        with path.open("wb") as file:
            file.truncate(self._recording.nbytes)
            for start, stop in edges.reshape(-1, 2) * BLOCK_NBYTES:
                file.seek(start)
                file.write(self._pixels[start:stop])


def moments(recording, count, rng):
    """Choose moments, in order: around flushes and promises, and any others."""
    stop = len(recording.operations)
    near = [p["at"] for p in recording.promises]
    near += (np.flatnonzero(recording.operations["offset"] == FLUSH) + 1).tolist()
    found = []
    for _ in range(count):
        moment = rng.choice(near) + rng.randrange(-3, 9) if rng.random() < 0.5 else -1
        if not recording.begun <= moment <= stop:
            moment = rng.randint(recording.begun, stop)
        found.append(moment)
    return sorted(found)


# --------------------------------------------------------------------------------- checked


def promised(recording, moment):
    """Return what was promised when so many operations were done."""
    found = {"certain": 0, "will": 0, "set": None, "skips": []}
    for promise in recording.promises:
        before = promise["at"] <= moment
        for name in ("certain", "closed", "copied", "whole", "set"):
            if before and name in promise:
                found[name] = promise[name]
        if before and "will" in promise:
            found["will"] = promise["will"]
        if "skip" in promise:
            found["skips"].append(range(*promise["skip"]))
    return found


def is_skipped(number, skips):
    return any(number in skip for skip in skips)


def check(folder, settings, found):
    """Check a dataset after a restart."""
    try:
        dataset = open_scratch(folder)
    except FileNotFoundError:
        if found["certain"]:
            raise
        return "no dataset"
    except DatasetError:
        if found["certain"]:
            raise
        return "not opened"
    with dataset:
        check_frames(dataset, settings, found)
        faults = find_faults(dataset.source)
        before = dataset.frames_written, dataset.frames_synced
    unusual = [f for f in faults if "machine was restarted" not in f]
    unusual = [f for f in unusual if "its writer died" not in f]
    is_exact = settings.format.durability == "system" or dataset.state != "closed"
    assert not (unusual and is_exact and found["certain"]), f"verify: {unusual}"
    try:
        recover(folder)
    except DatasetError:
        if not unusual:
            raise
        return "not recovered"
    with open_scratch(folder) as dataset:
        assert (dataset.frames_written, dataset.frames_synced) == before
        check_frames(dataset, settings, found)
        left = [f for f in find_faults(dataset.source) if "restarted" not in f]
        assert unusual or not left, f"verify after recover: {left}"
    return "whole" if found["certain"] == before[0] else "opened"


def check_frames(dataset, settings, found):
    certain, written = dataset.frames_synced, dataset.frames_written
    assert certain >= found["certain"], f"{certain} certain, {found['certain']} promised"
    assert certain <= written <= found["will"], f"{written} of {found['will']} frames"
    if "whole" in found:
        assert written == found["whole"]
        certain = written
    skips = dataset.skipped
    shape = settings.shape[-2:]
    view = dataset.view(dynamic_shape=True)
    for number in range(written):
        frame, right = view.frame(number), frame_of(number, shape)
        if is_skipped(number, found["skips"]):
            if number < certain:
                assert is_skipped(number, skips), f"{number} is not skipped"
                assert not frame.any(), f"{number} was skipped, and is not zeros"
        elif number < certain:
            assert (frame == right).all(), f"frame {number} is certain, and wrong"
        elif not dataset.may_lack_frames and settings.format.durability == "system":
            assert (frame == right).all(), f"frame {number} counts, and is wrong"
        else:
            assert ((frame == right) | (frame == 0)).all(), f"frame {number} is of others"
    lines = {line["number"]: line for line in dataset.frame_metadata if "number" in line}
    for number in range(certain):
        wanted = metadata_of(number)
        if wanted and not is_skipped(number, found["skips"]):
            line = lines.get(number, {})
            assert line.get("text") == wanted["text"], f"line of {number}: {line}"
    if found["set"] is not None and found["certain"] > found["set"]:
        given = dataset.global_metadata.get("life", {}).get("number", -1)
        assert given >= found["set"], f"global metadata of {given}"
    if settings.format.timestamps:
        for number, record in dataset.frame_records(0, certain).items():
            if not is_skipped(number, found["skips"]):
                assert record["timestamp_ns"] == timestamp_of(number)


def check_copy(folder, settings, found):
    with open_scratch(folder) as dataset:
        assert dataset.state == "closed"
        assert dataset.frames_written == found["copied"]
        assert find_faults(dataset.source) == []


def replay(recording, settings, count, rng, work):
    """Check that many states; return how many there were of each kind."""
    disk, kinds = Disk(recording), {}
    image, folder = work / "image", work / "replayed"
    folder.mkdir()
    for moment in moments(recording, count, rng):
        what = disk.image(image, moment, rng)
        found = promised(recording, moment)
        try:
            with mounted(image, folder):
                kind = check(folder / "data", settings, found)
                if "copied" in found:
                    check_copy(folder / "copy", settings, found)
        except Exception as error:
            error.add_note(f"{what}, promised {found}")
            error.add_note(f"{settings.format} {settings.storage_order} {settings.shape}")
            raise
        kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


def cut(file_system, seed, states):
    """Run one life, and cut its power at that many moments; return what was found."""
    rng = random.Random(seed)
    with (
        tempfile.TemporaryDirectory(prefix="power_cuts_") as work,
        mock.patch("scratchwriter._files.progress.boot_id", return_value="the next"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        work = Path(work)
        recording = record(file_system, seed, work)
        settings = recorded_life.choose(random.Random(seed), Path("data"))
        return replay(recording, settings, states, rng, work)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--file-system", choices=FILE_SYSTEMS, default="ext4")
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--per-life", type=int, default=100)
    given = parser.parse_args()
    done, seed = 0, given.seed
    total = {}
    while done < given.states:
        try:
            kinds = cut(given.file_system, seed, min(given.per_life, given.states - done))
        except Exception as error:
            error.add_note(f"--file-system {given.file_system} --seed {seed}")
            raise
        done += sum(kinds.values())
        total = {k: total.get(k, 0) + kinds.get(k, 0) for k in {*total, *kinds}}
        seed += 1
    print(done, "states", total)


if __name__ == "__main__":
    main()
