"""The working copy that one call of `placement` writes on: the spans that each worker would hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from coordinator.policy.coverage import counts, gaps, has_failed, spans_of
from coordinator.policy.gap_filling import Candidate
from coordinator.policy.sizing import (
    capacity_bytes,
    decode_s_per_block,
    end_bytes,
    largest_block_bytes,
    spans_bytes,
)
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.ids import BlockRange, WorkerId
from protocol.messages import SpanAssignment


@dataclass(slots=True, kw_only=True)
class Board:
    """Mutable, and private to the call that made it."""

    state: ClusterState
    spans: dict[WorkerId, tuple[SpanAssignment, ...]]
    """Of workers whose spans count as held, and of those only."""
    assignable: tuple[WorkerRecord, ...]
    """Workers that may be given something, by id."""

    @classmethod
    def of(cls, state: ClusterState) -> Self:
        """What is held now."""
        workers = sorted(state.workers.values(), key=lambda w: w.worker_id)
        return cls(
            state=state,
            spans={w.worker_id: w.assignment.spans for w in workers if w.counts_as_holder},
            assignable=tuple(w for w in workers if w.can_be_assigned),
        )

    def copy(self) -> Self:
        """Another board to try something on."""
        return type(self)(state=self.state, spans=dict(self.spans), assignable=self.assignable)

    def take(self, other: Board) -> None:
        """Keep what was tried."""
        self.spans = dict(other.spans)

    def without(self, model: ModelRecord) -> Self:
        """A board on which the workers that could be given something else hold nothing of the model."""
        board = self.copy()
        for worker in self.assignable:
            if worker.pinned_blocks is None and not self._has_failed(worker, model):
                board._drop(worker.worker_id, model)  # noqa: SLF001 - a board like this one
        return board

    def give(self, worker_id: WorkerId, model: ModelRecord, blocks: BlockRange) -> None:
        """Have the worker hold this range of the model, and no other range of it."""
        self._drop(worker_id, model)
        span = SpanAssignment(model=model.name, revision=model.revision, blocks=blocks)
        self.spans[worker_id] = (*self.spans[worker_id], span)

    def counts(self, model: ModelRecord) -> list[int]:
        """For each block of the model, how many hold it; who failed to doesn't."""
        ranges = (
            span.blocks
            for worker_id, spans in self.spans.items()
            for span in spans_of(model, spans)
            if not has_failed(self.state.workers[worker_id], span)
        )
        return counts(ranges, model.manifest.n_blocks)

    def gaps(self, model: ModelRecord) -> tuple[BlockRange, ...]:
        """The runs of blocks that nobody holds."""
        return gaps(self.counts(model))

    # -------------------------------------------------------------- who could take blocks

    def free(self, model: ModelRecord, kv_tokens: int) -> list[Candidate]:
        """Workers that hold nothing of the model."""
        return [
            self.candidate(worker, model, kv_tokens)
            for worker in self.assignable
            if worker.pinned_blocks is None and not spans_of(model, self.spans[worker.worker_id])
        ]

    def redundant(self, model: ModelRecord, kv_tokens: int) -> list[Candidate]:
        """Workers of whose blocks of the model every one is held by others too, so that they may move.

        One after the other: once one counts as movable, its blocks no longer do as held.
        """
        board, found, n_of = self.copy(), [], self.counts(model)
        for worker in self.assignable:
            own = spans_of(model, self.spans[worker.worker_id])
            if not own or worker.pinned_blocks is not None or self._has_failed(worker, model):
                continue
            blocks = [i for span in own for i in range(span.blocks.start, span.blocks.end)]
            if all(n_of[i] > 1 for i in blocks):
                for i in blocks:
                    n_of[i] -= 1
                board._drop(worker.worker_id, model)  # noqa: SLF001 - a board like this one
                found.append(board.candidate(worker, model, kv_tokens))
        return found

    def grower(
        self, model: ModelRecord, gap: BlockRange, kv_tokens: int, *, is_left: bool, exclude: frozenset[WorkerId]
    ) -> Candidate | None:
        """The roomiest worker whose range of the model ends (`is_left`) or begins where the gap does."""
        found = []
        for worker in self.assignable:
            own = spans_of(model, self.spans[worker.worker_id])
            if (
                len(own) != 1
                or worker.worker_id in exclude
                or worker.pinned_blocks is not None
                or self._has_failed(worker, model)
            ):
                continue
            held = own[0].blocks
            if (held.end == gap.start) if is_left else (held.start == gap.end):
                found.append(self.candidate(worker, model, kv_tokens, held=held))
        return max(found, key=lambda c: c.room_bytes, default=None)

    def candidate(
        self, worker: WorkerRecord, model: ModelRecord, kv_tokens: int, *, held: BlockRange | None = None
    ) -> Candidate:
        """The worker as one that could take blocks of the model."""
        assert worker.device is not None
        precision = worker.device.precision
        is_mixed = any(span.model != model.name for span in worker.assignment.spans)
        before, after, both = end_bytes(model.manifest, precision)
        return Candidate(
            worker_id=worker.worker_id,
            seconds_per_block=decode_s_per_block(worker, model.manifest, has_other_models=is_mixed),
            room_bytes=self.room_bytes(worker, kv_tokens),
            block_bytes=largest_block_bytes(model.manifest, precision, kv_tokens),
            before_bytes=before,
            after_bytes=after,
            both_bytes=both,
            held=held,
        )

    def room_bytes(self, worker: WorkerRecord, kv_tokens: int) -> int:
        """Bytes that the worker could hold beside its spans."""
        assert worker.device is not None
        used = spans_bytes(self.state, self.spans[worker.worker_id], worker.device.precision, kv_tokens)
        return capacity_bytes(worker.device) - used

    def _drop(self, worker_id: WorkerId, model: ModelRecord) -> None:
        self.spans[worker_id] = tuple(span for span in self.spans[worker_id] if span.model != model.name)

    def _has_failed(self, worker: WorkerRecord, model: ModelRecord) -> bool:
        return any(has_failed(worker, span) for span in spans_of(model, worker.assignment.spans))
