"""The command line: `scratchwriter demo`, `info`, `watch`, `verify`, ..."""

from __future__ import annotations

import argparse
import errno
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from scratchwriter._files.choose_source import open_source
from scratchwriter._files.folders import reclaim_spill_folders, spill_parent
from scratchwriter._files.holes import zeros_at_end
from scratchwriter._files.ome_writers_source import NOT_COUNTED
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._version import __version__
from scratchwriter.errors import DatasetError, size_text
from scratchwriter.reader import ScratchDataset, open_scratch
from scratchwriter.settings import ScratchFormat

_REDRAW_S = 0.2
_ZEROS = "zeros: "  # begins a line about frames that may be missing
_STATES = {
    "closed": "closed",
    "recording": "being recorded",
    "killed": "not closed, its writer was killed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, 1 if it failed."""
    args = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                return args.run(args) or 0
            finally:
                for warning in caught:
                    _complain(f"warning: {warning.message}")
    except (OSError, ValueError, MemoryError, ImportError, RuntimeError) as error:
        _complain(str(error))
        return 1
    except KeyboardInterrupt:
        print("scratchwriter: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scratchwriter",
        description="Frames of a camera in plain numpy arrays, in memory or on disk.",
        epilog="exit status: 0 done, 1 failed (or not whole), 2 wrong arguments, 130 "
        "interrupted. example: scratchwriter info run1",
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--print-completion",
        choices=("bash", "zsh", "tcsh"),
        action=_PrintCompletion,
        help="print a script for the shell that completes commands and options "
        "(pip install shtab)",
    )
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
        help="folder of the dataset, which must not exist; the contact sheet is put beside "
        "it, as DIR.png (default: in a new temporary folder)",
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

    _add(
        commands,
        _info,
        has_json=True,
        help="print what a dataset holds",
        description="Print what a scratch dataset holds.",
    )

    _add(
        commands,
        _watch,
        help="show a dataset in a window, live while it is recorded",
        description="Show a scratch dataset with ndv. While it is recorded, the newest "
        "frame is shown until a slider is moved to another frame.",
    )

    monitor = _add(
        commands,
        _monitor,
        help="show how a dataset is doing while it is recorded",
        description="Show rate, frames, drops, disk left, and how long appends take, live "
        "until the dataset is closed.",
    )
    monitor.add_argument("--once", action="store_true", help="show it once, and exit")

    preview = _add(
        commands,
        _preview,
        help="draw a contact sheet of a dataset",
        description="Draw frames evenly spaced over a scratch dataset, a row for each "
        "position and channel, with the contrast of each channel.",
        example="-o sheet.png",
    )
    preview.add_argument(
        "-o",
        "--output",
        type=_path,
        required=True,
        metavar="FILE",
        help="the picture, which must not exist: .png, .jpg, ...",
    )

    report = _add(
        commands,
        _report,
        help="make a page about a dataset",
        description="Make one self-contained HTML page: settings, intervals between "
        "frames, append times, skipped and dropped frames, thumbnails.",
        example="-o run1.html",
    )
    report.add_argument(
        "-o",
        "--output",
        type=_path,
        required=True,
        metavar="FILE",
        help="the page, which must not exist",
    )

    export = _add(
        commands,
        _export,
        has_json=True,
        help="write an OME-Zarr, an OME-TIFF or a .npy of a dataset",
        description="Write an OME-Zarr or an OME-TIFF (by ome-writers), or one position as "
        "a .npy file. A dataset that is being recorded is followed to its end (a .npy has "
        "what has come so far). After an interruption the same command resumes "
        "(OME-Zarr).",
        example="run1.ome.zarr",
    )
    export.add_argument(
        "out",
        type=_path,
        metavar="OUT",
        help="what to write: its suffix, .ome.zarr, .ome.tiff or .npy, sets the format",
    )
    export.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    export.add_argument(
        "--position", type=int, metavar="N", help="for .npy: which position, of several"
    )

    copy = _add(
        commands,
        _copy,
        has_json=True,
        help="copy a dataset, also while it is recorded",
        description="Copy a scratch dataset as it is now, also while it is recorded. The "
        "copy is finished: it has exactly the frames that have come so far. It appears "
        "when it is complete. PATH is not changed.",
        example="run1_copy",
    )
    copy.add_argument(
        "out", type=_path, metavar="OUT", help="folder of the copy, which must not exist"
    )

    _add(
        commands,
        _verify,
        has_json=True,
        help="report what is damaged in a dataset, and what is missing",
        description="Check a scratch dataset: its manifest, the sizes of its files and "
        "holes in them, its frame metadata. Exit status 0 if it is whole, 1 if not.",
    )

    _add(
        commands,
        _recover,
        has_json=True,
        help="finish a dataset whose writer was killed",
        description="Finish a scratch dataset whose writer was killed: exact shapes in "
        "the manifest, files cut to their exact size, marked as closed. Staged frames are "
        "copied into the files of the arrays; no frame is changed.",
    )

    disk = commands.add_parser(
        "disk",
        help="measure what a disk takes, and which cameras that is enough for",
        description="Measure what a disk takes, by recording into a temporary folder, "
        "which is removed. Print which cameras it holds, with a head-room of 20 percent "
        "below its slowest second, and for how long it holds twice that.",
        epilog="example: scratchwriter disk /data --seconds 60",
    )
    disk.add_argument("path", type=_path, metavar="PATH", help="a folder on the disk")
    disk.add_argument(
        "--seconds",
        type=_positive,
        metavar="S",
        help="how long, as far as half of the free space lasts (default: 5, and no more "
        "than 8 GiB)",
    )
    _add_json(disk)
    disk.set_defaults(run=_disk)

    clean = commands.add_parser(
        "clean",
        help="remove temporary folders that killed processes have left",
        description="Remove the temporary folders of this user that killed processes have "
        "left. Those of running processes are not touched.",
        epilog="example: scratchwriter clean /scratch/tmp",
    )
    clean.add_argument(
        "path",
        type=_path,
        nargs="?",
        metavar="PATH",
        help="folder to look in, a ScratchFormat.spill_dir (default: where temporary "
        "folders are made without one)",
    )
    _add_json(clean)
    clean.set_defaults(run=_clean)
    return parser


class _PrintCompletion(argparse.Action):
    """Print a script for a shell, and exit."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any) -> None:
        if find_spec("shtab") is None:
            parser.error("this needs shtab: pip install shtab")
        import shtab

        _, shell, _ = args
        print(shtab.complete(parser, shell))
        parser.exit()


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print a JSON object instead")


def _add(
    commands: Any,
    run: Callable[..., int | None],
    *,
    example: str = "",
    has_json: bool = False,
    **texts: str,
) -> argparse.ArgumentParser:
    """Add a command for a dataset, with the name of the function that it runs."""
    name = run.__name__.removeprefix("_")
    epilog = f"example: scratchwriter {name} run1 {example}".rstrip()
    parser: argparse.ArgumentParser = commands.add_parser(name, epilog=epilog, **texts)
    parser.add_argument("path", type=_path, metavar="PATH", help="folder of the dataset")
    if has_json:
        _add_json(parser)
    parser.set_defaults(run=run)
    return parser


def _need(extra: str, *modules: str) -> None:
    """Check that the optional modules of a command are installed."""
    if missing := [name for name in modules if find_spec(name) is None]:
        raise ImportError(
            f"This needs {', '.join(missing)}: pip install 'scratchwriter[{extra}]'"
        )


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def _demo(args: argparse.Namespace) -> None:
    _need("demo", "mm_test_adapters", "PIL", "pymmcore", "rich")
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from scratchwriter._showing.demo import run_demo
    from scratchwriter._showing.disk_texts import disk_rate_text

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
    # Drawn between frames, because a thread that draws would hold the GIL during appends.
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
    if result.disk is not None:
        rate = disk_rate_text(result.disk.disk_nbytes_per_s)
        waited = size_text(result.disk.staged_nbytes)
        print(f"disk           {rate}, {waited} waited for it at the end")
    print(f"dataset        {result.path or 'in memory'}")
    print(f"contact sheet  {result.sheet}")


def _info(args: argparse.Namespace) -> None:
    with open_scratch(args.path) as dataset:
        if args.json:
            _print_json(_facts(dataset))
            return
        settings, arrays = dataset.settings, dataset.arrays
        nbytes = sum(array[...].nbytes for array in arrays)
        skipped = sum(map(len, dataset.skipped))
        lines = {
            "dataset": str(dataset.path),
            "written by": f"{_writer(dataset)} {dataset.version}",
            "state": _state(dataset),
            "pixels": f"{settings.dtype}, {size_text(nbytes)}",
            "frames": _frames(dataset)
            + (f", {skipped} of them skipped" if skipped else ""),
        }
        dims = [dim.name for dim in settings.array_storage_dimensions]
        for i, array in enumerate(arrays):
            sizes = ", ".join(f"{a}={n}" for a, n in zip(dims, array.shape, strict=True))
            lines[f"position {i}"] = f"{settings.positions[i].name}: {sizes}"
        if dataset.disk_io:
            lines["written"] = dataset.disk_io
        if dataset.counts_frames:
            lines["on the device"] = (
                f"the first {dataset.frames_synced} for certain"
                if dataset.frames_synced
                else "not known: flush() or durability='system' makes sure of it"
            )
        if dataset.has_records:
            lines["dropped"] = f"{dataset.dropped} frame numbers never came"
        lines["frame metadata"] = f"{len(dataset.frame_metadata)} lines"
        lines["global metadata"] = ", ".join(dataset.global_metadata) or "none"
    for name, text in lines.items():
        _print(f"{name:<16} {text}")


def _facts(dataset: ScratchDataset) -> dict[str, Any]:
    """Return the facts about a dataset that JSON output has."""
    settings = dataset.settings
    return {
        "path": str(dataset.path),
        "writer": _writer(dataset),
        "version": dataset.version,
        "state": dataset.state,
        "dtype": settings.dtype,
        "dims": [dim.name for dim in settings.array_storage_dimensions],
        "positions": [position.name for position in settings.positions],
        "shapes": [list(array.shape) for array in dataset.arrays],
        "frames_written": dataset.frames_written if dataset.counts_frames else None,
        "frames_planned": settings.num_frames,
        "frames_synced": dataset.frames_synced,
        "disk_io": dataset.disk_io,
        "skipped": [[skip.start, skip.stop] for skip in dataset.skipped],
        "dropped": dataset.dropped,
        "frames_with_metadata": len(dataset.frame_metadata),
        "global_metadata": dataset.global_metadata,
    }


def _writer(dataset: ScratchDataset) -> str:
    return "scratchwriter" if dataset.counts_frames else "ome-writers"


def _watch(args: argparse.Namespace) -> None:
    _need("view", "ndv", "PyQt6", "vispy")
    from scratchwriter.bridges.ndv import watch

    with open_scratch(args.path) as dataset:
        watch(dataset)


def _monitor(args: argparse.Namespace) -> None:
    _need("demo", "rich")
    from scratchwriter._showing.monitor import monitor

    with open_scratch(args.path) as dataset:
        monitor(dataset, once=args.once)


def _preview(args: argparse.Namespace) -> None:
    _need("demo", "PIL")
    from scratchwriter._showing.pictures import contact_sheet, save_new

    with open_scratch(args.path) as dataset:
        save_new(contact_sheet(dataset.view()), args.output)
    _print(f"contact sheet  {args.output}")


def _report(args: argparse.Namespace) -> None:
    _need("report", "matplotlib", "PIL")
    from scratchwriter._showing.report import make_report

    with open_scratch(args.path) as dataset:
        page = make_report(dataset)
    with args.output.open("x", encoding="utf-8") as file:
        file.write(page)
    _print(f"report  {args.output}")


def _export(args: argparse.Namespace) -> None:
    _need("export", "ome_writers", "rich")
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), disable=args.json)
    task = bar.add_task(args.out.name, total=None)

    def show(done: int, total: int | None) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    def stop() -> None:
        if bar.live.is_started:  # otherwise stopping it prints an empty line
            bar.stop()

    with open_scratch(args.path) as dataset:
        try:
            made = dataset.export(
                args.out, position=args.position, overwrite=args.overwrite, progress=show
            )
        except (ValueError, FileExistsError) as error:
            text = str(error).replace("overwrite=True", "--overwrite")
            kind = FileExistsError if isinstance(error, FileExistsError) else ValueError
            raise kind(text.replace("position=", "--position ")) from None
        except KeyboardInterrupt:
            unfinished = args.out.with_name(f".{args.out.name}.partial")
            is_kept = (unfinished / "parts").is_dir()
            how = "resumes it" if is_kept else "starts it again"
            stop()
            _print(f"The same command {how}.", sys.stderr)
            raise
        finally:
            stop()
    if args.json:
        _print_json({"exported": str(made)})
        return
    _print(f"exported  {made}")


def _copy(args: argparse.Namespace) -> None:
    with open_scratch(args.path) as dataset:
        made = dataset.copy(args.out)
    frames = open_source(made).frames_written  # without the warnings about its source
    if args.json:
        _print_json({"copied": str(made), "frames_written": frames})
        return
    _print(f"copied  {made}, {frames} frames")


def _state(dataset: ScratchDataset) -> str:
    if dataset.counts_frames:
        return _STATES[dataset.state]
    if dataset.source.is_guessed:
        return "not closed"
    return "closed or killed: ome-writers does not record which"


def _frames(dataset: ScratchDataset) -> str:
    expected = dataset.settings.num_frames
    if not dataset.counts_frames:
        planned = f", {expected} were planned" if expected else ""
        return f"not known: ome-writers does not record how many came{planned}"
    return f"{dataset.frames_written}" + (f" of {expected}" if expected else "")


def _missing(dataset: ScratchDataset) -> Iterator[str]:
    """Yield what is missing: it is no fault, but zeros in its place are not frames."""
    if not dataset.counts_frames:
        yield f"frames that came: {NOT_COUNTED}"
        return
    with suppress(DatasetError):  # find_faults reports it
        for skipped in dataset.skipped:
            yield f"skipped: {len(skipped)} frames, {skipped[0]} to {skipped[-1]}"
        if dropped := dataset.dropped:
            yield f"dropped: {dropped} frame numbers never came"
        if dataset.state != "recording":
            for text in zeros_at_end(dataset.source):
                yield f"{_ZEROS}{text}"
    expected = dataset.settings.num_frames
    if expected is not None and dataset.frames_written < expected:
        yield (
            f"never came: {expected - dataset.frames_written} frames, "
            f"{dataset.frames_written} to {expected - 1}"
        )


def _verify(args: argparse.Namespace) -> int:
    with open_scratch(args.path) as dataset:
        faults, missing = find_faults(dataset.source), list(_missing(dataset))
        if args.json:
            facts = {
                "path": str(dataset.path),
                "state": dataset.state,
                "frames_written": dataset.frames_written if dataset.counts_frames else None,
                "missing": missing,
                "faults": faults,
            }
            _print_json(facts)
            return 1 if faults else 0
        frames = f"{_frames(dataset)} frames" if dataset.counts_frames else "not counted"
        _print(f"{dataset.path}: {_state(dataset)}, {frames}")
    for text in [*missing, *(f"fault: {fault}" for fault in faults)]:
        _print(text)
    has_zeros = any(text.startswith(_ZEROS) for text in missing)
    verdict = "whole, if the camera gave these zeros" if has_zeros else "whole"
    print("not whole" if faults else verdict)
    return 1 if faults else 0


def _recover(args: argparse.Namespace) -> None:
    done = recover(args.path)
    if args.json:
        _print_json({"path": str(args.path), "done": done})
        return
    for what in done or ["nothing to do"]:
        _print(what)


def _disk(args: argparse.Namespace) -> None:
    from scratchwriter._showing.disk import disk_facts, disk_lines, measure_disk

    try:
        rate = measure_disk(args.path, args.seconds, _show_measuring)
    finally:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if args.json:
        _print_json(disk_facts(args.path, rate))
        return
    for line in disk_lines(args.path, rate):
        _print(line)


def _show_measuring(elapsed_s: float, nbytes: int) -> None:
    if sys.stderr.isatty():
        text = f"measuring  {elapsed_s:.1f} s, {size_text(nbytes)} written"
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _clean(args: argparse.Namespace) -> None:
    parent = args.path or spill_parent(ScratchFormat())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "The folder does not exist", str(parent))
    removed = reclaim_spill_folders(parent)
    if args.json:
        _print_json({"removed": [str(folder) for folder in removed]})
        return
    for folder in removed:
        _print(f"{folder}: removed")
    print(f"{len(removed)} temporary folders of killed processes removed")


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2))


def _complain(text: str) -> None:
    lines = [line.strip() for line in text.splitlines()]
    _print(f"scratchwriter: {'; '.join(filter(None, lines))}", sys.stderr)


def _print(text: str, file: TextIO | None = None) -> None:
    # The text may come from files, so no control character may reach the terminal.
    print("".join(c if c.isprintable() else "?" for c in text), file=file)
