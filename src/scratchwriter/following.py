"""Frames one after the other while they come, by `for` and by `async for`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator

import numpy as np
import numpy.typing as npt

Frame = npt.NDArray[np.generic]


class Following(Iterator[Frame], AsyncIterator[Frame]):
    """The frames of a dataset, and those to come; made by `ScratchDataset.follow`.

    An iterator, and an asynchronous one, which waits in a thread. That thread takes no
    frame: if a task is cancelled while it waits, nothing is lost, and the thread ends with
    its wait.

    Parameters
    ----------
    steps : iterator of numpy.ndarray or int
        Frames; and the number of the next one, as often as it has not come.
    wait : callable(int)
        Waits until the frame of that number has come, or for a moment.
    """

    def __init__(self, steps: Iterator[Frame | int], wait: Callable[[int], object]) -> None:
        self._steps, self._wait = steps, wait

    def __next__(self) -> Frame:
        while isinstance(step := next(self._steps), int):
            self._wait(step)
        return step

    async def __anext__(self) -> Frame:
        import asyncio  # loaded already, where this is called

        await asyncio.sleep(0)  # the other tasks' turn, however many frames there are
        while isinstance(step := next(self._steps, None), int):
            await asyncio.to_thread(self._wait, step)
        if step is None:
            raise StopAsyncIteration
        return step
