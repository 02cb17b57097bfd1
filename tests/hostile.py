"""Everything a reader does with a dataset, and datasets to spoil."""

import io
import json
import os
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import ome_writers

import scratchwriter
from scratchwriter import DatasetError, create_stream, open_scratch
from scratchwriter._files.repair import find_faults
from scratchwriter.cli import main

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
            return "\n".join(find_faults(dataset.source)) or None
    except DatasetError as error:
        return str(error)


def run_commands(folder):
    """Run what only reads; it answers with a line, and no traceback."""
    for command in ("info", "verify"):
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            assert main([command, str(folder)]) in (0, 1)
        assert err.getvalue().count("\n") <= 1


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
    return [folder / name for name in makers]


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
