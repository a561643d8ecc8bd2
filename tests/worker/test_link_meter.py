from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.link_meter import BIG_FRAME_BYTES, PAUSE_S, LinkMeter

BIG = 10 * BIG_FRAME_BYTES


def sent_and_answered(meter: LinkMeter, n_bytes: int, began_s: float, took_s: float) -> None:
    ping = meter.sent(n_bytes, began_s, began_s)
    assert ping is not None
    meter.answered(ping, began_s + took_s)


def metered(round_trip_s: float) -> LinkMeter:
    meter = LinkMeter()
    meter.answered(meter.round_trip_begins(5.0), 5.0 + round_trip_s)
    return meter


@given(round_trip_s=st.floats(1e-4, 1.0), bytes_per_s=st.floats(1e5, 1e9))
def test_what_a_big_frame_takes_beyond_a_round_trip_is_its_bandwidth(
    round_trip_s: float, bytes_per_s: float
) -> None:
    meter = metered(round_trip_s)
    assert meter.round_trip_s == pytest.approx(round_trip_s)
    sent_and_answered(meter, BIG, 10.0, round_trip_s + BIG / bytes_per_s)
    assert meter.bytes_per_s == pytest.approx(bytes_per_s, rel=1e-3)
    assert meter.n_bytes_sent == BIG


def test_the_fastest_of_the_latest_frames_counts() -> None:
    meter = metered(0.1)
    for began_s, took_s in ((10.0, 1.1), (20.0, 0.6), (30.0, 9.1)):
        sent_and_answered(meter, BIG, began_s, took_s)
    assert meter.bytes_per_s == pytest.approx(BIG / 0.5)


def test_only_a_big_frame_after_a_pause_is_measured() -> None:
    meter = metered(0.1)
    assert meter.sent(BIG_FRAME_BYTES - 1, 10.0, 10.0) is None
    first = meter.sent(BIG, 10.0, 10.0)
    assert first is not None
    assert meter.sent(BIG, 10.0 + 2 * PAUSE_S, 10.0 + 2 * PAUSE_S) is None, "the first isn't answered yet"
    meter.answered(first, 13.0)
    assert meter.sent(BIG, 12.1, 12.1) is None, "others are on their way"
    assert meter.sent(BIG, 12.1 + 2 * PAUSE_S, 14.2) is not None


def test_pongs_that_nobody_asked_for_change_nothing() -> None:
    meter = LinkMeter()
    for data in (b"", b"round trip", b"transfer"):
        meter.answered(data, 3.0)
    assert (meter.round_trip_s, meter.bytes_per_s) == (None, None)
    sent_and_answered(meter, BIG, 10.0, 1.0)
    assert meter.bytes_per_s is None, "what a round trip takes isn't known"
