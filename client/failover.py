"""What follows when a route fails or there is none: another attempt, a wait, or the end. Pure.

A generation survives everything but its own mistakes and its deadline: an attempt that fails is followed by another
that goes on after the last token. Time and randomness are arguments; nothing here waits.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from msgspec import structs

from protocol.errors import (
    BrigadeError,
    ContextExceededError,
    DrainingError,
    InvalidRequestError,
    KeyRevokedError,
    ModelFaultError,
    ModelLoadingError,
    ModelUnavailableError,
    NotFoundError,
    QuotaExceededError,
    RequestError,
    TooLargeError,
    UnreachableError,
)
from protocol.ids import SessionId, WorkerId
from protocol.rest import STALLED, HopFailure

MAX_FRUITLESS_ATTEMPTS = 8
"""In a row, without a new token: with their delays they outlast the coordinator's noticing of a worker gone."""
EXCLUDED_S = 30.0
"""How long a worker that was blamed is avoided; by then the coordinator knows better than we do."""
MAX_EXCLUDED = 16
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 5.0
LONGEST_RETRY_AFTER_S = 30.0
RESTART_GRACE_S = 15.0
"""How long a coordinator that answered a moment ago may be away before a generation that never began fails."""
QUOTA_SPREAD_S = 0.25
"""Those who wait for the same limit don't all ask at the moment when there is room for one."""
ROUTE_WAIT_S = 10.0
"""How long one request for a route waits; then it is asked again, so that its reason stays fresh."""

_LONGEST_REASON = 300
_FAULTS = 2
"""One machine's memory may be broken; what a second route says of the model, or the only worker twice, is so."""

_ENDS_GENERATION = (InvalidRequestError, ContextExceededError, KeyRevokedError, TooLargeError)
"""What a worker may say that would be the same at any other. `cancelled` isn't: a worker says it when our
connection to it was lost, and we may hear it from another one first."""


