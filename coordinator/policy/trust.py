"""How far a worker is trusted: a score in [0, 1] made of evidence that others bring. Arithmetic; knows no cluster.

The beta reputation of Jøsang and Ismail (The Beta Reputation System, 2002), with their forgetting, for each
reporter by himself. With w the weight of a new piece of evidence and C the most that its reporter counts for, all
that he said before is multiplied by 1 - w/C, then w is added: so his whole opinion never weighs more than C,
whatever he sends, and the newest part counts most. Beside that each kind of evidence halves in its own half-life.
With R and S the sums of what speaks for and against a worker,

    score = (P/2 + R) / (P + R + S) x 2^-A

where P is the weight of knowing nothing (so that a new worker has 1/2), and A that of failed audits, which are
proof and no opinion. While R is less than `PROBATION_ENDS_AT` the score is at most `NEW_SCORE`, so time brings
nobody above it: only work does. Times are seconds since 1970, UTC.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from coordinator.policy.evidence_weights import WEIGHINGS, EvidenceKind

KNOWING_NOTHING = 4.0
NEW_SCORE = 0.5
PROBATION_ENDS_AT = 3.0
"""Weight of what speaks for a worker: eleven generations of one API key, or fewer of each of several."""

KEY_CAP = 4.0
"""Most that the opinion of one API key weighs, and of the coordinator itself."""
WORKER_CAP = 1.0
"""Of one worker; and all workers together count as one key, since identities of workers cost nothing."""
MOST_AUDITS = 6.0

MOST_HARM = 0.27
"""No reporter alone, whatever he sends, makes a score less by more than this than it is without him; and none
brings anybody whom nobody else speaks against below 0.25 (a test tries)."""

ROUTED_FROM = 0.22
"""Below it a worker is quarantined. A slanderer alone can't, since he leaves 0.25."""
RELEASED_FROM = 0.35
"""A quarantined worker is routed again from here on."""
WEAK_BELOW = 0.4
"""Below it routes over a worker are reckoned to cost more, and others get the blocks that it holds alone.
One failure of a newcomer doesn't bring it there, two do."""
STRONG_FROM = 0.45
"""A weak worker is weak no more from here on: so that little doesn't make it both in turns."""
PENALTY_S = 1.0
"""Seconds a token that a route over a worker of score 0 is reckoned to cost beside what it takes."""

MAX_OPINIONS = 64
"""Of one worker that are remembered; the lightest goes first."""
NEGLIGIBLE = 0.01
"""A record without anything that weighs more is as good as none."""

