"""From what is held to what is to be held, a few workers at a time, so that what is served stays served.

Nobody says which worker of a step is ready first. So a step counts only on what is served whoever is: what others
serve, and of those who change the blocks that they serve before and after, if they can load one beside the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

from coordinator.policy.coverage import ready_counts, spans_of
from coordinator.policy.handover import Spans, handed_over
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from coordinator.policy.statuses import status_as
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId

LEAST_AT_ONCE = 4
SHARE_AT_ONCE = 0.1
"""Workers that change in one step, of all: they load and serve at once, and who fails delays the others."""

Target = Mapping[WorkerId, Spans]


def is_at_rest(state: ClusterState) -> bool:
    """Whether everybody who holds something is here, is to stay, and has all of it ready."""
    return state.changed_s is None and has_all_ready(state)


def has_all_ready(state: ClusterState) -> bool:
    """The same, whatever there is to be placed besides."""
    return not any(unready_holders(state))


def unready_holders(state: ClusterState) -> Iterator[WorkerRecord]:
    """Who holds something, and isn't here to stay with all of it ready."""
    for worker in state.workers.values():
        if not worker.assignment.spans or worker.presence in ("lost", "gone") or worker.trust.is_barred:
            continue
        has_all = len(worker.ready) == len(worker.assignment.spans)
        if not (worker.is_routable and worker.departure is None and has_all):
            yield worker


def pending(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Those who don't hold yet what they are to; the ones that lose nothing by it first."""
    workers = state.workers
    left = {w: spans for w, spans in target.items() if w in workers and workers[w].assignment.spans != spans}
    return dict(sorted(left.items(), key=lambda item: (bool(_lost(workers[item[0]], item[1])), item[0])))


def next_step(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Who is to change next, all at once; nobody if no block of theirs can be spared, or all is done."""
    step: dict[WorkerId, Spans] = {}
    served = _Served.of(state)
    at_once = max(LEAST_AT_ONCE, int(SHARE_AT_ONCE * len(state.workers)))
    for worker_id, spans in pending(state, target).items():
        if len(step) == at_once:
            break
        if served.spares(state.workers[worker_id], spans):
            served.spare(state.workers[worker_id], spans)
            step[worker_id] = spans
    return step


def is_safe(state: ClusterState, step: Target) -> bool:
    """Whether no block that is served now is unserved for a moment while these workers change."""
    served = _Served.of(state)
    for worker_id, spans in step.items():
        if not served.spares(state.workers[worker_id], spans):
            return False
        served.spare(state.workers[worker_id], spans)
    return True


def reachable(state: ClusterState, target: Target) -> dict[WorkerId, Spans]:
    """Of the target what safe steps lead to, all that is asked of a worker having been ready before the next."""
    reached: dict[WorkerId, Spans] = {}
    while step := next_step(state, target):
        reached |= step
        state = all_ready(state, step)
    return reached


def all_ready(state: ClusterState, changes: Target) -> ClusterState:
    """The state once these workers hold and serve this, and nothing else."""
    workers = dict(state.workers)
    for worker_id, spans in changes.items():
        worker = workers[worker_id]
        assignment = replace(worker.assignment, spans=spans, leaving=(), unwanted_bytes=0)
        reported = tuple(status_as(span, "ready", "") for span in spans)
        workers[worker_id] = replace(worker, assignment=assignment, reported=reported)
    return replace(state, workers=workers)


def _lost(worker: WorkerRecord, spans: Spans) -> list[SpanAssignment]:
    return [span for span in worker.served if span not in spans]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """How many serve each block all the time while some change; a worker more is looked at without the others."""

    state: ClusterState
    n_of: Mapping[ModelName, list[int]]
    """Of models that are served at all: of others no block can be lost."""

    @classmethod
    def of(cls, state: ClusterState) -> Self:
        """While nobody changes."""
        n_of = {name: ready_counts(state.workers.values(), model) for name, model in state.models.items()}
        return cls(state=state, n_of={name: n for name, n in n_of.items() if min(n) > 0})

    def spares(self, worker: WorkerRecord, spans: Spans) -> bool:
        """Whether others serve what this worker doesn't all the time while it changes to these spans."""
        return all(self.n_of[name][i] > 1 for name, i in self._given_up(worker, spans))

    def spare(self, worker: WorkerRecord, spans: Spans) -> None:
        """Have the worker change to these spans."""
        for name, i in self._given_up(worker, spans):
            self.n_of[name][i] -= 1

    def _given_up(self, worker: WorkerRecord, spans: Spans) -> Iterator[tuple[ModelName, int]]:
        """Blocks that it serves now, and not all the time from now on."""
        if not worker.is_routable:
            return
        for name in self.n_of:
            model = self.state.models[name]
            now = (span.blocks for span in spans_of(model, worker.served))
            goes_on = _served_throughout(self.state, model, worker, spans)
            yield from ((name, i) for i in sorted(_indices(now) - _indices(goes_on)))


def _served_throughout(
    state: ClusterState, model: ModelRecord, worker: WorkerRecord, spans: Spans
) -> list[BlockRange]:
    goes_on = handed_over(state, worker, replace(worker.assignment, spans=spans)).leaving
    stays = [span.blocks for span in spans_of(model, worker.served) if span in spans]
    return stays + [
        BlockRange(max(old.blocks.start, new.blocks.start), min(old.blocks.end, new.blocks.end))
        for old in spans_of(model, goes_on)
        for new in spans_of(model, spans)
        if old.blocks.overlaps(new.blocks)
    ]


def _indices(ranges: Iterable[BlockRange]) -> set[int]:
    return {i for blocks in ranges for i in range(blocks.start, blocks.end)}
