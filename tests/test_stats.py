"""What a stream measures about itself."""

import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scratchwriter import ScratchFormat, create_stream
from scratchwriter.stats import bucket_stop_ns, percentile_us

NUM_BUCKETS = 37 * 32


def test_buckets_follow_each_other_and_are_three_percent_wide():
    stops = [bucket_stop_ns(bucket) for bucket in range(NUM_BUCKETS)]
    assert stops[:64] == list(range(1, 65))
    for start, stop in itertools.pairwise(stops[63:]):
        assert start < stop <= start * (1 + 1 / 32)
    assert stops[-1] > 30 * 60 * 1e9  # half an hour


@given(
    st.lists(st.integers(1, 10**11), min_size=1, max_size=300),
    st.sampled_from([50, 99, 99.9, 99.99, 100]),
)
def test_percentiles_are_those_of_the_times_within_a_bucket(times_ns, q):
    counts = np.zeros(NUM_BUCKETS, np.int64)
    stops = np.array([bucket_stop_ns(bucket) for bucket in range(NUM_BUCKETS)])
    for time_ns in times_ns:
        counts[np.searchsorted(stops, time_ns, side="right")] += 1
    exact_us = np.percentile(times_ns, q, method="inverted_cdf") / 1e3
    assert exact_us <= percentile_us(counts, q) <= exact_us * (1 + 1 / 32) + 0.001


def test_a_stream_without_frames_has_no_times(make_settings, place):
    with create_stream(make_settings({"t": 3, "y": 4, "x": 5}, **place)) as stream:
        stats = stream.stats()
    assert (stats.frames, stats.nbytes, stats.timed_appends) == (0, 0, 0)
    assert math.isnan(stats.append_p50_us)
    assert math.isnan(stats.frames_per_s)
    assert stats.append_max_us == 0


@pytest.mark.parametrize(("shape", "timed"), [((64, 64), 20), ((128, 256), 310)])
def test_large_frames_are_all_timed_and_small_ones_sampled(make_settings, shape, timed):
    sizes = {"t": None, "y": shape[0], "x": shape[1]}
    frame = np.ones(shape, "uint16")
    with create_stream(make_settings(sizes)) as stream:
        for _ in range(310):
            stream.append(frame)
        stats = stream.stats()
    assert stats.timed_appends == timed
    assert stats.frames == 310
    assert stats.nbytes == 310 * frame.nbytes
    assert 0 < stats.append_p50_us <= stats.append_p99_us <= stats.append_p999_us
    assert stats.append_p999_us <= stats.append_p9999_us <= stats.append_max_us
    assert stats.append_max_us < stats.elapsed_s * 1e6
    assert stats.frames_per_s == pytest.approx(310 / stats.elapsed_s)


def test_a_stall_is_seen(make_settings):
    class Slow:
        def __array__(self, dtype=None, copy=None):
            time.sleep(0.05)
            return np.ones((128, 256), "uint16")

    with create_stream(make_settings({"t": None, "y": 128, "x": 256})) as stream:
        for _ in range(20):
            stream.append(np.ones((128, 256), "uint16"))
        assert stream.stats().append_p50_us < 50_000
        stream.append(Slow())
        assert stream.stats().append_max_us >= 50_000


def test_skips_are_frames_without_bytes(make_settings):
    with create_stream(make_settings({"t": None, "y": 4, "x": 5})) as stream:
        stream.append(np.ones((4, 5), "uint16"))
        stream.skip(frames=10)
        stats = stream.stats()
    assert (stats.frames, stats.nbytes) == (11, 40)


def test_refused_frames_are_not_counted(make_settings):
    with create_stream(make_settings({"t": 1, "y": 128, "x": 256})) as stream:
        stream.append(np.ones((128, 256), "uint16"))
        with pytest.raises(IndexError):
            stream.append(np.ones((128, 256), "uint16"))
        assert stream.stats().timed_appends == 1


def test_what_is_allocated_ahead_is_the_rest_of_a_bounded_acquisition(make_settings, place):
    with create_stream(make_settings({"t": 10, "y": 4, "x": 5}, **place)) as stream:
        stream.append(np.ones((4, 5), "uint16"))
        assert stream.stats().allocated_ahead_nbytes == 9 * 40


def test_nothing_is_unwritten_in_memory(make_settings):
    fmt = ScratchFormat(max_memory_bytes=1 << 20)
    with create_stream(make_settings({"t": 2, "y": 4, "x": 5}, format=fmt)) as stream:
        stream.append(np.ones((4, 5), "uint16"))
        assert stream.stats().unwritten_nbytes == 0


def test_what_was_flushed_is_written(make_settings, tmp_path):
    frame = np.ones((64, 64), "uint16")
    settings = make_settings({"t": None, "y": 64, "x": 64}, root_path=str(tmp_path / "d"))
    with create_stream(settings) as stream:
        stream.append(frame)
        stream.append(frame)
        assert stream.stats().unwritten_nbytes == 2 * frame.nbytes
        stream.flush()
        assert stream.stats().unwritten_nbytes == 0
        stream.append(frame)
        assert stream.stats().unwritten_nbytes == frame.nbytes


def test_nothing_is_ahead_after_close(make_settings, place):
    with create_stream(make_settings({"t": None, "y": 64, "x": 64}, **place)) as stream:
        stream.append(np.ones((64, 64), "uint16"))
    stats = stream.stats()
    assert (stats.populated_ahead_nbytes, stats.allocated_ahead_nbytes) == (0, 0)
