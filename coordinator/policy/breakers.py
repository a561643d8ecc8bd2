"""Circuit breakers per worker and per link: what failed a few times in a row is left alone for a moment.

After M. Nygard, Release It!: closed, open after some failures, half open after a while (a trial now and then),
closed again by a success. An open breaker makes a worker or a link the last choice, never an impossible one, so
whoever slanders a worker takes nothing away. Times are seconds of a clock that never steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from coordinator.policy.routing import Avoided
from protocol.errors import (
    HopLostError,
    InternalError,
    ModelFaultError,
    OverloadedError,
    ProtocolError,
    UnreachableError,
)
from protocol.ids import SessionId, WorkerId

WEIGHTS: Mapping[str, float] = {
    HopLostError.code: 1.0,
    UnreachableError.code: 1.0,
    InternalError.code: 1.0,
    ProtocolError.code: 1.0,
    ModelFaultError.code: 1.0,  # the worker's memory may be what is broken, and others may have sound weights
    OverloadedError.code: 0.25,
}
"""How much a failure counts by its code; others are no worker's fault, or nobody knows whose."""

OPENS_AT = 3.0
WINDOW_S = 30.0
"""A breaker opens when failures of so much weight happened within so long, each of another session."""
FIRST_OPEN_S = 5.0
LONGEST_OPEN_S = 60.0
"""How long it stays open the first time; twice as long each time that a trial fails, up to the longest."""
TRIAL_EVERY_S = 1.0
"""A half-open breaker lets one route through in this time."""
FORGET_S = 600.0
MAX_BREAKERS = 4096
MAX_FAILURES = 16
"""Of one breaker that are remembered: with the smallest weight as many open it."""

Link = tuple[WorkerId, WorkerId]
Subject = WorkerId | Link
"""What a breaker is for: a worker, or the way from one worker to another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One session's failure, as far as it is somebody's fault."""

    at_s: float
    session_id: SessionId
    weight: float
    link: Link | None = None
    """The link on which it was noticed; None if the client noticed it, or the worker said so itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """One worker's or one link's."""

    failures: tuple[Failure, ...] = ()
    """Of the last `WINDOW_S`, oldest first."""
    opened_s: float | None = None
    """When it opened; None while it is closed."""
    open_for_s: float = FIRST_OPEN_S
    tried_s: float | None = None
    """When a half-open one let a route through."""
    changed_s: float

    def is_open(self, now_s: float) -> bool:
        """Whether nothing is to go over it now: it is open, or half open and a trial is under way."""
        if self.opened_s is None:
            return False
        if now_s < self.opened_s + self.open_for_s:
            return True
        return self.tried_s is not None and now_s < self.tried_s + TRIAL_EVERY_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakers:
    """All breakers that are not as new."""

    of: Mapping[Subject, Breaker] = field(default_factory=dict)


def failed(
    breakers: Breakers,
    *,
    session_id: SessionId,
    route: Sequence[WorkerId],
    worker_id: WorkerId | None,
    noticed_by: WorkerId | None,
    code: str,
    now_s: float,
) -> Breakers:
    """What a session's failure makes of the breakers: nothing, unless `worker_id` was on its route and to blame."""
    weight = WEIGHTS.get(code, 0.0)
    if worker_id not in route or weight == 0.0:
        return breakers
    assert worker_id is not None
    link = _link(route, worker_id, noticed_by)
    failure = Failure(at_s=now_s, session_id=session_id, weight=weight, link=link)
    kept = dict(_remembered(breakers, now_s))
    for subject in (worker_id, link):
        if subject is not None:
            kept[subject] = _after_failure(kept.get(subject) or Breaker(changed_s=now_s), subject, failure)
    if len(kept) > MAX_BREAKERS:
        oldest = sorted(kept, key=lambda subject: kept[subject].changed_s)[: len(kept) - MAX_BREAKERS]
        for subject in oldest:
            del kept[subject]
    return Breakers(of=kept)


