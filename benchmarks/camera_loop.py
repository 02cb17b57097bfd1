"""A paced camera, and what becomes of its frames' time: writers side by side.

    python benchmarks/camera_loop.py --size 512x512 --rate 2000 --frames 4000
    python benchmarks/camera_loop.py --suite

README.md says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from bars import ALL, ROWS, Bar
from report import Figures, Measurement, describe, draw, insert, markdown_table
from session import (
    Camera,
    Session,
    add_session_options,
    describe_machine,
    open_session,
    run_in_turn,
    size,
)
from writers import WRITERS, Work, is_able


def main() -> None:
    options = parse()
    versions = {w.distribution: w.version for w in WRITERS.values()}
    measurements: list[Measurement] = []
    verdicts: list[list[str]] = []
    with open_session(options.folder, options.patience) as session:
        machine = describe_machine(session.folder)
        print(describe(machine, versions), end="\n\n", flush=True)
        for camera, writers, bars in plan(options, session.folder):
            measurement = measure(session, camera, writers, options.repetitions)
            print(measurement, flush=True)
            measurements.append(measurement)
            judged = [bar for bar in bars if bar.is_measured(measurement)]
            verdicts += [bar.judge(measurement) for bar in judged]
    tables = "\n".join(map(str, measurements))
    if verdicts:
        tables = "\n".join(markdown_table(["work", "bar", "measured", "met"], verdicts))
        print(tables)
    if options.into:
        mark = "camera_loop" if options.suite is None else "suite"
        insert(f"{describe(machine, versions)}\n\n{tables}", options.into, mark)
    if options.json:
        everything = {
            "machine": machine,
            "versions": versions,
            "measurements": [m.as_dict() for m in measurements],
            "bars": verdicts,
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n")
    if options.plot:
        draw(measurements, options.plot)


def plan(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[Camera, list[str], Sequence[Bar]]]:
    """Yield what to measure: a camera, the writers that can do it, and the bars."""
    for camera, writers, bars in cameras(options, folder):
        able = [w for w in writers if w in options.writers and is_able(w, camera.work)]
        if able:
            yield camera, able, bars


def cameras(
    options: argparse.Namespace, folder: Path
) -> Iterator[tuple[Camera, Sequence[str], Sequence[Bar]]]:
    if options.suite is None:
        height, width = options.size
        for storage, length in product(options.storage, options.length):
            work = Work(
                height,
                width,
                options.frames,
                on_disk=storage == "disk",
                bounded=length == "bounded",
                with_metadata=options.metadata,
            )
            yield Camera(work, options.rate, options.batch), ALL, ()
        return
    for name in options.suite or ROWS:
        row = ROWS[name]
        for camera in row.cameras(folder):
            chosen = shortened(camera) if options.quick else camera
            yield chosen, row.writers, row.bars(chosen)


def shortened(camera: Camera) -> Camera:
    """Return a tenth of it, to see that it runs."""
    frames = camera.work.frames // 10 // camera.batch * camera.batch
    work = Work(**{**asdict(camera.work), "frames": frames})
    return Camera(work, camera.rate_hz, camera.batch)


def measure(
    session: Session, camera: Camera, writers: Sequence[str], repetitions: int
) -> Measurement:
    runs, variant = run_in_turn(session, camera, writers, repetitions)
    figures = {writer: Figures.of(found) for writer, found in runs.items()}
    return Measurement(camera, figures, variant)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    camera = parser.add_argument_group("camera")
    camera.add_argument("--size", type=size, default=(512, 512), metavar="HEIGHTxWIDTH")
    camera.add_argument(
        "--rate", type=float, default=2000, metavar="HZ", help="0: as fast as it can"
    )
    camera.add_argument("--frames", type=int, default=4000)
    camera.add_argument(
        "--batch", type=int, default=1, help="frames timed together, at rate 0 only"
    )
    camera.add_argument(
        "--storage", nargs="+", choices=("memory", "disk"), default=["memory"]
    )
    camera.add_argument(
        "--length", nargs="+", choices=("bounded", "unbounded"), default=["bounded"]
    )
    camera.add_argument(
        "--metadata", action="store_true", help="four plain values with each frame"
    )
    parser.add_argument("--writers", nargs="+", choices=ALL, default=list(ALL))
    add_session_options(parser)
    parser.add_argument(
        "--suite",
        nargs="*",
        choices=tuple(ROWS),
        metavar="ROW",
        help=f"instead: the bars of the project ({', '.join(ROWS)}; default: all)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the suite once: not to be quoted"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture")
    options = parser.parse_args()
    if options.quick:
        options.repetitions = 1
    try:
        Camera(Work(*options.size, options.frames), options.rate, options.batch)
    except ValueError as error:
        parser.error(str(error))
    return options


if __name__ == "__main__":
    main()
