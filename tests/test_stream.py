"""The life of an acquisition, and random ones against the naive model."""

import contextlib
import gc
import inspect
import json
import subprocess
import sys
import tempfile
import textwrap
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import scratchwriter
from reference import Model, read_lines, read_plain
from scratchwriter import (
    AcquisitionSettings,
    Dimension,
    OMEStream,
    ScratchFormat,
    ScratchStream,
    create_stream,
)
from scratchwriter._writing.storage import Storage
from scratchwriter.plan import make_plan

SIZES = {"t": 3, "y": 4, "x": 5}


def test_the_public_names_are_there():
    for name in scratchwriter.__all__:
        assert getattr(scratchwriter, name) is not None
    assert OMEStream is ScratchStream


def test_a_stream_is_a_context_manager_and_closes_also_after_an_error(
    make_settings, frames
):
    with create_stream(make_settings(SIZES)) as stream:
        assert isinstance(stream, ScratchStream)
        assert not stream.closed
    assert stream.closed
    with contextlib.suppress(KeyError), create_stream(make_settings(SIZES)) as stream:
        raise KeyError
    assert stream.closed


def test_close_again_has_no_effect(make_settings, place, frames):
    stream = create_stream(make_settings(SIZES, **place))
    stream.append(frames[0])
    stream.close()
    stream.close()
    np.testing.assert_array_equal(stream.arrays[0][0], frames[0])


def test_frames_written_counts_appends_and_skips(make_settings, frames):
    with create_stream(make_settings(SIZES)) as stream:
        assert stream.frames_written == 0
        stream.append(frames[0])
        stream.skip(frames=2)
        assert stream.frames_written == 3
    assert stream.frames_written == 3


