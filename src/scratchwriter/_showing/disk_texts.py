"""How a disk does whose files are staged and written directly, in words."""

from __future__ import annotations

import math

from scratchwriter.errors import size_text
from scratchwriter.stats import DiskStats

_MINUTES_FROM_S = 120


def disk_rate_text(nbytes_per_s: float) -> str:
    """Return a rate, if it is known."""
    if math.isnan(nbytes_per_s):
        return "not known yet"
    return f"{size_text(round(nbytes_per_s))}/s"


def waiting_text(disk: DiskStats) -> str:
    """Return how much waits for the disk, of how much, and when that is reached."""
    text = f"{size_text(disk.staged_nbytes)} of {size_text(disk.max_staged_nbytes)}"
    if math.isinf(disk.seconds_left):
        return text
    return f"{text}, full in {_duration_text(disk.seconds_left)} at these rates"


def waited_text(disk: DiskStats) -> str:
    """Return how many frames have waited for the disk, and how long."""
    if disk.waited_frames == 0:
        return "0 frames"
    waited_s = disk.waited_s
    time = f"{1e3 * waited_s:,.0f} ms" if waited_s < 1 else f"{waited_s:,.1f} s"
    return f"{disk.waited_frames:,} frames, {time} altogether"


def short_disk_text(disk: DiskStats) -> str:
    """Return the rate of the disk, and what waits for it, in a few words."""
    text = disk_rate_text(disk.disk_nbytes_per_s)
    return f"{text}, {size_text(disk.staged_nbytes)} wait" if disk.staged_nbytes else text


def _duration_text(seconds: float) -> str:
    if seconds < _MINUTES_FROM_S:
        return f"{seconds:,.0f} s"
    return f"{seconds / 60:,.0f} minutes"
