"""The segments that routes are made of, from the state; kept while nothing changes that they depend on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from coordinator.policy.coverage import ready_spans
from coordinator.policy.links import measured_links
from coordinator.policy.pinned_ends import without_ends
from coordinator.policy.segments import Segment
from coordinator.policy.sizing import decode_times
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.trust import penalty_s
from protocol.ids import BlockRange, ModelName, WorkerId

SESSION_SHARE = 0.25
"""How much slower a session makes another: with four it counts as twice as slow. Less than 1: they are batched."""


MAX_KINDS = 8
"""Models, and parts of them that private clients leave to workers, whose segments are kept."""

_Kind = tuple[ModelName, BlockRange | None, bool]
"""Of which model, which part, and whether ends are for pinned workers alone."""

_Kept = dict[WorkerId, tuple[WorkerRecord, tuple[Segment, ...]]]


@dataclass(frozen=True, slots=True)
class ReadySegments:
    """What was worked out for one cluster. A record never changes: what was made of it holds while it is there."""

    _known: dict[_Kind, tuple[ModelRecord, _Kept]] = field(default_factory=dict)
    """The one used longest ago first."""

    def of(
        self,
        state: ClusterState,
        model: ModelRecord,
        blocks: BlockRange | None = None,
        *,
        pinned_ends: bool = False,
    ) -> list[Segment]:
        """The ready ranges of workers that sessions may go to, by worker and block.

        `blocks`: only what they have of these, counted from the first; nobody is asked for tokens after them.
        `pinned_ends`: the first and the last block only of workers whose trust an operator pinned.
        """
        for gone in [one for one in self._known if one[0] not in state.models]:
            del self._known[gone]
        kept = whole = self._kept(state, model, (model.name, None, False), lambda worker: _segments(worker, model))
        if blocks is not None or pinned_ends:
            n_blocks = len(blocks) if blocks is not None else model.manifest.n_blocks

            def usable(worker: WorkerRecord) -> tuple[Segment, ...]:
                segments = _within(whole[worker.worker_id][1], blocks)
                is_all = not pinned_ends or worker.trust.may_hold_ends
                return segments if is_all else without_ends(segments, n_blocks)

            kept = self._kept(state, model, (model.name, blocks, pinned_ends), usable)
        return [segment for worker_id in sorted(kept) for segment in kept[worker_id][1]]

    def _kept(
        self,
        state: ClusterState,
        model: ModelRecord,
        kind: _Kind,
        found: Callable[[WorkerRecord], tuple[Segment, ...]],
    ) -> _Kept:
        """As it is kept, with what is `found` for workers that something was heard of."""
        old_model, old = self._known.pop(kind, (None, {}))
        known = old if old_model is model else {}
        now = {
            worker_id: kept
            if (kept := known.get(worker_id)) is not None and kept[0] is worker
            else (worker, found(worker))
            for worker_id, worker in state.workers.items()
        }
        self._known[kind] = (model, now)
        if len(self._known) > max(MAX_KINDS, len(state.models)):
            del self._known[next(iter(self._known))]
        return now


def _within(segments: tuple[Segment, ...], blocks: BlockRange | None) -> tuple[Segment, ...]:
    if blocks is None:
        return segments
    within = (segment for segment in segments if segment.blocks.overlaps(blocks))
    return tuple(replace(segment, blocks=_shifted(segment.blocks, blocks), after_s=0.0) for segment in within)


def _shifted(held: BlockRange, blocks: BlockRange) -> BlockRange:
    start, end = max(held.start, blocks.start), min(held.end, blocks.end)
    return BlockRange(start - blocks.start, end - blocks.start)


def _segments(worker: WorkerRecord, model: ModelRecord) -> tuple[Segment, ...]:
    spans = ready_spans(worker, model) if worker.is_routable else ()
    if not spans:
        return ()
    has_others = any(span.model != model.name for span in worker.assignment.spans)
    load, links, entry_s = _load(worker), measured_links(worker), penalty_s(worker.trust)
    segments = []
    for span in sorted(spans, key=lambda span: span.blocks):
        quantization = span.quantization
        times = decode_times(worker, model.manifest, has_other_models=has_others, quantization=quantization)
        segments.append(
            Segment(
                worker_id=worker.worker_id,
                blocks=span.blocks,
                seconds_per_block=times.block_s * load,
                after_s=times.after_s * load,
                link_s=links,
                entry_s=entry_s,
            )
        )
    return tuple(segments)


def _load(worker: WorkerRecord) -> float:
    beat = worker.heartbeat
    return 1.0 if beat is None else 1.0 + SESSION_SHARE * (max(0, beat.n_sessions) + max(0, beat.n_queued))
