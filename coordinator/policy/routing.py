"""The cheapest way through a model's blocks over workers that hold them ready.

Cost in seconds a token: for each hop its link, and its blocks at the worker's measured speed, more where sessions
wait. A range may be entered and left partway.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from coordinator.policy.coverage import ready_spans
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.sizing import decode_s_per_block
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import Precision

LINK_S = 0.0005
"""One way to the next worker where no round trip was measured: a local network, and our own work for a hop."""

MAX_LINK_S = 60.0
"""A longer round trip is a mistake or a lie."""

SESSION_SHARE = 0.25
"""How much slower a session makes another: with four it counts as twice as slow. Less than 1: they are batched."""

MAX_LABELS = 20_000
"""Partial routes looked at to avoid a worker twice; far over what a real cluster has, a fraction of a second."""

MAX_EDGES = 20_000
"""Changes of worker that are looked at one by one: about 20 milliseconds."""


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
class Segment:
    """A ready range on a worker, with what it costs."""

    worker_id: WorkerId
    blocks: BlockRange
    seconds_per_block: float
    link_s: Mapping[WorkerId, float]
    """One way to other workers, as measured from here."""


Leg = tuple[int, int, int]
"""Which segment, from which block, to which."""


def cheapest_route(
    state: ClusterState,
    model_name: ModelName,
    exclude: frozenset[WorkerId] = frozenset(),
    n_prompt_tokens: int = 1,  # noqa: ARG001 - cache room is judged by the workers yet
    max_tokens: int = 1,  # noqa: ARG001
) -> Route | MissingBlocks:
    """The route for one generation, or which blocks are missing for one, and why."""
    model = state.models.get(model_name)
    if model is None:
        message = f"no model is served as {model_name!r}; `coord model list` shows which are"
        return MissingBlocks(model=model_name, blocks=(), is_assigned=False, message=message)
    missing = missing_blocks(state, model, exclude)
    if missing is not None:
        return missing
    segments = _segments(state, model, exclude)
    cost_s, legs = cheapest_legs(segments, model.manifest.n_blocks)
    return Route(
        model=model.name,
        revision=model.revision,
        hops=tuple(_stage(state, segments[i].worker_id, BlockRange(start, end)) for i, start, end in legs),
        cost_s=cost_s,
    )


def _segments(state: ClusterState, model: ModelRecord, exclude: frozenset[WorkerId]) -> list[Segment]:
    segments = []
    for worker in sorted(state.workers.values(), key=lambda w: w.worker_id):
        if not worker.is_routable or worker.worker_id in exclude:
            continue
        has_others = any(span.model != model.name for span in worker.assignment.spans)
        per_block = decode_s_per_block(worker, model.manifest, has_other_models=has_others)
        segments += [
            Segment(
                worker_id=worker.worker_id,
                blocks=span.blocks,
                seconds_per_block=per_block * _load(worker),
                link_s=_links(worker),
            )
            for span in sorted(ready_spans(worker, model), key=lambda s: s.blocks)
        ]
    return segments


def _load(worker: WorkerRecord) -> float:
    beat = worker.heartbeat
    return 1.0 if beat is None else 1.0 + SESSION_SHARE * (max(0, beat.n_sessions) + max(0, beat.n_queued))


def _links(worker: WorkerRecord) -> dict[WorkerId, float]:
    """One way to others, in seconds; what can't be a round trip isn't taken for one."""
    if worker.heartbeat is None:
        return {}
    return {peer: rtt / 2 for peer, rtt in worker.heartbeat.round_trips_s.items() if 0 <= rtt < MAX_LINK_S}


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


# ------------------------------------------------------------------ shortest path


@dataclass(frozen=True, slots=True, order=True)
class _Label:
    """A way to a boundary; ordered by cost, then fewer hops, then the way itself, so ties are settled."""

    cost_s: float = 0.0
    n_hops: int = 0
    legs: tuple[Leg, ...] = ()
    entry_s: float = field(default=0.0, compare=False)
    """Cost up to where the last leg begins, its link included: a leg is multiplied out, not summed up by block."""

    @property
    def end(self) -> int:
        return self.legs[-1][2] if self.legs else 0

    @property
    def last(self) -> int | None:
        return self.legs[-1][0] if self.legs else None


def cheapest_legs(segments: Sequence[Segment], n_blocks: int) -> tuple[float, list[Leg]]:
    """The cheapest way from block 0 to `n_blocks`, which there must be one of, and its cost.

    No worker comes twice in it, unless there is no other way (or finding one would take too long).
    """
    simple = _search(segments, n_blocks, only_once=False)
    assert simple is not None, "the blocks are covered, so there is a way"
    if not _repeats(segments, simple.legs):
        return simple.cost_s, list(simple.legs)
    once = _search(segments, n_blocks, only_once=True)
    best = simple if once is None else once
    return best.cost_s, list(best.legs)


def _search(segments: Sequence[Segment], n_blocks: int, *, only_once: bool) -> _Label | None:
    """Dijkstra over boundary and segment; with `only_once` over sets of used workers too, within `MAX_LABELS`."""
    cuts = _cuts(segments, n_blocks)
    heap = [_Label()]
    settled: dict[tuple[int, int | None], list[frozenset[WorkerId]]] = {}
    best: dict[tuple[int, int | None], float] = {}
    n_looked_at = 0
    while heap and not (only_once and n_looked_at > MAX_LABELS):
        n_looked_at += 1
        label = heapq.heappop(heap)
        if label.end == n_blocks:
            return label
        used = frozenset(segments[i].worker_id for i, _, _ in label.legs) if only_once else frozenset()
        earlier = settled.setdefault((label.end, label.last), [])
        if any(others <= used for others in earlier):
            continue
        earlier.append(used)
        for longer in _longer(segments, cuts[bisect_right(cuts, label.end)], label, used):
            key = (longer.end, longer.last)
            # more than a way known already: nothing can come of it, unless that way uses up a worker needed later
            if only_once or longer.cost_s <= best.get(key, math.inf):
                best[key] = longer.cost_s
                heapq.heappush(heap, longer)
    return None


def _cuts(segments: Sequence[Segment], n_blocks: int) -> list[int]:
    """Where a route may change workers: anywhere, or in a large fleet only where some range starts or ends.

    The latter loses nothing unless a detour over a third worker is faster than the direct link.
    """
    if n_blocks * len(segments) ** 2 <= MAX_EDGES:
        return list(range(n_blocks + 1))
    return sorted({0, n_blocks} | {b for s in segments for b in (s.blocks.start, s.blocks.end)})


def _longer(segments: Sequence[Segment], cut: int, label: _Label, used: frozenset[WorkerId]) -> Iterator[_Label]:
    """The ways on to the next cut: on the same worker, or on any other that holds what comes."""
    start, last = label.end, label.last
    for i, segment in enumerate(segments):
        if not segment.blocks.start <= start < segment.blocks.end:
            continue
        if i == last:
            *before, (_, begun, _) = label.legs
            cost_s = label.entry_s + (cut - begun) * segment.seconds_per_block
            yield _Label(cost_s, label.n_hops, (*before, (i, begun, cut)), label.entry_s)
        elif segment.worker_id not in used:
            link_s = LINK_S if last is None else segments[last].link_s.get(segment.worker_id, LINK_S)
            entry_s = label.cost_s + link_s
            cost_s = entry_s + (cut - start) * segment.seconds_per_block
            yield _Label(cost_s, label.n_hops + 1, (*label.legs, (i, start, cut)), entry_s)


def _repeats(segments: Sequence[Segment], legs: Sequence[Leg]) -> bool:
    workers = [segments[i].worker_id for i, _, _ in legs]
    return len(set(workers)) < len(workers)
