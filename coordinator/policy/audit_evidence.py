"""What an audit says of workers, as evidence of the coordinator. Pure.

Who agrees with a worker that isn't trusted itself has shown nothing: two of one owner agree on anything. So praise
comes only of agreeing with a trusted worker or with another one's kept answer. Who is suspected loses a little
once, however often it is said again, and as by an opinion: else whoever holds the same blocks could talk an honest
worker down. It makes a newcomer weak; with the worst that an API key says beside it, nobody is quarantined (a test
tries).
"""

from __future__ import annotations

from coordinator.policy.audit_rules import RECORDED
from coordinator.policy.evidence_weights import WEIGHINGS, EvidenceKind
from coordinator.policy.state import ClusterState
from coordinator.policy.trust import COORDINATOR, NO_RECORD, Evidence
from coordinator.policy.trust_events import Seen
from protocol.audit_rest import AuditInfo, AuditOutcome
from protocol.ids import WorkerId


def evidence_of(info: AuditInfo, state: ClusterState, now_s: float) -> tuple[Seen, ...]:
    """What is to count of an audit, for the audited worker and the one that it was compared with."""
    found = [_seen(info, info.worker_id, info.outcome, {info.partner, info.referee}, state, now_s)]
    if info.partner in state.workers:
        partner = WorkerId(info.partner)
        others = {info.worker_id, info.referee}
        found.append(_seen(info, partner, info.partner_outcome, others, state, now_s))
    return tuple(seen for seen in found if seen is not None)


def _seen(
    info: AuditInfo,
    worker_id: WorkerId,
    outcome: AuditOutcome,
    others: set[str],
    state: ClusterState,
    now_s: float,
) -> Seen | None:
    kind: EvidenceKind
    weight = 0.0
    match outcome:
        case "passed" if any(_is_trusted(other, state) for other in others):
            kind, weight = "audit_passed", WEIGHINGS["audit_passed"].weight
        case "failed":
            kind, weight = "audit_failed", WEIGHINGS["audit_failed"].weight
        case "suspected":
            kind = "audit_differed"
            weight = max(0.0, WEIGHINGS[kind].weight - _weight_of(kind, state, worker_id, now_s))
        case "unanswered":
            kind, weight = "hop_failed", WEIGHINGS["hop_failed"].weight
        case "passed" | "undecided":
            return None
    if weight == 0.0:
        return None
    evidence = Evidence(kind=kind, reporter=COORDINATOR, weight=weight)
    return Seen(worker_id=worker_id, evidence=evidence, reason=info.reason)


def _is_trusted(other: str, state: ClusterState) -> bool:
    worker = state.workers.get(WorkerId(other))
    return other == RECORDED or (worker is not None and worker.trust.level == "trusted")


def _weight_of(kind: EvidenceKind, state: ClusterState, worker_id: WorkerId, now_s: float) -> float:
    opinions = state.trust.get(worker_id, NO_RECORD).opinions
    return sum(opinion.mass_at(now_s) for opinion in opinions if opinion.kind == kind)
