"""The segments that routes are made of, from the state; kept while nothing changes that they depend on."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.policy.coverage import ready_spans
from coordinator.policy.links import measured_links
from coordinator.policy.segments import Segment
from coordinator.policy.sizing import decode_times
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.trust import penalty_s
from protocol.ids import ModelName, WorkerId

SESSION_SHARE = 0.25
"""How much slower a session makes another: with four it counts as twice as slow. Less than 1: they are batched."""


@dataclass(frozen=True, slots=True)
class ReadySegments:
    """What was worked out for one cluster. A record never changes: what was made of it holds while it is there."""

    _known: dict[ModelName, tuple[ModelRecord, dict[WorkerId, tuple[WorkerRecord, tuple[Segment, ...]]]]] = field(
        default_factory=dict
    )

    def of(self, state: ClusterState, model: ModelRecord) -> list[Segment]:
        """The ready ranges of workers that sessions may go to, by worker and block."""
        for name in self._known.keys() - state.models.keys():
            del self._known[name]
        old_model, old = self._known.get(model.name, (None, {}))
        known = old if old_model is model else {}
        now = {
            worker_id: kept
            if (kept := known.get(worker_id)) is not None and kept[0] is worker
            else (worker, _segments(worker, model))
            for worker_id, worker in state.workers.items()
        }
        self._known[model.name] = (model, now)
        return [segment for worker_id in sorted(now) for segment in now[worker_id][1]]


def _segments(worker: WorkerRecord, model: ModelRecord) -> tuple[Segment, ...]:
    spans = ready_spans(worker, model) if worker.is_routable else ()
    if not spans:
        return ()
    has_others = any(span.model != model.name for span in worker.assignment.spans)
    times, load = decode_times(worker, model.manifest, has_other_models=has_others), _load(worker)
    links, entry_s = measured_links(worker), penalty_s(worker.trust)
    return tuple(
        Segment(
            worker_id=worker.worker_id,
            blocks=span.blocks,
            seconds_per_block=times.block_s * load,
            after_s=times.after_s * load,
            link_s=links,
            entry_s=entry_s,
        )
        for span in sorted(spans, key=lambda span: span.blocks)
    )


def _load(worker: WorkerRecord) -> float:
    beat = worker.heartbeat
    return 1.0 if beat is None else 1.0 + SESSION_SHARE * (max(0, beat.n_sessions) + max(0, beat.n_queued))
