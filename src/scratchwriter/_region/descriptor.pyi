import os
import sys
from typing import Self, final

@final
class Descriptor:
    """A file descriptor, closed when it is dropped.

    To open and to own are one step of compiled code, which no KeyboardInterrupt divides.
    It is not inherited by programs that are started.

    Parameters
    ----------
    path : path-like
        File or folder to open.
    flags : int
        Of `os.open`.
    mode : int
        Of a file that is made.
    closed_in_children : bool
        Whether a forked child has it closed. A lock then goes with the process that took
        it, and not with the last of its children.

    Raises
    ------
    OSError
        If it cannot be opened.
    """

    def __new__(
        cls,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        flags: int,
        mode: int = 0o666,
        *,
        closed_in_children: bool = False,
    ) -> Descriptor: ...
    def fileno(self) -> int:
        """Return its number.

        Raises
        ------
        ValueError
            If it is closed, also by a fork.
        """

    @property
    def closed(self) -> bool:
        """Whether it is closed."""

    def close(self) -> None:
        """Close it. Again: of no effect."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc_info: object) -> None: ...

if sys.platform != "win32":
    def before_fork() -> None: ...
    def after_fork_in_parent() -> None: ...
    def after_fork_in_child() -> None: ...
