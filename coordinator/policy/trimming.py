"""Blocks that more hold than are wanted, given back by some of those who hold them: nobody loads anything for it.

Who keeps what is chosen so that the slowest of them is quick: by dynamic programming over the holders in the order
in which their ranges end, and in that in which they start, and over how many blocks they keep together, from the
first one on. Nothing is better for equal workers of whom none holds more than another at both ends; else there may
be a way that is in neither order, and isn't found.
With `--placement spread`, where only the number of holders counts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from coordinator.policy.coverage import spans_of
from coordinator.policy.handover import Spans
from coordinator.policy.sizing import decode_times
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId


def trimmed(state: ClusterState, held: Mapping[WorkerId, Spans]) -> dict[WorkerId, Spans] | None:
    """Parts of what is held, something of each range and each block once; None where no such way is found.

    Who held nothing would be given blocks again. Replicas, pins, and some who are trusted among others who aren't,
    are for `placement` to see to: None for these too.
    """
    kept: dict[WorkerId, Spans] = dict.fromkeys(held, ())
    for model in state.models.values():
        parts = _parts(state, model, held)
        if parts is None:
            return None
        for worker_id, span in parts.items():
            kept[worker_id] = (*kept[worker_id], span)
    return kept


def slowest_s(state: ClusterState, layout: Mapping[WorkerId, Spans]) -> float:
    """Seconds that one token takes at the slowest of those who hold something, over all models."""
    return max(
        (
            decode_times(state.workers[w], model.manifest, quantization=span.quantization).of_range(
                span.blocks, model.manifest.n_blocks
            )
            for model in state.models.values()
            for w, spans in layout.items()
            for span in spans_of(model, spans)
        ),
        default=0.0,
    )


def _parts(
    state: ClusterState, model: ModelRecord, held: Mapping[WorkerId, Spans]
) -> dict[WorkerId, SpanAssignment] | None:
    holders = {w: span for w, spans in held.items() for span in spans_of(model, spans)}
    workers = [state.workers[worker_id] for worker_id in holders]
    if model.n_replicas > 1 or len(workers) > model.manifest.n_blocks or len({w.trust.level for w in workers}) > 1:
        return None
    if any(w.pinned_blocks is not None or w.only_model not in (None, model.name) for w in workers):
        return None
    orders = (
        sorted(holders, key=lambda w: (holders[w].blocks.end, holders[w].blocks.start, w)),
        sorted(holders, key=lambda w: (holders[w].blocks.start, holders[w].blocks.end, w)),
    )
    best = min((_even_cover(state, model, holders, order) for order in orders), key=lambda b: b.slowest_s)
    if not best.kept:
        return None
    return {w: msgspec.structs.replace(holders[w], blocks=blocks) for w, blocks in best.kept}


@dataclass(frozen=True, slots=True)
class _Best:
    """Of the blocks from the first one on, up to one: how quick the slowest of those who keep them is."""

    slowest_s: float
    kept: tuple[tuple[WorkerId, BlockRange], ...] = ()


_NOT_AT_ALL = _Best(math.inf)


def _even_cover(
    state: ClusterState, model: ModelRecord, holders: Mapping[WorkerId, SpanAssignment], order: Sequence[WorkerId]
) -> _Best:
    """A part of each one's range, one after the other in this order, each block once; `_NOT_AT_ALL` if none is."""
    n_blocks = model.manifest.n_blocks
    best = {0: _Best(0.0)}  # by how many blocks are kept
    for worker_id in order:
        span = holders[worker_id]
        times = decode_times(state.workers[worker_id], model.manifest, quantization=span.quantization)
        after: dict[int, _Best] = {}
        for start in (n for n in best if span.blocks.start <= n < span.blocks.end):
            for end in range(start + 1, span.blocks.end + 1):
                blocks = BlockRange(start, end)
                slowest_s = max(best[start].slowest_s, times.of_range(blocks, n_blocks))
                if slowest_s < after.get(end, _NOT_AT_ALL).slowest_s:
                    after[end] = _Best(slowest_s, (*best[start].kept, (worker_id, blocks)))
        best = after
    return best.get(n_blocks, _NOT_AT_ALL)
