"""Metadata of frames and acquisitions as JSON."""

import dataclasses
import datetime
import decimal
import enum
import itertools
import json
import math
import uuid
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import read_lines
from scratchwriter import create_stream
from scratchwriter._files import metadata as metadata_module
from scratchwriter._files.metadata import (
    RESERVED_KEYS,
    FrameMetadata,
    encode_frame_metadata,
    encode_global_metadata,
    plain_metadata,
)
from scratchwriter._native.convert import plain_text


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: object
    y: object


class Model(pydantic.BaseModel):
    at: datetime.date


NATURAL = [
    (1, 1),
    (2.5, 2.5),
    ("µ\n", "µ\n"),
    (None, None),
    (True, True),
    ([1, [2]], [1, [2]]),
    ({"a": {"b": 1}}, {"a": {"b": 1}}),
    (MappingProxyType({"a": 1}), {"a": 1}),
    ((1, 2), [1, 2]),
    (2**80, 2**80),
    (np.int16(-3), -3),
    (np.float32(0.5), 0.5),
    (np.longdouble(0.5), 0.5),
    (np.bool_(True), True),
    (np.str_("a"), "a"),
    (np.arange(4).reshape(2, 2), [[0, 1], [2, 3]]),
    (np.array(7), 7),
    ([np.int64(1)], [1]),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    (datetime.datetime(2026, 1, 2, 3, 4, 5), "2026-01-02T03:04:05"),
    (np.datetime64("2026-01-02"), "2026-01-02"),
    (PurePosixPath("/a/b"), "/a/b"),
    (Color.RED, "red"),
    (math.inf, math.inf),
    (1j, "1j"),
    (np.array([1j]), ["1j"]),
    ({2, 1}, [1, 2]),
    (frozenset({"a"}), ["a"]),
    (b"text", "text"),
    (uuid.UUID(int=7), str(uuid.UUID(int=7))),
    (decimal.Decimal("1.50"), "1.50"),
    (datetime.timedelta(milliseconds=1500), "PT1.5S"),
    (np.timedelta64(5, "ns"), "5 nanoseconds"),
    (np.array([[1, 2]], "m8[ms]"), [["1 milliseconds", "2 milliseconds"]]),
    (Point(1, np.float32(0.5)), {"x": 1, "y": 0.5}),
    (Model(at=datetime.date(2026, 1, 2)), {"at": "2026-01-02"}),
    ([Point(Color.RED, {3})], [{"x": "red", "y": [3]}]),
    (np.ma.array([1, 2], mask=[False, True]), [1, None]),
    (deque([1]), [1]),
]


@pytest.mark.parametrize(("value", "expected"), NATURAL, ids=lambda v: repr(v)[:30])
def test_values_become_their_natural_json(value, expected):
    body = encode_frame_metadata({"key": value})
    assert json.loads(body) == {"key": expected}
    assert b"\n" not in body
    assert body.isascii()


class Name(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("metadata", "text"),
    [
        ({"a": 1, "b": 2.5, "c": "d", "e": True, "f": None}, "ascii"),
        ({}, "ascii"),
        ({"a": "\x7f\n"}, "ascii"),
        ({"µm": 1, "b": "c"}, "unicode"),
        ({"a": "µm", "b": "c"}, "unicode"),
        ({1: 1}, None),
        ({Name("a"): 1}, None),
        ({"a": Name("b")}, None),
        ({"a": np.float64(1)}, None),  # derives from float
        ({"a": [1]}, None),
        ({"a": 1, "b": b""}, None),
        ({"a": 1 << 63}, None),
    ],
)
def test_plain_values_are_known_by_their_exact_types(metadata, text):
    assert plain_text(metadata) == text


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii")).filter(lambda key: key not in RESERVED_KEYS),
        st.text(st.characters(codec="ascii")) | st.floats() | st.integers() | st.booleans(),
    )
)
def test_ascii_is_written_as_json_has_it(metadata):
    body = encode_frame_metadata(metadata)
    expected = json.dumps(metadata)
    assert body.isascii()
    assert b"\n" not in body
    assert json.dumps(json.loads(body or b"{}")) == expected


def test_nan_stays_nan():
    assert math.isnan(json.loads(encode_frame_metadata({"key": math.nan}))["key"])


class Key(enum.Enum):
    MINE = "mine"
    POSITION = "_pos"


