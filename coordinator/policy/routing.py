"""The cheapest way through a model's blocks over workers that hold them ready.

Cost in seconds a token: for each hop its link, and its blocks at the worker's measured speed, more where sessions
wait. A range may be entered and left partway.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.policy.coverage import ready_spans
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.shortest_path import LINK_S, Segment, cheapest_legs
from coordinator.policy.sizing import decode_s_per_block
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import Precision

MAX_LINK_S = 60.0
"""A longer round trip is a mistake or a lie."""

SESSION_SHARE = 0.25
"""How much slower a session makes another: with four it counts as twice as slow. Less than 1: they are batched."""

AVOIDED_S = 1e6
"""Added for a worker or link that is to be avoided: over all that work and links can cost, so that each is used
only where there is no way without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteStage:
    """One hop."""

    worker_id: WorkerId
    url: str
    blocks: BlockRange
    precision: Precision
    epoch: int
    """Of the worker's assignment now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Hops in order; together they cover the model exactly."""

    model: ModelName
    revision: Revision
    hops: tuple[RouteStage, ...]
    cost_s: float
    """Estimated seconds for one token, from the client to the tail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoided:
    """What a route goes round if there is a way round it: what failed a moment ago (`policy.breakers`)."""

    workers: frozenset[WorkerId] = frozenset()
    links: frozenset[tuple[WorkerId, WorkerId]] = frozenset()
    """From, to."""


NOTHING_AVOIDED = Avoided()


def cheapest_route(
    state: ClusterState,
    model_name: ModelName,
    exclude: frozenset[WorkerId] = frozenset(),
    avoided: Avoided = NOTHING_AVOIDED,
) -> Route | MissingBlocks:
    """The route for one generation, or which blocks are missing for one without `exclude`, and why."""
    model = state.models.get(model_name)
    if model is None:
        message = f"no model is served as {model_name!r}; `coord model list` shows which are"
        return MissingBlocks(model=model_name, blocks=(), is_on_its_way=False, message=message)
    missing = missing_blocks(state, model, exclude)
    if missing is not None:
        return missing
    segments = _segments(state, model, exclude, avoided)
    cost_s, legs = cheapest_legs(segments, model.manifest.n_blocks)
    return Route(
        model=model.name,
        revision=model.revision,
        hops=tuple(_stage(state, segments[i].worker_id, BlockRange(start, end)) for i, start, end in legs),
        cost_s=cost_s % AVOIDED_S,
    )


def _segments(
    state: ClusterState, model: ModelRecord, exclude: frozenset[WorkerId], avoided: Avoided
) -> list[Segment]:
    segments = []
    for worker in sorted(state.workers.values(), key=lambda w: w.worker_id):
        if not worker.is_routable or worker.worker_id in exclude:
            continue
        has_others = any(span.model != model.name for span in worker.assignment.spans)
        per_block = decode_s_per_block(worker, model.manifest, has_other_models=has_others)
        links, entry_s = _links(worker, avoided), AVOIDED_S if worker.worker_id in avoided.workers else 0.0
        segments += [
            Segment(
                worker_id=worker.worker_id,
                blocks=span.blocks,
                seconds_per_block=per_block * _load(worker),
                link_s=links,
                entry_s=entry_s,
            )
            for span in sorted(ready_spans(worker, model), key=lambda s: s.blocks)
        ]
    return segments


def _load(worker: WorkerRecord) -> float:
    beat = worker.heartbeat
    return 1.0 if beat is None else 1.0 + SESSION_SHARE * (max(0, beat.n_sessions) + max(0, beat.n_queued))


def _links(worker: WorkerRecord, avoided: Avoided) -> dict[WorkerId, float]:
    """One way to others, in seconds; what can't be a round trip isn't taken for one."""
    measured = worker.heartbeat.round_trips_s if worker.heartbeat is not None else {}
    links = {peer: rtt / 2 for peer, rtt in measured.items() if 0 <= rtt < MAX_LINK_S}
    for start, end in avoided.links:
        if start == worker.worker_id:
            links[end] = links.get(end, LINK_S) + AVOIDED_S
    return links


def _stage(state: ClusterState, worker_id: WorkerId, blocks: BlockRange) -> RouteStage:
    worker = state.workers[worker_id]
    assert worker.device is not None
    return RouteStage(
        worker_id=worker_id,
        url=worker.url,
        blocks=blocks,
        precision=worker.device.precision,
        epoch=worker.assignment.epoch,
    )
