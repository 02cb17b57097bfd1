"""Random lives of an acquisition, step by step, against the naive model.

SCRATCHWRITER_LIVES=2000 pytest tests/test_model.py    for more of them
"""

import json
import os
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from marks import PORTABLE, STAGED
from reference import Model, read_plain
from scratchwriter import (
    AcquisitionSettings,
    ScratchFormat,
    create_stream,
    dims_from_standard_axes,
    open_scratch,
)
from scratchwriter._files.repair import find_faults, recover
from scratchwriter._writing import policy

LIVES = int(os.environ.get("SCRATCHWRITER_LIVES", "60"))
SHAPE = (30, 40)
PLACES = ["memory", "disk", "durable", "spilling", "staged", "staged durable"]
PLACES += ["staged spilling"]
if PORTABLE:  # it does not stage
    PLACES = [place for place in PLACES if "staged" not in place]
BAD = [
    (np.zeros((4, 3), "uint16"), None, ValueError),
    (np.zeros((1, *SHAPE), "uint16"), None, ValueError),
    (np.zeros(SHAPE, "float32"), None, ValueError),
    (np.full(SHAPE, None), None, ValueError),
    (None, None, ValueError),
    (np.zeros(SHAPE, "uint16"), 3, TypeError),
]
is_open = precondition(lambda self: not self.stream.closed)


class Life(RuleBasedStateMachine):
    """Everything that a stream can go through, in any order."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life_"))
        self.lines = []  # frame metadata
        self.skipped = []  # frame numbers
        self.global_metadata = {}
        self.copies = 0

    @initialize(
        count=st.sampled_from([None, 4, 30]),
        positions=st.integers(1, 3),
        channels=st.integers(1, 3),
        order=st.sampled_from(["acquisition", ["c", "t", "p", "y", "x"]]),
        place=st.sampled_from(PLACES),
    )
    def begin(self, count, positions, channels, order, place):
        in_memory = place == "memory" or "spilling" in place
        if "staged" in place:  # which no other order is
            order = "acquisition"
        is_asked = "staged" in place
        self.is_staged = is_asked or STAGED
        made = AcquisitionSettings(
            root_path="" if in_memory else str(self.folder / "data"),
            dimensions=dims_from_standard_axes(
                {"t": count, "p": positions, "c": channels, "y": 30, "x": 40}
            ),
            dtype="uint16",
            storage_order=order,
            format=ScratchFormat(
                max_memory_bytes=60_000 if "spilling" in place else 1 << 30,
                spill_dir=str(self.folder),
                durability="system" if "durable" in place else "process",
                sync_interval_s=0.01,
                disk_io="direct" if is_asked else "auto",
                max_staging_bytes=1 if is_asked else None,
            ),
        )
        self.model = Model(made)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of spilling
            self.stream = create_stream(made)

    def teardown(self):
        if hasattr(self, "stream"):
            self.stream.close()
            del self.stream
        shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------- steps

    @is_open
    @rule(value=st.integers(1, 60_000), with_metadata=st.booleans())
    def append(self, value, with_metadata):
        frame = np.arange(value, value + 1200, dtype="uint16").reshape(SHAPE)
        metadata = {"value": value} if with_metadata else None
        if self.model.left() == 0:
            with pytest.raises(IndexError, match="exceed"):
                self.stream.append(frame, frame_metadata=metadata)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.stream.append(frame, frame_metadata=metadata)
        self.model.append(frame)
        if with_metadata:
            position, index = self.model.visited[-1]
            file_index = [index[name] for name in self.model.file_names]
            self.lines.append({"_pos": position, "_idx": file_index, **metadata})

    @is_open
    @rule(bad=st.sampled_from(BAD))
    def append_what_is_refused(self, bad):
        frame, metadata, error = bad
        with pytest.raises(error):
            self.stream.append(frame, frame_metadata=metadata)

    @is_open
    @rule(frames=st.integers(1, 9))
    def skip(self, frames):
        left = self.model.left()
        if left is not None and frames > left:
            with pytest.raises(IndexError, match="exceed"):
                self.stream.skip(frames=frames)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            self.stream.skip(frames=frames)
        number = len(self.model.visited)
        self.skipped += range(number, number + frames)
        self.model.skip(frames)

    @rule(value=st.integers())
    def set_global_metadata(self, value):
        self.stream.set_global_metadata("here", {"value": value})
        self.global_metadata = {"here": {"value": value}}

    @rule()
    def flush(self):
        self.stream.flush()

    @rule()
    def close(self):
        self.stream.close()

    @is_open
    @rule()
    def look_from_outside(self):
        if self.is_published():
            with open_scratch(self.stream.path) as dataset:
                assert dataset.state == "recording"
                self.check_dataset(dataset)

    @rule()
    def die(self):
        """Look at what a kill would leave just now: what the files are for others."""
        if not self.is_published() or (self.is_staged and not self.stream.closed):
            return  # no copy of what is staged is of one moment: see test_crash.py
        self.copies += 1
        copy = self.folder / f"copy {self.copies}"
        shutil.copytree(self.stream.path, copy)
        with open_scratch(copy) as dataset:
            assert dataset.state == ("closed" if self.stream.closed else "killed")
            self.check_dataset(dataset)
        recover(copy)
        with open_scratch(copy) as dataset:
            assert dataset.state == "closed"
            assert find_faults(dataset.source) == []
            self.check_dataset(dataset)
        shutil.rmtree(copy)

    # ------------------------------------------------------------------------- checks

    @invariant()
    def the_stream_is_as_the_model(self):
        assert self.stream.frames_written == len(self.model.visited)
        assert [i for ranges in self.stream.skipped for i in ranges] == self.skipped
        self.check_arrays(self.stream.arrays)

    def is_published(self):
        path = self.stream.path
        return path is not None and (path / "manifest.json").exists()

    def check_arrays(self, arrays):
        assert len(arrays) == self.model.num_positions
        for position, array in enumerate(arrays):
            np.testing.assert_array_equal(array[...], self.model.array(position))

    def check_dataset(self, dataset):
        assert dataset.frames_written == len(self.model.visited)
        self.check_arrays(dataset.arrays)
        assert list(dataset.frame_metadata) == self.lines
        assert [i for ranges in dataset.skipped for i in ranges] == self.skipped
        assert dataset.global_metadata == self.global_metadata
        if self.is_staged and not self.stream.closed:
            self.stream.flush()  # what is staged comes into the files
        for position, array in enumerate(read_plain(dataset.path)):
            expected = self.model.array(position, order="file")
            np.testing.assert_array_equal(array, expected)
        manifest = json.loads((dataset.path / "manifest.json").read_text())
        assert tuple(manifest["position_dims"][0][:-2]) == tuple(self.model.file_names)
        for position in range(self.model.num_positions):
            written = np.zeros(dataset.arrays[position].shape[:-2], bool)
            for at, index in self.model.frames:
                if at == position:
                    written[tuple(dict(index)[n] for n in self.model.storage_names)] = True
            np.testing.assert_array_equal(dataset.written(position), written)


def test_every_life_goes_as_the_model_says(monkeypatch):
    # Such that slots of the staging are used again.
    monkeypatch.setattr(policy, "_PIECE_NBYTES", 4096)
    monkeypatch.setattr(policy, "_LEAST_PIECE_NBYTES", 4096)
    monkeypatch.setattr(policy, "_KEEP_SLOTS_S", 0.001)  # given back, and made again
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=LIVES,
            stateful_step_count=30,
            suppress_health_check=list(HealthCheck),
        ),
    )
