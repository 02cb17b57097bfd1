"""The Python in the documents runs as it stands there, and prints what it says."""

import ctypes
import re
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sybil")
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.layout import (
    STAGING,
    STAGING_HEADER,
    STAGING_MAGIC,
    STAGING_SLOT,
    STAGING_SLOTS_NBYTES,
)

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    block
    for page in PAGES
    # They are not in a wheel. Recipes are the examples, which have tests of their own.
    if page.exists() and page.name != "recipes.md"
    for block in Sybil([PythonCodeBlockParser()]).parse(page)
]
SIZE = 512
CHANNELS = {"c": ["DAPI", "FITC"]}
NEEDS = {  # what a block needs besides this library, by what it says
    "dataset.export(": "zarr",
    "ome_writers import": "ome_writers",
    "to_xarray": "xarray",
    "Client(": "distributed",
    "numba": "numba",
    "ffi.": "cffi",
    "sequence": "pymmcore_plus",
    "useq": "useq",
}
# Whether what a block has made is right, by its page and the name in the block.
IS_RIGHT = {
    ("README.md", "frames_written"): lambda count: count == 20,
    ("format.md", "newest"): lambda steps: (
        steps[..., 0, 0].tolist() == [[0, 7], [8, 9], [10, 0]]
    ),
    ("format.md", "index"): lambda index: index == {"t": 4, "c": 0},
    ("format.md", "skipped"): lambda ranges: ranges.tolist() == [[4, 7]],
    ("format.md", "records"): lambda records: records["frame_id"].max() == 10,
    ("frames_in.md", "is_whole"): lambda is_whole: is_whole,
}


def settings(sizes, **fields):
    dimensions = dims_from_standard_axes({**sizes, "y": SIZE, "x": SIZE})
    return AcquisitionSettings(dimensions=dimensions, dtype="uint16", **fields)


def record(path, sizes, count):
    with create_stream(settings(sizes, root_path=path)) as stream:
        for i in range(count):
            frame = np.full((SIZE, SIZE), i, "uint16")
            stream.append(frame, frame_metadata={"exposure_ms": 5.0})


def record_ring(path):
    """Record a dataset that has all the files that docs/format.md speaks of."""
    ring = ScratchFormat(keep_last=3)
    sizes = {"t": None, "c": 2}
    with create_stream(settings(sizes, root_path=path, format=ring)) as stream:
        for i in range(4):
            stream.append(np.full((SIZE, SIZE), i, "uint16"), timestamp_ns=i, frame_id=i)
        stream.skip(frames=3)
        for i in range(7, 11):
            stream.append(np.full((SIZE, SIZE), i, "uint16"), timestamp_ns=i, frame_id=i)


def stage(path):
    """Make a staging.bin with two slots, of which one holds bytes of a position."""
    header, slots = np.zeros(1, STAGING_HEADER), np.zeros(2, STAGING_SLOT)
    header["magic"], header["piece_nbytes"] = STAGING_MAGIC, 4096
    header["most_slots"] = 2
    slots[1] = 2, 0, 8192, 8192 + 4096, 0
    table = header.tobytes() + slots.tobytes()
    Path(path, STAGING).write_bytes(
        table + bytes(STAGING_SLOTS_NBYTES - len(table) + 4096) + bytes(range(256)) * 16
    )


