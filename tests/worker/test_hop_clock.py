from __future__ import annotations

import pytest

from protocol.hop_timings import HopTimings
from protocol.ids import SessionId
from worker.hop_clock import HopClock
from worker.steps import StepOutput


def output(compute_s: float, sampling_s: float = 0.0) -> StepOutput:
    return StepOutput(
        session_id=SessionId("s"), position=0, hidden=None, tokens=(), compute_s=compute_s, sampling_s=sampling_s
    )


def test_what_the_engine_did_not_compute_was_waiting_for_it() -> None:
    clock = HopClock(is_told=True)
    clock.memory_s = 0.5
    clock.before = (HopTimings(1, 2, 3, 4),)
    clock.ran(output(0.25, 0.125), 0.5)
    clock.ran(output(0.5), 0.5)
    assert clock.said() == (HopTimings(1, 2, 3, 4), HopTimings(500_000, 125_000, 750_000, 125_000))
    assert clock.figures()["n_steps"] == 2
    assert clock.figures()["queue_s"] == pytest.approx(0.125)


def test_two_clocks_that_disagree_make_no_negative_wait() -> None:
    clock = HopClock(is_told=True)
    clock.ran(output(0.5), 0.25)
    assert clock.said()[0].queue_us == 0


def test_nothing_is_said_that_nobody_wants() -> None:
    clock = HopClock(is_told=False)
    clock.ran(output(0.5), 1.0)
    assert clock.said() == ()
