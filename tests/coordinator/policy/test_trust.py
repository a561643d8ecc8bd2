"""The score: what it never does, whatever is sent; what one reporter can do; that time forgives and work earns."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, zip_longest
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coordinator.policy.evidence_weights import DAY_S, WEIGHINGS, EvidenceKind
from coordinator.policy.trust import (
    COORDINATOR,
    KEY_CAP,
    KNOWING_NOTHING,
    MAX_OPINIONS,
    MOST_HARM,
    NEW_SCORE,
    NEWCOMER,
    NO_RECORD,
    RELEASED_FROM,
    ROUTED_FROM,
    STRONG_FROM,
    WEAK_BELOW,
    Evidence,
    Opinion,
    TrustRecord,
    adds_nothing,
    is_as_new,
    is_on_probation,
    penalty_s,
    repeated,
    reviewed,
    score,
    standing,
    with_evidence,
    without_blame,
)

NOW_S = 1e9
KINDS: tuple[EvidenceKind, ...] = get_args(EvidenceKind)
OPINIONS = tuple(kind for kind in KINDS if kind != "audit_failed")
"""What reporters say; audits are the coordinator's own."""
BAD = tuple(kind for kind in KINDS if not WEIGHINGS[kind].is_good)
SAID_AGAINST = tuple(kind for kind in BAD if kind in OPINIONS)
KEYS = ("key:a", "key:b", "key:c", "worker:d", "worker:e", "worker:f")

weights = st.floats(0.0, 100.0)
gaps_s = st.floats(0.0, 20 * DAY_S)


def evidences(kinds: tuple[EvidenceKind, ...] = OPINIONS, reporters: tuple[str, ...] = KEYS) -> st.SearchStrategy:
    return st.builds(Evidence, kind=st.sampled_from(kinds), reporter=st.sampled_from(reporters), weight=weights)


histories = st.lists(st.tuples(evidences(), gaps_s), max_size=15)


def lived(history: list[tuple[Evidence, float]], record: TrustRecord = NO_RECORD) -> tuple[TrustRecord, float]:
    now_s = NOW_S
    for evidence, gap_s in history:
        now_s += gap_s
        record = reviewed(with_evidence(record, evidence, now_s), now_s)
    return record, now_s


@given(scores=st.lists(st.floats(0.36, 0.6), min_size=1, max_size=30))
def test_who_is_weak_is_so_until_it_is_clearly_not(scores: list[float]) -> None:
    now, n_changes = NEWCOMER, 0
    for found in scores:
        after = standing(with_score(found), NOW_S, now)
        n_changes += (after.level == "weak") != (now.level == "weak")
        assert (after.level == "weak") >= (after.score < WEAK_BELOW)
        assert (after.level == "weak") <= (after.score < STRONG_FROM)
        now = after
    assert n_changes <= 1 + sum(abs(b - a) >= STRONG_FROM - WEAK_BELOW for a, b in pairwise([0.5, *scores]))


def with_score(found: float) -> TrustRecord:
    """A record of this score, which nobody pinned."""
    bad = KNOWING_NOTHING * NEW_SCORE / found - KNOWING_NOTHING
    against = Opinion(reporter="key:a", kind="hop_failed", mass=max(bad, 0.0), at_s=NOW_S)
    return TrustRecord(opinions=(against,))


def told(record: TrustRecord, kind: EvidenceKind, reporter: str, n_times: int, now_s: float = NOW_S) -> TrustRecord:
    for _ in range(n_times):
        evidence = Evidence(kind=kind, reporter=reporter, weight=WEIGHINGS[kind].weight)
        record = reviewed(with_evidence(record, evidence, now_s), now_s)
    return record


@given(histories, evidences(KINDS), st.floats(-1e6, 1e9))
def test_it_is_between_0_and_1_and_kept_small(history: list, last: Evidence, later_s: float) -> None:
    record, now_s = lived([*history, (last, 0.0)])
    assert 0.0 <= score(record, now_s + later_s) <= 1.0
    assert len(record.opinions) <= MAX_OPINIONS
    for reporter in KEYS:
        own = [o.mass_at(now_s) for o in record.opinions if o.reporter == reporter and o.kind != "audit_failed"]
        assert sum(own) <= KEY_CAP + 1e-9


@given(histories, evidences(BAD), gaps_s)
def test_a_failure_never_raises_it(history: list, failure: Evidence, later_s: float) -> None:
    record, now_s = lived(history)
    after = with_evidence(record, failure, now_s)
    assert score(after, now_s) <= score(record, now_s) + 1e-9


@given(histories, evidences(tuple(kind for kind in OPINIONS if WEIGHINGS[kind].is_good)))
def test_work_never_lowers_it(history: list, work: Evidence) -> None:
    record, now_s = lived(history)
    assert score(with_evidence(record, work, now_s), now_s) >= score(record, now_s) - 1e-9


@given(histories, st.lists(st.tuples(evidences(OPINIONS, ("key:slanderer",)), gaps_s), max_size=20))
def test_one_reporter_does_no_more_harm_than_is_stated(history: list, slander: list) -> None:
    said = [pair for two in zip_longest(history, slander) for pair in two if pair is not None]
    unsaid = [(_NOTHING if evidence.reporter == "key:slanderer" else evidence, gap_s) for evidence, gap_s in said]
    (record, now_s), (without, _) = lived(said), lived(unsaid)
    assert score(record, now_s) >= score(without, now_s) - MOST_HARM


