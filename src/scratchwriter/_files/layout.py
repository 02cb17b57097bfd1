"""The layouts of all files of a dataset: names, offsets, sizes, magics, versions.

Each is defined here and nowhere else in Python; `tests/test_layout.py` compares them with
the structs and constants of the compiled modules. docs/format.md describes them for users.

progress.bin is one mapped page with the frame cursor:

====== ====== =====================================================
offset type   meaning
====== ====== =====================================================
0      8s     magic, b"scratchw"
8      uint32 version, 1 (in native byte order, as all that follows)
12     uint32 state: 1 recording, 2 closed, 3 recovered after the machine was restarted
16     uint64 process id of the writer
24     36s    boot id: which start of the machine it ran in
64     int64  cursor: frames appended and skipped so far
72     int64  frames that are on the device, whatever happens to the machine
80     int64  frame numbers that were missing between those that came
88     16s    random id of the recording
104    int64  the number at 72, once that is on the device, too
112    int64  frames that are in the files of the arrays; -1: all, staging.bin has none
====== ====== =====================================================

skips.bin has a pair of int64 per range of skipped frames: the first, and the one after the
last. frame_records.bin has a `RECORD` per frame, append_times.bin one
`APPEND_TIMES_RECORD`. staging.bin has a `STAGING_HEADER`, a `STAGING_SLOT` per slot, and
the slots. pos_0.dat, pos_1.dat, ... are C-ordered arrays. manifest.json and
frame_metadata.jsonl are JSON.
"""

from __future__ import annotations

import re

import numpy as np

from scratchwriter.stats import DISK_FIELDS, NUM_BUCKETS

MANIFEST = "manifest.json"
PROGRESS = "progress.bin"
STAGING = "staging.bin"
SKIPS = "skips.bin"
RECORDS = "frame_records.bin"
APPEND_TIMES = "append_times.bin"
FRAME_METADATA = "frame_metadata.jsonl"
_DATASET_FILE = re.compile(
    r"manifest\.json|\.manifest\.json\.\d+|progress\.bin|skips\.bin|frame_metadata\.jsonl"
    r"|frame_records\.bin|append_times\.bin|staging\.bin"
    r"|pos_\d+\.dat"
)

# manifest.json
MANIFEST_MAX_NBYTES = 1 << 24  # five times what ten thousand positions need
DIGITS = 16  # width of a length that is renewed in place, and its alignment

# staging.bin: a header and an entry per slot; from 1 MiB, and from 1.5 MiB on, a number per
# position; from 2 MiB on the slots
STAGING_MAGIC = b"staging1"
STAGING_HEADER = np.dtype(
    {
        "names": ["magic", "piece_nbytes", "most_slots"],
        "formats": ["S8", "i8", "i8"],
        "itemsize": 64,
    }
)
STAGING_SLOT = np.dtype(
    [(n, "i8") for n in ("generation", "position", "start", "stop", "after")]
)
STAGING_MOST_SLOTS = 26212
STAGING_IN_FILE_OFFSET = 1 << 20  # per position: all bytes before that are in its file
STAGING_STAGED_OFFSET = 3 << 19  # per position: where its last slot ends
STAGING_MOST_POSITIONS = 1 << 16
STAGING_SLOTS_NBYTES = 2 << 20  # of all that comes before the slots

# progress.bin
PROGRESS_MAGIC = b"scratchw"
PROGRESS_VERSION = 1
PROGRESS_NBYTES = 4096
PROGRESS_HEADER = np.dtype(
    {
        "names": [
            *("magic", "version", "state", "pid"),
            *("boot_id", "cursor", "synced", "dropped", "recording_id", "confirmed"),
            "in_files",
        ],
        "formats": ["S8", "u4", "u4", "u8", "S36", "i8", "i8", "i8", "V16", "i8", "i8"],
        "offsets": [0, 8, 12, 16, 24, 64, 72, 80, 88, 104, 112],
        "itemsize": PROGRESS_NBYTES,
    }
)
# Restarted: recovered after a restart of the machine, which may have lost frames.
RECORDING, CLOSED, RESTARTED = 1, 2, 3

# skips.bin
SKIP_PAIR = np.dtype((np.int64, 2))

# frame_records.bin. `known` holds the bits below.
RECORD = np.dtype([("timestamp_ns", "i8"), ("frame_id", "i8"), ("known", "i8")])
KNOWS_TIME, KNOWS_ID, IS_HOST_TIME = 1, 2, 4
UNKNOWN = -1  # a time or a number that is not known

# append_times.bin
APPEND_TIMES_RECORD = np.dtype(
    [
        ("longest_append_ns", "i8"),
        ("first_append_ns", "i8"),  # on the monotonic clock, as the next
        ("last_append_ns", "i8"),
        ("append_counts", "i8", NUM_BUCKETS),
        *((name, "i8") for name in DISK_FIELDS),
    ]
)


def array_name(position: int) -> str:
    """Return the name of a position's file."""
    return f"pos_{position}.dat"


def is_dataset_name(name: str) -> bool:
    """Return whether a file of a scratch dataset can have this name."""
    return _DATASET_FILE.fullmatch(name) is not None


def draft_name(pid: int) -> str:
    """Return the name of a manifest that a process writes to replace the current one."""
    return f".{MANIFEST}.{pid}"


def is_draft_name(name: str) -> bool:
    """Return whether a file is a manifest that was to replace the current one."""
    return name.startswith(f".{MANIFEST}.")
