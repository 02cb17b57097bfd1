"""Frames written as fast as they can be, by what people keep frames in.

    python benchmarks/bandwidth.py

README.md says how to read the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from others import OTHERS, is_possible
from report import describe, insert, markdown_table
from session import (
    Camera,
    Run,
    Session,
    add_session_options,
    describe_machine,
    open_session,
    run_in_turn,
)
from writers import WRITERS, Work

ALL = {**WRITERS, **OTHERS}
SIZES = (512, 2048)


def main() -> None:
    options = parse()
    with open_session(options.folder, options.patience) as session:
        machine = describe_machine(session.folder)
        columns = [
            measure(session, work, options.writers, options.repetitions)
            for work in works(int(options.gib * 2**30))
        ]
    lines = [describe(machine, {"repetitions": str(options.repetitions)}), ""]
    text = "\n".join([*lines, *table(options.writers, columns)])
    print(text)
    if options.into:
        insert(text, options.into, "bandwidth")


def works(nbytes: int) -> list[Work]:
    return [
        Work(size, size, nbytes // (2 * size * size), on_disk)
        for on_disk in (False, True)
        for size in SIZES
    ]


def measure(
    session: Session, work: Work, writers: Sequence[str], repetitions: int
) -> dict[str, list[Run]]:
    able = [writer for writer in writers if is_possible(writer, work)]
    return run_in_turn(session, Camera(work), able, repetitions)[0]


def table(writers: Sequence[str], columns: Sequence[dict[str, list[Run]]]) -> list[str]:
    heads = ["GB/s", "version"]
    for runs in columns:
        work = next(iter(runs.values()))[0].camera.work
        heads.append(f"{'disk' if work.on_disk else 'memory'}, {work.height}x{work.width}")
    rows = [
        [writer, ALL[writer].version, *(cell(runs.get(writer)) for runs in columns)]
        for writer in writers
    ]
    return markdown_table(heads, rows)


def cell(runs: Sequence[Run] | None) -> str:
    """Return the medians while frames were appended, and until all was closed."""
    if runs is None:
        return "-"
    appending = np.median([run.gb_per_s for run in runs])
    closed = np.median([run.gb_per_s_until_closed for run in runs])
    return f"{appending:.2f} / {closed:.2f}"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=1, help="written by each, each time")
    add_session_options(parser)
    parser.add_argument("--writers", nargs="+", choices=tuple(ALL), default=list(ALL))
    return parser.parse_args()


if __name__ == "__main__":
    main()
