from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import (
    CancelledByClientError,
    DeadlineExceededError,
    ErrorBody,
    HopLostError,
    KeyRevokedError,
    ModelFaultError,
    OverloadedError,
)
from protocol.ids import SessionId, WorkerId
from protocol.messages import CloseSession, SessionEnded
from worker.ending import (
    MAX_RELAYED_CHARS,
    CloseReason,
    EndingError,
    Party,
    blame_to_tell,
    blamed,
    ended_by_close,
    ended_by_error,
    ended_by_neighbour,
    error_code_to_tell,
    keeps_cache,
    outcome,
    parties_to_tell,
)

ME = WorkerId("w-me")
OTHER = WorkerId("w-" + "a" * 26)


@given(st.text(), st.text(), st.text(), st.sampled_from(["next", "ring"]))
def test_what_a_neighbour_says_is_passed_on_at_a_size_that_can_be(
    code: str, message: str, worker_id: str, source: Party
) -> None:
    error = ErrorBody(code=code * 100, message=message * 1000, retry_after_s=1.0)
    said = SessionEnded(session_id=SessionId("s"), worker_id=WorkerId(worker_id), error=error)
    ending = ended_by_neighbour(said, ME, source)
    assert ending.worker_id == ME
    assert len(ending.error.code) <= 64
    assert len(ending.error.message) <= MAX_RELAYED_CHARS
    assert error.message.startswith(ending.error.message)
    assert (ending.source, ending.error.retry_after_s) == (source, 1.0)


def test_a_neighbour_may_blame_another_worker() -> None:
    other = WorkerId("w-" + "a" * 26)
    error = ErrorBody(code="hop_lost", message="m")
    ending = ended_by_neighbour(SessionEnded(session_id=SessionId("s"), worker_id=other, error=error), ME, "next")
    assert (ending.worker_id, ending.error) == (other, error)


def test_who_noticed_is_passed_on_and_one_that_says_nothing_of_it_counts_as_that() -> None:
    error, other, third = ErrorBody(code="hop_lost", message="m"), OTHER, WorkerId("w-" + "b" * 26)
    for told, noticed_by in ((third, third), (None, ME), (WorkerId("x" * 9000), ME)):
        said = SessionEnded(session_id=SessionId("s"), worker_id=other, error=error, noticed_by=told)
        assert ended_by_neighbour(said, ME, "next").noticed_by == noticed_by
    assert ended_by_error(HopLostError("gone"), OTHER, "next").noticed_by is None


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


@given(st.sampled_from(get_args(CloseReason)), st.sampled_from([ME, OTHER]))
def test_who_is_to_blame_is_named_along_the_route(reason: CloseReason, to_blame: WorkerId) -> None:
    """The next hop blames the same worker, whether the message has to name it or not."""
    named = blame_to_tell(ended_by_close(reason, to_blame, "opener"), ME)
    closing = CloseSession(session_id=SessionId("s"), reason=reason, worker_id=named)
    if reason in ("failed", "lost"):
        assert blamed(closing, ME) == to_blame
    assert named is None or (named != ME and reason in ("failed", "lost"))


def test_a_name_that_is_none_blames_the_sender() -> None:
    closing = CloseSession(session_id=SessionId("s"), reason="failed", worker_id=WorkerId("x" * 10_000))
    assert blamed(closing, OTHER) == OTHER
    assert blamed(closing, None) is None


def test_what_may_be_of_use_to_others_keeps_its_cache() -> None:
    assert all(keeps_cache(ended_by_close(reason, ME, "opener")) for reason in get_args(CloseReason))
    full = OverloadedError("no memory")
    assert not keeps_cache(ended_by_error(full, ME))
    assert keeps_cache(ended_by_error(full, OTHER, "next"))
    assert keeps_cache(ended_by_error(HopLostError("gone"), OTHER))


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


def test_what_is_no_worker_s_doing_is_passed_on_as_such_and_nothing_else_is() -> None:
    for error in (ModelFaultError("x"), KeyRevokedError("x")):
        assert error_code_to_tell(ended_by_error(error, OTHER)) == error.code
        assert ended_by_close("failed", OTHER, "opener", error_code=error.code).error.code == error.code
    assert not keeps_cache(ended_by_error(ModelFaultError("x"), ME))
    assert error_code_to_tell(ended_by_error(HopLostError("gone"), ME)) == ""
    for reason, code in (("failed", "draining"), ("lost", "model_fault")):
        assert ended_by_close(reason, OTHER, "opener", error_code=code).error.code == "hop_lost"