@pytest.mark.parametrize(
    ("key", "expected"),
    [(Key.MINE, "mine"), (1, "1"), (None, "null"), (True, "true"), (2.5, "2.5")],
)
def test_names_that_are_no_text_become_that_of_json(key, expected):
    assert json.loads(encode_frame_metadata({key: 1, "b": 2})) == {expected: 1, "b": 2}


@pytest.mark.parametrize(
    "key", [Key.POSITION, "_pos", "_idx", b"_pos", PurePosixPath("_idx"), (1, 2)]
)
def test_names_that_are_ours_or_none_are_left_out_with_a_warning(key):
    with pytest.warns(UserWarning, match="not stored"):
        body = encode_frame_metadata({key: 1, "b": 2})
    assert json.loads(body) == {"b": 2}


def test_the_same_name_in_two_guises_is_stored_once():
    body = encode_frame_metadata({1: "a", "1": "b"})
    assert body.count(b'"1"') == 1


def test_lone_surrogates_survive():
    assert json.loads(encode_frame_metadata({"name": "a\ud800"})) == {"name": "a\ud800"}


@pytest.mark.parametrize("metadata", [{"x": int}, {"_pos": 1}, {"y": 1, "z": object()}])
def test_a_warning_points_at_the_append(make_settings, metadata):
    frame = np.zeros((4, 5), "uint16")
    stream = create_stream(make_settings({"t": 3, "y": 4, "x": 5}))
    with pytest.warns(UserWarning, match="not stored") as caught:
        stream.append(frame, frame_metadata=metadata)
    stream.close()
    assert [w.filename for w in caught] == [__file__]


class Raises(np.ndarray):
    """An array that cannot be a list, like that of some library for units."""

    def __new__(cls):
        return np.zeros(2).view(cls)

    def tolist(self):
        raise NotImplementedError("not here")


class Lazy(Mapping):
    """A mapping that finds its values when it is asked."""

    def __len__(self):
        return 2

    def __iter__(self):
        return iter(["there", "gone"])

    def __getitem__(self, key):
        if key == "gone":
            raise OSError("the file is closed")
        return 1


class NamesRaise(Lazy):
    def __iter__(self):
        raise OSError("the file is closed")


def test_a_mapping_that_cannot_give_its_names_is_left_out_with_a_warning():
    with pytest.warns(UserWarning, match=r"names cannot be read \(OSError: the file is"):
        assert encode_frame_metadata(NamesRaise()) == b"{}"


def test_of_a_mapping_that_cannot_give_a_value_the_others_are_stored():
    with pytest.warns(UserWarning, match=r"'gone' is not stored.*the file is closed"):
        assert json.loads(encode_frame_metadata(Lazy())) == {"there": 1}


CIRCLE = []
CIRCLE.append(CIRCLE)
NOT_JSON = [
    object(),
    {"deep": [object()]},
    b"\xff",
    {1: {(1, 2): 3}},
    CIRCLE,
    lambda: 0,
    int,
    itertools.count(),
    Raises(),
    Lazy(),
    [Lazy()],
]


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda v: type(v).__name__)
def test_a_value_without_json_is_left_out_with_a_warning_that_names_the_key(value):
    with pytest.warns(UserWarning, match="'bad key'") as caught:
        body = encode_frame_metadata({"a": 1, "bad key": value, "z": np.int8(2)})
    assert len(caught) == 1
    assert json.loads(body) == {"a": 1, "z": 2}


@pytest.mark.parametrize("key", ["_pos", "_idx"])
def test_reserved_keys_are_ours(key):
    with pytest.warns(UserWarning, match=key):
        body = encode_frame_metadata({key: 7, "a": 1})
    assert json.loads(body) == {"a": 1}


def test_the_callers_dict_is_not_changed():
    metadata = {"_pos": 7, "a": object()}
    before = dict(metadata)
    with pytest.warns(UserWarning, match="not stored"):
        encode_frame_metadata(metadata)
    assert metadata == before


def test_nothing_is_an_empty_line():
    assert encode_frame_metadata({}) == b""


@pytest.mark.parametrize("namespace", ["", "ome", "ome_writers", 3, None])
def test_some_namespaces_are_refused(namespace):
    with pytest.raises(ValueError, match="namespace"):
        encode_global_metadata(namespace, {})


