"""Which blocks of a model are held, by how many, and by whom they will be: counting, and saying it in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from coordinator.policy.state import ModelRecord, WorkerRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import BlockRange, WorkerId

Spans = Mapping[WorkerId, tuple[SpanAssignment, ...]]


def spans_of(model: ModelRecord, spans: Iterable[SpanAssignment]) -> tuple[SpanAssignment, ...]:
    """Those of `spans` that are of this model, in this revision."""
    return tuple(span for span in spans if (span.model, span.revision) == (model.name, model.revision))


def has_failed(worker: WorkerRecord, span: SpanAssignment) -> bool:
    """Whether the worker said that it can't hold the span."""
    status = worker.status_of(span)
    return status is not None and status.state == "failed"


def ready_spans(worker: WorkerRecord, model: ModelRecord) -> tuple[SpanAssignment, ...]:
    """The worker's spans of this model that sessions may use, one that makes way for another included."""
    return spans_of(model, worker.served)


def ready_counts(workers: Iterable[WorkerRecord], model: ModelRecord) -> list[int]:
    """For each block, how many workers can run it in a new session now."""
    ranges = (s.blocks for w in workers if w.is_routable for s in ready_spans(w, model))
    return counts(ranges, model.manifest.n_blocks)


def counts(ranges: Iterable[BlockRange], n_blocks: int) -> list[int]:
    """For each block, how many of the ranges hold it."""
    changes = [0] * (n_blocks + 1)
    for blocks in ranges:
        changes[min(blocks.start, n_blocks)] += 1
        changes[min(blocks.end, n_blocks)] -= 1
    return list(accumulate(changes[:n_blocks]))


def runs(values: Sequence[int]) -> list[tuple[BlockRange, int]]:
    """Runs of equal values, in order."""
    found: list[tuple[BlockRange, int]] = []
    start = 0
    for end in range(1, len(values) + 1):
        if end == len(values) or values[end] != values[start]:
            found.append((BlockRange(start, end), values[start]))
            start = end
    return found


def gaps(values: Sequence[int]) -> tuple[BlockRange, ...]:
    """The runs of blocks that nobody holds."""
    return tuple(blocks for blocks, n in runs(values) if n == 0)
