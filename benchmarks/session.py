"""Running writers side by side: each repetition of each in a fresh process, in turn."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from mmap import MADV_HUGEPAGE, MAP_ANONYMOUS, MAP_PRIVATE, mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from native import HERE, compile_c
from writers import LIMIT, NUM_SOURCES, Work

MIB = 2**20


@dataclass(frozen=True)
class Camera:
    """How frames come.

    Attributes
    ----------
    rate_hz : float
        Frames per second; 0: as fast as they can be stored.
    batch : int
        How many frames are timed together; for frames so small that reading the clock
        would take longer than to store them.
    """

    work: Work
    rate_hz: float = 0
    batch: int = 1

    def __post_init__(self) -> None:
        if self.batch > 1 and (self.rate_hz or self.batch % NUM_SOURCES):
            raise ValueError(f"batch: a multiple of {NUM_SOURCES}, and only at rate 0")
        if self.work.frames < 1 or self.work.frames % self.batch:
            raise ValueError("frames: at least one, and a multiple of the batch")

    @property
    def period_ns(self) -> int:
        return round(1e9 / self.rate_hz) if self.rate_hz else 0

    def __str__(self) -> str:
        rate = f"{self.rate_hz:,.0f} Hz" if self.rate_hz else "as fast as it can"
        timed = f", in batches of {self.batch:,}" if self.batch > 1 else ""
        return f"{self.work}, {rate}, {self.work.frames:,} frames{timed}"


@dataclass(frozen=True)
class Run:
    """One repetition of one writer: when each append began and returned."""

    camera: Camera
    starts_ns: npt.NDArray[np.int64]
    stops_ns: npt.NDArray[np.int64]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def inside_us(self) -> npt.NDArray[np.float64]:
        """Time inside append; the mean of a batch if there are batches."""
        times_ns: npt.NDArray[np.int64] = self.stops_ns - self.starts_ns
        return times_ns / (self.camera.batch * 1e3)

    @property
    def since_due_us(self) -> npt.NDArray[np.float64]:
        """Time from the moment that a frame was due until its append returned."""
        due_ns = self.facts["t0_ns"] + self.camera.period_ns * np.arange(len(self.stops_ns))
        times_ns: npt.NDArray[np.int64] = self.stops_ns - due_ns
        return times_ns / 1e3

    @property
    def seconds(self) -> float:
        """From the first append to the end of the last."""
        return int(self.stops_ns[-1] - self.starts_ns[0]) / 1e9

    @property
    def frames_per_s(self) -> float:
        return self.camera.work.frames / self.seconds

    @property
    def gb_per_s(self) -> float:
        return self.frames_per_s * self.camera.work.frame_nbytes / 1e9

    @property
    def gb_per_s_until_closed(self) -> float:
        took_ns = int(self.facts["closed_ns"]) - int(self.starts_ns[0])
        return self.camera.work.nbytes / took_ns

    @property
    def kernel_percent(self) -> float:
        """Time in the kernel of the writer's process, of one core."""
        return 100 * float(self.facts["kernel_s"]) / self.seconds


# -------------------------------------------------------------------------- memory


