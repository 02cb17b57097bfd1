"""The page in the terminal."""

import re

import numpy as np
import pytest

from scratchwriter import create_stream, open_scratch
from scratchwriter.cli import main

pytest.importorskip("rich")


@pytest.fixture
def stream(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        yield stream


def rendered(page):
    from rich.console import Console

    console = Console(width=100)
    with console.capture() as capture:
        console.print(page)
    return capture.get()


def append(stream, n):
    for i in range(n):
        stream.append(np.full((4, 5), i, "uint16"), frame_id=2 * i)


def test_the_page_tells_how_a_recording_is_doing(stream):
    from scratchwriter._showing.monitor import Monitor

    now_s = [0.0]
    with open_scratch(stream.path) as dataset:
        monitor = Monitor(dataset, lambda: now_s[0])
        append(stream, 100)
        stream.skip(frames=20)
        stream.flush()
        now_s[0] = 2.0
        text = rendered(monitor.page())
    assert "recording" in text
    assert re.search(r"frames +120 ", text)
    assert re.search(r"rate +60 frames/s, ", text)
    assert re.search(r"skipped +20 ", text)
    assert re.search(r"dropped +99 ", text)
    assert re.search(r"disk left .* minutes at this rate", text)
    assert re.search(r"append +p50 [\d.]+ ", text)
    bars = re.findall(r"µs +█+ +(\d+)", text)
    assert sum(map(int, bars)) == stream.stats().timed_appends


def test_a_reader_sees_how_long_appends_took(stream, tmp_path):
    append(stream, 1000)
    stats = stream.stats()
    stream.close()
    with open_scratch(tmp_path / "data") as dataset:
        times = dataset.append_times
    assert times.timed_appends == stats.timed_appends == 63
    assert times.max_us == stats.append_max_us
    assert times.p50_us == stats.append_p50_us
    assert times.counts.sum() == 63


def test_the_command_shows_the_page_once(stream, capsys):
    append(stream, 10)
    assert main(["monitor", str(stream.path), "--once"]) == 0
    assert "recording" in capsys.readouterr().out
