"""A file in a FUSE file system that records each write and flush: a disk for a loop device.

    python recording_disk.py FOLDER NBYTES LOG

The file is FOLDER/disk. LOG/writes has what was written, one thing after the other,
LOG/operations a row for each operation, and LOG/count how many there are.
"""

import errno
import mmap
import stat
import sys
from pathlib import Path

import mfusepy as fuse
import numpy as np

OPERATION = np.dtype([("offset", "<i8"), ("nbytes", "<i8"), ("at", "<i8")])
FLUSH = -1  # instead of an offset


class RecordingDisk(fuse.Operations):
    """One file, `disk`."""

    use_ns = True

    def __init__(self, nbytes, log):
        self._disk = mmap.mmap(-1, nbytes)
        self._nbytes = nbytes
        self._writes = (log / "writes").open("wb", buffering=0)
        self._operations = (log / "operations").open("wb", buffering=0)
        with (log / "count").open("wb") as file:
            file.truncate(8)
        with (log / "count").open("r+b") as file:
            self._count = np.frombuffer(mmap.mmap(file.fileno(), 8), "<i8")
        self._at = 0

    def getattr(self, path, fh=None):
        if path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if path != "/disk":
            raise fuse.FuseOSError(errno.ENOENT)
        return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": self._nbytes}

    def readdir(self, path, fh):
        return [".", "..", "disk"]

    def open(self, path, flags):
        return 1

    def read(self, path, size, offset, fh):
        return self._disk[offset : offset + size]

    def write(self, path, data, offset, fh):
        self._disk[offset : offset + len(data)] = data
        self._writes.write(data)
        self._record(offset, len(data))
        return len(data)

    def fsync(self, path, datasync, fh):
        self._record(FLUSH, 0)
        return 0

    def truncate(self, path, length, fh=None):
        return 0

    def _record(self, offset, nbytes):
        row = np.array([(offset, nbytes, self._at)], OPERATION)
        self._operations.write(row.tobytes())
        self._at += nbytes
        self._count[0] += 1


if __name__ == "__main__":
    folder, nbytes, log = sys.argv[1:]
    fuse.FUSE(
        RecordingDisk(int(nbytes), Path(log)),
        folder,
        foreground=True,
        nothreads=True,
        allow_other=True,
    )
