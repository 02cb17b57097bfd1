"""One repetition of one writer, in a process of its own: the camera loop itself.

Run by session.py, with a JSON object as its argument.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import warnings
from array import array
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from time import perf_counter_ns, sleep
from typing import Any

import numpy as np

from others import OTHERS
from writers import NUM_SOURCES, WRITERS, Target, Work, make_records, make_sources

# Between the start of a stream and of its camera. As in limit.c. Without a rate there is
# none: what is made ready before the first frame would count as done in no time.
LEAD_NS = 50_000_000
# Of a wait this much is not slept: waking up takes up to that long. As in limit.c.
SPIN_NS = 200_000
NUM_VERIFIED = 64

Loop = Callable[..., None]  # of sources, records, starts, stops, t0, period_ns

LOOP = """
def loop({names}, sources, records, starts, stops, t0, period_ns):
    for i in range(len(starts)):
        frame = sources[i % {num_sources}]
        metadata = records[i % {num_sources}]
        if period_ns:
            wait_until(t0 + i * period_ns)
        start = perf_counter_ns()
        {statement}
        stop = perf_counter_ns()
        starts[i] = start
        stops[i] = stop
"""


def wait_until(due_ns: int) -> None:
    while (left_ns := due_ns - perf_counter_ns()) > 0:
        if left_ns > SPIN_NS:
            sleep((left_ns - SPIN_NS) / 1e9)


def make_loop(target: Target) -> Loop:
    """Compile a loop with the target's own statement between the clocks."""
    source = LOOP.format(
        names=", ".join(target.names),
        num_sources=NUM_SOURCES,
        statement=target.statement,
    )
    scope: dict[str, Any] = {"perf_counter_ns": perf_counter_ns, "wait_until": wait_until}
    exec(source, scope)
    return partial(scope["loop"], *target.names.values())


def make_batched_loop(target: Target, batch: int) -> Loop:
    """Compile a loop that reads the clock once in a batch, and waits for nothing."""
    store = target.compile()

    def loop(
        sources: list[Any],
        records: list[Any],
        starts: array[int],
        stops: array[int],
        *_: int,
    ) -> None:
        frames = sources * (batch // NUM_SOURCES)
        records = records * (batch // NUM_SOURCES)
        for sample in range(len(starts)):
            start = perf_counter_ns()
            store(frames, records, sample * batch)
            stop = perf_counter_ns()
            starts[sample] = start
            stops[sample] = stop

    return loop


def measure(job: dict[str, Any]) -> dict[str, Any]:
    work, batch = Work(**job["work"]), job["batch"]
    sources, records = make_sources(work), make_records()
    # Written once: no page fault in the loop, and no new Python object stays.
    starts = array("q", bytes(8 * (work.frames // batch)))
    stops = array("q", starts)
    writer = {**WRITERS, **OTHERS}[job["writer"]]
    for module in writer.modules:
        import_module(module)

    print("ready", flush=True)
    sys.stdin.readline()  # see Ballast in session.py: memory is set free when wanted
    target = writer.open(work, Path(job["folder"]))
    loop = make_loop(target) if batch == 1 else make_batched_loop(target, batch)
    gc.collect()
    gc.disable()
    t0 = perf_counter_ns() + (LEAD_NS if job["period_ns"] else 0)
    wait_until(t0)
    before = resource.getrusage(resource.RUSAGE_THREAD)
    process_before = resource.getrusage(resource.RUSAGE_SELF)
    loop(sources, records, starts, stops, t0, job["period_ns"])
    after = resource.getrusage(resource.RUSAGE_THREAD)
    process_after = resource.getrusage(resource.RUSAGE_SELF)
    gc.enable()
    target.close()
    closed_ns = perf_counter_ns()

    with Path(job["out"]).open("wb") as file:
        starts.tofile(file)
        stops.tofile(file)
    return {
        "t0_ns": t0,
        "closed_ns": closed_ns,
        "page_faults": after.ru_minflt - before.ru_minflt,
        "preempted": after.ru_nivcsw - before.ru_nivcsw,
        "user_s": process_after.ru_utime - process_before.ru_utime,
        "kernel_s": process_after.ru_stime - process_before.ru_stime,
        "wrong": count_wrong(target, work, sources, records),
    }


def count_wrong(
    target: Target, work: Work, sources: list[Any], records: list[dict[str, Any]]
) -> int:
    """Compare frames spread over all, and all metadata, with what was stored."""
    numbers = np.linspace(0, work.frames - 1, NUM_VERIFIED).astype(int).tolist()
    stored = target.view()
    wrong = sum(not np.array_equal(stored[i], sources[i % NUM_SOURCES]) for i in numbers)
    if work.with_metadata and work.on_disk:
        expected = [
            {"_pos": 0, "_idx": [i], **records[i % NUM_SOURCES]} for i in range(work.frames)
        ]
        wrong += target.read_metadata() != expected
    return wrong


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    if not job["work"]["on_disk"]:  # a stream warns that it is not in memory
        warnings.simplefilter("error", UserWarning)
    print(json.dumps(measure(job)))