class Ballast:
    """Memory of this process that has been touched, and is set free when it is wanted.

    The first touch of a page of a virtual machine may take its host a hundred times
    longer than any later one, and not only in the life of the machine: a host may take
    back what has been free for a second (free page reporting). So memory is touched and
    held here, and set free while a writer takes memory: a little ahead of it, so that
    what the writer gets was in use a moment ago. All this happens outside the process
    that is measured, in a few microseconds per millisecond.
    """

    CHUNK_NBYTES = 32 * MIB
    AHEAD_NBYTES = 512 * MIB
    POLL_S = 0.001

    def __init__(self) -> None:
        self._chunks: list[mmap] = []

    def fill(self, nbytes: int) -> None:
        """Hold memory for a writer that will need so much, or half of what there is."""
        most_nbytes = len(self._chunks) * self.CHUNK_NBYTES + _available_nbytes() // 2
        # Writers take some more than their frames, ahead of them: until the end.
        wanted = min(nbytes + 2 * self.AHEAD_NBYTES, most_nbytes) // self.CHUNK_NBYTES
        del self._chunks[wanted:]
        while len(self._chunks) < wanted:
            chunk = mmap(-1, self.CHUNK_NBYTES, flags=MAP_PRIVATE | MAP_ANONYMOUS)
            chunk.madvise(MADV_HUGEPAGE)
            np.frombuffer(chunk, np.uint8)[:] = 1
            self._chunks.append(chunk)

    def feed(self, process: subprocess.Popen[str], timeout_s: float) -> None:
        """Let a process begin, and keep as much memory free until it ends."""
        assert process.stdin is not None
        level_nbytes = _free_nbytes() + self.AHEAD_NBYTES
        self._keep_free(level_nbytes)
        process.stdin.write("go\n")
        process.stdin.flush()
        deadline = time.monotonic() + timeout_s
        while process.poll() is None:
            # What has come back is in use again only if it is wanted at once.
            level_nbytes = max(level_nbytes, _free_nbytes())
            self._keep_free(level_nbytes)
            time.sleep(self.POLL_S)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{process.args!r} took longer than {timeout_s:.0f} s")

    def _keep_free(self, level_nbytes: int) -> None:
        missing = -(-(level_nbytes - _free_nbytes()) // self.CHUNK_NBYTES)
        if missing > 0:
            del self._chunks[-missing:]


def memory_nbytes() -> int:
    """Return how much the machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def _free_nbytes() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGESIZE")


def _available_nbytes() -> int:
    return _meminfo_nbytes("MemAvailable")


def _meminfo_nbytes(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/meminfo")


# ------------------------------------------------------------------- the whole machine


@dataclass(frozen=True)
class Sample:
    """What the machine said at one moment."""

    time_ns: int
    kernel_s: float  # of all programs, and of the kernel's own threads
    cached_nbytes: int

    @classmethod
    def take(cls) -> Sample:
        _, _, system, _, _, irq, softirq, _ = _cpu_ticks()
        kernel_s = (system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        return cls(time.perf_counter_ns(), kernel_s, _meminfo_nbytes("Cached"))


class Watch:
    """Samples of the machine, from now until the end of the block.

    A writer's process does not pay for all that the kernel does for it: pages of files are
    written back and given back by threads of the kernel.
    """

    PERIOD_S = 0.1

    def __init__(self) -> None:
        self._samples: list[Sample] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Watch:
        self._samples.append(Sample.take())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._samples.append(Sample.take())

    def _run(self) -> None:
        while not self._is_over.wait(self.PERIOD_S):
            self._samples.append(Sample.take())

    def facts(self, start_ns: int, stop_ns: int) -> dict[str, float]:
        """Return what happened between two moments, to the sample before and after."""
        times_ns = [sample.time_ns for sample in self._samples]
        first = bisect_right(times_ns, start_ns) - 1
        last = bisect_left(times_ns, stop_ns)
        before, after = self._samples[first], self._samples[last]
        seconds = (after.time_ns - before.time_ns) / 1e9
        most_cached_nbytes = max(s.cached_nbytes for s in self._samples[first : last + 1])
        return {
            "machine_kernel_percent": 100 * (after.kernel_s - before.kernel_s) / seconds,
            "page_cache_nbytes": most_cached_nbytes - self._samples[0].cached_nbytes,
        }


# ------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Variant:
    """One way to reach the limit; see limit.c."""

    method: str = "populate"
    loop_helps: bool = False
    streaming_stores: bool = False
    early_writeback: bool = False

    def __str__(self) -> str:
        flags = {
            "loop helps": self.loop_helps,
            "streaming stores": self.streaming_stores,
            "early writeback": self.early_writeback,
        }
        return ", ".join([self.method, *(name for name, on in flags.items() if on)])


# The best way for recordings that are longer than memory.
STAGED = Variant("staged", streaming_stores=True)


class Session:
    """Everything that runs need, and leaves nothing behind.

    Parameters
    ----------
    folder : pathlib.Path
        Where files are made, and removed again.
    patience_s : float
        How long to wait, before each run, for a machine that is busy with other things.
    """

    def __init__(self, folder: Path, patience_s: float) -> None:
        self.folder = folder
        self._patience_s = patience_s
        self._ballast = Ballast()
        self._limit_program = compile_c("limit.c", folder)

    def run(self, camera: Camera, writer: str, variant: Variant | None = None) -> Run:
        """Run a writer once; `variant` is that of the limit."""
        work = camera.work
        grows = not work.bounded and not work.on_disk
        # Growth by copying holds the old and the new at once.
        self._ballast.fill(int(work.nbytes * (3 if grows else 1.1)))
        wait_until_quiet(self._patience_s)
        with _fresh_folder(self.folder, work) as folder:
            out = folder / "times"
            target = folder / "target"
            target.mkdir()
            if writer == LIMIT:
                assert variant is not None
                command = self._limit_command(camera, variant, target, out)
            else:
                command = _paced_command(camera, writer, target, out)
            with Watch() as watch:
                facts = self._run_process(command, _timeout_s(camera))
            if facts["wrong"]:
                raise RuntimeError(f"{writer} stored wrong frames: {camera}")
            starts_ns, stops_ns = np.fromfile(out, np.int64).reshape(2, -1)
        facts |= watch.facts(int(starts_ns[0]), int(stops_ns[-1]))
        return Run(camera, starts_ns, stops_ns, facts)

    def _run_process(self, command: Sequence[str], timeout_s: float) -> dict[str, Any]:
        stolen_s = _stolen_s()
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            assert process.stdout is not None
            if process.stdout.readline() == "ready\n":
                self._ballast.feed(process, timeout_s)
            output, errors = process.communicate(timeout=timeout_s)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            raise RuntimeError(f"{command} failed:\n{errors}")
        return {**json.loads(output), "stolen_s": _stolen_s() - stolen_s}

    def _limit_command(
        self, camera: Camera, variant: Variant, target: Path, out: Path
    ) -> list[str]:
        work = camera.work
        window_nbytes = (256 if work.on_disk else 64) * MIB  # as scratchwriter's
        if variant.method == STAGED.method:
            window_nbytes = 512 * MIB  # the staging file; as scratchwriter's
        arguments = [
            variant.method,
            int(variant.loop_helps),
            int(variant.streaming_stores),
            int(variant.early_writeback),
            work.frame_nbytes,
            work.frames,
            camera.batch,
            camera.period_ns,
            window_nbytes,
            target / "frames.dat" if work.on_disk else "",
            out,
        ]
        return [str(self._limit_program), *map(str, arguments)]


def _paced_command(camera: Camera, writer: str, target: Path, out: Path) -> list[str]:
    job = {
        "work": asdict(camera.work),
        "batch": camera.batch,
        "period_ns": camera.period_ns,
        "writer": writer,
        "folder": str(target),
        "out": str(out),
    }
    return [sys.executable, str(HERE / "paced.py"), json.dumps(job)]


def _timeout_s(camera: Camera) -> float:
    nominal_s = camera.work.frames / camera.rate_hz if camera.rate_hz else 0
    return 60 + 5 * nominal_s + camera.work.nbytes / 20e6


@contextmanager
def _fresh_folder(parent: Path, work: Work) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield Path(folder)
    if work.on_disk:
        os.sync()  # the next writer does not wait for what this one left


def _cpu_ticks() -> list[int]:
    """Return what all cores did: user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(field) for field in Path("/proc/stat").read_text().split()[1:9]]


