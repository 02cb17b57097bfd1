"""What is known of frames besides their pixels: times and frame numbers.

There is a record per frame, in acquisition order, in frame_records.bin or in memory. The
core writes them; this module reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import numpy.typing as npt

from scratchwriter._files.layout import KNOWS_ID, KNOWS_TIME, UNKNOWN
from scratchwriter.plan import FramePlan

_MOST_DROPPED = (1 << 63) - 1  # as the core counts them
_PIECE_RECORDS = 1 << 18
_KNOWN = {"timestamp_ns": KNOWS_TIME, "frame_id": KNOWS_ID}


def arrange(
    plan: FramePlan,
    position: int,
    records: npt.NDArray[np.void] | None,
    cursor: int,
    name: Literal["timestamp_ns", "frame_id"],
) -> npt.NDArray[np.int64]:
    """Return one number per frame of a position, in the shape of its array.

    Parameters
    ----------
    plan : FramePlan
        Where the frames are.
    position : int
        Which array.
    records : numpy.ndarray of RECORD, or None
        Those of the first frames; the others count as unknown.
    cursor : int
        How many frames there are.
    name : {'timestamp_ns', 'frame_id'}
        Which number.

    Returns
    -------
    numpy.ndarray of int64
        In the shape of the array without the frame's axes; `UNKNOWN` (-1) where it is not
        known.
    """
    out = np.full(plan.file_shape(position, cursor)[:-2], UNKNOWN, np.int64)
    if records is not None:
        first_step = plan.first_step(position, cursor)
        most = cursor if plan.ring_frames else min(cursor, len(records))
        for frames, index in plan.slots(position, 0, most, first_step):
            found = records[frames % plan.ring_frames if plan.ring_frames else frames]
            out[index] = np.where(found["known"] & _KNOWN[name], found[name], UNKNOWN)
    return out.transpose(plan.storage_axes[:-2])


def known(record: np.void) -> dict[str, int]:
    """Return what is known of a frame."""
    bits = record["known"]
    return {name: int(record[name]) for name, bit in _KNOWN.items() if bits & bit}


def count_dropped(records: npt.NDArray[np.void] | None) -> int:
    """Return how many frame numbers are missing between those that came.

    A number that is smaller than the one before means that the camera counts from the start
    again. More than 2**63 - 1 count as that many.
    """
    dropped = 0
    last = np.empty(0, np.int64)
    for ids in _known_in_pieces(records, "frame_id"):
        ids = np.concatenate([last, ids])
        before, after, last = ids[:-1], ids[1:], ids[-1:]
        is_later = after > before
        # A difference has up to 64 bits, and the sum of them more: exact in two halves.
        steps = after[is_later].astype(np.uint64) - before[is_later].astype(np.uint64) - 1
        dropped += (int((steps >> 32).sum()) << 32) + int((steps & 0xFFFFFFFF).sum())
    return min(dropped, _MOST_DROPPED)


def known_times_ns(records: npt.NDArray[np.void] | None) -> npt.NDArray[np.int64]:
    """Return the times that are known, in the order of the records."""
    times = [*_known_in_pieces(records, "timestamp_ns"), np.empty(0, np.int64)]
    return np.concatenate(times)


def _known_in_pieces(
    records: npt.NDArray[np.void] | None, name: Literal["timestamp_ns", "frame_id"]
) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the numbers that are known; a file may claim more than fit in memory."""
    for start in range(0, 0 if records is None else len(records), _PIECE_RECORDS):
        piece = records[start : start + _PIECE_RECORDS]  # type: ignore[index]
        yield piece[name][piece["known"] & _KNOWN[name] != 0]
