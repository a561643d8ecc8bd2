from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from client.failover import (
    EXCLUDED_S,
    LONGEST_DELAY_S,
    LONGEST_RETRY_AFTER_S,
    MAX_EXCLUDED,
    MAX_FRUITLESS_ATTEMPTS,
    AttemptFailed,
    Failover,
    after_failure,
    delay_s,
    final_error,
    notice_of,
)
from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    ContextExceededError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    HopLostError,
    InternalError,
    InvalidRequestError,
    ModelFaultError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    ProtocolVersionError,
    StaleEpochError,
    StorageError,
    TooLargeError,
    UnauthenticatedError,
    UntrustedFileError,
)
from protocol.ids import SessionId
from protocol.rest import STALLED, HopFailure
from tests.support.failed_attempts import FIRST, RNG, WORKERS, A, B, known_after, lost

SOME_ERRORS = [HopLostError, OverloadedError, InternalError, ProtocolError, StaleEpochError]
retry_after = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))


@st.composite
def failed_attempts(draw: st.DrawFn) -> tuple[AttemptFailed, SessionId, bool, int, float]:
    """What failed, its session, whether its head heard of it, how many tokens came, seconds that passed before."""
    kind = draw(st.sampled_from(SOME_ERRORS))
    worker_id = draw(st.one_of(st.none(), st.sampled_from(WORKERS)))
    failure = HopFailure(worker_id=worker_id, code=STALLED if worker_id is None else kind.code)
    failed = AttemptFailed(kind("why", retry_after_s=draw(retry_after)), failure)
    session = draw(st.builds(SessionId, st.text("0123", min_size=1, max_size=3)))
    return failed, session, draw(st.booleans()), draw(st.integers(0, 3)), draw(st.floats(0.0, 20.0))


def unheard_after(before: Failover, failed: AttemptFailed, *, n_new_tokens: int, now_s: float) -> Failover:
    return after_failure(
        before, failed, session_id=SessionId("s"), has_been_heard=False, n_new_tokens=n_new_tokens, now_s=now_s
    )


@given(st.lists(failed_attempts(), max_size=30))
def test_whatever_fails_the_account_is_bounded_and_right(
    attempts: list[tuple[AttemptFailed, SessionId, bool, int, float]],
) -> None:
    known, now_s, n_in_a_row = FIRST, 0.0, 0
    heard: list[SessionId] = []
    for failed, session, is_heard, n_new_tokens, passed_s in attempts:
        now_s += passed_s
        known = after_failure(
            known,
            failed,
            session_id=session,
            has_been_heard=is_heard,
            n_new_tokens=n_new_tokens,
            now_s=now_s,
        )
        heard += [session] if is_heard else []
        n_in_a_row = 0 if n_new_tokens else n_in_a_row + 1
        error = final_error(known, failed)
        assert (error is not None) == (n_in_a_row >= MAX_FRUITLESS_ATTEMPTS)
        if error is not None:
            assert type(error) is type(failed.error)
            assert len(error.message) < 1000
            return
        assert len(known.fruitless) == n_in_a_row
        assert known.continues == (heard[-1] if heard else session)
        told = known.failure
        assert told is not None
        assert (told.session_id or known.continues) == session, "whose failure it is"
        assert structs.replace(told, session_id=None) == failed.failure
        assert 0.0 <= known.retry_after_s <= LONGEST_RETRY_AFTER_S
        excluded = known.excluded(now_s)
        assert len(excluded) == len(set(excluded)) <= MAX_EXCLUDED
        assert failed.failure.worker_id is None or excluded[-1] == failed.failure.worker_id
        assert known.excluded(now_s + EXCLUDED_S) == ()
        waited_s = delay_s(known, RNG)
        assert 0.0 <= waited_s <= LONGEST_DELAY_S
        assert n_in_a_row > 1 or waited_s == 0.0
    assert known.n_failed == len(attempts)


def test_the_delays_outlast_the_noticing_of_a_dead_worker() -> None:
    known, total_s, spent_s = FIRST, [], 0.0
    for seed in range(200):
        known, spent_s = FIRST, 0.0
        for _ in range(MAX_FRUITLESS_ATTEMPTS - 1):
            known = unheard_after(known, lost(), n_new_tokens=0, now_s=0.0)
            spent_s += delay_s(known, random.Random(seed))
        total_s.append(spent_s)
    assert min(total_s) > 4.0
    assert max(total_s) < 30.0


