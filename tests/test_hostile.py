"""Datasets that somebody has spoiled, by accident or not: one exception, no harm.

SCRATCHWRITER_MUTATIONS=100000 pytest tests/test_hostile.py    for more of them
"""

import json
import os
import shutil
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hostile import (
    BECOME,
    CAN_STAGE,
    make_datasets,
    read_everything,
    recover_it,
    run_commands,
    spoil,
)
from scratchwriter import DatasetError, create_stream, open_scratch

MUTATIONS = int(os.environ.get("SCRATCHWRITER_MUTATIONS", "600"))
CORPUS = json.loads((Path(__file__).parent / "hostile.json").read_text())
KINDS = ["unbounded", "bounded", "theirs", *CAN_STAGE]
# Where something is in staging.bin: its header, table, bytes in the files, slots
STAGING_OFFSETS = [*range(0, 320, 8), 1 << 20, (1 << 20) + 8, 2 << 20]
FILES = [
    *("manifest.json", "progress.bin", "skips.bin", "frame_metadata.jsonl", "pos_0.dat"),
    *("append_times.bin", "staging.bin"),
]

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="pipes, links"),
    pytest.mark.filterwarnings("ignore:.*ome-writers did not close"),
    pytest.mark.filterwarnings("ignore:.*machine was restarted"),
]


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Folders of whole datasets by kind, with what restores them."""
    made = {}
    for folder in make_datasets(tmp_path_factory.mktemp("datasets")):
        made[folder.name] = folder, {p.name: p.read_bytes() for p in folder.iterdir()}
    return made


def read_spoiled(datasets, kind, damages):
    """Return what is wrong with a dataset after it was spoiled; it is whole again."""
    folder, files = datasets[kind]
    try:
        for damage in damages:
            spoil(folder, damage)
        fault = read_everything(folder)
        run_commands(folder)
        if kind in CAN_STAGE:
            recover_it(folder)
    finally:
        for path in folder.iterdir():
            shutil.rmtree(
                path
            ) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    if fault is not None:
        assert str(folder) in fault
        assert len(fault) < 2000
    return fault


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_dataset_has_no_fault(datasets, kind):
    assert read_spoiled(datasets, kind, []) is None


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case["what"])
def test_known_attacks_are_refused_by_the_name_of_the_file(datasets, case):
    tracemalloc.start()
    try:
        fault = read_spoiled(datasets, case["kind"], case["damages"])
        _, peak_nbytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert case["damages"][0]["file"] in fault
    assert peak_nbytes < 50e6


@pytest.mark.parametrize("become", BECOME)
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["unbounded", "theirs", *CAN_STAGE])
def test_what_is_no_regular_file_is_neither_read_nor_waited_for(
    datasets, kind, name, become
):
    if name not in datasets[kind][1]:
        pytest.skip("it has no such file")
    assert name in read_spoiled(datasets, kind, [{"file": name, "become": become}])


NUMBERS = [0, -1, 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30), 1e308]
VALUES = [*NUMBERS, None, True, "", "1e9", "..", "/etc", "\ud800", [], {}, [[]], [1] * 99]
JSON = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner)
    ),
    max_leaves=4,
)
SMALL_BYTES = st.binary(max_size=16).map(bytes.hex)
EDGES = st.sampled_from([n.to_bytes(8, "little", signed=n < 0).hex() for n in NUMBERS[:6]])


def paths_in(value, path=()):
    """All paths into JSON."""
    if path:
        yield list(path)
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items if isinstance(value, dict | list) else []:
        if isinstance(inner, dict | list):
            yield from paths_in(inner, (*path, key))
        else:
            yield [*path, key]


@st.composite
def damages_of(draw, files):
    manifest = json.loads(files["manifest.json"])
    name = draw(st.sampled_from(sorted(files)))
    nbytes = len(files[name])
    offset = st.integers(0, nbytes) | st.integers(0, min(nbytes, 80))
    if name == "staging.bin":
        offset |= st.sampled_from(STAGING_OFFSETS)
    kinds = [
        offset.map(lambda n: {"cut": n}),
        SMALL_BYTES.map(lambda text: {"append": text}),
        st.tuples(offset, SMALL_BYTES | EDGES).map(lambda put: {"put": list(put)}),
        st.tuples(offset.map(lambda n: n // 8 * 8), EDGES).map(
            lambda put: {"put": list(put)}
        ),
        st.just({"remove": True}),
        st.sampled_from(sorted(BECOME)).map(lambda kind: {"become": kind}),
    ]
    if name == "manifest.json":
        paths = st.sampled_from(list(paths_in(manifest)))
        kinds = [st.tuples(paths, JSON).map(lambda new: {"json": list(new)})] * 8 + kinds
    if name == "frame_metadata.jsonl":
        old = st.sampled_from(["0", "1", "_pos", "_idx", "[", "]", "}", '"', "\n", ": "])
        new = JSON.map(json.dumps) | st.text(max_size=3)
        kinds += [st.tuples(old, new).map(lambda pair: {"replace": list(pair)})] * 4
    return {"file": name} | draw(st.one_of(kinds))


@pytest.mark.parametrize("kind", KINDS)
def test_random_damage_is_one_exception_or_none(datasets, kind):
    _, files = datasets[kind]

    @settings(
        max_examples=-(-MUTATIONS // len(KINDS)),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damage=damages_of(files), more=st.none() | damages_of(files))
    @example(damage={"file": "manifest.json", "cut": 0}, more=None)
    def spoil_and_read(damage, more):
        damages = [damage]
        if more is not None and more["file"] != damage["file"]:
            damages.append(more)
        read_spoiled(datasets, kind, damages)

    spoil_and_read()


# ------------------------------------------------------------------- what would be huge


def test_a_line_without_an_end_is_refused_and_not_read(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    create_stream(settings).close()
    os.truncate(tmp_path / "data" / "frame_metadata.jsonl", 1 << 29)
    with (tmp_path / "data" / "frame_metadata.jsonl").open("ab") as file:
        file.write(b"\n")
    with (
        open_scratch(tmp_path / "data") as dataset,
        pytest.raises(DatasetError, match=r"a line has more than 268435456 bytes"),
    ):
        list(dataset.frame_metadata)


def test_a_file_of_skips_as_large_as_a_disk_is_not_read(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        stream.skip(frames=2)
    os.truncate(tmp_path / "data" / "skips.bin", 1 << 40)
    with open_scratch(tmp_path / "data") as dataset:
        tracemalloc.start()
        with pytest.raises(DatasetError, match=r"skips\.bin.*order"):
            _ = dataset.skipped
        peak_nbytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_nbytes < 1e6


def test_a_manifest_that_no_reader_would_take_is_not_written(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        with pytest.raises(ValueError, match=r"the limit is 16,777,216"):
            stream.set_global_metadata("mine", {"text": "x" * (1 << 24)})
        stream.set_global_metadata("mine", {"text": "x" * 1000})
    with open_scratch(tmp_path / "data") as dataset:
        assert dataset.global_metadata == {"mine": {"text": "x" * 1000}}