@pytest.mark.parametrize("value", NOT_JSON, ids=lambda v: type(v).__name__)
def test_global_metadata_that_is_not_json_is_refused(value):
    with pytest.raises(TypeError, match="'mine'"):
        encode_global_metadata("mine", {"key": value})
    with pytest.raises(TypeError, match="mapping"):
        encode_global_metadata("mine", [1])


def test_lines_say_where_their_frame_is(make_settings, tmp_path, frames):
    sizes = {"t": 2, "p": ["a", "b"], "c": 2, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(tmp_path / "d"))) as stream:
        for i in range(8):
            if i == 3:
                stream.skip()
            elif i == 5:
                stream.append(frames[i])
            else:
                stream.append(frames[i], frame_metadata={"i": i, "_x": [i]})
    lines = read_lines(tmp_path / "d")
    assert [line["i"] for line in lines] == [0, 1, 2, 4, 6, 7]
    for line in lines:
        index = (line["_pos"], *line["_idx"])
        array = stream.arrays[line["_pos"]]
        np.testing.assert_array_equal(array[tuple(line["_idx"])], frames[line["i"]])
        assert index == (line["i"] // 2 % 2, line["i"] // 4, line["i"] % 2)
        assert line["_x"] == [line["i"]]


def test_a_frame_with_bad_metadata_is_kept_with_the_rest_of_its_line(
    make_settings, tmp_path, frames
):
    sizes = {"t": 2, "y": 4, "x": 5}
    with create_stream(make_settings(sizes, root_path=str(tmp_path / "d"))) as stream:
        with pytest.warns(UserWarning, match="'bad'"):
            stream.append(frames[0], frame_metadata={"bad": object(), "good": 1})
        with pytest.warns(UserWarning, match="'bad'"):
            stream.append(frames[1], frame_metadata={"bad": object()})
    assert read_lines(tmp_path / "d") == [
        {"_pos": 0, "_idx": [0], "good": 1},
        {"_pos": 0, "_idx": [1]},
    ]
    np.testing.assert_array_equal(stream.arrays[0], frames[:2])


def test_a_warning_turned_into_an_error_consumes_nothing(make_settings, place, frames):
    with create_stream(make_settings({"t": 2, "y": 4, "x": 5}, **place)) as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UserWarning):
                stream.append(frames[0], frame_metadata={"bad": object()})
        assert stream.frames_written == 0