def test_a_token_begins_a_new_budget() -> None:
    known = known_after(*[lost()] * (MAX_FRUITLESS_ATTEMPTS - 1))
    assert final_error(known, lost()) is None
    after_token = unheard_after(known, lost(), n_new_tokens=1, now_s=0.0)
    assert after_token.fruitless == ()
    assert delay_s(after_token, RNG) == 0.0
    spent = unheard_after(known, lost(), n_new_tokens=0, now_s=0.0)
    error = final_error(spent, lost())
    assert isinstance(error, HopLostError)
    assert error.message.count(f"hop_lost of {A}") == MAX_FRUITLESS_ATTEMPTS
    assert error.message.endswith("the last: gone")


def test_a_fault_of_the_model_is_believed_when_it_is_said_twice() -> None:
    failed = lost(error=ModelFaultError("the model's weights are damaged"))
    assert final_error(known_after(failed), failed) is None, "it may be one machine's memory"
    assert final_error(known_after(failed, lost(B), failed), failed) is failed.error
    assert final_error(known_after(failed, lost(B)), lost(B)) is None


@pytest.mark.parametrize("kind", [InvalidRequestError, ContextExceededError, TooLargeError])
def test_the_callers_own_mistakes_end_it(kind: type[BrigadeError]) -> None:
    failed = lost(error=kind("yours"))
    assert final_error(known_after(failed), failed) is failed.error


@pytest.mark.parametrize(
    "kind",
    [
        HopLostError,
        StaleEpochError,
        DrainingError,
        OverloadedError,
        InternalError,
        ProtocolError,
        ProtocolVersionError,
        NotFoundError,
        UnauthenticatedError,
        ForbiddenError,
        UntrustedFileError,
        StorageError,
        DeadlineExceededError,
        CancelledByClientError,
    ],
)
def test_what_another_worker_may_do_better_is_worth_another_attempt(kind: type[BrigadeError]) -> None:
    failed = lost(error=kind("a worker's"))
    assert final_error(known_after(failed), failed) is None


def test_stalls_are_counted_until_a_token_comes() -> None:
    assert known_after(lost(None), lost(None)).n_stalls == 2
    assert known_after(lost(None), lost(None), n_new_tokens=1).n_stalls == 0
    assert known_after(lost(None), lost(A)).n_stalls == 1
    assert known_after(lost(None)).exclusions == ()


def test_a_worker_is_excluded_for_a_while_since_it_was_blamed_last() -> None:
    known = known_after(lost(A), lost(B))
    assert known.excluded(EXCLUDED_S - 0.1) == (A, B)
    again = unheard_after(known, lost(A), n_new_tokens=0, now_s=20.0)
    assert again.excluded(20.0) == (B, A)
    assert again.excluded(EXCLUDED_S) == (A,)


@pytest.mark.parametrize(
    ("failure", "has_slowed", "n_tokens", "expected"),
    [
        (HopFailure(worker_id=A, code="hop_lost"), False, 17, f"worker {A} went away after 17 tokens"),
        (HopFailure(code=STALLED), False, 1, "the route stood still after 1 token"),
        (HopFailure(code=STALLED), True, 30, "the route became slow after 30 tokens"),
        (HopFailure(worker_id=A, code="draining"), False, 0, f"worker {A} is stopping after 0 tokens"),
        (HopFailure(worker_id=A, code="overloaded"), False, 2, f"worker {A} failed (overloaded) after 2 tokens"),
        (
            HopFailure(worker_id=A, code="clock_skew"),
            False,
            0,
            f"worker {A} has another time than the coordinator, by an hour or more, after 0 tokens",
        ),
    ],
)
def test_says_what_happened(failure: HopFailure, has_slowed: bool, n_tokens: int, expected: str) -> None:
    failed = AttemptFailed(HopLostError("gone"), failure, has_slowed=has_slowed)
    assert notice_of(failed, n_tokens) == f"{expected}; going on by another route"
