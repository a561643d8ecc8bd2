from __future__ import annotations

import itertools
import random
from dataclasses import replace

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
    RESTART_GRACE_S,
    ROUTE_WAIT_S,
    AskAgain,
    Asked,
    AttemptFailed,
    Failover,
    after_failure,
    after_refusal,
    delay_s,
    final_error,
    notice_of,
)
from protocol.errors import (
    BrigadeError,
    CancelledByClientError,
    ConflictError,
    ContextExceededError,
    DeadlineExceededError,
    DrainingError,
    ForbiddenError,
    HopLostError,
    InternalError,
    InvalidRequestError,
    ModelFaultError,
    ModelLoadingError,
    ModelUnavailableError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    ProtocolVersionError,
    StaleEpochError,
    StorageError,
    TooLargeError,
    UnauthenticatedError,
    UnreachableError,
    UntrustedFileError,
)
from protocol.ids import SessionId, WorkerId
from protocol.rest import MAX_ROUTE_WAIT_S, STALLED, HopFailure

WORKERS = [WorkerId(f"w-{letter * 26}") for letter in "abcdefghijklmnopqrstuvwxyz"]
A, B = WORKERS[:2]
FIRST = Failover()
RNG = random.Random(1)

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


def lost(worker_id: WorkerId | None = A, *, error: BrigadeError | None = None) -> AttemptFailed:
    error = error or HopLostError("gone")
    return AttemptFailed(error, HopFailure(worker_id=worker_id, code=STALLED if worker_id is None else error.code))


def heard_after(before: Failover, failed: AttemptFailed, *, n_new_tokens: int, now_s: float) -> Failover:
    return after_failure(
        before, failed, session_id=SessionId("s"), has_been_heard=True, n_new_tokens=n_new_tokens, now_s=now_s
    )


def unheard_after(before: Failover, failed: AttemptFailed, *, n_new_tokens: int, now_s: float) -> Failover:
    return after_failure(
        before, failed, session_id=SessionId("s"), has_been_heard=False, n_new_tokens=n_new_tokens, now_s=now_s
    )


def known_after(*failed: AttemptFailed, n_new_tokens: int = 0, now_s: float = 0.0) -> Failover:
    known = FIRST
    for one in failed:
        known = heard_after(known, one, n_new_tokens=n_new_tokens, now_s=now_s)
    return known


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


# ---------------------------------------------------------------- no route


def asked(**fields: object) -> Asked:
    first = Asked(has_excluded=False, wait_s=0.0, n_refusals=1, answered_after_s=0.01, since_s=0.01)
    return replace(first, **fields)  # type: ignore[arg-type]


FAILED = known_after(lost(A))


@pytest.mark.parametrize(
    "kind", [ModelUnavailableError, OverloadedError, InvalidRequestError, UnauthenticatedError, StorageError]
)
def test_before_anything_failed_the_coordinators_word_is_final(kind: type[BrigadeError]) -> None:
    assert after_refusal(FIRST, kind("no"), asked(), RNG) is None


@pytest.mark.parametrize("known", [FIRST, FAILED])
def test_loading_blocks_are_waited_for_at_the_coordinator(known: Failover) -> None:
    again = after_refusal(known, ModelLoadingError("loading", retry_after_s=9.0), asked(), RNG)
    assert again == AskAgain(known=known, after_s=0.0, wait_s=ROUTE_WAIT_S, waits_for="loading")
    assert ROUTE_WAIT_S <= MAX_ROUTE_WAIT_S
    # once a wait has begun, it goes on though the blocks' new holder goes too
    second = asked(wait_s=ROUTE_WAIT_S, n_refusals=2)
    more = after_refusal(known, ModelUnavailableError("missing"), second, RNG)
    assert more is not None
    assert more.wait_s == ROUTE_WAIT_S


def test_blocks_that_nobody_gets_to_hold_are_not_waited_for_long_before_a_first_attempt() -> None:
    late = asked(wait_s=ROUTE_WAIT_S, n_refusals=3, since_s=RESTART_GRACE_S + 1)
    assert after_refusal(FIRST, ModelUnavailableError("the disk is full"), late, RNG) is None
    assert after_refusal(FIRST, UnreachableError("away"), late, RNG) is not None
    assert after_refusal(FAILED, ModelUnavailableError("the disk is full"), late, RNG) is not None


