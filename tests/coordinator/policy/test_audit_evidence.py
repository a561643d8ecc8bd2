from __future__ import annotations

from dataclasses import replace

import pytest

from coordinator.policy.audit_evidence import evidence_of
from coordinator.policy.trust import Evidence, Standing
from coordinator.policy.trust_events import EvidenceSeen, Seen
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.ids import BlockRange, ModelName, WorkerId
from tests.coordinator.policy.fleet import Fleet, ready_pair

A, B = WorkerId("a"), WorkerId("b")


def info(outcome: AuditOutcome, partner_outcome: AuditOutcome, partner: str = "b", referee: str = "") -> AuditInfo:
    return AuditInfo(
        at="",
        worker_id=A,
        model=ModelName("m"),
        blocks=BlockRange(0, 4),
        partner=partner,
        referee=referee,
        outcome=outcome,
        partner_outcome=partner_outcome,
        difference=0.3,
        allowed=0.1,
        reason="audit of blocks 0:4 of m: the projections of a and b differ by 0.3, 0.1 allowed",
    )


def kinds(fleet: Fleet, found: AuditInfo) -> dict[str, tuple[str, float]]:
    seen = evidence_of(found, fleet.state, fleet.now_s)
    return {one.worker_id: (one.evidence.kind, one.evidence.weight) for one in seen}


def test_praise_comes_only_of_agreeing_with_whom_is_trusted() -> None:
    fleet = ready_pair()
    assert kinds(fleet, info("passed", "passed")) == {}
    assert kinds(fleet, info("passed", "undecided", partner="recorded")) == {A: ("audit_passed", 1.0)}
    trusted = replace(fleet.state.workers[B], trust=Standing(score=0.8, level="trusted"))
    fleet.state = replace(fleet.state, workers={**fleet.state.workers, B: trusted})
    assert kinds(fleet, info("passed", "passed")) == {A: ("audit_passed", 1.0)}


def test_a_failed_audit_quarantines_and_the_history_says_why() -> None:
    fleet = ready_pair()
    seen = evidence_of(info("passed", "failed", referee="c"), fleet.state, fleet.now_s)
    effects = fleet.do(EvidenceSeen(items=seen))
    assert fleet.state.workers[B].trust.level == "quarantined"
    assert fleet.state.workers[A].trust.level == "probation"
    assert any("differ by 0.3, 0.1 allowed" in str(getattr(effect, "reason", "")) for effect in effects)


@pytest.mark.parametrize("n_times", [1, 5])
def test_suspicion_counts_once_and_quarantines_nobody(n_times: int) -> None:
    fleet = ready_pair()
    for _ in range(n_times):
        seen = evidence_of(info("suspected", "suspected"), fleet.state, fleet.now_s)
        fleet.do(EvidenceSeen(items=seen))
        fleet.wait(1)
    for worker_id in (A, B):
        assert fleet.state.workers[worker_id].trust.level == "weak"
        assert fleet.state.workers[worker_id].trust.score == pytest.approx(2.0 / 5.05, abs=0.01)


@pytest.mark.parametrize("is_first", [True, False])
def test_a_slanderer_with_a_worker_and_a_key_quarantines_no_newcomer(is_first: bool) -> None:
    fleet = ready_pair()
    slander = Evidence(kind="hop_failed", reporter="key:k", weight=1.0)
    for is_audit in (is_first, not is_first):
        for _ in range(40):
            seen = evidence_of(info("suspected", "suspected"), fleet.state, fleet.now_s)
            said = seen if is_audit else (Seen(worker_id=A, evidence=slander, reason="said"),)
            fleet.do(EvidenceSeen(items=said))
    assert fleet.state.workers[A].trust.level == "weak"


def test_who_gives_no_answer_is_weak_in_the_end_and_not_quarantined() -> None:
    fleet = ready_pair()
    for _ in range(20):
        fleet.do(EvidenceSeen(items=evidence_of(info("unanswered", "undecided"), fleet.state, fleet.now_s)))
    assert fleet.state.workers[A].trust.level == "weak"
    assert kinds(fleet, info("undecided", "undecided")) == {}
