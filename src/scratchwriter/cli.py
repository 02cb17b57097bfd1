"""The command line: `scratchwriter demo` and `scratchwriter info`."""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from scratchwriter._version import __version__
from scratchwriter.manifest import (
    FRAME_METADATA,
    Manifest,
    array_name,
    read_cursor,
    read_manifest,
)
from scratchwriter.policy import size

_DEMO_EXTRA = ("mm_test_adapters", "PIL", "pymmcore", "rich")
_REDRAW_S = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 1 if it failed."""
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except (OSError, ValueError, MemoryError, ImportError, RuntimeError) as error:
        print(f"scratchwriter: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scratchwriter: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scratchwriter",
        description="Frames of a camera in plain numpy arrays, in memory or on disk.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True)

    demo = commands.add_parser(
        "demo",
        help="record the demo camera of Micro-Manager",
        description="Record the demo camera of Micro-Manager (MMCore), 16 bit 512x512, "
        "read the dataset back, compare, and draw a contact sheet.",
        epilog="example: scratchwriter demo --out run1 --frames 2000",
    )
    demo.add_argument(
        "--out",
        type=_path,
        metavar="DIR",
        help="folder of the dataset, which must not exist; the contact sheet goes beside "
        "it, DIR.png (default: in a new temporary folder)",
    )
    demo.add_argument(
        "--frames",
        type=_positive,
        default=500,
        metavar="N",
        help="how many to record (default: 500)",
    )
    demo.add_argument(
        "--memory",
        action="store_true",
        help="keep the frames in memory, and make the contact sheet only",
    )
    demo.set_defaults(run=_demo)

    info = commands.add_parser(
        "info",
        help="print what a dataset holds",
        description="Print what a scratch dataset holds.",
        epilog="example: scratchwriter info run1",
    )
    info.add_argument("path", type=_path, metavar="PATH", help="folder of the dataset")
    info.set_defaults(run=_info)
    return parser


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _demo(args: argparse.Namespace) -> None:
    if missing := [name for name in _DEMO_EXTRA if find_spec(name) is None]:
        raise ImportError(
            f"The demo needs {', '.join(missing)}: pip install 'scratchwriter[demo]'"
        )
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from scratchwriter.demo import run_demo

    out: Path | None = args.out
    if out is not None and out.exists() and not args.memory:
        raise FileExistsError(f"{out} exists. Choose another --out")
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="scratchwriter_demo_")) / "dataset"
    columns = (
        TextColumn("recording"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    # Drawn between frames: a thread that draws would hold the GIL when append wants it.
    with Progress(*columns, auto_refresh=False) as progress:
        task = progress.add_task("", total=args.frames)
        drawn_s = 0.0

        def on_frame(n: int) -> None:
            nonlocal drawn_s
            if n == args.frames or time.monotonic() - drawn_s > _REDRAW_S:
                progress.update(task, completed=n, refresh=True)
                drawn_s = time.monotonic()

        result = run_demo(
            args.frames,
            None if args.memory else out,
            out.with_name(out.name + ".png"),
            on_frame,
        )
    p50, p99, most = np.percentile(result.append_ns / 1e3, (50, 99, 100))
    print(f"frames         {result.frames}, all read back equal")
    print(f"rate           {result.frames / max(result.elapsed_s, 1e-9):.0f} frames/s")
    print(f"append         p50 {p50:.0f} us, p99 {p99:.0f} us, max {most:.0f} us")
    print(f"dataset        {result.path or 'in memory'}")
    print(f"contact sheet  {result.sheet}")


def _info(args: argparse.Namespace) -> None:
    folder: Path = args.path
    manifest = read_manifest(folder)
    _check_files(folder, manifest)
    progress = read_cursor(folder)
    if progress is None:
        frames = "unknown: not written by scratchwriter"
    else:
        cursor, closed = progress
        state = "closed" if closed else "not closed: being recorded, or cut short"
        frames = f"{cursor} ({state})"
    lines = {
        "dataset": str(folder),
        "written by": f"version {manifest.version}",
        "pixels": f"{manifest.dtype}, {size(manifest.nbytes)}",
        "frames": frames,
    }
    dims = manifest.position_dims
    for i, shape in enumerate(manifest.position_shapes):
        axes = [f"{axis}=" for axis in dims[i]] if dims else [""] * len(shape)
        sizes = ", ".join(f"{a}{n}" for a, n in zip(axes, shape, strict=True))
        lines[f"position {i}"] = f"{manifest.position_names[i]}: {sizes}"
    lines["frame metadata"] = f"{_count_lines(folder / FRAME_METADATA)} lines"
    lines["global metadata"] = ", ".join(manifest.global_metadata) or "none"
    for name, text in lines.items():
        # What others wrote goes to a terminal: nothing that it would obey.
        print(f"{name:<16} {''.join(c if c.isprintable() else '?' for c in text)}")


def _check_files(folder: Path, manifest: Manifest) -> None:
    for i, shape in enumerate(manifest.position_shapes):
        path = folder / array_name(i)
        expected_nbytes = math.prod(shape) * np.dtype(manifest.dtype).itemsize
        nbytes = path.stat().st_size
        if nbytes < expected_nbytes:
            raise ValueError(
                f"{path} has {nbytes} bytes, the manifest says at least {expected_nbytes}"
            )


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file")
    with path.open("rb") as file:
        return sum(1 for _ in file)