def _stolen_s() -> float:
    """Time for which the host gave this machine's processors to others."""
    return _cpu_ticks()[7] / os.sysconf("SC_CLK_TCK")


def wait_until_quiet(patience_s: float) -> None:
    """Wait for others to leave the cores alone, for so long at the most."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        before = _cpu_ticks()
        time.sleep(0.3)
        spent = np.subtract(_cpu_ticks(), before)
        if spent[3] + spent[4] > 0.9 * spent.sum():
            return
        progress("waiting for other programs to leave the cores alone")


# -------------------------------------------------------------------- side by side


def run_in_turn(
    session: Session,
    camera: Camera,
    writers: Sequence[str],
    repetitions: int,
    variant: Variant | None = None,
) -> tuple[dict[str, list[Run]], Variant | None]:
    """Run writers in alternating repetitions; return the runs, and the limit's variant.

    It is looked for if it is not given.
    """
    if LIMIT in writers and variant is None:
        variant = find_limit(session, camera)
    runs: dict[str, list[Run]] = {writer: [] for writer in writers}
    for repetition in range(repetitions):
        first = repetition % len(writers)  # nobody is always behind the same one
        for writer in [*writers[first:], *writers[:first]]:
            progress(f"{camera}: repetition {repetition + 1}, {writer}")
            runs[writer].append(session.run(camera, writer, variant))
    progress("")
    return runs, variant


def find_limit(session: Session, camera: Camera, repetitions: int = 3) -> Variant:
    """Return the variant of the limit that is best at this, by short trials in turn."""
    trial = _shortened(camera, seconds=1, nbytes=1.5e9)
    costs: dict[Variant, list[float]] = {v: [] for v in _variants(camera.work)}
    for _ in range(repetitions):
        for variant, found in costs.items():
            progress(f"{camera}: looking for the limit, {variant}")
            run = session.run(trial, LIMIT, variant)
            found.append(
                float(np.percentile(run.inside_us, 99.9))
                if camera.rate_hz
                else -run.frames_per_s
            )
    return min(costs, key=lambda variant: float(np.median(costs[variant])))


def _variants(work: Work) -> list[Variant]:
    copies = (True, False) if work.frame_nbytes >= 4096 else (False,)
    methods = ("populate", "zeros") if work.on_disk else ("populate",)
    # More than the kernel lets be dirty: then only what is written back in time counts.
    long = work.on_disk and work.nbytes > _available_nbytes() // 5
    return [
        *(
            Variant(method, loop_helps, streaming, long)
            for method in methods
            for loop_helps in (False, True)
            for streaming in copies
        ),
        *([Variant("pwrite", early_writeback=long)] if work.on_disk else []),
        *([STAGED] if long else []),
    ]


def _shortened(camera: Camera, seconds: float, nbytes: float) -> Camera:
    work = camera.work
    frames = int(nbytes // work.frame_nbytes)
    if camera.rate_hz:
        frames = min(frames, int(seconds * camera.rate_hz))
    frames = max(frames // camera.batch, 1) * camera.batch
    short = {**asdict(work), "frames": min(frames, work.frames)}
    return Camera(Work(**short), camera.rate_hz, camera.batch)


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """Add what all comparisons have."""
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--folder", "--dir", type=Path, help="on a disk, for files")
    parser.add_argument(
        "--patience",
        type=float,
        default=10,
        metavar="SECONDS",
        help="how long to wait, before each run, for a machine that is busy otherwise",
    )
    parser.add_argument(
        "--into",
        type=Path,
        metavar="FILE",
        help="put the tables between the marks in this Markdown file",
    )


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected HEIGHTxWIDTH, like 512x512")
    return int(found[1]), int(found[2])


def progress(text: str) -> None:
    """Say what is being done, in a terminal only."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------- machine


