"""The command line: `scratchwriter demo` and `scratchwriter info`."""

from __future__ import annotations

import argparse
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
    demo.add_argument("--out", type=Path, metavar="DIR", help="folder of the dataset")
    demo.add_argument("--frames", type=_positive, default=500, metavar="N")
    demo.add_argument("--memory", action="store_true", help="keep the frames in memory")
    demo.set_defaults(run=_demo)

    info = commands.add_parser(
        "info",
        help="print what a dataset holds",
        description="Print what a scratch dataset holds.",
        epilog="example: scratchwriter info run1",
    )
    info.add_argument("path", type=Path, metavar="PATH", help="folder of the dataset")
    info.set_defaults(run=_info)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


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
    shapes, dims = manifest.position_shapes, manifest.position_dims
    nbytes = sum((folder / array_name(i)).stat().st_size for i in range(len(shapes)))
    progress = read_cursor(folder)
    if progress is None:
        frames = "unknown: not written by scratchwriter"
    else:
        cursor, closed = progress
        state = "closed" if closed else "not closed: being recorded, or cut short"
        frames = f"{cursor} ({state})"

    print(f"dataset          {folder}")
    print(f"written by       version {manifest.version}")
    print(f"pixels           {manifest.dtype}, {size(nbytes)}")
    print(f"frames           {frames}")
    for i, (name, shape) in enumerate(zip(manifest.position_names, shapes, strict=True)):
        axes = [f"{axis}=" for axis in dims[i]] if dims else [""] * len(shape)
        sizes = ", ".join(f"{a}{n}" for a, n in zip(axes, shape, strict=True))
        print(f"position {i:<7} {name}: {sizes}")
    print(f"frame metadata   {_count_lines(folder / FRAME_METADATA)} lines")
    print(f"global metadata  {', '.join(manifest.global_metadata) or 'none'}")


def _count_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)
