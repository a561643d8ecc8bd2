"""Sizes of blocks and spans, each worked out once: placement asks for the same ones for hundreds of workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.policy.sizing import end_bytes, largest_block_bytes, span_bytes
from coordinator.policy.state import ClusterState, ModelRecord
from protocol.control_messages import SpanAssignment
from protocol.ids import ModelName
from protocol.messages import KvPrecision, WeightFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSizes:
    """What a candidate has to have room for."""

    largest_bytes: int
    """Of the largest block with its cache."""
    before_bytes: int
    after_bytes: int
    both_bytes: int


@dataclass(frozen=True, slots=True)
class Measures:
    """What was worked out so far, for one state of the cluster."""

    _blocks: dict[tuple[ModelName, WeightFormat, int, KvPrecision | None], BlockSizes] = field(default_factory=dict)
    _spans: dict[tuple[ModelName, int, int, WeightFormat, int, KvPrecision | None], int] = field(
        default_factory=dict
    )

    def block_sizes(
        self, model: ModelRecord, held_as: WeightFormat, kv_tokens: int, kv_precision: KvPrecision | None = None
    ) -> BlockSizes:
        """Of one model held in one format, with `kv_tokens` of cache."""
        key = (model.name, held_as, kv_tokens, kv_precision)
        if key not in self._blocks:
            before, after, both = end_bytes(model.manifest, held_as)
            self._blocks[key] = BlockSizes(
                largest_bytes=largest_block_bytes(model.manifest, held_as, kv_tokens, kv_precision),
                before_bytes=before,
                after_bytes=after,
                both_bytes=both,
            )
        return self._blocks[key]

    def spans_bytes(
        self,
        state: ClusterState,
        spans: Iterable[SpanAssignment],
        held_as: WeightFormat,
        kv_tokens: int,
        kv_precision: KvPrecision | None = None,
    ) -> int:
        """Bytes of all these spans, in `held_as` where nothing else was decided; their models are there."""
        return sum(
            self._span_bytes(state, span, span.quantization or held_as, kv_tokens, kv_precision) for span in spans
        )

    def _span_bytes(
        self,
        state: ClusterState,
        span: SpanAssignment,
        held_as: WeightFormat,
        kv_tokens: int,
        kv_precision: KvPrecision | None,
    ) -> int:
        key = (span.model, span.blocks.start, span.blocks.end, held_as, kv_tokens, kv_precision)
        if key not in self._spans:
            manifest = state.models[span.model].manifest
            self._spans[key] = span_bytes(manifest, span.blocks, held_as, kv_tokens, kv_precision)
        return self._spans[key]