@contextmanager
def open_session(folder: Path | None, patience_s: float) -> Iterator[Session]:
    """Make a folder to work in, on a disk, and remove it afterwards."""
    parent = folder or Path(tempfile.gettempdir())
    if file_system(parent) in ("tmpfs", "ramfs"):
        raise SystemExit(f"{parent} is kept in memory: give a --folder on a disk")
    # So that a `timeout` leaves neither files nor processes behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="scratchwriter-bench-", dir=parent) as made:
        yield Session(Path(made), patience_s)


def file_system(folder: Path) -> str:
    command = ["df", "--output=fstype", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@cache
def device_rate_gb_per_s(folder: Path, nbytes: int = 4 * 2**30) -> float:
    """Write past the page cache, in order, and return how fast the device takes it."""
    block = mmap(-1, 8 * MIB)
    block.write(np.random.default_rng(0).bytes(len(block)))
    path = folder / "device"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_DIRECT)
    try:
        os.posix_fallocate(file, 0, nbytes)
        start = time.perf_counter()
        for offset in range(0, nbytes, len(block)):
            os.pwrite(file, block, offset)
        os.fsync(file)
        return nbytes / (time.perf_counter() - start) / 1e9
    finally:
        os.close(file)
        path.unlink()


def describe_machine(folder: Path) -> dict[str, Any]:
    """Return what somebody who compares the numbers has to know."""
    cpu = "unknown"
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if "model name" in line]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory_nbytes() / 2**30, 1),
        "kernel": os.uname().release,
        "file_system": file_system(folder),
        "free_disk_gb": round(shutil.disk_usage(folder).free / 1e9),
        "python": sys.version.split()[0],
        "load_average": os.getloadavg()[0],
    }