@pytest.mark.parametrize(
    "kind", [ModelUnavailableError, UnreachableError, OverloadedError, DrainingError, InternalError, StorageError]
)
def test_after_a_failure_it_waits_for_the_coordinator_however_long(kind: type[BrigadeError]) -> None:
    for n_refusals in (1, 5, 10_000):
        again = after_refusal(
            FAILED, kind("no"), asked(n_refusals=n_refusals, since_s=9999.0, wait_s=ROUTE_WAIT_S), RNG
        )
        assert again is not None
        assert 0.0 < again.after_s <= LONGEST_DELAY_S
        assert again.waits_for == "no"


@pytest.mark.parametrize("kind", [ContextExceededError, UnauthenticatedError, ForbiddenError, ConflictError])
def test_after_a_failure_a_wrong_request_is_still_wrong(kind: type[BrigadeError]) -> None:
    assert after_refusal(FAILED, kind("no"), asked(has_excluded=True), RNG) is None


@given(retry_after, st.floats(0.0, 60.0), st.integers(1, 100))
def test_retry_after_is_obeyed_within_reason(
    retry_after_s: float | None, answered_after_s: float, n_refusals: int
) -> None:
    refused = asked(answered_after_s=answered_after_s, n_refusals=n_refusals, wait_s=1.0)
    again = after_refusal(FAILED, OverloadedError("full", retry_after_s=retry_after_s), refused, RNG)
    assert again is not None
    assert 0.0 <= again.after_s <= LONGEST_RETRY_AFTER_S
    if retry_after_s is not None and 0.0 < retry_after_s <= LONGEST_RETRY_AFTER_S:
        assert again.after_s >= retry_after_s - answered_after_s


def test_exclusions_that_leave_no_route_are_dropped_after_the_workers_own_wait() -> None:
    known = known_after(lost(A, error=OverloadedError("full", retry_after_s=2.0)))
    again = after_refusal(known, ModelUnavailableError("missing"), asked(has_excluded=True), RNG)
    assert again == AskAgain(known=replace(known, exclusions=()), after_s=2.0, wait_s=0.0, waits_for=None)


def test_who_failed_last_is_avoided_longest() -> None:
    """Blame for a dead link may have fallen on the wrong end of it: then that one is needed to pass the other."""
    known, refused = known_after(lost(A), lost(B)), ModelUnavailableError("missing")
    again = after_refusal(known, refused, asked(has_excluded=True), RNG)
    assert again is not None
    assert again.known.excluded(0.0) == (B,)
    last = after_refusal(again.known, refused, asked(has_excluded=True), RNG)
    assert last is not None
    assert last.known.excluded(0.0) == ()


def test_a_session_that_the_coordinator_does_not_know_is_not_named_again() -> None:
    again = after_refusal(FAILED, NotFoundError("no such session"), asked(), RNG)
    assert again is not None
    assert (again.known.continues, again.known.failure) == (None, None)
    assert after_refusal(again.known, NotFoundError("no such model"), asked(n_refusals=2), RNG) is None


def test_a_restart_is_waited_for_before_the_first_attempt_but_not_for_ever() -> None:
    for kind, n_refusals in itertools.product((UnreachableError, DrainingError), (1, 9)):
        refused = asked(n_refusals=n_refusals)
        assert after_refusal(FIRST, kind("away"), refused, RNG) is not None
        assert after_refusal(FIRST, kind("away"), replace(refused, since_s=RESTART_GRACE_S), RNG) is None
    # it is back, and its workers aren't yet
    back = after_refusal(FIRST, ModelUnavailableError("nobody yet"), asked(n_refusals=2), RNG)
    assert back is not None
    late = asked(n_refusals=2, since_s=RESTART_GRACE_S)
    assert after_refusal(FIRST, ModelUnavailableError("nobody"), late, RNG) is None


@given(st.sampled_from([FIRST, FAILED]), st.integers(1, 10**9), st.booleans())
def test_every_wait_leads_to_another_or_to_an_end_and_never_spins(
    known: Failover, n_refusals: int, is_waiting: bool
) -> None:
    refused = asked(n_refusals=n_refusals, wait_s=ROUTE_WAIT_S if is_waiting else 0.0, answered_after_s=0.0)
    again = after_refusal(known, ModelLoadingError("loading"), refused, RNG)
    assert again is not None
    assert again.wait_s > 0.0
    assert again.after_s > 0.0 or not is_waiting


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