class AttemptFailed(Exception):  # noqa: N818 - an event of a generation, no error of the program
    """One route gave up, or was given up."""

    def __init__(self, error: BrigadeError, failure: HopFailure, *, has_slowed: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.failure = failure
        self.has_slowed = has_slowed
        """Whether the route was left though tokens still came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusion:
    """A worker that is avoided until `until_s`."""

    worker_id: WorkerId
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """What is known of a generation's failed attempts."""

    n_failed: int = 0
    n_stalls: int = 0
    """In a row, each before a first token."""
    fruitless: tuple[str, ...] = ()
    """How the attempts since the last new token failed, a few words each."""
    exclusions: tuple[Exclusion, ...] = ()
    continues: SessionId | None = None
    """The latest failed session that a worker has heard of, so that its cache may be there; if there is none, the
    latest: the coordinator is told whose failure it was, and ends it."""
    has_been_heard: bool = False
    """Whether a worker has heard of it."""
    failure: HopFailure | None = None
    """What the coordinator is to be told with the next request."""
    retry_after_s: float = 0.0
    """How long the latest worker that failed wants to be left alone."""

    def excluded(self, now_s: float) -> tuple[WorkerId, ...]:
        """Workers that the next route is to avoid."""
        return tuple(exclusion.worker_id for exclusion in self.exclusions if now_s < exclusion.until_s)


def after_failure(
    before: Failover,
    failed: AttemptFailed,
    *,
    session_id: SessionId,
    has_been_heard: bool,
    n_new_tokens: int,
    now_s: float,
) -> Failover:
    """What is known after one more attempt, which brought `n_new_tokens`.

    `has_been_heard`: whether its head has been told of its session.
    """
    failure = failed.failure
    continues = session_id if has_been_heard or not before.has_been_heard else before.continues
    is_new_stall = failure.code == STALLED and n_new_tokens == 0
    earlier = before if n_new_tokens == 0 else replace(before, n_stalls=0, fruitless=())
    kept = [known for known in before.exclusions if known.worker_id != failure.worker_id and now_s < known.until_s]
    if failure.worker_id is not None:
        kept.append(Exclusion(worker_id=failure.worker_id, until_s=now_s + EXCLUDED_S))
    return Failover(
        n_failed=before.n_failed + 1,
        n_stalls=earlier.n_stalls + is_new_stall,
        fruitless=earlier.fruitless if n_new_tokens > 0 else (*earlier.fruitless, _in_words(failure)),
        exclusions=tuple(kept[-MAX_EXCLUDED:]),
        continues=continues,
        has_been_heard=has_been_heard or before.has_been_heard,
        failure=failure if continues == session_id else structs.replace(failure, session_id=session_id),
        retry_after_s=_obeyed_s(failed.error),
    )


def final_error(known: Failover, failed: AttemptFailed) -> BrigadeError | None:
    """What ends the generation after this failure (which `known` includes); None: another attempt is worth it.

    A worker's `deadline_exceeded` is none of these: the generation's own deadline is kept by the client.
    """
    error = failed.error
    if isinstance(error, _ENDS_GENERATION):
        return error
    n_faults = sum(words.startswith(ModelFaultError.code) for words in known.fruitless)
    if isinstance(error, ModelFaultError) and n_faults >= _FAULTS:
        return error
    if len(known.fruitless) < MAX_FRUITLESS_ATTEMPTS:
        return None
    return type(error)(
        f"{len(known.fruitless)} routes in a row failed before a new token came ({', '.join(known.fruitless)}); "
        f"the last: {error.message[:_LONGEST_REASON]}",
        retry_after_s=error.retry_after_s,
    )


def delay_s(known: Failover, rng: random.Random) -> float:
    """How long to wait before the next attempt: the first follows at once, as a replica probably is there."""
    return backoff_s(len(known.fruitless) - 1, rng)


def backoff_s(n_failures: int, rng: random.Random) -> float:
    """Between half and all of 0.2 s x 2^n, capped; 0 without a failure.

    Never near 0, unlike `protocol.backoff`: the attempts that are allowed must not be spent in a moment.
    """
    if n_failures <= 0:
        return 0.0
    longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(n_failures, 32))
    return rng.uniform(longest_s / 2, longest_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class AskAgain:
    """Ask for a route once more."""

    known: Failover
    after_s: float
    wait_s: float
    """How long the coordinator may wait with its answer; above 0 once there is something to wait for."""
    waits_for: str | None
    """For people: why there is no route yet; None if it is about to be asked otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request for a route that was refused, and those before it in the same wait."""

    has_excluded: bool
    wait_s: float
    n_refusals: int
    """This one too."""
    answered_after_s: float
    since_s: float
    """Seconds since the first of them."""
    waits_for_quota: bool = False
    """Whether the caller would rather wait than be told that a limit of its key is used up."""
    waits_for_workers: bool = False
    """Likewise, that no worker is to hold the model."""
    was_away: bool = False
    """Whether the coordinator couldn't be asked in the same wait: it may have been started again."""


def after_refusal(known: Failover, error: BrigadeError, asked: Asked, rng: random.Random) -> AskAgain | None:
    """What to do when the coordinator grants no route, or there is no coordinator; None: the generation ends."""
    if isinstance(error, NotFoundError) and known.continues is not None:
        # a coordinator that doesn't know the session: without its cache then
        return _at_once(
            replace(known, continues=None, has_been_heard=False, failure=None), after_s=0.0, wait_s=asked.wait_s
        )
    if isinstance(error, ModelUnavailableError) and asked.has_excluded:
        return _at_once(_with_fewer_excluded(known), after_s=known.retry_after_s, wait_s=asked.wait_s)
    if isinstance(error, QuotaExceededError):
        return _after_quota(known, error, asked, rng)
    if isinstance(error, RequestError) or not _is_worth_waiting(known, error, asked):
        return None
    is_look = isinstance(error, ModelUnavailableError) and asked.wait_s == 0.0
    wanted_s = max(backoff_s(asked.n_refusals, rng), _obeyed_s(error))
    return AskAgain(
        known=known,
        # the coordinator itself waits the next time, so there is nothing to wait for before
        after_s=0.0 if is_look else max(0.0, wanted_s - asked.answered_after_s),
        wait_s=_longest_wait_s(known, asked) if isinstance(error, ModelUnavailableError) else asked.wait_s,
        waits_for=error.message[:_LONGEST_REASON],
    )


def _with_fewer_excluded(known: Failover) -> Failover:
    """Without all exclusions but the latest; without that too if it is the only one.

    Of the two ends of a dead link either may be blamed first. The one that failed last is the one that failed
    alone, so those that were blamed before it are tried again first.
    """
    latest = known.exclusions[-1:] if len(known.exclusions) > 1 else ()
    return replace(known, exclusions=latest)


def _after_quota(known: Failover, error: QuotaExceededError, asked: Asked, rng: random.Random) -> AskAgain | None:
    """Wait as long as the coordinator says, if that is wanted, or the answer has begun."""
    if not asked.waits_for_quota and known.n_failed == 0:
        return None
    return AskAgain(
        known=known,
        after_s=_finite_s(error) + rng.uniform(0.0, QUOTA_SPREAD_S),
        wait_s=asked.wait_s,
        waits_for=error.message[:_LONGEST_REASON],
    )


def _is_worth_waiting(known: Failover, error: BrigadeError, asked: Asked) -> bool:
    if known.n_failed > 0 or isinstance(error, ModelLoadingError):
        return True
    # a coordinator that has just come back may not know its workers yet; else it says whether there is hope
    if isinstance(error, ModelUnavailableError):
        return asked.waits_for_workers or (asked.was_away and asked.since_s < RESTART_GRACE_S)
    is_restarting = isinstance(error, UnreachableError | DrainingError) or asked.n_refusals > 1
    return asked.wait_s > 0.0 or (is_restarting and asked.since_s < RESTART_GRACE_S)


def _longest_wait_s(known: Failover, asked: Asked) -> float:
    """How long the coordinator may wait for a route: not beyond the time that a restart is waited for."""
    if known.n_failed > 0 or asked.waits_for_workers or not asked.was_away or asked.since_s >= RESTART_GRACE_S:
        return ROUTE_WAIT_S
    return min(ROUTE_WAIT_S, RESTART_GRACE_S - asked.since_s)


def _obeyed_s(error: BrigadeError) -> float:
    """The time that an error asks for, within reason: it may come from anybody."""
    return min(_finite_s(error), LONGEST_RETRY_AFTER_S)


def _finite_s(error: BrigadeError) -> float:
    asked_s = error.retry_after_s or 0.0
    return max(asked_s, 0.0) if math.isfinite(asked_s) else 0.0


def _at_once(known: Failover, *, after_s: float, wait_s: float) -> AskAgain:
    return AskAgain(known=known, after_s=after_s, wait_s=wait_s, waits_for=None)


def notice_of(failed: AttemptFailed, n_tokens: int) -> str:
    """One line for people about a failed attempt that another follows."""
    failure = failed.failure
    counted = "1 token" if n_tokens == 1 else f"{n_tokens} tokens"
    who = "the route" if failure.worker_id is None else f"worker {failure.worker_id}"
    match failure.code:
        case "hop_lost":
            what = "went away"
        case _ if failure.code == STALLED:
            what = "became slow" if failed.has_slowed else "stood still"
        case "draining":
            what = "is stopping"
        case "clock_skew":
            what = "has another time than the coordinator, by an hour or more,"
        case code:
            what = f"failed ({code})"
    return f"{who} {what} after {counted}; going on by another route"


def _in_words(failure: HopFailure) -> str:
    return failure.code if failure.worker_id is None else f"{failure.code} of {failure.worker_id}"
