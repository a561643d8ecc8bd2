"""Whom to audit when, with whom to compare, over which blocks. Pure; chance is an argument, and unpredictable.

Audits come at random, independent of one another (a Poisson process), so that nobody can tell when the next one is
due and nothing has to be kept over a restart. How often: such that a worker spends `share` of its time on them at
most, a trusted one an eighth of that, and never oftener than once in `SHORTEST_S`. Whoever is asked computes, so
those that others are compared with pay as well: who was asked `BURST` times more than its share isn't asked.
What a worker says of itself puts audits off for so long only: a queue four times, a slow device to what a minute of
computing would be.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

from coordinator.policy.audit_probe import N_POSITIONS
from coordinator.policy.audit_rules import Held, Tolerance, allowed_difference, held_by, is_dense
from coordinator.policy.coverage import counts, ready_spans
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.trust import Level
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId

ANSWER_S = 60.0
"""For a whole session: a loaded worker makes one wait for memory for 30 s."""
SHORTEST_S = 30.0
"""Between two audits of a worker, on the average, however cheap they are."""
UNMEASURED_S_PER_BLOCK = 0.02
"""Of one token, where the worker has said nothing yet."""
_RARITY: Mapping[Level, float] = {"weak": 1.0, "probation": 2.0, "trusted": 8.0}
"""How many times as seldom as it might be."""
LOADED_RARITY = 4.0
"""How many times as seldom a worker is audited that says that it has a queue."""
BURST = 4.0
"""Audits that a worker may be asked for beyond its share, before it has paid for them."""
MOST_AT_ONCE = 8
"""Audits under way in all; and one of a worker."""
MAX_REFEREES = 2
"""Workers that may be asked who is right; each costs as much as the audit."""
MAX_NAMED = 4
TRUSTED_RANK = 2
_RANK: Mapping[Level, int] = {"trusted": TRUSTED_RANK, "probation": 1, "weak": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A worker that could answer, and what it holds the blocks in."""

    worker_id: WorkerId
    url: str
    epoch: int
    held: Held
    rank: int
    """How much its word counts: 2 trusted, 1 on probation, 0 weak."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPlan:
    """What a worker is to be asked, and who can be asked the same."""

    model: ModelRecord
    blocks: BlockRange
    target: Candidate
    others: tuple[Candidate, ...]
    """The first is the partner, the rest may decide between the two; none: only recorded answers are left."""
    n_busy: int = 0
    """Of others that hold some of the blocks and can't be asked at this moment, where there is no partner."""

    def allowed(self, one: Held, other: Held) -> Tolerance | None:
        """How far their answers may differ; None where they can't be compared."""
        dense = is_dense(self.model.manifest.architecture)
        return allowed_difference(one, other, len(self.blocks), is_dense=dense)


def due(
    state: ClusterState,
    share: float,
    elapsed_s: float,
    busy: Collection[WorkerId],
    rng: Random,
    *,
    n_under_way: int = 0,
) -> list[WorkerId]:
    """Whom to audit now, `elapsed_s` after the last look; not who is `busy` with audits, or has paid its share."""
    if share <= 0.0:
        return []
    found = [
        worker.worker_id
        for worker in state.workers.values()
        if worker.worker_id not in busy
        and is_auditable(worker)
        and rng.random() < 1.0 - math.exp(-elapsed_s / mean_interval_s(worker, share))
    ]
    rng.shuffle(found)
    return found[: max(0, MOST_AT_ONCE - n_under_way)]


def mean_interval_s(worker: WorkerRecord, share: float) -> float:
    """Average seconds between two audits of a worker."""
    rarity = _RARITY.get(worker.trust.level, 1.0) * (LOADED_RARITY if _has_queue(worker) else 1.0)
    return price_s(worker, share) * rarity


def price_s(worker: WorkerRecord, share: float) -> float:
    """Seconds in which what one audit takes of a worker is its share."""
    beat = worker.heartbeat
    measured = beat.decode_s_per_block if beat is not None else 0.0
    s_per_block = measured if math.isfinite(measured) and measured > 0.0 else UNMEASURED_S_PER_BLOCK
    n_blocks = max((len(span.blocks) for span in worker.ready), default=1)
    compute_s = min(N_POSITIONS * n_blocks * s_per_block, ANSWER_S)
    return max(compute_s / share, SHORTEST_S)


def has_paid(worker: WorkerRecord, share: float, owed_s: float) -> bool:
    """Whether a worker that has its share of audits back in so many seconds may be asked for another."""
    return share <= 0.0 or owed_s < BURST * price_s(worker, share)


def is_auditable(worker: WorkerRecord) -> bool:
    """Whether it serves anything that could be asked for; one in quarantine may still be, by hand."""
    is_there = worker.presence == "here" and worker.is_connected and not worker.is_draining
    return is_there and worker.trust.level != "banned" and bool(worker.served)


