"""How long appends take: counted by any thread, without a lock."""

from typing import Any, final

@final
class AppendTimer:
    """The counters of a writer."""

    def __init__(self) -> None: ...
    def measured(self) -> dict[str, Any]:
        """Return the fields of `layout.APPEND_TIMES_RECORD`."""
