"""How fast a model would run if blocks were held so and so: the figures that placements are compared by.

One stream takes the cheapest way, and back to its first worker with each token. Of many streams each worker does
one token in the time of its whole range; for each block the holders' tokens a second add up, and the least counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordinator.policy.coverage import gaps
from coordinator.policy.links import LINK_S, known_links
from coordinator.policy.segments import Segment
from coordinator.policy.shortest_path import cheapest_legs
from coordinator.policy.sizing import decode_times
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId

MAX_GIVEN_UP = 0.02
"""Of what is modelled, that workers may stay as they are or needn't fetch what others have on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelledSpeed:
    """Of a model whose blocks are all held."""

    step_s: float
    """Seconds for one token of one stream."""
    tokens_per_s: float
    """Of many streams together."""
    stages: tuple[tuple[WorkerId, BlockRange], ...]
    """The way of one stream."""


def modelled_speed(
    state: ClusterState, model: ModelRecord, spans: Mapping[WorkerId, SpanAssignment]
) -> ModelledSpeed | None:
    """If these workers, and no others, held these spans; None if blocks are left out."""
    workers = [state.workers[worker_id] for worker_id in sorted(spans)]
    links = known_links(workers)
    segments = [segment_of(w, model, spans[w.worker_id], links[w.worker_id]) for w in workers]
    return speed_of(segments, model.manifest.n_blocks)


def segment_of(
    worker: WorkerRecord, model: ModelRecord, span: SpanAssignment, link_s: Mapping[WorkerId, float]
) -> Segment:
    """The span as a way could lead over it if nobody else were served."""
    times = decode_times(worker, model.manifest, quantization=span.quantization)
    return Segment(
        worker_id=worker.worker_id,
        blocks=span.blocks,
        seconds_per_block=times.block_s,
        after_s=times.after_s,
        link_s=link_s,
    )


def speed_of(segments: Sequence[Segment], n_blocks: int) -> ModelledSpeed | None:
    """Of these ranges; None if they leave blocks out."""
    rates = [0.0] * n_blocks
    for segment in segments:
        range_s = len(segment.blocks) * segment.seconds_per_block
        range_s += segment.after_s if segment.blocks.end == n_blocks else 0.0
        for i in range(segment.blocks.start, segment.blocks.end):
            rates[i] += 1 / range_s
    if gaps([int(rate > 0) for rate in rates]):
        return None
    cost_s, legs = cheapest_legs(segments, n_blocks)
    return ModelledSpeed(
        step_s=cost_s - LINK_S,
        tokens_per_s=min(rates),
        stages=tuple((segments[i].worker_id, BlockRange(start, end)) for i, start, end in legs),
    )
