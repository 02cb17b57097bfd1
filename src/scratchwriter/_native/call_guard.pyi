"""A guard of an object's calls: none runs in the middle of another of the same thread."""

from collections.abc import Callable
from typing import Protocol, TypeVar, final

_T = TypeVar("_T")

class _Lock(Protocol):
    def acquire(self) -> bool: ...
    def release(self) -> None: ...

@final
class CallGuard:
    """Knows which threads are in the middle of a call of an object."""

    def __init__(self) -> None: ...
    def run(self, action: Callable[[], _T], *locks: _Lock, what: str = "") -> _T:
        """Run an action as a call of the object, with locks or without any.

        Raises
        ------
        RuntimeError
            If locks are wanted, and this thread is in the middle of a call already; the
            message says what (`what`) cannot be done. Without locks the action runs.
        """

    def after(self, action: Callable[[], object]) -> None:
        """Run an action now, or when the call ends that this thread is in the middle of."""

def run_all(actions: list[Callable[[], object]]) -> int:
    """Run all of them, whatever becomes of the others; then raise the first error."""
