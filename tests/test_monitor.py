"""The page in the terminal."""

import re
from dataclasses import replace

import numpy as np
import pytest

from marks import needs_direct_writes, needs_page_cache
from scratchwriter import ScratchFormat, create_stream, open_scratch
from scratchwriter.cli import main
from scratchwriter.reader import ScratchDataset
from scratchwriter.stats import NUM_BUCKETS, DiskStats, make_append_times
from waiting import wait_until

pytest.importorskip("rich")


@pytest.fixture
def stream(make_settings, tmp_path):
    settings = make_settings({"t": None, "y": 4, "x": 5}, root_path=str(tmp_path / "data"))
    with create_stream(settings) as stream:
        yield stream


def rendered(page, **options):
    from rich.console import Console

    console = Console(**{"width": 100} | options)
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


@needs_page_cache
def test_a_dataset_in_the_page_cache_says_why(stream):
    from scratchwriter._showing.monitor import Monitor

    with open_scratch(stream.path) as dataset:
        text = rendered(Monitor(dataset).page())
        assert f"written    {dataset.disk_io}" in text
    assert "disk takes" not in text


@needs_direct_writes
def test_a_dataset_that_is_written_directly_shows_how_the_disk_does(
    make_settings, tmp_path
):
    from scratchwriter._showing.monitor import Monitor

    settings = make_settings(
        {"t": None, "y": 512, "x": 512},
        root_path=str(tmp_path / "data"),
        format=ScratchFormat(disk_io="direct"),
    )
    with create_stream(settings) as stream, open_scratch(stream.path) as dataset:
        for _ in range(20):  # more than is written at a time
            stream.append(np.ones((512, 512), "uint16"))
        stream.flush()
        wait_until(lambda: stream.stats().disk.disk_nbytes_per_s > 0)
        wait_until(lambda: (disk := dataset.disk_stats) and disk.disk_nbytes_per_s > 0)
        text = rendered(Monitor(dataset).page())
        assert re.search(r"disk takes +[\d.]+ [MG]B/s, the camera gives \S+ \S+/s", text)
        assert re.search(r"waiting +[\d.]+ \w+ of [\d.]+ [MG]B", text)
        stream.close()
        text = rendered(Monitor(dataset).page())
    assert re.search(r"disk took +[\d.]+ [MG]B/s, the camera gave \S+ \S+/s", text)
    assert "waiting" not in text  # nothing does, or will
    assert re.search(r"waited +\d+ frames", text)
    assert not re.search("^written", text, re.MULTILINE)


def disk_that(**fields):
    calm = DiskStats(
        camera_nbytes_per_s=1e9,
        disk_nbytes_per_s=1.25e9,
        staged_nbytes=34_000_000,
        max_staged_nbytes=5_000_000_000,
        seconds_left=float("inf"),
        waited_frames=0,
        waited_s=0.0,
    )
    return replace(calm, **fields)


@pytest.mark.parametrize(
    ("fields", "waiting", "waited"),
    [
        ({}, "34.0 MB of 5.0 GB", "0 frames"),
        ({"seconds_left": 12.4}, "34.0 MB of 5.0 GB, full in 12 s at these", "0 frames"),
        ({"seconds_left": 1e4}, "34.0 MB of 5.0 GB, full in 167 minutes at", "0 frames"),
        (
            {"waited_frames": 1234, "waited_s": 0.0316},
            "34.0 MB of 5.0 GB",
            "1,234 frames, 32 ms altogether",
        ),
        (
            {"waited_frames": 1234, "waited_s": 75.25},
            "34.0 MB of 5.0 GB",
            "1,234 frames, 75.2 s altogether",
        ),
    ],
)
def test_frames_that_waited_for_the_disk_stand_out(
    stream, monkeypatch, fields, waiting, waited
):
    from scratchwriter._showing.monitor import Monitor

    monkeypatch.setattr(ScratchDataset, "disk_stats", disk_that(**fields))
    with open_scratch(stream.path) as dataset:
        page = Monitor(dataset).page()
    text = rendered(page)
    assert re.search(r"disk takes +1\.2 GB/s, the camera gives 1\.0 GB/s", text)
    assert re.search(rf"waiting +{re.escape(waiting)}", text)
    assert re.search(rf"waited +{re.escape(waited)}", text)
    line = next(
        line
        for line in rendered(page, force_terminal=True, color_system="standard").split("\n")
        if re.search("waited.* frames", line)
    )
    assert ("\x1b[1;33m" in line) is ("waited_frames" in fields)


def test_before_it_has_written_the_rate_of_a_disk_is_not_known(stream, monkeypatch):
    from scratchwriter._showing.monitor import Monitor

    disk = disk_that(disk_nbytes_per_s=float("nan"))
    monkeypatch.setattr(ScratchDataset, "disk_stats", disk)
    with open_scratch(stream.path) as dataset:
        assert re.search("disk takes +not known yet, ", rendered(Monitor(dataset).page()))


def test_the_page_fits_in_a_terminal(stream, monkeypatch):
    """Of 80 x 24, also with appends of 0.1 µs and of 10 s."""
    from scratchwriter._showing.monitor import Monitor

    append(stream, 100)
    times = make_append_times(np.full(NUM_BUCKETS, 10**9), 10**10, 10**12)
    is_usual = (times.stops_us > 0.1) & (times.stops_us < 1e7)
    for counts in (times.counts * is_usual, times.counts * (times.stops_us > 9e6)):
        for fields in ({}, {"seconds_left": 1e4, "waited_frames": 10**9, "waited_s": 1e6}):
            monkeypatch.setattr(ScratchDataset, "disk_stats", disk_that(**fields))
            monkeypatch.setattr(
                ScratchDataset, "append_times", replace(times, counts=counts)
            )
            with open_scratch(stream.path) as dataset:
                lines = rendered(Monitor(dataset).page(), width=200).splitlines()
            assert len(lines) < 24
            # But for the name of the dataset.
            assert max(len(line.rstrip()) for line in lines[1:]) <= 80


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
