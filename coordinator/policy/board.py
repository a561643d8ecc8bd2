"""The working copy that one call of `placement` writes on: the spans that each worker would hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from msgspec.structs import replace

from coordinator.policy.coverage import counts, gaps, has_failed, ready_counts, spans_of
from coordinator.policy.gap_filling import Candidate
from coordinator.policy.handover import breaks_a_route
from coordinator.policy.measures import Measures
from coordinator.policy.sizing import capacity_bytes, decode_times
from coordinator.policy.state import ClusterState, ModelRecord, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.messages import Quantization


@dataclass(slots=True, kw_only=True)
class Board:
    """Mutable, and private to the call that made it."""

    state: ClusterState
    spans: dict[WorkerId, tuple[SpanAssignment, ...]]
    """Of workers whose spans count as held, and of those only."""
    assignable: tuple[WorkerRecord, ...]
    """Workers that may be given something, by id."""
    measures: Measures = field(default_factory=Measures)
    n_holders: dict[ModelName, list[int]] = field(default_factory=dict)
    """What `counts` found, kept up to date."""
    quantizations: Mapping[WorkerId, Quantization] = field(default_factory=dict)
    """Workers that hold what they are given from now on in fewer bits (`quantising`)."""

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
        return type(self)(
            state=self.state,
            spans=dict(self.spans),
            assignable=self.assignable,
            measures=self.measures,
            n_holders={name: list(n_of) for name, n_of in self.n_holders.items()},
            quantizations=self.quantizations,
        )

    def take(self, other: Board, *, workers: Collection[WorkerId] | None = None) -> None:
        """Keep what was tried; with `workers`, of these only."""
        self.spans |= other.spans if workers is None else {w: other.spans[w] for w in workers}
        self.n_holders.clear()

    def without(self, model: ModelRecord) -> Self:
        """A board on which the workers that could be given something else hold nothing of the model."""
        board = self.copy()
        for worker in self.assignable:
            if worker.pinned_blocks is None and not self._has_failed(worker, model):
                board._drop(worker.worker_id, model)  # noqa: SLF001 - a board like this one
        return board

    def without_doubted(self) -> Self:
        """A board on which workers that have been away for a while, or are to leave, hold nothing."""
        board, workers = self.copy(), self.state.workers
        board.spans = {
            w: spans
            for w, spans in self.spans.items()
            if not workers[w].is_doubted and workers[w].departure is None
        }
        board.n_holders.clear()
        return board

    def of_trusted(self) -> Self:
        """A board with the workers alone that are trusted, and what they hold."""
        board, workers = self.copy(), self.state.workers
        board.spans = {w: spans for w, spans in self.spans.items() if workers[w].trust.level == "trusted"}
        board.assignable = tuple(w for w in self.assignable if w.trust.level == "trusted")
        board.n_holders.clear()
        return board

    def drop_unwanted(self) -> None:
        """Take from workers that were started for one model (`worker join --model`) what they hold of others."""
        for worker in self.assignable:
            if worker.pinned_blocks is None and worker.only_model is not None:
                for model in self.state.models.values():
                    if model.name != worker.only_model:
                        self._drop(worker.worker_id, model)

    def give(self, worker_id: WorkerId, model: ModelRecord, blocks: BlockRange) -> None:
        """Have the worker hold this range of the model, and no other range of it."""
        quantization = self.quantization_of(worker_id, model, blocks)
        self._drop(worker_id, model)
        span = SpanAssignment(model=model.name, revision=model.revision, blocks=blocks, quantization=quantization)
        self._count(model, span, 1)
        self.spans[worker_id] = (*self.spans[worker_id], span)

    def counts(self, model: ModelRecord) -> list[int]:
        """For each block of the model, how many hold it; who failed to doesn't. To be read only."""
        if model.name not in self.n_holders:
            ranges = (
                span.blocks
                for worker_id, spans in self.spans.items()
                for span in spans_of(model, spans)
                if not has_failed(self.state.workers[worker_id], span)
            )
            self.n_holders[model.name] = counts(ranges, model.manifest.n_blocks)
        return self.n_holders[model.name]

    def gaps(self, model: ModelRecord) -> tuple[BlockRange, ...]:
        """The runs of blocks that nobody holds."""
        return gaps(self.counts(model))

    def changes(self) -> dict[WorkerId, tuple[SpanAssignment, ...]]:
        """The spans of workers that hold others now."""
        return {
            worker.worker_id: self.spans[worker.worker_id]
            for worker in self.assignable
            if self.spans[worker.worker_id] != worker.assignment.spans
        }

    def breaks_a_route(self) -> bool:
        """Whether the changes, other than by operators' pins, would leave a model without a route that has one."""
        workers, changes = self.state.workers, self.changes()
        return breaks_a_route(self.state, {w: s for w, s in changes.items() if workers[w].pinned_blocks is None})

    def has_route(self, model: ModelRecord) -> bool:
        """Whether sessions can run through the model now."""
        return min(ready_counts(self.state.workers.values(), model)) > 0

    # -------------------------------------------------------------- who could take blocks

    def free(self, model: ModelRecord, kv_tokens: int, *, gently: bool = False) -> list[Candidate]:
        """Workers that hold nothing of the model. `gently`: with room beside all that they serve now."""
        return [
            self.candidate(worker, model, kv_tokens, gently=gently)
            for worker in self.assignable
            if worker.pinned_blocks is None and not spans_of(model, self.spans[worker.worker_id])
        ]

    def redundant(self, model: ModelRecord, kv_tokens: int) -> list[Candidate]:
        """Workers of whose blocks of the model every one is held by others too, so that they may move.

        One after the other: once one counts as movable, its blocks no longer do as held.
        """
        board, found, n_of = self.copy(), [], list(self.counts(model))
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
        self,
        model: ModelRecord,
        gap: BlockRange,
        kv_tokens: int,
        *,
        is_left: bool,
        exclude: frozenset[WorkerId],
        gently: bool = False,
    ) -> Candidate | None:
        """The roomiest worker whose range of the model ends (`is_left`) or begins where the gap does."""
        found = []
        for worker in self.growable(model):
            held = spans_of(model, self.spans[worker.worker_id])[0].blocks
            touches = held.end == gap.start if is_left else held.start == gap.end
            if touches and worker.worker_id not in exclude:
                found.append(self.candidate(worker, model, kv_tokens, held=held, gently=gently))
        return max(found, key=lambda c: c.room_bytes, default=None)

    def growable(self, model: ModelRecord) -> list[WorkerRecord]:
        """Workers whose range of the model may become larger."""
        return [
            worker
            for worker in self.assignable
            if len(spans_of(model, self.spans[worker.worker_id])) == 1
            and worker.pinned_blocks is None
            and not self._has_failed(worker, model)
        ]

    def candidate(
        self,
        worker: WorkerRecord,
        model: ModelRecord,
        kv_tokens: int,
        *,
        held: BlockRange | None = None,
        gently: bool = False,
    ) -> Candidate:
        """The worker as one that could take blocks of the model."""
        assert worker.device is not None
        quantization = self.quantization_of(worker.worker_id, model, held)
        is_mixed = any(span.model != model.name for span in worker.assignment.spans)
        held_as, kv_precision = quantization or worker.device.held_as, worker.device.kv_precision
        sizes = self.measures.block_sizes(model, held_as, kv_tokens, kv_precision)
        spans = self.spans[worker.worker_id]
        if held is not None:  # what grows is loaded anew
            own = spans_of(model, spans)
            spans = tuple(replace(span, quantization=quantization) if span in own else span for span in spans)
        room_bytes = self._room_beside(worker, spans, kv_tokens)
        if gently:
            room_bytes -= self._making_way_bytes(worker, model)
        if not can_run(worker, model):
            room_bytes = 0
        times = decode_times(worker, model.manifest, has_other_models=is_mixed, quantization=quantization)
        return Candidate(
            worker_id=worker.worker_id,
            seconds_per_block=times.block_s,
            after_s=times.after_s if self.state.settings.counts_head else 0.0,
            room_bytes=room_bytes,
            block_bytes=sizes.largest_bytes,
            before_bytes=sizes.before_bytes,
            after_bytes=sizes.after_bytes,
            both_bytes=sizes.both_bytes,
            held=held,
        )

    def room_bytes(self, worker: WorkerRecord, kv_tokens: int) -> int:
        """Bytes that the worker could hold beside its spans."""
        return self._room_beside(worker, self.spans[worker.worker_id], kv_tokens)

    def quantization_of(
        self, worker_id: WorkerId, model: ModelRecord, blocks: BlockRange | None
    ) -> Quantization | None:
        """In which fewer bits the worker would hold these blocks: as decided, else as it holds some of them now."""
        if worker_id in self.quantizations:
            return self.quantizations[worker_id]
        own = spans_of(model, self.spans[worker_id])
        return next((s.quantization for s in own if blocks is not None and blocks.contains(s.blocks)), None)

    def _room_beside(self, worker: WorkerRecord, spans: Iterable[SpanAssignment], kv_tokens: int) -> int:
        assert worker.device is not None
        device = worker.device
        return capacity_bytes(device) - self.measures.spans_bytes(
            self.state, spans, device.held_as, kv_tokens, device.kv_precision
        )

    def _making_way_bytes(self, worker: WorkerRecord, model: ModelRecord) -> int:
        """Weights of what the worker would serve on beside another range of the model, for a while."""
        assert worker.device is not None
        spans, old = self.spans[worker.worker_id], worker.assignment
        if all(span in spans and span.model != model.name for span in worker.served):
            return 0
        if old.unwanted_bytes is None:
            return capacity_bytes(worker.device)
        taken_away = [span for span in old.spans if span not in spans or span.model == model.name]
        taken_bytes = self.measures.spans_bytes(self.state, taken_away, worker.device.held_as, 0)
        return old.unwanted_bytes + taken_bytes

    def _drop(self, worker_id: WorkerId, model: ModelRecord) -> None:
        for span in spans_of(model, self.spans[worker_id]):
            self._count(model, span, -1)
        self.spans[worker_id] = tuple(span for span in self.spans[worker_id] if span.model != model.name)

    def _count(self, model: ModelRecord, span: SpanAssignment, n: int) -> None:
        """Before the spans change. What a worker failed to hold is neither given again nor dropped here."""
        n_of = self.counts(model)
        for i in range(span.blocks.start, span.blocks.end):
            n_of[i] += n

    def _has_failed(self, worker: WorkerRecord, model: ModelRecord) -> bool:
        return any(has_failed(worker, span) for span in spans_of(model, worker.assignment.spans))


def can_run(worker: WorkerRecord, model: ModelRecord) -> bool:
    """Whether the worker may be given blocks of the model, by its version and by whoever started it."""
    assert worker.device is not None
    if model.manifest.kind == "encoder" and not worker.device.runs_encoders:
        return False
    return worker.only_model in (None, model.name)