def test_the_settings_are_copied(make_settings, tmp_path):
    settings = make_settings(SIZES, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        before = settings.model_copy(deep=True)
        settings.dtype = "uint8"
        settings.dimensions[0].count = 99
        assert stream.settings == before
        stream.settings.dtype = "float32"
        assert stream.settings == before
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["dtype"] == "uint16"


@pytest.mark.parametrize(
    "fields",
    [{}, {"dtype": "uint16"}, {"dimensions": [Dimension(name=n, count=4) for n in "yx"]}],
)
def test_settings_that_lack_something_make_no_stream(fields):
    with pytest.raises(ValueError, match="settings"):
        create_stream(AcquisitionSettings(**fields))


@pytest.mark.parametrize(
    "dtype", ["object", "S4", "U4", "V8", "datetime64[s]", [("a", "u1")]]
)
def test_a_dtype_without_pixels_makes_no_stream(make_settings, tmp_path, dtype):
    with pytest.raises(ValueError, match="dtype"):
        create_stream(make_settings(SIZES, dtype=dtype, root_path=str(tmp_path / "d")))
    assert list(tmp_path.iterdir()) == []


def test_metadata_of_other_formats_has_no_effect(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        stream.update_metadata({"a": 1})
        assert stream.get_metadata() is None


def test_global_metadata_is_accepted_in_memory(make_settings):
    with create_stream(make_settings(SIZES)) as stream:
        stream.set_global_metadata("mine", {"a": 1})
        for name in ("", "ome", "ome_writers"):
            with pytest.raises(ValueError, match="namespace"):
                stream.set_global_metadata(name, {})
    stream.set_global_metadata("mine", {"a": 2})


def test_it_says_what_it_is(make_settings, tmp_path):
    stream = create_stream(make_settings(SIZES, root_path=str(tmp_path / "d")))
    assert "open, 0 frames" in repr(stream)
    assert str(tmp_path / "d") in repr(stream)
    stream.close()
    assert "closed" in repr(stream)


def test_a_collected_stream_finishes_its_dataset_and_warns_if_it_had_frames(
    make_settings, tmp_path, frames
):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    stream = create_stream(settings)
    stream.append(frames[0])
    stream.append(frames[1])
    with pytest.warns(UserWarning, match="close"):
        del stream
    assert (tmp_path / "d" / "pos_0.dat").stat().st_size == 80
    np.testing.assert_array_equal(read_plain(tmp_path / "d")[0], frames[:2])


def test_keeping_only_append_keeps_the_stream_running(make_settings, tmp_path, frames):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    append = create_stream(settings).append
    append(frames[0])
    append(frames[1])
    with pytest.warns(UserWarning, match="close"):
        del append
    np.testing.assert_array_equal(read_plain(tmp_path / "d")[0], frames[:2])


class Counting(OMEStream):
    count = 0

    def append(self, frame, *, frame_metadata=None):
        self.count += 1
        super().append(frame, frame_metadata=frame_metadata)


def test_append_is_a_method_with_a_signature_that_can_be_overridden(make_settings, frames):
    with create_stream(make_settings(SIZES)) as stream:
        parameters = inspect.signature(stream.append).parameters
        assert list(parameters) == ["frame", "frame_metadata", "timestamp_ns", "frame_id"]
        assert stream.append.__doc__
        OMEStream.append(stream, frames[1])
        assert stream.frames_written == 1
    settings = make_settings(SIZES)
    storage = Storage(settings, make_plan(settings))
    storage.begin()
    with Counting(storage) as stream:
        stream.append(frames[2], frame_metadata={"a": 1})
        assert (stream.count, stream.frames_written) == (1, 1)


def test_a_collected_stream_finishes_its_dataset_also_where_warnings_are_errors(tmp_path):
    run = _run_in(tmp_path, "del streams[:]", count=1, warnings="error")
    assert "garbage collected" in run.stderr
    assert (tmp_path / "0" / "pos_0.dat").stat().st_size == 40


def test_at_exit_one_stream_that_cannot_be_finished_does_not_stop_the_others(tmp_path):
    code = "shutil.rmtree(folders[1]); shutil.rmtree(folders[4])"
    run = _run_in(tmp_path, code, count=6, warnings="default")
    assert run.returncode == 0
    assert run.stderr.count("The dataset was removed") == 2
    for i in (0, 2, 3, 5):
        assert (tmp_path / str(i) / "pos_0.dat").stat().st_size == 40


def _run_in(folder, code, *, count, warnings):
    code = f"""
    import shutil, numpy as np
    from pathlib import Path
    from scratchwriter import *
    dims = dims_from_standard_axes({{"t": None, "y": 4, "x": 5}})
    folders = [Path({str(folder)!r}) / str(i) for i in range({count})]
    streams = [create_stream(AcquisitionSettings(
        dimensions=dims, dtype="uint16", root_path=folder)) for folder in folders]
    for i in range({count}):
        streams[i].append(np.ones((4, 5), "uint16"))
    {code}
    """
    return subprocess.run(
        [sys.executable, "-W", warnings, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )


def test_settings_of_somebody_else_are_refused_with_a_remedy():
    for settings in ({}, None, object()):
        with pytest.raises(TypeError, match="model_validate"):
            create_stream(settings)


def test_a_collected_stream_without_frames_is_quiet(make_settings, place):
    stream = create_stream(make_settings(SIZES, **place))
    del stream


def test_a_collected_stream_gives_its_memory_back_at_once(make_settings):
    gc.disable()
    try:
        stream = create_stream(make_settings({"t": None, "y": 4, "x": 5}))
        storage = weakref.ref(stream._storage)
        stream.close()
        del stream
        assert storage() is None
    finally:
        gc.enable()


def test_exit_with_open_streams_is_quiet_and_finishes_them(tmp_path):
    code = f"""
    import numpy as np
    from scratchwriter import *
    dims = dims_from_standard_axes({{"t": None, "y": 4, "x": 5}})
    stream = create_stream(AcquisitionSettings(
        dimensions=dims, dtype="uint16", root_path={str(tmp_path / "d")!r}))
    for i in range(5):
        stream.append(np.full((4, 5), i, "uint16"), frame_metadata={{"i": i}})
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
    )
    assert (run.stderr, run.returncode) == ("", 0)
    assert (tmp_path / "d" / "pos_0.dat").stat().st_size == 5 * 40
    assert [line["i"] for line in read_lines(tmp_path / "d")] == list(range(5))


def test_the_example_of_the_docstring_works():
    import doctest

    assert doctest.testmod(scratchwriter.stream).attempted
    assert doctest.testmod(scratchwriter.stream).failed == 0
    assert doctest.testmod(scratchwriter.dimensions).failed == 0


# ------------------------------------------------------- against the naive model


@st.composite
def acquisitions(draw):
    """Random fields of AcquisitionSettings and what to do with the stream."""
    names = draw(st.lists(st.sampled_from("tcz"), unique=True, max_size=3))
    dims = [(name, draw(st.integers(1, 3))) for name in names]
    unbounded = bool(dims) and draw(st.booleans())
    if unbounded:
        dims[0] = (dims[0][0], None)
    if draw(st.booleans()):
        place = draw(st.integers(1 if unbounded else 0, len(dims)))
        dims.insert(place, ("p", draw(st.integers(1, 3))))
    dims += [("y", draw(st.integers(1, 3))), ("x", draw(st.integers(1, 3)))]
    order = draw(st.sampled_from(["ome", "acquisition", "list"]))
    if order == "list":
        order = [*draw(st.permutations([name for name, _ in dims[:-2]])), "y", "x"]
    steps = draw(
        st.lists(
            st.one_of(
                st.tuples(st.just("append"), st.integers(1, 4)),
                st.tuples(st.just("skip"), st.integers(1, 9)),
                st.tuples(st.just("bad"), st.sampled_from(["shape", "dtype"])),
            ),
            max_size=12,
        )
    )
    return {
        "dims": dims,
        "order": order,
        "dtype": draw(st.sampled_from(["uint8", "int16", "float32", "bool", "complex64"])),
        "mode": draw(st.sampled_from(["memory", "disk", "spilled", "limited"])),
        "steps": steps,
    }


@hypothesis_settings(max_examples=150)
@given(acquisitions())
@example(
    {
        "dims": [("t", None), ("p", 2), ("c", 2), ("y", 1), ("x", 1)],
        "order": ["c", "p", "t", "y", "x"],
        "dtype": "uint8",
        "mode": "limited",
        "steps": [("append", 3), ("skip", 9), ("bad", "shape"), ("append", 4)],
    }
)
def test_random_acquisitions_hold_what_the_model_holds(acquisition):
    with tempfile.TemporaryDirectory() as temporary:
        _run(acquisition, Path(temporary))


def _run(acquisition, folder):
    fmt, root_path = ScratchFormat(spill_dir=str(folder)), ""
    if acquisition["mode"] == "disk":
        root_path = str(folder / "data")
    settings = AcquisitionSettings(
        root_path=root_path,
        dimensions=[
            Dimension(name=name, count=count, type="position" if name == "p" else None)
            for name, count in acquisition["dims"]
        ],
        dtype=acquisition["dtype"],
        storage_order=acquisition["order"],
        format=fmt,
    )
    model = Model(settings)
    if acquisition["mode"] == "spilled":
        settings.format.max_memory_bytes = 0
    elif acquisition["mode"] == "limited":
        bytes_at_first = sum(model.array(p).nbytes for p in range(model.num_positions))
        settings.format.max_memory_bytes = 3 * bytes_at_first
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with create_stream(settings) as stream:
            lines = _drive(stream, model, acquisition["steps"])
    _check(stream, model)
    if stream.path is not None:
        for position, array in enumerate(read_plain(stream.path)):
            expected = model.array(position, order="file")
            np.testing.assert_array_equal(array, expected, strict=True)
            size = (stream.path / f"pos_{position}.dat").stat().st_size
            assert size == expected.nbytes
        assert read_lines(stream.path) == lines


def _drive(stream, model, steps):
    rng = np.random.default_rng(0)
    number, lines = 0, []
    for action, value in steps:
        left = model.left()
        if action == "bad":
            shape = (7, 7) if value == "shape" else model.frame_shape
            frame = np.zeros(shape, model.dtype if value == "shape" else "complex128")
            with pytest.raises(ValueError, match=value):
                stream.append(frame)
        elif action == "skip":
            if left is not None and value > left:
                with pytest.raises(IndexError, match="exceed"):
                    stream.skip(frames=value)
            else:
                stream.skip(frames=value)
                model.skip(value)
        else:
            for _ in range(value):
                frame = rng.integers(0, 100, model.frame_shape).astype(model.dtype)
                number += 1
                if model.left() == 0:
                    with pytest.raises(IndexError, match="exceed"):
                        stream.append(frame, frame_metadata={"n": number})
                    continue
                stream.append(frame, frame_metadata={"n": number})
                model.append(frame)
                position, index = model.visited[-1]
                where = [index[name] for name in model.file_names]
                lines.append({"_pos": position, "_idx": where, "n": number})
        assert stream.frames_written == len(model.visited)
        _check(stream, model)
    return lines


def _check(stream, model):
    assert len(stream.arrays) == model.num_positions
    for position, array in enumerate(stream.arrays):
        expected = model.array(position)
        assert array.shape == expected.shape
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(array), expected, strict=True)