Level = Literal["trusted", "probation", "weak", "quarantined", "banned"]
Reporter = str
"""`key:ID`, `worker:ID`, or `coordinator`."""
COORDINATOR: Final[Reporter] = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one reporter's evidence of one kind came to at a time."""

    reporter: Reporter
    kind: EvidenceKind
    mass: float
    at_s: float

    def mass_at(self, now_s: float) -> float:
        """What is left of it now. A clock that was set back makes nothing heavier."""
        age_s = max(0.0, now_s - self.at_s)
        return float(self.mass * 0.5 ** (age_s / WEIGHINGS[self.kind].half_life_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Something that a reporter saw of a worker."""

    kind: EvidenceKind
    reporter: Reporter
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How far a worker is trusted now."""

    score: float = NEW_SCORE
    level: Level = "probation"
    is_pinned: bool = False
    """Whether an operator gave it the score."""

    @property
    def may_hold_ends(self) -> bool:
        """Whether the tokens of sensitive routes may be seen there: an operator vouches for it."""
        return self.is_pinned and self.level == "trusted"

    @property
    def is_barred(self) -> bool:
        """Whether nothing goes there."""
        return self.level in ("quarantined", "banned")


NEWCOMER = Standing()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustRecord:
    """A worker's trust as it is kept, by its id, which belongs to its key pair. It outlives its leaving."""

    opinions: tuple[Opinion, ...] = ()
    is_quarantined: bool = False
    quarantine_reason: str = ""
    pinned: float | None = None
    """The score that an operator gave it; evidence is kept meanwhile, and counts again after."""
    banned_reason: str | None = None
    n_events: int = 0
    """How many events are kept of it one by one."""
    accused_ago: tuple[int, ...] = ()
    """How many of its audits ago it was accused by one, without proof (`policy.audit_accusations`)."""


NO_RECORD = TrustRecord()


def kind_of(reporter: Reporter) -> str:
    """`key`, `worker` or `coordinator`."""
    return reporter.partition(":")[0]


def cap_of(reporter: Reporter) -> float:
    """Most that all of this reporter's evidence on one worker weighs."""
    return WORKER_CAP if kind_of(reporter) == "worker" else KEY_CAP


def repeated(weight: float, reporter: Reporter, n_times: int) -> float:
    """The weight that does in one step what `n_times` steps of `weight` do."""
    cap = cap_of(reporter)
    return cap * (1.0 - (1.0 - min(weight, cap) / cap) ** n_times)


def with_evidence(record: TrustRecord, evidence: Evidence, now_s: float) -> TrustRecord:
    """The record with one more piece of evidence; failed audits stand beside opinions, and work forgets none."""
    if evidence.kind == "audit_failed":
        return replace(record, opinions=_audited(record.opinions, evidence, now_s))
    cap = cap_of(evidence.reporter)
    weight = min(max(evidence.weight, 0.0), cap)
    keeps = 1.0 - weight / cap
    others, own = [], {evidence.kind: weight}
    for opinion in record.opinions:
        if opinion.reporter != evidence.reporter or opinion.kind == "audit_failed":
            others.append(opinion)
        else:
            own[opinion.kind] = own.get(opinion.kind, 0.0) + keeps * opinion.mass_at(now_s)
    mine = [
        Opinion(reporter=evidence.reporter, kind=kind, mass=mass, at_s=now_s)
        for kind, mass in own.items()
        if mass > 0.0
    ]
    return replace(record, opinions=_lightest_dropped(others, mine, now_s))


def adds_nothing(record: TrustRecord, evidence: Evidence, now_s: float) -> bool:
    """Whether it is praise of a reporter who can't say it louder: he has said little else lately."""
    if not WEIGHINGS[evidence.kind].is_good:
        return False
    own = (o for o in record.opinions if (o.reporter, o.kind) == (evidence.reporter, evidence.kind))
    return sum(opinion.mass_at(now_s) for opinion in own) >= 0.95 * cap_of(evidence.reporter)


def without_blame(record: TrustRecord) -> TrustRecord:
    """The record with all forgotten that speaks against the worker, and neither pinned nor banned."""
    praise = tuple(opinion for opinion in record.opinions if WEIGHINGS[opinion.kind].is_good)
    return TrustRecord(opinions=praise, n_events=record.n_events)


def evidence_for_and_against(opinions: Iterable[Opinion], now_s: float) -> tuple[float, float]:
    """R and S of the formula."""
    good = bad = 0.0
    good_of_workers = bad_of_workers = 0.0
    for opinion in opinions:
        mass, is_good = opinion.mass_at(now_s), WEIGHINGS[opinion.kind].is_good
        if opinion.kind == "audit_failed":
            continue
        if kind_of(opinion.reporter) == "worker":
            good_of_workers += mass * is_good
            bad_of_workers += mass * (not is_good)
        else:
            good += mass * is_good
            bad += mass * (not is_good)
    return good + min(good_of_workers, KEY_CAP), bad + min(bad_of_workers, KEY_CAP)


def is_on_probation(record: TrustRecord, now_s: float) -> bool:
    """Whether too little work speaks for the worker."""
    return evidence_for_and_against(record.opinions, now_s)[0] < PROBATION_ENDS_AT


def score(record: TrustRecord, now_s: float) -> float:
    """The formula; what an operator decided comes before it."""
    if record.banned_reason is not None:
        return 0.0
    if record.pinned is not None:
        return record.pinned
    good, bad = evidence_for_and_against(record.opinions, now_s)
    believed = (KNOWING_NOTHING * NEW_SCORE + good) / (KNOWING_NOTHING + good + bad)
    if good < PROBATION_ENDS_AT:
        believed = min(believed, NEW_SCORE)
    audits = sum(o.mass_at(now_s) for o in record.opinions if o.kind == "audit_failed")
    return float(believed * 2.0**-audits)


def standing(record: TrustRecord, now_s: float, before: Standing = NEWCOMER) -> Standing:
    """Score and level of a record that is up to date (`reviewed`), of a worker that stood so before."""
    found = score(record, now_s)
    return Standing(score=found, level=_level(record, found, now_s, before), is_pinned=record.pinned is not None)


def reviewed(record: TrustRecord, now_s: float) -> TrustRecord:
    """The record with the quarantine that its score calls for; between the two thresholds it stays as it was."""
    found = score(record, now_s)
    is_quarantined = found < (RELEASED_FROM if record.is_quarantined and record.pinned is None else ROUTED_FROM)
    if is_quarantined == record.is_quarantined:
        return record
    return replace(record, is_quarantined=is_quarantined, quarantine_reason="")


def is_as_new(record: TrustRecord, now_s: float) -> bool:
    """Whether nothing is left of it that counts."""
    is_decided = record.pinned is not None or record.banned_reason is not None or record.is_quarantined
    return not is_decided and all(opinion.mass_at(now_s) < NEGLIGIBLE for opinion in record.opinions)


def penalty_s(standing: Standing) -> float:
    """Seconds a token that a route over the worker is reckoned to cost more: nothing unless it is weak."""
    return PENALTY_S * max(0.0, WEAK_BELOW - standing.score) / WEAK_BELOW


def _level(record: TrustRecord, found: float, now_s: float, before: Standing) -> Level:
    if record.banned_reason is not None:
        return "banned"
    if record.is_quarantined:
        return "quarantined"
    was_weak = before.level in ("weak", "quarantined") and record.pinned is None
    if found < (STRONG_FROM if was_weak else WEAK_BELOW):
        return "weak"
    return "probation" if record.pinned is None and is_on_probation(record, now_s) else "trusted"


def _audited(opinions: tuple[Opinion, ...], evidence: Evidence, now_s: float) -> tuple[Opinion, ...]:
    old = sum(o.mass_at(now_s) for o in opinions if o.kind == "audit_failed")
    mass = min(old + evidence.weight, MOST_AUDITS)
    failed = Opinion(reporter=evidence.reporter, kind="audit_failed", mass=mass, at_s=now_s)
    return (*(o for o in opinions if o.kind != "audit_failed"), failed)


def _lightest_dropped(others: list[Opinion], mine: list[Opinion], now_s: float) -> tuple[Opinion, ...]:
    n_left = MAX_OPINIONS - len(mine)
    by_weight = sorted(others, key=lambda o: (o.kind == "audit_failed", o.mass_at(now_s)))
    return (*(by_weight[-n_left:] if len(others) > n_left else others), *mine)