def plan(state: ClusterState, target_id: WorkerId, busy: Collection[WorkerId], rng: Random) -> AuditPlan | None:
    """One audit of a worker: of blocks that another one holds too, if any; None if it serves nothing.

    Those that are `busy` with audits, or loaded, aren't asked for comparison.
    """
    worker = state.workers.get(target_id)
    if worker is None or not is_auditable(worker):
        return None
    alone = [
        AuditPlan(model=model, blocks=span.blocks, target=target, others=())
        for model in state.models.values()
        for span, target in _served(model, worker)
    ]
    others = [other for other in state.workers.values() if other.worker_id != target_id]
    free = [other for other in others if other.worker_id not in busy and not _has_queue(other)]
    rng.shuffle(alone)
    rng.shuffle(free)
    for one in alone:
        found = next((found for other in free if (found := _overlap(one, other)) is not None), None)
        if found is not None:
            return _with_referees(replace(one, blocks=found[0], others=(found[1],)), free)
    if not alone:
        return None
    not_free = (other for other in others if other.worker_id in busy or _has_queue(other))
    return replace(alone[0], n_busy=sum(_overlap(alone[0], other) is not None for other in not_free))


def is_as_planned(state: ClusterState, planned: AuditPlan, candidate: Candidate) -> bool:
    """Whether a worker still holds the blocks in what the plan says, by the same assignment.

    One that was started anew in another precision, or given other blocks meanwhile, has answered as another would.
    """
    worker = state.workers.get(candidate.worker_id)
    if worker is None:
        return False
    served = ((span, now.held, now.epoch) for span, now in _served(planned.model, worker))
    return any(
        (held, epoch) == (candidate.held, candidate.epoch) and span.blocks.contains(planned.blocks)
        for span, held, epoch in served
    )


def unaudited(state: ClusterState) -> str:
    """Which workers nobody can be compared with, since nobody holds the same, in words; empty if there are none.

    Only what is wrong now and then is found of them.
    """
    lone = [words for model in state.models.values() for words in _lone(state, model)]
    if not lone:
        return ""
    more = f" and {len(lone) - MAX_NAMED} more" if len(lone) > MAX_NAMED else ""
    named = f"{', '.join(lone[:MAX_NAMED])}{more}"
    return (
        f"No audits by comparison of {named}: nobody else holds the same; another worker or `coord model replicas` "
        "mends it"
    )


def _lone(state: ClusterState, model: ModelRecord) -> list[str]:
    """Spans of a model none of whose blocks another worker holds in a form that can be compared."""
    dense = is_dense(model.manifest.architecture)
    kinds: dict[object, list[tuple[WorkerId, BlockRange]]] = {}
    for worker in state.workers.values():
        if not is_auditable(worker) or worker.trust.is_barred:
            continue
        for span in ready_spans(worker, model):
            held = held_by(worker, span)
            kind = "any" if dense and held is not None and held.weights != "int4" else held
            kinds.setdefault(kind, []).append((worker.worker_id, span.blocks))
    found = []
    for spans in kinds.values():
        n_of = counts((blocks for _, blocks in spans), model.manifest.n_blocks)
        found += [
            f"{blocks} of {model.name} on {worker_id}"
            for worker_id, blocks in spans
            if max(n_of[blocks.start : blocks.end]) == 1
        ]
    return found


def _with_referees(one: AuditPlan, others: Sequence[WorkerRecord]) -> AuditPlan:
    """The same with those who could decide between the two: the most trusted first, else as `others` come."""
    (partner,) = one.others
    by_trust = sorted(others, key=lambda other: -_RANK.get(other.trust.level, 0))
    found = (
        overlap[1]
        for other in by_trust
        if other.worker_id != partner.worker_id
        and (overlap := _overlap(one, other)) is not None
        and overlap[0] == one.blocks
    )
    return replace(one, others=(partner, *islice(found, MAX_REFEREES)))


def _overlap(one: AuditPlan, other: WorkerRecord) -> tuple[BlockRange, Candidate] | None:
    """The largest part of the blocks that another worker holds in a form that can be compared."""
    if not is_auditable(other) or other.trust.is_barred:
        return None
    found = [
        (BlockRange(max(span.blocks.start, one.blocks.start), min(span.blocks.end, one.blocks.end)), candidate)
        for span, candidate in _served(one.model, other)
        if span.blocks.overlaps(one.blocks)
    ]
    comparable = [(b, c) for b, c in found if one.allowed(one.target.held, c.held) is not None]
    return max(comparable, key=lambda pair: len(pair[0]), default=None)


def _served(model: ModelRecord, worker: WorkerRecord) -> Iterator[tuple[SpanAssignment, Candidate]]:
    """What the worker serves of a model, one span after the other."""
    for span in ready_spans(worker, model):
        held = held_by(worker, span)
        if held is not None:
            candidate = Candidate(
                worker_id=worker.worker_id,
                url=worker.url,
                epoch=worker.assignment.epoch,
                held=held,
                rank=_RANK.get(worker.trust.level, 0),
            )
            yield span, candidate


def _has_queue(worker: WorkerRecord) -> bool:
    return worker.heartbeat is not None and worker.heartbeat.n_queued > 0
