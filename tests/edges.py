"""What the tests of edges share: places, lines, and processes that may crash or hang.

SCRATCHWRITER_LINES=1 pytest tests/test_interrupts.py    at each line, not at one in seven
"""

import atexit
import dis
import faulthandler
import functools
import importlib
import inspect
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path

import numpy as np

from marks import PORTABLE
from reference import read_plain
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.repair import find_faults
from scratchwriter._writing import policy

HERE = Path(__file__).parent
EVERY = int(os.environ.get("SCRATCHWRITER_LINES", "7"))
# A test that passes takes seconds, on a slow machine minutes.
_HANG_S = int(os.environ.get("SCRATCHWRITER_HANG_S", "600"))

# ------------------------------------------------------------------------------- places

LENGTH, KEEP = 12, 3
PLACES = {
    "memory": {},
    "memory, bounded": {"t": LENGTH},
    "memory, ring": {"keep_last": KEEP},
    "disk": {"on_disk": True},
    "disk, bounded": {"on_disk": True, "t": LENGTH},
    "disk, ring": {"on_disk": True, "keep_last": KEEP},
    "left memory": {"memory_frames": 4},
    "spilled, bounded": {"t": LENGTH, "memory_frames": 0},
}
if not PORTABLE:
    PLACES |= {
        "disk, staged": {"on_disk": True, "is_staged": True},
        "disk, bounded, staged": {"on_disk": True, "t": LENGTH, "is_staged": True},
        "left memory, staged": {"memory_frames": 4, "is_staged": True},
    }
PIECE_NBYTES = 8192


def settings_of(place, folder, *, size=64, overwrite=False, **format_fields):
    """Settings for a place, with `folder` for the dataset, or for temporary ones."""
    what = PLACES[place]
    if "memory_frames" in what:
        format_fields["max_memory_bytes"] = max(what["memory_frames"] * 2 * size**2, 1)
    if what.get("is_staged"):
        format_fields |= {"disk_io": "direct", "max_staging_bytes": 8 << 20}
    return AcquisitionSettings(
        root_path=str(folder) if "on_disk" in what else "",
        dimensions=dims_from_standard_axes({"t": what.get("t"), "y": size, "x": size}),
        dtype="uint16",
        overwrite=overwrite,
        format=ScratchFormat(
            keep_last=what.get("keep_last"), spill_dir=str(folder), **format_fields
        ),
    )


def frame_of(number, size=64):
    return np.full((size, size), number % 60_000 + 1, "uint16")


def check_frames(array, frames):
    """Check the first frames; of a ring, the newest."""
    first = max(frames - KEEP, 0) if len(array) == KEEP else 0
    for number in range(first, frames):
        assert (array[number - first] == number % 60_000 + 1).all(), number


def check_stream(stream, frames):
    """Check a stream that is closed, and its files if it has any."""
    assert stream.closed
    assert stream.frames_written == frames
    check_frames(stream.arrays[0], frames)
    if stream.path is not None:
        check_dataset(stream.path, frames)


def check_dataset(folder, frames):
    with open_scratch(folder) as dataset:
        assert dataset.state == "closed"
        assert find_faults(dataset.source) == []
        assert dataset.frames_written == frames
        check_frames(dataset.arrays[0], frames)
        is_ring = dataset.settings.format.keep_last is not None
    (plain,) = read_plain(folder)
    assert is_ring or plain.nbytes == (folder / "pos_0.dat").stat().st_size


# ---------------------------------------------------------------------- what is in use


def descriptors():
    """What each open descriptor of this process is."""
    found = {}
    for path in Path("/proc/self/fd").iterdir():
        try:
            found[int(path.name)] = str(path.readlink())
        except FileNotFoundError:  # the one that reads this folder
            continue
    return found


def mappings(name=""):
    """Lines of the map of this process that have a name in them."""
    return [
        line for line in Path("/proc/self/maps").read_text().splitlines() if name in line
    ]


