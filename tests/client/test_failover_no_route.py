"""A coordinator that grants no route: what is waited for, for how long, and what ends it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.failover import (
    LONGEST_DELAY_S,
    LONGEST_RETRY_AFTER_S,
    RESTART_GRACE_S,
    ROUTE_WAIT_S,
    AskAgain,
    Asked,
    Failover,
    after_refusal,
)
from protocol.errors import (
    BrigadeError,
    ConflictError,
    ContextExceededError,
    DrainingError,
    ForbiddenError,
    InternalError,
    InvalidRequestError,
    ModelLoadingError,
    ModelUnavailableError,
    NotFoundError,
    OverloadedError,
    StorageError,
    UnauthenticatedError,
    UnreachableError,
)
from protocol.rest import MAX_ROUTE_WAIT_S
from tests.support.failed_attempts import FIRST, RNG, A, B, known_after, lost

retry_after = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
FAILED = known_after(lost(A))


def asked(**fields: object) -> Asked:
    first = Asked(has_excluded=False, wait_s=0.0, n_refusals=1, answered_after_s=0.01, since_s=0.01)
    return replace(first, **fields)  # type: ignore[arg-type]


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


def test_a_wait_before_the_first_attempt_ends_with_the_hope_for_those_blocks() -> None:
    """So a cluster without workers answers at once, though one was stopped a moment ago and might have come."""
    second = asked(wait_s=ROUTE_WAIT_S, n_refusals=2, since_s=1.0)
    assert after_refusal(FIRST, ModelUnavailableError("the disk is full"), second, RNG) is None
    more = after_refusal(FAILED, ModelUnavailableError("the disk is full"), second, RNG)
    assert more is not None
    assert more.wait_s == ROUTE_WAIT_S
    assert after_refusal(FIRST, UnreachableError("away"), replace(second, since_s=99.0), RNG) is not None


def test_who_wants_to_waits_for_workers_that_nobody_has_started_yet() -> None:
    for n_refusals, since_s in ((1, 0.1), (60, 600.0)):
        refused = asked(n_refusals=n_refusals, since_s=since_s, waits_for_workers=True)
        again = after_refusal(FIRST, ModelUnavailableError("nobody: `worker join`"), refused, RNG)
        assert again == AskAgain(known=FIRST, after_s=0.0, wait_s=ROUTE_WAIT_S, waits_for="nobody: `worker join`")


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
    back = asked(n_refusals=2, since_s=RESTART_GRACE_S - 4.0, was_away=True)
    again = after_refusal(FIRST, ModelUnavailableError("nobody yet"), back, RNG)
    assert again is not None
    assert again.wait_s == pytest.approx(4.0)
    late = asked(n_refusals=2, since_s=RESTART_GRACE_S, was_away=True)
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
