"""Handlers that the MDA runner of pymmcore-plus calls as a sink, on its own thread.

The runner puts what comes as `run_mda(output=...)` behind a queue without an end, relayed
by another thread, whose errors it never sees; only a sink of its own is called directly,
before the next event, and ends the run if it fails (https://github.com/pymmcore-plus/
pymmcore-plus/pull/561). There is no public way to be one, so the private method that sorts
outputs is wrapped here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy.typing as npt
    import useq


class Sink(Protocol):
    """What a runner calls: pymmcore-plus' own protocol."""

    def setup(self, sequence: useq.MDASequence, meta: Mapping[str, Any] | None) -> None: ...
    def append(
        self, img: npt.NDArray[Any], event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> None: ...
    def skip(self, *, frames: int = 1) -> None: ...
    def close(self) -> None: ...
    def get_view(self) -> Any: ...


def call_directly(kind: type[Sink]) -> None:
    """Make all runners call handlers of a kind as sinks; can be repeated.

    Raises
    ------
    ImportError
        If pymmcore-plus is not installed.
    RuntimeError
        If this version of it does not sort outputs as 0.18 does.
    """
    import pymmcore_plus
    from pymmcore_plus.mda import MDARunner

    theirs: Any = getattr(MDARunner, "_coerce_outputs", None)
    if theirs is None:
        raise RuntimeError(
            f"pymmcore-plus {pymmcore_plus.__version__} is installed, whose runner has "
            "changed: pip install 'pymmcore-plus>=0.18,<0.19'"
        )
    if not isinstance(getattr(theirs, "__self__", None), _Sorter):
        MDARunner._coerce_outputs = staticmethod(_Sorter(theirs, kind).sort)


class _Sorter:
    """Sorts outputs into handlers, which listen, and one sink, which is called."""

    def __init__(self, theirs: Callable[..., tuple[list[Any], Any]], kind: type) -> None:
        self._theirs, self._kind = theirs, kind

    def sort(self, output: Any, **options: Any) -> tuple[list[Any], Any]:
        is_several = isinstance(output, Sequence) and not isinstance(output, str | Path)
        outputs = list(output) if is_several else [output]
        ours: list[Any] = [item for item in outputs if isinstance(item, self._kind)]
        if not ours:
            return self._theirs(output, **options)
        others = [item for item in outputs if not isinstance(item, self._kind)]
        handlers, sink = self._theirs(others or None, **options)
        sinks = ours if sink is None else [*ours, sink]
        return handlers, sinks[0] if len(sinks) == 1 else _Sinks(sinks)


class _Sinks:
    """Several sinks, called one after the other."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def setup(self, sequence: useq.MDASequence, meta: Mapping[str, Any] | None) -> None:
        for sink in self._sinks:
            sink.setup(sequence, meta)

    def append(
        self, img: npt.NDArray[Any], event: useq.MDAEvent, meta: Mapping[str, Any]
    ) -> None:
        for sink in self._sinks:
            sink.append(img, event, meta)

    def skip(self, *, frames: int = 1) -> None:
        for sink in self._sinks:
            sink.skip(frames=frames)

    def close(self) -> None:
        with ExitStack() as stack:  # all of them, whatever one raises
            for sink in reversed(self._sinks):
                stack.callback(sink.close)

    def get_view(self) -> Any:
        return self._sinks[0].get_view()