def succeeded(breakers: Breakers, route: Sequence[WorkerId]) -> Breakers:
    """What a finished generation makes of them: what it went over is as new."""
    worked: set[Subject] = {*route, *pairwise(route)}
    if worked.isdisjoint(breakers.of):
        return breakers
    return Breakers(of={subject: breaker for subject, breaker in breakers.of.items() if subject not in worked})


def tried(breakers: Breakers, route: Sequence[WorkerId], now_s: float) -> Breakers:
    """What a route that was given makes of them: over what is half open it is the trial."""
    subjects: tuple[Subject, ...] = (*route, *pairwise(route))
    tries = {
        subject: replace(breaker, tried_s=now_s, changed_s=now_s)
        for subject in subjects
        if (breaker := breakers.of.get(subject)) is not None
        and breaker.opened_s is not None
        and not breaker.is_open(now_s)
    }
    return Breakers(of={**breakers.of, **tries}) if tries else breakers


def avoided(breakers: Breakers, now_s: float) -> Avoided:
    """What routes are to go round now."""
    found = [subject for subject, breaker in breakers.of.items() if breaker.is_open(now_s)]
    return Avoided(
        workers=frozenset(subject for subject in found if not isinstance(subject, tuple)),
        links=frozenset(subject for subject in found if isinstance(subject, tuple)),
    )


def note(breakers: Breakers, worker_id: WorkerId, now_s: float) -> str:
    """Why a worker, or the way to it, is avoided now; empty if it isn't."""
    sentences = []
    for subject, breaker in breakers.of.items():
        if not breaker.is_open(now_s) or worker_id != (subject[1] if isinstance(subject, tuple) else subject):
            continue
        assert breaker.opened_s is not None
        what = f"the way from {subject[0]} is" if isinstance(subject, tuple) else "it is"
        rest_s = breaker.opened_s + breaker.open_for_s - now_s
        how = f"avoided for {rest_s:.0f} s more" if rest_s > 0 else "tried with one session a second"
        n_sessions = len({failure.session_id for failure in breaker.failures})
        sentences.append(f"{what} {how}: {n_sessions} sessions failed there within {WINDOW_S:.0f} s")
    return "; ".join(sentences)


def _link(route: Sequence[WorkerId], worker_id: WorkerId, noticed_by: WorkerId | None) -> Link | None:
    """The link into the worker, if an earlier hop said so: what is lost is noticed by the hop before."""
    if noticed_by not in route:
        return None
    assert noticed_by is not None
    i = route.index(worker_id)
    return (route[i - 1], worker_id) if route.index(noticed_by) < i else None


def _after_failure(breaker: Breaker, subject: Subject, failure: Failure) -> Breaker:
    now_s = failure.at_s
    if any(known.session_id == failure.session_id for known in breaker.failures):
        return breaker  # a session counts once
    failures = (*(f for f in breaker.failures if now_s < f.at_s + WINDOW_S), failure)[-MAX_FAILURES:]
    after = replace(breaker, failures=failures, changed_s=now_s)
    if breaker.opened_s is not None:
        if now_s < breaker.opened_s + breaker.open_for_s:
            return after  # of a session that began before
        return replace(after, opened_s=now_s, open_for_s=min(2 * breaker.open_for_s, LONGEST_OPEN_S), tried_s=None)
    return replace(after, opened_s=now_s) if _opens(failures, subject) else after


def _opens(failures: Sequence[Failure], subject: Subject) -> bool:
    if sum(failure.weight for failure in failures) < OPENS_AT:
        return False
    # What happens on one link alone says nothing of the worker at its end.
    links = {failure.link for failure in failures}
    return isinstance(subject, tuple) or None in links or len(links) > 1


def _remembered(breakers: Breakers, now_s: float) -> Iterator[tuple[Subject, Breaker]]:
    return ((s, breaker) for s, breaker in breakers.of.items() if now_s < breaker.changed_s + FORGET_S)
