"""Following a dataset by `for` and by `async for`."""

import asyncio
import gc
import subprocess
import sys
import textwrap
import threading
import time
import weakref

import numpy as np
import pytest

from scratchwriter import DatasetError, ScratchFormat, create_stream, open_scratch


@pytest.fixture
def recording(make_settings, tmp_path):
    """A stream that this process records, and its dataset."""
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream, open_scratch(tmp_path / "d") as dataset:
        yield stream, dataset


def append(stream, *values):
    for value in values:
        stream.append(np.full((4, 5), value, "uint16"))


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def values(following):
    return [int(frame[0, 0]) async for frame in following]


async def record(stream, count):
    for value in range(count):
        append(stream, value)
        await asyncio.sleep(0.001)
    stream.close()


def test_async_for_gives_what_for_gives(recording):
    stream, dataset = recording
    append(stream, 0, 1)
    stream.skip(frames=2)
    append(stream, 4)
    stream.close()
    assert run(values(dataset.follow())) == [0, 1, 4]
    assert run(values(dataset.follow(start=1))) == [1, 4]
    assert run(values(dataset.follow(latest=True))) == [4]
    assert [int(frame[0, 0]) for frame in dataset.follow()] == [0, 1, 4]


def test_frames_come_while_other_tasks_record_and_follow(recording):
    stream, dataset = recording

    async def main():
        return await asyncio.gather(
            values(dataset.follow()), values(dataset.follow()), record(stream, 100)
        )

    assert run(main())[:2] == [list(range(100))] * 2


def test_frames_that_have_come_do_not_keep_other_tasks_waiting(recording):
    stream, dataset = recording
    append(stream, *range(300))
    seen, turns = set(), 0

    async def follow():
        async for frame in dataset.follow():
            seen.add(int(frame[0, 0]))

    async def main():
        nonlocal turns
        task = asyncio.create_task(follow())
        while len(seen) < 300:
            turns += 1
            await asyncio.sleep(0)
        stream.close()
        await task

    run(main())
    assert turns >= 300


def test_waiting_for_a_frame_does_not_block_the_loop(recording):
    stream, dataset = recording

    async def main():
        task = asyncio.create_task(values(dataset.follow()))
        for _ in range(300):
            await asyncio.sleep(0.001)
        assert not task.done()
        append(stream, 7)
        stream.close()
        return await task

    assert run(main()) == [7]


def test_a_ring_is_followed(make_settings, tmp_path):
    settings = make_settings(
        {"t": None, "y": 4, "x": 5},
        root_path=str(tmp_path / "d"),
        format=ScratchFormat(keep_last=3),
    )
    with create_stream(settings) as stream, open_scratch(tmp_path / "d") as dataset:
        append(stream, *range(10))
        frames = dataset.follow()
        first = run(anext(frames))
        append(stream, *range(10, 20))
        stream.close()
        assert int(first[0, 0]) == 7  # a copy
        assert run(values(frames)) == [17, 18, 19]


# ------------------------------------------------------------------------------ ends early


def test_a_task_that_is_cancelled_leaves_no_thread_that_waits(recording):
    _, dataset = recording
    before = set(threading.enumerate())

    async def main():
        task = asyncio.create_task(values(dataset.follow()))
        await asyncio.sleep(0.05)
        since_s = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return since_s

    since_s = run(main())
    assert time.monotonic() - since_s < 5  # of the recording, which goes on
    assert set(threading.enumerate()) == before


def test_a_timeout_loses_no_frame(recording):
    stream, dataset = recording

    async def main():
        frames = dataset.follow()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(frames), 0.02)
        append(stream, 1, 2)
        assert int((await anext(frames))[0, 0]) == 1
        stream.close()
        assert await values(frames) == [2]
        with pytest.raises(StopAsyncIteration):
            await anext(frames)

    run(main())


def test_it_ends_when_the_dataset_is_closed(recording):
    stream, dataset = recording
    append(stream, 1)

    async def main():
        task = asyncio.create_task(values(dataset.follow()))
        await asyncio.sleep(0.05)
        dataset.close()
        return await task

    assert run(main()) == [1]


def test_it_ends_with_a_writer_that_dies(tmp_path):
    program = textwrap.dedent("""
        import sys, time, os
        import numpy as np
        from scratchwriter import *
        stream = create_stream(AcquisitionSettings(
            root_path=sys.argv[1], dtype="uint16",
            dimensions=dims_from_standard_axes({"t": None, "y": 4, "x": 5})))
        stream.append(np.full((4, 5), 3, "uint16"))
        print("ready", flush=True)
        sys.stdin.readline()
        os._exit(1)
    """)
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "d")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with writer:
        writer.stdout.readline()

        async def main(dataset):
            task = asyncio.create_task(values(dataset.follow()))
            await asyncio.sleep(0.2)
            writer.stdin.write(b"\n")
            writer.stdin.flush()
            return await task

        with open_scratch(tmp_path / "d") as dataset:
            assert run(main(dataset)) == [3]
            assert dataset.state == "killed"


# ---------------------------------------------------------------------------- one iterator


def test_it_is_an_iterator_of_both_kinds(recording):
    stream, dataset = recording
    append(stream, 1, 2, 3, 4)
    frames = dataset.follow()
    assert iter(frames) is frames
    assert aiter(frames) is frames
    assert int(next(frames)[0, 0]) == 1
    assert int(run(anext(frames))[0, 0]) == 2
    assert int(next(frames)[0, 0]) == 3
    stream.close()
    assert run(values(frames)) == [4]
    with pytest.raises(StopIteration):
        next(frames)


def test_a_closed_dataset_is_an_error_at_the_first_frame(recording):
    _, dataset = recording
    dataset.close()
    with pytest.raises(ValueError, match="dataset is closed"):
        next(dataset.follow())
    with pytest.raises(ValueError, match="dataset is closed"):
        run(values(dataset.follow()))


def test_another_recording_in_its_place_is_an_error(make_settings, tmp_path):
    fields = {"root_path": str(tmp_path / "d"), "overwrite": True}
    for skipped in (1, 2):
        with create_stream(make_settings({"t": 9, "y": 4, "x": 5}, **fields)) as stream:
            stream.skip(frames=skipped)
            append(stream, 5)
        if skipped == 1:
            dataset = open_scratch(tmp_path / "d")
    with pytest.raises(DatasetError, match="replaced by another"):
        run(values(dataset.follow()))


def test_what_follows_keeps_its_dataset_and_no_longer_than_that(recording):
    stream, dataset = recording
    append(stream, 1, 2)
    frames = open_scratch(dataset.path).follow()
    gc.collect()
    assert int(next(frames)[0, 0]) == 1
    kept = weakref.ref(frames._steps.gi_frame.f_locals["self"])
    del frames
    gc.collect()
    assert kept() is None


def test_names_are_imported_without_asyncio():
    code = "import sys; from scratchwriter import *; assert 'asyncio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
