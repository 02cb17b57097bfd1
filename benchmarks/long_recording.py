"""Recordings to disk that are longer than memory: writers side by side, over time.

    python benchmarks/long_recording.py --shape 512x512 --hz 2000 --gb 40
    python benchmarks/long_recording.py --percent-of-disk 50 --gb 40 --picture long.png

README.md says what is measured and how to read it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from others import OTHERS, is_possible
from report import (
    Figures,
    Measurement,
    describe,
    draw_over_time,
    insert,
    markdown_table,
    number,
)
from session import (
    STAGED,
    Camera,
    Session,
    add_session_options,
    describe_machine,
    memory_nbytes,
    open_session,
    run_in_turn,
    size,
)
from writers import LIMIT, PAGE_CACHE, WRITERS, Work

PYTHON_WRITERS = {**WRITERS, **OTHERS}
ALL = (*PYTHON_WRITERS, LIMIT)
DEFAULT = (
    "scratchwriter",
    PAGE_CACHE,
    "ome-writers",
    "numpy.memmap",
    "acquire-zarr",
    "tensorstore",
    "h5py",
    LIMIT,
)
COLUMNS = ("p50", "p99", "p99.9", "max")
DISK_TRIAL_GB = 8.0  # a disk's own memory is smaller
# What writers need besides the frames: staging, metadata, files that grow ahead.
SPARE_NBYTES = 4e9
LONG = 1.5  # times the machine's memory


def main() -> None:
    options = parse()
    with open_session(options.folder, options.patience) as session:
        machine = describe_machine(session.folder)
        if options.percent_of_disk:
            gb_per_s = disk_gb_per_s(session, options)
            machine["disk_gb_per_s"] = round(gb_per_s, 2)
            asked_gb_per_s = options.percent_of_disk / 100 * gb_per_s
            options.hz = 1e9 * asked_gb_per_s / make_work(options).frame_nbytes
        camera = make_camera(options)
        check_room(session.folder, camera.work)
        for warning in warnings_of(camera.work):
            print(warning, file=sys.stderr, flush=True)
        writers = [w for w in options.writers if takes_part(w, camera.work)]
        if not writers:
            raise SystemExit("no writer is left")
        runs, variant = run_in_turn(session, camera, writers, options.repetitions, STAGED)
    figures = {writer: Figures.of(found) for writer, found in runs.items()}
    tell(options, machine, Measurement(camera, figures, variant))
    if options.picture:
        draw_over_time(runs, options.picture)


def tell(
    options: argparse.Namespace, machine: dict[str, Any], measurement: Measurement
) -> None:
    used = [PYTHON_WRITERS[w] for w in measurement.figures if w != LIMIT]
    versions = {writer.distribution: writer.version for writer in used}
    text = "\n".join([describe(machine, versions), "", *table(measurement)])
    print(text)
    if options.into:
        insert(text, options.into, "long_recording")
    if options.json:
        everything = {
            "machine": machine,
            "versions": versions,
            "measurements": [measurement.as_dict()],
        }
        options.json.write_text(json.dumps(everything, indent=1) + "\n")


# -------------------------------------------------------------------------- the camera


def make_work(options: argparse.Namespace, frames: float = 1) -> Work:
    height, width = options.shape
    return Work(height, width, max(round(frames), 1), True, options.bounded)


def disk_gb_per_s(session: Session, options: argparse.Namespace) -> float:
    """Return how fast the C limit brings frames to the disk."""
    nbytes = 1e9 * min(DISK_TRIAL_GB, options.gb or DISK_TRIAL_GB)
    trial = Camera(make_work(options, nbytes / make_work(options).frame_nbytes))
    return session.run(trial, LIMIT, STAGED).gb_per_s_until_closed


def make_camera(options: argparse.Namespace) -> Camera:
    frames = options.seconds * options.hz
    if options.gb:
        frames = 1e9 * options.gb / make_work(options).frame_nbytes
    return Camera(make_work(options, frames), options.hz)


# --------------------------------------------------------------- what is said before it


def takes_part(writer: str, work: Work) -> bool:
    """Tell whether a writer can do this here; if it cannot, say why."""
    why_not = ""
    if writer != LIMIT and not PYTHON_WRITERS[writer].is_installed:
        why_not = "it is not installed: " + ", ".join(PYTHON_WRITERS[writer].modules)
    elif not is_possible(writer, work):
        why_not = "it does not take " + str(work)
    if why_not:
        print(f"{writer} is left out; {why_not}.", file=sys.stderr, flush=True)
    return not why_not


def check_room(folder: Path, work: Work) -> None:
    free_nbytes, needed_nbytes = shutil.disk_usage(folder).free, work.nbytes + SPARE_NBYTES
    if free_nbytes < needed_nbytes:
        raise SystemExit(
            f"{folder} has {free_nbytes / 1e9:.0f} GB free, and {needed_nbytes / 1e9:.0f} "
            "GB are needed: ask for less with --gb or --seconds, or give a --dir elsewhere"
        )


def warnings_of(work: Work) -> list[str]:
    """Say what is wrong with a recording that memory could take."""
    if work.nbytes >= LONG * memory_nbytes():
        return []
    return [
        f"{work.nbytes / 1e9:.3g} GB are less than {LONG} times the memory of this machine"
        ": the figures are in part those of its page cache."
    ]


# --------------------------------------------------------------------------- the table


def table(measurement: Measurement) -> list[str]:
    work = measurement.camera.work
    heads = ["µs inside append", *COLUMNS, "late", "GB/s asked", "reached", "until closed"]
    heads += ["kernel: writer, % of a core", "kernel: machine", "page cache, GB more"]
    rows = [
        [writer, *cells(measurement.camera, figures)]
        for writer, figures in measurement.figures.items()
    ]
    return [
        f"### {measurement.camera}, {work.nbytes / 1e9:.3g} GB; "
        f"medians of {measurement.repetitions} repetitions",
        "",
        *(line for warning in warnings_of(work) for line in (warning, "")),
        *markdown_table(heads, rows),
        "",
        f"Disturbances: {measurement.disturbances()}.",
        "",
    ]


def cells(camera: Camera, figures: Figures) -> list[str]:
    late, asked = "-", "-"
    if figures.since_due is not None:
        num_frames = camera.work.frames * len(figures.facts)
        num_late = figures.since_due.late
        late = f"{num_late:,} ({number(100 * num_late / num_frames)} %)"
        asked = f"{camera.rate_hz * camera.work.frame_nbytes / 1e9:.2f}"
    return [
        *(number(figures.inside.percentile(column)) for column in COLUMNS),
        late,
        asked,
        f"{figures.gb_per_s:.2f}",
        f"{figures.gb_per_s_until_closed:.2f}",
        number(figures.kernel_percent),
        number(figures.machine_kernel_percent),
        f"{figures.page_cache_gb:.2f}",
    ]


# ------------------------------------------------------------------------- the options


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    camera = parser.add_argument_group("camera")
    camera.add_argument("--shape", type=size, default=(512, 512), metavar="HEIGHTxWIDTH")
    rate = camera.add_mutually_exclusive_group()
    rate.add_argument("--hz", type=positive, default=2000.0)
    rate.add_argument(
        "--percent-of-disk",
        type=positive,
        metavar="PERCENT",
        help="of what the C limit brings to the disk, which is measured first",
    )
    rate.add_argument("--flat-out", action="store_true", help="as fast as it can")
    length = camera.add_mutually_exclusive_group()
    length.add_argument("--seconds", type=positive, default=30.0)
    length.add_argument("--gb", type=positive, help="instead of seconds")
    growth = camera.add_mutually_exclusive_group()
    growth.add_argument("--bounded", action="store_true", default=True)
    growth.add_argument("--unbounded", dest="bounded", action="store_false")
    parser.add_argument(
        "--writers", type=names, default=DEFAULT, metavar="A,B", help=f"of {', '.join(ALL)}"
    )
    add_session_options(parser)
    parser.set_defaults(repetitions=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="latency over time")
    options = parser.parse_args()
    if options.flat_out:
        options.hz = 0
        if not options.gb:
            parser.error("--flat-out needs --gb: without a rate seconds tell no length")
    return options


def positive(text: str) -> float:
    value = float(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected more than 0")
    return value


def names(text: str) -> list[str]:
    found = text.split(",")
    if unknown := set(found) - set(ALL):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(unknown))}: expected some of {', '.join(ALL)}"
        )
    return found


if __name__ == "__main__":
    main()
