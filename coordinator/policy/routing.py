"""The cheapest way through a model's blocks over workers that hold them ready.

Cost in seconds a token: for each hop its link, and its blocks at the worker's measured speed, more where sessions
wait; and the link back to the first hop, since tokens go round. A range may be entered and left partway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from coordinator.policy.client_ways import ClientWays, cheapest_for
from coordinator.policy.coverage import counts, gaps, ready_spans
from coordinator.policy.links import LINK_S
from coordinator.policy.missing import MissingBlocks, missing_blocks
from coordinator.policy.pinned_ends import missing_ends
from coordinator.policy.ready_segments import ReadySegments
from coordinator.policy.segments import Leg, Segment
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange, ModelName, Revision, WorkerId
from protocol.messages import QUANTISED_PRECISION, KvPrecision, Precision, Quantization

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
    """What is computed in."""
    quantization: Quantization | None = None
    """What the weights are held in, if not in `precision`."""
    kv_precision: KvPrecision | None = None
    """What keys and values are kept in, if not in `precision`."""
    epoch: int
    """Of the worker's assignment now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Hops in order; together they cover the model exactly, or the blocks that were asked for."""

    model: ModelName
    revision: Revision
    hops: tuple[RouteStage, ...]
    cost_s: float
    """Estimated seconds for one token: the client's own way, as a near one, all hops, and back to the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Avoided:
    """What a route goes round if there is a way round it: what failed a moment ago (`policy.breakers`)."""

    workers: frozenset[WorkerId] = frozenset()
    links: frozenset[tuple[WorkerId, WorkerId]] = frozenset()
    """From, to."""


NOTHING_AVOIDED = Avoided()

Held = Mapping[tuple[WorkerId, BlockRange], float]
"""Stages that hold a session's prefix, and the seconds a token that each saves a route which runs exactly these
blocks there: the prefill that it needn't do, over the tokens that are asked for."""

NOTHING_HELD: Held = {}


def cheapest_route(
    state: ClusterState,
    model_name: ModelName,
    exclude: frozenset[WorkerId] = frozenset(),
    avoided: Avoided = NOTHING_AVOIDED,
    held: Held = NOTHING_HELD,
    known: ReadySegments | None = None,
    *,
    pinned_ends: bool = False,
    blocks: BlockRange | None = None,
    ways: ClientWays | None = None,
) -> Route | MissingBlocks:
    """The route for one generation, or which blocks are missing for one without `exclude`, and why.

    `known`: what the caller keeps from one route to the next, so that a large fleet isn't gone through each time.
    `pinned_ends`: whether its first and last workers must be ones whose trust an operator pinned. `blocks`: those
    that it has to cover, if not all, since the rest is a private client's. `ways`: how far the client is from whom.
    """
    model = state.models.get(model_name)
    if model is None:
        message = f"no model is served as {model_name!r}; `coord model list` shows which are"
        return MissingBlocks(model=model_name, blocks=(), is_on_its_way=False, message=message)
    ready = (known or ReadySegments()).of(state, model, blocks, pinned_ends=pinned_ends)
    covered = blocks or BlockRange(0, model.manifest.n_blocks)
    segments = _weighed(ready, exclude, avoided, held)
    if gaps(counts((segment.blocks for segment in segments), len(covered))):
        missing = missing_blocks(state, model, exclude)
        if missing is None and pinned_ends:
            missing = missing_ends(state, model, covered, exclude)
        assert missing is not None, "segments are what is ready"
        return missing
    parted, legs = cheapest_for(segments, len(covered), ways)
    ranges = [(i, BlockRange(covered.start + start, covered.start + end)) for i, start, end in legs]
    return Route(
        model=model.name,
        revision=model.revision,
        hops=tuple(_stage(state, model, parted[i].worker_id, one) for i, one in ranges),
        cost_s=_seconds_per_token(parted, legs),
    )


