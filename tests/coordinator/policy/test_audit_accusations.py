from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.policy.audit_accusations import N_LATER, Accusations, after_audit, is_proved
from coordinator.policy.audit_rules import N_AGAIN
from coordinator.policy.effects import Effect, SaveTrust, WriteTrustEvent
from coordinator.policy.trust import COORDINATOR, Evidence
from coordinator.policy.trust_events import AuditEnded, Seen, WorkerPardoned
from protocol.ids import WorkerId
from tests.coordinator.policy.fleet import Fleet, ready_pair

A, B = WorkerId("a"), WorkerId("b")


def after(accused: list[bool]) -> Accusations:
    found: Accusations = ()
    for is_accused in accused:
        found = after_audit(found, is_accused=is_accused)
    return found


def audited(fleet: Fleet, accused: WorkerId | None) -> list[Effect]:
    return list(fleet.do(AuditEnded(items=(), compared=(A, B), accused=accused)))


@pytest.mark.parametrize("n_between", [0, N_LATER // 2 - 1, N_LATER // 2])
def test_three_accusations_among_nine_audits_are_proof(n_between: int) -> None:
    between = [False] * n_between
    accused = [True, *between, True, *between, True]
    assert not is_proved(after(accused[:-1]))
    assert is_proved(after(accused)) == (len(accused) <= 1 + N_LATER)


@given(st.lists(st.booleans(), max_size=60))
def test_only_the_newest_audits_count(accused: list[bool]) -> None:
    found = after(accused)
    assert is_proved(found) == (sum(accused[-1 - N_LATER :]) > N_AGAIN)
    assert bool(found) == any(accused[-1 - N_LATER :])  # nothing is kept of who wasn't accused


def test_accusations_are_saved_with_trust_and_each_worker_has_its_own() -> None:
    fleet = ready_pair()
    assert audited(fleet, None) == []  # nothing is written of those whom nobody accuses
    (saved,) = audited(fleet, A)
    assert saved == SaveTrust(worker_id=A, record=fleet.state.trust[A])
    assert fleet.state.trust[A].accused_ago == (0,)
    audited(fleet, None)
    audited(fleet, B)
    assert [fleet.state.trust[each].accused_ago for each in (A, B)] == [(2,), (0,)]
    fleet.do(AuditEnded(items=(), compared=(), accused=None))  # one that came to nothing makes none older
    assert fleet.state.trust[A].accused_ago == (2,)


def test_what_is_proved_counts_once() -> None:
    fleet = ready_pair()
    for _ in range(N_AGAIN + 1):
        audited(fleet, A)
    assert fleet.state.trust[A].accused_ago == ()


def test_accusation_and_evidence_of_an_audit_are_kept_together() -> None:
    fleet = ready_pair()
    seen = Seen(worker_id=A, evidence=Evidence(kind="audit_differed", reporter=COORDINATOR, weight=1.0), reason="r")
    effects = fleet.do(AuditEnded(items=(seen,), compared=(A, B), accused=A))
    assert [effect.kind for effect in effects if isinstance(effect, WriteTrustEvent)] == ["audit_differed"]
    (*_, last) = (effect for effect in effects if isinstance(effect, SaveTrust))
    assert (last.record.accused_ago, len(last.record.opinions)) == ((0,), 1)


def test_a_pardon_clears_a_worker_of_accusations() -> None:
    fleet = ready_pair()
    audited(fleet, A)
    fleet.do(WorkerPardoned(worker_id=A, by="k1", reason="a bad cable"))
    assert fleet.state.trust[A].accused_ago == ()


def test_nothing_is_kept_of_who_is_not_known() -> None:
    fleet = ready_pair()
    stranger = WorkerId("stranger")
    fleet.do(AuditEnded(items=(), compared=(stranger,), accused=stranger))
    assert stranger not in fleet.state.trust