def test_a_long_line_is_written_whole(make_settings, tmp_path, frames):
    value = "x" * 1_000_000
    settings = make_settings({"t": 2, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        stream.append(frames[0], frame_metadata={"a": 1})
        stream.append(frames[1], frame_metadata={"long": value})
    assert read_lines(tmp_path / "d")[1]["long"] == value


def test_lines_can_be_read_while_frames_come(make_settings, tmp_path, frames):
    settings = make_settings({"t": 3, "y": 4, "x": 5}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        for i in range(3):
            stream.append(frames[i], frame_metadata={"i": i})
            assert len(read_lines(tmp_path / "d")) == i + 1


def nest(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value", [10**5000, nest(250), nest(990)], ids=["digits", "deep", "deeper"]
)
def test_a_value_that_no_reader_could_read_is_left_out_with_a_warning(value):
    with pytest.warns(UserWarning, match="'odd' is not stored"):
        text = encode_frame_metadata({"odd": value, "b": 1})
    assert json.loads(text) == {"b": 1}
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        encode_global_metadata("mine", {"odd": value})


@pytest.mark.parametrize("value", [10**4000, nest(150), [[]] * 1000, "[{" * 1000])
def test_large_values_that_can_be_read_are_stored(value):
    assert json.loads(encode_frame_metadata({"a": value})) == {"a": value}


def test_whoever_asks_while_the_lines_are_being_found_gets_an_answer(tmp_path):
    """A signal handler does, say, on the thread that is reading."""
    path = tmp_path / "frame_metadata.jsonl"
    lines = [{"_pos": 0, "_idx": [i], "i": i} for i in range(5)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    answers, asks = [], itertools.count()

    def ask_again():
        if next(asks) < 3:
            answers.append((len(metadata), metadata.at(0, 3)))

    metadata = FrameMetadata(path, lambda position, index: True, ask_again)
    assert metadata.at(0, 4) == lines[4]
    assert list(metadata) == lines
    assert metadata.nbytes == path.stat().st_size
    assert answers == [(5, lines[3])] * 3


# ------------------------------------------------------------ metadata of other libraries


def plain(value, most_items=10):
    """Return the plain value, and what was left out."""
    left_out = {}
    return plain_metadata(value, most_items, left_out.__setitem__), left_out


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), JSON))
def test_what_is_json_stays_as_it_is(value):
    assert plain(value, 10_000) == (value, {})


class Model(pydantic.BaseModel):
    name: str = "a"
    data: Any = None


class Endless(dict):
    """A mapping without an end."""

    def __init__(self):
        super().__init__(a=self)


class Deeper(Mapping):
    """A mapping without an end, in which nothing comes twice."""

    def __len__(self):
        return 1

    def __iter__(self):
        return iter("a")

    def __getitem__(self, key):
        return Deeper()


class Node(pydantic.BaseModel):
    """A model within which it comes again, along two ways."""

    left: Any = None
    right: Any = None
    parent: Any = None


LEAF = {"left": None, "right": None}


def nodes():
    root = Node(left=Node(), right=Node())
    root.left.parent = root.right.parent = root
    return root


class Laser(pydantic.BaseModel):
    """A model with all that pydantic has for writing it."""

    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    power_mw: float = pydantic.Field(10.0, serialization_alias="laserPower")
    token: str = pydantic.Field("SECRET", exclude=True)
    wait: datetime.timedelta = datetime.timedelta(seconds=3)
    gain: Any = None

    @pydantic.field_serializer("wait")
    def _seconds(self, wait):
        return wait.total_seconds()

    @pydantic.computed_field
    def watts(self) -> float:
        return self.power_mw / 1000


@dataclasses.dataclass
class Roi:
    x: int
    mask: Any


class ItemsRaise(list):
    def __iter__(self):
        raise OSError("the file is closed")


class NameRaises:
    def __str__(self):
        raise OSError("the file is closed")


class SizeRaises(np.ndarray):
    def __new__(cls):
        return np.zeros(2).view(cls)

    @property
    def size(self):
        raise OSError("the file is closed")


@pytest.mark.parametrize(
    ("value", "expected", "left_out"),
    [
        ({"a": {"b": object(), "c": 1}}, {"a": {"c": 1}}, ["a.b"]),
        ({"a": np.arange(3)}, {"a": [0, 1, 2]}, []),
        ({"a": np.zeros(11), "b": np.float32(2)}, {"b": 2.0}, ["a"]),
        ({"a": [1, object()], "b": 2}, {"a": [1, None], "b": 2}, ["a"]),
        ({"a": [1, [2, {"c": object(), "d": 3}]]}, {"a": [1, [2, {"d": 3}]]}, ["a.c"]),
        ({"a": list(range(11)), "b": 2}, {"b": 2}, ["a"]),
        ({"a": [[[0] * 4] * 3]}, {}, ["a"]),
        ({"a": [0] * 10, "b": [[1]] * 10}, {"a": [0] * 10, "b": [[1]] * 10}, []),
        ({"a": np.zeros((2, 5))}, {"a": [[0.0] * 5] * 2}, []),
        ({"a": Model(data=np.arange(2))}, {"a": {"name": "a", "data": [0, 1]}}, []),
        (
            {"a": Model(data={"x": object(), "y": 1})},
            {"a": {"name": "a", "data": {"y": 1}}},
            ["a.data.x"],
        ),
        ({"a": Model(name="b")}, {"a": {"name": "b", "data": None}}, []),
        ({1: 2, None: 3, False: 4}, {"1": 2, "null": 3, "false": 4}, []),
        ({1: 2, "1": 3}, {"1": 2}, ["1"]),
        ({Key.MINE: 2}, {"mine": 2}, []),
        (
            {"a": nodes()},
            {"a": {"left": LEAF, "right": LEAF, "parent": None}},
            ["a.left.parent", "a.right.parent"],
        ),
        ({"a": Roi(1, object())}, {"a": {"x": 1}}, ["a.mask"]),
        ({"a": {3, 1, 2}, "b": {object()}}, {"a": [1, 2, 3], "b": [None]}, ["b"]),
        ({"a": 1 << 20_000, "b": 1 << 13_000}, {"b": 1 << 13_000}, ["a"]),
        ({"a": "[" * 500}, {"a": "[" * 500}, []),
        ([object()], [None], [""]),
        (object(), None, [""]),
        ({"a": Lazy(), "b": 1}, {"a": {"there": 1}, "b": 1}, ["a.gone"]),
        ({"a": NamesRaise(), "b": 1}, {"b": 1}, ["a"]),
        ({"a": ItemsRaise([1]), "b": 1}, {"b": 1}, ["a"]),
        ({"a": {NameRaises(): 1, "b": 1}}, {"a": {"b": 1}}, ["NameRaises"]),
        ({"a": SizeRaises(), "b": 1}, {"b": 1}, ["a"]),
        (NamesRaise(), None, [""]),
    ],
)
def test_only_what_json_cannot_hold_is_left_out(value, expected, left_out):
    found, left = plain(value)
    assert found == expected
    assert list(left) == left_out


def test_what_contains_itself_is_left_out_there():
    circle = [1]
    circle.append(circle)
    found, left_out = plain({"a": 1, "b": Endless(), "c": circle})
    assert found == {"a": 1, "b": {}, "c": [1, None]}
    assert left_out == {"b.a": "it contains itself", "c": "it contains itself"}


def test_a_mapping_without_an_end_is_cut_where_it_is_too_deep():
    found, left_out = plain({"a": 1, "b": Deeper()})
    assert found["a"] == 1
    (why,) = left_out.values()
    assert "levels deep" in why


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_of_models_that_are_not_finite_stay(value):
    found, left_out = plain({"a": Model(data={"gain": value}), "b": value})
    assert not left_out
    np.testing.assert_equal(found["a"]["data"], {"gain": value})
    np.testing.assert_equal(found["b"], value)


@pytest.mark.parametrize("gain", [None, 2, np.arange(3)])
def test_a_model_is_the_same_in_metadata_of_both_kinds(gain):
    model = Laser(gain=gain)
    found, left_out = plain({"laser": model})
    expected = {"laserPower": 10.0, "wait": 3.0, "watts": 0.01}
    expected["gain"] = gain.tolist() if isinstance(gain, np.ndarray) else gain
    assert found == {"laser": expected}
    assert not left_out
    if not isinstance(gain, np.ndarray):
        assert json.loads(encode_frame_metadata({"laser": model})) == found


def test_of_a_model_that_cannot_be_written_no_excluded_field_is():
    found, left_out = plain({"laser": Laser(gain=object())})
    assert "token" not in found["laser"]
    assert found["laser"]["laserPower"] == 10
    assert list(left_out) == ["laser.gain"]


@pytest.mark.parametrize("text", ["[" * 500, '"[{' * 500, "\\" * 7 + "[" * 300, "é[" * 300])
def test_brackets_in_a_text_are_no_depth(text):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        body = encode_frame_metadata({"a": [text], text: 1})
    assert json.loads(body) == {"a": [text], text: 1}
    assert json.loads(encode_global_metadata("a", {"b": text})) == {"b": text}


def test_a_text_longer_than_a_reader_takes_is_left_out(monkeypatch):
    monkeypatch.setattr(metadata_module, "_MOST_TEXT_NBYTES", 1000)
    with pytest.warns(UserWarning, match=r"'a' is not stored.*more than 1,000"):
        body = encode_frame_metadata({"a": ["b" * 1000], "c": 1})
    assert json.loads(body) == {"c": 1}
    with pytest.warns(UserWarning, match=r"'b' is not stored: .*together"):
        body = encode_frame_metadata({"a": ["b" * 600], "b": "c" * 600})
    assert json.loads(body) == {"a": ["b" * 600]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert encode_frame_metadata({"a": "b" * (1 << 20 | 1), "c": 1}) == b'{"c": 1}'


def test_what_nobody_knows_is_named_by_its_type():
    with pytest.warns(UserWarning, match="object has no natural JSON"):
        assert encode_frame_metadata({"a": object(), "b": 1}) == b'{"b": 1}'
    _, left_out = plain({"a": {"b": object()}})
    assert "object has no natural JSON" in left_out["a.b"]


def test_what_is_cut_is_shallow_enough_to_be_stored():
    found, _ = plain({"event": {"metadata": Deeper()}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode_frame_metadata(found)