def mapped_nbytes():
    """Addresses that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def num_threads():
    """Threads of this process, also those that Python does not know of."""
    return len(list(Path("/proc/self/task").iterdir()))


# -------------------------------------------------------------------------------- lines


@functools.cache
def calls_of(code):
    """Offsets of the instructions that call something."""
    names = ("CALL", "CALL_FUNCTION_EX", "CALL_KW")
    return {i.offset for i in dis.get_instructions(code) if i.opname in names}


class AtLine:
    """Acts just before a thread runs its n-th line of this library. A context manager.

    What follows a call in the middle of a line counts as a line, too: there Python looks
    for signals, and has not stored yet what the call has returned.

    `lines` has each one that was run: file, number, and which instruction. The end of a
    `with` block is one, too, though Python lets no signal in between its body and its
    `__exit__`.
    """

    def __init__(self, at, act):
        self.lines, self._at, self._act = [], at, act
        self._has_called = set()  # identities of frames whose last instruction was a call

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *exc_info):
        sys.settrace(None)

    @property
    def where(self):
        return "{}:{} ({})".format(*self.lines[self._at - 1])

    @property
    def has_acted(self):
        return len(self.lines) >= self._at > 0

    def trace(self, frame, event, arg):
        if "/scratchwriter/" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "line" or (event == "opcode" and id(frame) in self._has_called):
            self._has_called.discard(id(frame))
            name = Path(frame.f_code.co_filename).name
            self.lines.append((name, frame.f_lineno, frame.f_lasti))
            if len(self.lines) == self._at:
                self._act()
        if event == "opcode" and frame.f_lasti in calls_of(frame.f_code):
            self._has_called.add(id(frame))
        if event == "return":
            self._has_called.discard(id(frame))
        return self.trace


def lines_of(call, every=EVERY):
    """Numbers for `AtLine`: when each line that a call runs comes first, and last.

    If they are many, one in `every` of them.
    """
    with AtLine(0, None) as recorded:
        call()
    first, last = {}, {}
    for number, line in enumerate(recorded.lines, 1):
        first.setdefault(line, number)
        last[line] = number
    numbers = sorted({*first.values(), *last.values()})
    return numbers if len(numbers) < 40 else numbers[::every]


class AtLineOfThread:
    """As `AtLine`, of the first thread of a name that begins while it is entered."""

    def __init__(self, name, at, act):
        self.at_line, self._name, self._has_begun = AtLine(at, act), name, False

    def __enter__(self):
        threading.settrace(self._trace)
        return self.at_line

    def __exit__(self, *exc_info):
        threading.settrace(None)

    def _trace(self, frame, event, arg):
        if threading.current_thread().name == self._name and not self._has_begun:
            self._has_begun = True
            sys.settrace(self.at_line.trace)
        return None


# ---------------------------------------------------------------------------- processes


def serve():
    """For each line of JSON fork a process that calls a function, or wait for one."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            answer = os.waitstatus_to_exitcode(os.waitpid(job["wait"], 0)[1])
        else:
            module = importlib.import_module(job["module"])
            answer = os.fork()
            if answer == 0:
                _begin(job["log"])
                getattr(module, job["name"])(*job["args"])
                return  # ends as any interpreter does
        print(answer, flush=True)


def _begin(log):
    for fd, path in ((0, os.devnull), (1, log), (2, log)):
        opened = os.open(path, os.O_RDWR | os.O_APPEND)
        os.dup2(opened, fd)
        os.close(opened)
    faulthandler.enable()
    # A hang is an error that shows where each thread is.
    faulthandler.dump_traceback_later(_HANG_S, exit=True)
    warnings.filterwarnings("ignore", "The arrays need", UserWarning)
    warnings.filterwarnings(
        "ignore", "The disk of", UserWarning
    )  # waited for: so few slots
    # Hundreds of streams: 256 MB ahead of each take time, to be allocated and to be cut.
    policy.file_window_nbytes = lambda folder, needed_nbytes: 1 << 20
    # So small that some are written, and used again.
    policy._PIECE_NBYTES = policy._LEAST_PIECE_NBYTES = PIECE_NBYTES


class _Server:
    def __init__(self, preload):
        paths = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if preload:
            env["LD_PRELOAD"] = preload
        command = [sys.executable, "-c", "import edges; edges.serve()"]
        self._process = subprocess.Popen(
            command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        atexit.register(self._end)

    def ask(self, **job):
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def _end(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


_server = functools.cache(_Server)  # one for each library that is preloaded


class Child:
    """A process that calls a function of a test's module."""

    def __init__(self, function, *args, preload=None):
        fd, log = tempfile.mkstemp(prefix="scratchwriter_child_")
        os.close(fd)
        self._log, self._server = Path(log), _server(preload)
        module, name = Path(inspect.getfile(function)).stem, function.__name__
        args = [str(arg) if isinstance(arg, Path) else arg for arg in args]
        self.pid = self._server.ask(module=module, name=name, args=args, log=log)

    def wait(self):
        """Return how it ended, and what it said."""
        code = self._server.ask(wait=self.pid)
        text = self._log.read_text()
        self._log.unlink()
        return code, text

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


def in_child(function, *args, preload=None):
    """Call a function in a process of its own, which has to end well."""
    code, text = Child(function, *args, preload=preload).wait()
    assert code == 0, f"ended with {code}: {text[-4000:]}"
