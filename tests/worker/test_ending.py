from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import CancelledByClientError, DeadlineExceededError, HopLostError
from protocol.ids import WorkerId
from worker.ending import (
    CloseReason,
    EndingError,
    Party,
    ended_by_close,
    ended_by_error,
    outcome,
    parties_to_tell,
)

ME = WorkerId("w-me")


@given(st.sampled_from(get_args(CloseReason)), st.sampled_from([None, *get_args(Party)]))
def test_who_said_it_isnt_told_and_later_hops_always_are(reason: CloseReason, source: Party | None) -> None:
    told = parties_to_tell(ended_by_close(reason, ME, source))
    assert source not in told
    assert "next" in told or source == "next"


def test_a_finished_generation_closes_the_ring_and_no_more() -> None:
    assert parties_to_tell(ended_by_close("finished", ME, None)) == {"next", "ring"}


def test_a_failure_goes_back_to_opener_and_client_and_on_to_the_next() -> None:
    ending = ended_by_error(HopLostError("gone"), WorkerId("w-other"), "next")
    assert parties_to_tell(ending) == {"opener", "client"}
    assert ending.worker_id == "w-other"
    assert str(EndingError(ending)) == "gone"


def test_a_stream_broken_off_by_the_opener_is_told_to_the_client() -> None:
    for reason in get_args(CloseReason):
        assert "client" in parties_to_tell(ended_by_close(reason, ME, "opener"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CancelledByClientError("x"), "cancelled"),
        (DeadlineExceededError("x"), "deadline"),
        (HopLostError("x"), "failed"),
    ],
)
def test_errors_have_their_reasons(error: HopLostError, reason: CloseReason) -> None:
    assert ended_by_error(error, ME).reason == reason


def test_outcomes() -> None:
    assert outcome(ended_by_close("finished", ME, None), "stop") == "stop"
    found = {reason: outcome(ended_by_close(reason, ME, "opener"), None) for reason in get_args(CloseReason)}
    assert found == {
        "finished": "cancelled",
        "cancelled": "cancelled",
        "failed": "failed",
        "deadline": "deadline",
        "lost": "failed",
    }
