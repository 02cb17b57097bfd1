"""Everything a reader does with a dataset, and datasets to spoil."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from contextlib import redirect_stderr, redirect_stdout, suppress

import numpy as np
import ome_writers

import scratchwriter
from marks import PORTABLE
from scratchwriter import DatasetError, create_stream, open_scratch
from scratchwriter._files.repair import find_faults, recover
from scratchwriter.cli import main

CAN_STAGE = [] if PORTABLE else ["staged"]
SIZES = {"t": None, "p": ["left", "right"], "c": 2, "y": 4, "x": 5}


def read_everything(folder):
    """Use all of the reader; return what it says is wrong, None if nothing is."""
    try:
        with open_scratch(folder) as dataset:
            for array in dataset.arrays:
                int(np.asarray(array).sum())
            list(dataset.frame_metadata)
            dataset.frame_metadata.columns()
            dataset.frame_metadata.at(0, 0, 0)
            view = dataset.view()
            int(np.asarray(view).sum())
            assert len(view.coords) == view.ndim
            assert sum(frame.size for frame in dataset.follow()) <= view.size
            dataset.wait(timeout_s=0)
            for name in (
                *("skipped", "state", "settings", "global_metadata", "timestamps"),
                *("dropped", "append_times"),
            ):
                getattr(dataset, name)
            for position in range(len(dataset.arrays)):
                if dataset.counts_frames:
                    dataset.written(position)
            faults = find_faults(dataset.source)
            # How its recording ended is no damage.
            faults = [
                text for text in faults if not re.match(r"its writer|the machine", text)
            ]
            return "\n".join(faults) or None
    except DatasetError as error:
        return str(error)


def recover_it(folder):
    """Recover a dataset; that it is damaged is one kind of exception."""
    with suppress(DatasetError):
        recover(folder)


def run_commands(folder):
    """Run what only reads; it answers with a line, besides warnings, and no traceback."""
    copy = folder.with_name("copy")
    for command in ("info", "verify", "copy"):
        out, err = io.StringIO(), io.StringIO()
        args = [str(copy)] if command == "copy" else []
        with redirect_stdout(out), redirect_stderr(err):
            assert main([command, str(folder), *args]) in (0, 1)
        said = err.getvalue().splitlines()
        assert all(line.startswith("scratchwriter: ") for line in said)
        assert sum(not line.startswith("scratchwriter: warning: ") for line in said) <= 1
    if copy.exists():
        with open_scratch(copy) as dataset:
            assert dataset.state == "closed"
        shutil.rmtree(copy)
    assert not copy.with_name(".copy.partial").exists()


def make_datasets(folder):
    """Make one dataset of each kind, and return their folders."""
    makers = {
        "unbounded": (scratchwriter, SIZES),
        "bounded": (scratchwriter, SIZES | {"t": 3}),
        "theirs": (ome_writers, SIZES),
    }
    for name, (library, sizes) in makers.items():
        more = {"format": "scratch"} if library is ome_writers else {}
        made = library.AcquisitionSettings(
            root_path=str(folder / name),
            dimensions=library.dims_from_standard_axes(sizes),
            dtype="uint16",
            **more,
        )
        with (create_stream if not more else ome_writers.create_stream)(made) as stream:
            for i in range(7):
                frame = np.full((4, 5), i, "uint16")
                stream.append(frame, frame_metadata={"i": i, "name": "a"})
            stream.skip(frames=2)
            stream.append(frame)
    staged = [make_staged(folder / name) for name in CAN_STAGE]
    return [*(folder / name for name in makers), *staged]


def make_staged(folder):
    """Make a dataset whose writer was killed while frames were staged."""
    code = """
        import os, sys, numpy as np
        from scratchwriter import *
        from scratchwriter._writing import policy
        policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = 4096
        policy._ALLOCATED_NBYTES = 0  # else the files are long
        dims = dims_from_standard_axes({"t": None, "p": 2, "y": 16, "x": 16})
        stream = create_stream(AcquisitionSettings(
            root_path=sys.argv[1], dimensions=dims, dtype="uint16",
            format=ScratchFormat(disk_io="direct", max_staging_bytes=1),
        ))
        for i in range(41):
            stream.append(np.full((16, 16), i, "uint16"), frame_metadata={"i": i})
        os._exit(9)
    """
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), str(folder)]
    assert subprocess.run(program).returncode == 9
    return folder


# ------------------------------------------------------------------------- damage

# One change of one file, in words that JSON can hold:
#   {"file": name, "cut": n}, {"file": name, "append": hex}, {"file": name, "remove": true},
#   {"file": name, "put": [offset, hex]}, {"file": name, "replace": [text, text]},
#   {"file": name, "json": [[key, ...], value]}, {"file": name, "become": kind}


def spoil(folder, damage):
    """Apply a change to a file of a dataset."""
    path = folder / damage["file"]
    data = bytearray(path.read_bytes()) if path.is_file() else bytearray()
    if "cut" in damage:
        path.write_bytes(data[: damage["cut"]])
    elif "append" in damage:
        path.write_bytes(data + bytes.fromhex(damage["append"]))
    elif "put" in damage:
        offset, text = damage["put"]
        new = bytes.fromhex(text)
        data[offset : offset + len(new)] = new
        path.write_bytes(data)
    elif "replace" in damage:
        old, new = (text.encode("utf-8", "surrogatepass") for text in damage["replace"])
        path.write_bytes(bytes(data).replace(old, new, 1))
    elif "json" in damage:
        keys, value = damage["json"]
        at = fields = json.loads(data)
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        path.write_text(json.dumps(fields))
    elif "become" in damage:
        path.unlink()
        BECOME[damage["become"]](path)
    else:
        path.unlink()


BECOME = {
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to a neighbour": lambda path: path.symlink_to("progress.bin"),
    "folder": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}
