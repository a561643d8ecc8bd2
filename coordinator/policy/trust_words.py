"""How trust stands, in words: of a worker, and of a model that leans on workers who aren't trusted."""

from __future__ import annotations

from coordinator.policy.coverage import gaps, ready_counts, spans_of
from coordinator.policy.departure import is_served_elsewhere
from coordinator.policy.evidence_weights import WEIGHINGS
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.trust import (
    NO_RECORD,
    PROBATION_ENDS_AT,
    RELEASED_FROM,
    Standing,
    TrustRecord,
    evidence_for_and_against,
    penalty_s,
)
from protocol.ids import ModelName, WorkerId

_MAX_NAMES = 4


def why_quarantined(state: ClusterState, worker: WorkerRecord) -> str:
    """Why a worker is quarantined, how its blocks fare, and what ends it."""
    record = state.trust.get(worker.worker_id, NO_RECORD)
    if record.pinned is not None:
        why, end = f"an operator pinned its trust at {record.pinned:.2f}", "`coord trust unpin` ends it"
    else:
        why = f"its trust fell to {worker.trust.score:.2f} ({record.quarantine_reason})"
        end = f"it ends at {RELEASED_FROM:g}, as evidence grows old, or by `coord trust pardon`"
    if not worker.assignment.spans:
        blocks = "its blocks were given to others"
    elif is_served_elsewhere(state, worker):
        blocks = "others serve its blocks, which are taken from it now"
    else:
        blocks = "its blocks are given to others with room, and aren't served until those have loaded them"
    return f"{why}: no new sessions go there; {blocks}; {end}"


def trust_note(state: ClusterState, worker: WorkerRecord, now_s: float) -> str:
    """Why routes avoid a worker that isn't quarantined; empty if they don't."""
    if worker.trust.level != "weak":
        return ""
    record = state.trust.get(worker.worker_id, NO_RECORD)
    what = f"trust {worker.trust.score:.2f} is weak: trusted workers with room are given its blocks too"
    cost = f"routes over it count as {1000 * penalty_s(worker.trust):.0f} ms a token slower"
    return "; ".join(filter(None, (f"{what}, {cost}", against(record, now_s))))


def against(record: TrustRecord, now_s: float) -> str:
    """What speaks against a worker, in words; empty if nothing does."""
    if record.pinned is not None:
        return "pinned by an operator"
    by_kind: dict[str, set[str]] = {}
    for opinion in record.opinions:
        if not WEIGHINGS[opinion.kind].is_good and opinion.mass_at(now_s) >= 0.1:
            by_kind.setdefault(opinion.kind, set()).add(opinion.reporter)
    return ", ".join(f"{kind.replace('_', ' ')} says {_who(names)}" for kind, names in sorted(by_kind.items()))


def level_words(standing: Standing, record: TrustRecord, now_s: float) -> str:
    """Why a worker has its level and what would change it."""
    good, _ = evidence_for_and_against(record.opinions, now_s)
    match standing.level:
        case "banned":
            return f"banned: {record.banned_reason}; it can't join until `coord trust pardon`"
        case "quarantined" if record.pinned is None:
            return f"{record.quarantine_reason}; released from {RELEASED_FROM:g} on"
        case "probation":
            so_far = f"{good:.1f} of {PROBATION_ENDS_AT:g} that it takes"
            return f"on probation: {so_far}; only generations that end well over it count, no uptime"
        case "trusted" | "weak" | "quarantined":
            return against(record, now_s)


def unbacked(state: ClusterState, model: ModelRecord) -> str:
    """Which blocks only workers serve that aren't trusted, while others are; empty if there are none."""
    workers = [w for w in state.workers.values() if w.is_routable]
    if all(w.trust.level == "probation" for w in workers):
        return ""  # all of them are new, or were never used
    lone = gaps(ready_counts([w for w in workers if w.trust.level == "trusted"], model))
    names = sorted(
        f"{w.worker_id} ({w.trust.level})"
        for w in workers
        if w.trust.level != "trusted"
        and any(span.blocks.overlaps(gap) for span in spans_of(model, w.served) for gap in lone)
    )
    if not lone or not names:
        return ""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    blocks = ", ".join(str(gap) for gap in lone)
    return (
        f"blocks {blocks} of {model.name} are served by nobody but {', '.join(names[:_MAX_NAMES])}{more}: trusted "
        "workers are given them too as soon as they have room; `worker join` on another machine helps"
    )


def too_little_trust(state: ClusterState, name: ModelName, min_trust: float, left_out: frozenset[WorkerId]) -> str:
    """What a request's own trust floor leaves out, in words; empty if it leaves out nobody who serves the model."""
    model = state.models[name]
    serving = [
        w for w in state.workers.values() if w.worker_id in left_out and w.is_routable and spans_of(model, w.served)
    ]
    if not serving:
        return ""
    serving.sort(key=lambda w: (-w.trust.score, w.worker_id))
    who = [f"{w.worker_id} has {w.trust.score:.2f}, {w.trust.level}" for w in serving[:_MAX_NAMES]]
    more = f"; {len(serving) - _MAX_NAMES} more have less" if len(serving) > _MAX_NAMES else ""
    return (
        f"the request, or the limits of its API key, ask for a trust of {min_trust:.2f}, which leaves out "
        f"{len(serving)} of the workers that serve {name} ({'; '.join(who)}{more}); ask for less, or have an "
        "operator pin those you trust (`coord trust pin`)"
    )


def below(state: ClusterState, min_trust: float) -> frozenset[WorkerId]:
    """Workers that a request leaves out by its trust floor."""
    if min_trust <= 0.0:
        return frozenset()
    return frozenset(w for w, worker in state.workers.items() if worker.trust.score < min_trust)


def _who(reporters: set[str]) -> str:
    names = sorted(reporters)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