def wanted_blocks(
    model: ModelRecord, private_blocks: int | None, states_after: int | None = None
) -> BlockRange | None:
    """The blocks that workers are to run; None: all.

    Raises:
        InvalidRequestError: there are none, or no such; or tokens are wanted of an encoder.
    """
    n_blocks = model.manifest.n_blocks
    if states_after is not None:
        if states_after > n_blocks:
            raise InvalidRequestError(
                f"hidden states after {states_after} blocks of {model.name}, which has {n_blocks}: ask for 0 to "
                f"{n_blocks}"
            )
        return BlockRange(0, max(1, states_after))
    if model.manifest.kind == "encoder":
        raise InvalidRequestError(
            f"{model.name} is an encoder ({model.manifest.architecture}), which generates nothing: use "
            "`client embed`"
        )
    if private_blocks is None:
        return None
    if 2 * private_blocks >= n_blocks:
        raise InvalidRequestError(
            f"{private_blocks} private blocks at each end of {model.name}, which has {n_blocks}, leave none for "
            f"workers; at most {(n_blocks - 1) // 2} can be asked for"
        )
    return BlockRange(private_blocks, n_blocks - private_blocks)


def _kept(segment: Segment, held: Held) -> list[Segment]:
    """The parts of a segment that hold a session's prefix, as segments beside it."""
    return [
        replace(segment, blocks=blocks, entry_s=segment.entry_s - saved_s, is_whole=True)
        for (worker_id, blocks), saved_s in held.items()
        if worker_id == segment.worker_id and segment.blocks.contains(blocks)
    ]


def _seconds_per_token(segments: Sequence[Segment], legs: Sequence[Leg]) -> float:
    """What work and links cost: nothing that is added for trust or the client, or taken off for what is saved."""
    cost_s = 0.0
    links: Mapping[WorkerId, float] = {}
    for i, start, end in legs:
        cost_s += links.get(segments[i].worker_id, LINK_S) % AVOIDED_S
        cost_s += (end - start) * segments[i].seconds_per_block
        links = segments[i].link_s
    first, last = segments[legs[0][0]].worker_id, segments[legs[-1][0]].worker_id
    cost_s += segments[legs[-1][0]].after_s
    return cost_s if first == last else cost_s + links.get(first, LINK_S) % AVOIDED_S


def _weighed(segments: list[Segment], exclude: frozenset[WorkerId], avoided: Avoided, held: Held) -> list[Segment]:
    """The segments that one request may use, with what it would rather not use, and what it would rather."""
    touched = avoided.workers | {start for start, _ in avoided.links}
    if exclude or touched:
        segments = [
            _avoiding(segment, avoided) if segment.worker_id in touched else segment
            for segment in segments
            if segment.worker_id not in exclude
        ]
    holders = {worker_id for worker_id, _ in held}
    kept = [part for segment in segments if segment.worker_id in holders for part in _kept(segment, held)]
    return segments + kept


def _avoiding(segment: Segment, avoided: Avoided) -> Segment:
    links = dict(segment.link_s)
    for start, end in avoided.links:
        if start == segment.worker_id:
            links[end] = links.get(end, LINK_S) + AVOIDED_S
    entry_s = segment.entry_s + (AVOIDED_S if segment.worker_id in avoided.workers else 0.0)
    return replace(segment, link_s=links, entry_s=entry_s)


def _stage(state: ClusterState, model: ModelRecord, worker_id: WorkerId, blocks: BlockRange) -> RouteStage:
    worker = state.workers[worker_id]
    assert worker.device is not None
    held = (span for span in ready_spans(worker, model) if span.blocks.contains(blocks))
    decided = next((span.quantization for span in held), None)
    return RouteStage(
        worker_id=worker_id,
        url=worker.url,
        blocks=blocks,
        precision=QUANTISED_PRECISION if decided is not None else worker.device.precision,
        quantization=decided or worker.device.quantization,
        kv_precision=worker.device.kv_precision,
        epoch=worker.assignment.epoch,
    )