@given(st.lists(st.tuples(evidences(SAID_AGAINST, ("key:slanderer",)), gaps_s), max_size=30))
def test_one_reporter_alone_quarantines_nobody(slander: list) -> None:
    record, now_s = lived(slander)
    assert score(record, now_s) >= 0.25 > ROUTED_FROM
    assert not record.is_quarantined


WORKERS = tuple(f"worker:{i}" for i in range(50))


@given(st.lists(st.tuples(evidences(SAID_AGAINST, WORKERS), gaps_s), max_size=40))
@example([(Evidence(kind=SAID_AGAINST[0], reporter=each, weight=100.0), 0.0) for each in WORKERS])
def test_any_number_of_workers_together_do_what_one_key_does(slander: list) -> None:
    record, now_s = lived(slander)
    assert score(record, now_s) >= 0.25


_NOTHING = Evidence(kind="work", reporter="key:nobody", weight=0.0)


@given(histories, st.floats(0.0, 400 * DAY_S), st.floats(0.0, 400 * DAY_S))
def test_time_alone_raises_nobody_above_what_work_earned(history: list, first_s: float, second_s: float) -> None:
    record, now_s = lived(history)
    earned = score(without_blame(record), now_s + first_s)
    assert score(record, now_s + first_s + second_s) <= max(earned, NEW_SCORE) + 1e-9


@given(histories)
def test_in_the_end_all_is_forgotten(history: list) -> None:
    record, now_s = lived(history)
    later_s = now_s + 1000 * DAY_S
    after = reviewed(record, later_s)
    assert score(after, later_s) == pytest.approx(NEW_SCORE, abs=0.01)
    assert not after.is_quarantined
    assert is_as_new(after, later_s)


def test_a_newcomer_is_on_probation_until_work_speaks_for_it() -> None:
    record = NO_RECORD
    assert standing(record, NOW_S).level == "probation"
    n_generations = 0
    while is_on_probation(record, NOW_S):
        assert score(record, NOW_S) <= NEW_SCORE
        record = told(record, "work", "key:a", 1)
        n_generations += 1
    assert n_generations == 11
    assert standing(record, NOW_S).level == "trusted"
    assert score(record, NOW_S) > NEW_SCORE


def test_two_keys_quarantine_who_fails_both_and_it_takes_more_to_be_released() -> None:
    record = told(told(told(NO_RECORD, "work", "key:a", 30), "work", "key:b", 30), "hop_failed", "key:a", 30)
    assert not record.is_quarantined
    record = told(record, "hop_failed", "key:b", 9)
    assert record.is_quarantined
    barred_s = 0.0
    while record.is_quarantined:
        barred_s += 600.0
        record = reviewed(record, NOW_S + barred_s)
        assert record.is_quarantined == (score(record, NOW_S + barred_s) < RELEASED_FROM)
    assert 3600.0 < barred_s < DAY_S


def test_a_failed_audit_is_proof_and_work_does_not_undo_it() -> None:
    record = NO_RECORD
    for key in KEYS[:3]:
        record = told(record, "work", key, 30)
    record = told(record, "audit_failed", COORDINATOR, 1)
    assert record.is_quarantined
    after = told(record, "work", "key:z", 30)
    assert after.is_quarantined
    assert score(told(record, "audit_passed", COORDINATOR, 30), NOW_S) < ROUTED_FROM


def test_what_operators_decide_comes_before_all_evidence() -> None:
    record = told(told(NO_RECORD, "hop_failed", "key:a", 30), "hop_failed", "key:b", 30)
    assert record.is_quarantined
    pinned = reviewed(replace(record, pinned=0.9), NOW_S)
    assert (standing(pinned, NOW_S).score, standing(pinned, NOW_S).level) == (0.9, "trusted")
    banned = replace(pinned, banned_reason="enough")
    assert (standing(banned, NOW_S).score, standing(banned, NOW_S).level) == (0.0, "banned")
    pardoned = reviewed(without_blame(banned), NOW_S)
    assert standing(pardoned, NOW_S).level == "probation"
    assert reviewed(replace(NO_RECORD, pinned=0.1), NOW_S).is_quarantined


@given(st.floats(0.01, 1.0), st.integers(1, 50), st.sampled_from(KEYS))
def test_a_weight_repeated_is_that_many_steps(weight: float, n_times: int, reporter: str) -> None:
    one_by_one = NO_RECORD
    for _ in range(n_times):
        one_by_one = with_evidence(one_by_one, Evidence(kind="work", reporter=reporter, weight=weight), NOW_S)
    whole = Evidence(kind="work", reporter=reporter, weight=repeated(weight, reporter, n_times))
    assert score(with_evidence(NO_RECORD, whole, NOW_S), NOW_S) == pytest.approx(score(one_by_one, NOW_S), abs=0.01)


def test_praise_that_can_not_be_louder_adds_nothing() -> None:
    praise = Evidence(kind="work", reporter="key:a", weight=0.5)
    assert not adds_nothing(NO_RECORD, praise, NOW_S)
    record = told(NO_RECORD, "work", "key:a", 60)
    assert adds_nothing(record, praise, NOW_S)
    assert not adds_nothing(record, praise, NOW_S + 10 * DAY_S)
    assert not adds_nothing(record, replace(praise, kind="hop_failed"), NOW_S)


def test_the_penalty_is_nothing_after_one_failure_and_grows_with_more() -> None:
    assert penalty_s(standing(NO_RECORD, NOW_S)) == 0.0
    once = standing(told(NO_RECORD, "hop_failed", "key:a", 1), NOW_S)
    twice = standing(told(NO_RECORD, "hop_failed", "key:a", 2), NOW_S)
    assert penalty_s(once) == 0.0 < penalty_s(twice) < 1.0
    assert twice.level == "weak"
