"""The exceptions for calls that a writer refuses: what came, why, and the remedy."""

from __future__ import annotations

_DOING = {"reserve": "open a slot", "commit": "store the slot"}


def closed(what: str, *, is_fork: bool) -> ValueError:
    """Refuse because the stream is closed, or belongs to another process."""
    if is_fork:
        return ValueError(
            f"Cannot {_doing(what)}: the stream belongs to the process that this one was "
            "forked from. Make one here with create_stream()."
        )
    return ValueError(
        f"Cannot {_doing(what)}: the stream is closed. Make a new one with create_stream()."
    )


def busy(what: str) -> RuntimeError:
    """Refuse because the thread that calls is growing the stream just now."""
    return RuntimeError(
        f"Cannot {_doing(what)} while the stream is growing, from the thread that grows it "
        "(a signal handler, say): call it again later."
    )


def slot_open(what: str) -> RuntimeError:
    """Refuse because the thread that calls has a slot open."""
    return RuntimeError(
        f"Cannot {_doing(what)} while this thread has a slot open: leave its `with` block "
        "first."
    )


def slots_apart(count: int, *, in_ring: bool) -> ValueError:
    """Refuse because the slots that are wanted together are not adjacent."""
    why = (
        "they would take the place of frames that keep_last still shows, or do"
        if in_ring
        else "they do"
    )
    return ValueError(
        f"Cannot open {count} slots together: {why} not lie one behind the other in one "
        "array. Open fewer (as many as the last dimension has left), one by one with "
        "slot(), or use storage_order='acquisition' with the positions first."
    )


def full(what: str, count: int, num_frames: int, frames_written: int) -> IndexError:
    """Refuse because the dimensions have no more frames."""
    return IndexError(
        f"Cannot {_doing(what)} ({count} frame{'s' if count > 1 else ''}): it would exceed "
        f"the {num_frames} frames of settings.dimensions, of which "
        f"{num_frames - frames_written} are left. Enlarge them, or make the first "
        "dimension unbounded (count=None)."
    )


def no_memory(what: str) -> MemoryError:
    """Refuse because what came with a frame cannot be noted."""
    return MemoryError(f"no memory to note what came with {what}")


def _doing(what: str) -> str:
    return _DOING.get(what, what)