class Camera:
    def read_into(self, frame):
        frame[:] = 7
        return 123  # when that was


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What blocks speak of: datasets in the working folder, and names."""
    monkeypatch.chdir(tmp_path)
    record("positions", {"t": 10, "p": ["A1", "A2"], **CHANNELS}, 40)
    record_ring("root_path")
    stage("root_path")
    frames = np.full((3, SIZE, SIZE), 7, "uint16")
    endless = settings({"t": None, "p": ["A1", "A2"], **CHANNELS})
    with create_stream(endless) as stream, open_scratch("positions") as dataset:
        stream.extend(frames)
        names = {
            "AcquisitionSettings": AcquisitionSettings,
            "ScratchFormat": ScratchFormat,
            "create_stream": create_stream,
            "ctypes": ctypes,
            "dims_from_standard_axes": dims_from_standard_axes,
            "np": np,
            "settings": settings({"t": None}),
            "stream": stream,
            "dataset": dataset,
            "camera": Camera(),
            "frame": frames[0],
            "frames": frames,
            "buffer": frames[0].tobytes(),
            "grabber_buffer": bytes(SIZE * (SIZE + 32) * 2),
            "height": SIZE,
            "width": SIZE,
            "pitch_nbytes": (SIZE + 32) * 2,
            "metadata": [{"n": i} for i in range(3)],
            "times": [1, 2, 3],
            "ids": [4, 5, 6],
            "t": 7,
            "n": 8,
            "frames_per_step": 4,
            "callback": lambda update: None,
            "show": lambda update: None,
        }
        yield names
        names.clear()  # blocks keep it, and with it what they made


@pytest.fixture
def microscope(names, monkeypatch):
    """The demo camera as `core`, and a `sequence` for it."""
    import useq
    from mm_test_adapters import device_adapter_path
    from pymmcore_plus import CMMCorePlus

    monkeypatch.setenv("MICROMANAGER_PATH", device_adapter_path())
    core = CMMCorePlus.instance()
    core.loadDevice("Camera", "DemoCamera", "DCam")
    core.initializeAllDevices()
    core.setCameraDevice("Camera")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setExposure(1)
    # A slow machine takes them out later: all of them fit.
    core.setCircularBufferMemoryFootprint(600)
    sequence = useq.MDASequence(time_plan={"interval": 0, "loops": 3})
    names |= {"core": core, "sequence": sequence}
    yield
    while core.mda.is_running():
        time.sleep(0.01)
    core.unloadAllDevices()


@pytest.fixture
def set_up(names, request, monkeypatch):
    """Make what a block speaks of but does not make itself, or skip it."""

    def set_up(source):
        for text, module in NEEDS.items():
            if text in source:
                pytest.importorskip(module)
        for path, length in (("my_dataset", 10), ("first_run", None)):
            if f'root_path="{path}"' not in source:
                record(path, {"t": length, **CHANNELS}, 20)
        if "sequence" in source:
            request.getfixturevalue("microscope")
        if "install()" in source:
            from scratchwriter.bridges import ome_writers

            request.addfinalizer(ome_writers.uninstall)
        if "Client(" in source:
            import distributed

            from test_xarray import local_cluster

            stack = ExitStack()
            request.addfinalizer(stack.close)
            theirs = stack.enter_context(local_cluster(n_workers=1, processes=False))
            client = distributed.Client(theirs.scheduler.address)
            monkeypatch.setattr(distributed, "Client", lambda address: client)
        if "numba" in source:
            names["numba"] = pytest.importorskip("numba")
        if "ffi." in source:
            names["ffi"] = pytest.importorskip("cffi").FFI()

    return set_up


@pytest.mark.parametrize(
    "block", BLOCKS, ids=lambda block: f"{Path(block.path).name}:{block.line}"
)
def test_a_block_runs_and_prints_what_it_says(block, names, set_up, capsys):
    source, page = str(block.parsed), Path(block.path).name
    set_up(source)
    block.namespace = names
    block.evaluate()
    said = re.findall(r"^ *print\(.*\)  # (.*)$", source, re.MULTILINE)
    printed = capsys.readouterr().out.splitlines()
    for line, comment in zip(printed, said, strict=True):
        assert re.match(rf"{re.escape(line)}(\W|$)", comment)
    for (its_page, name), is_right in IS_RIGHT.items():
        if its_page == page and makes(source, name):
            assert is_right(names[name])


def makes(source, name):
    return re.search(rf"^(.*, )?{name}(, .*)? = ", source, re.MULTILINE) is not None


@pytest.mark.skipif(not BLOCKS, reason="documents are not in a wheel")
def test_what_is_checked_is_in_the_documents():
    for page, name in IS_RIGHT:
        assert any(makes(b.parsed, name) for b in BLOCKS if Path(b.path).name == page)
