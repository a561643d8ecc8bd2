"""How many bytes and seconds blocks take on a worker: the numbers that placement and routing weigh."""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.policy.state import ClusterState, WorkerRecord
from protocol.control_messages import DeviceReport, SpanAssignment
from protocol.ids import BlockRange
from protocol.manifest import Manifest, ModelFile
from protocol.messages import KvPrecision, Quantization, WeightFormat
from protocol.weight_sizes import block_weight_bytes, end_weight_bytes, kv_bytes, span_weight_bytes

KV_TARGETS = (4096, 512)
"""Positions of cache that a worker should have room for beside its weights: one long session or a few short ones;
where the fleet can't hold a model so, the least with which it is of use."""

RESERVE_SHARE = 0.05
"""Of a worker's memory; activations and fragmentation take about this much."""

CACHE_FLOOR_BYTES = 64 * 2**20
CACHE_FLOOR_SHARE = 0.1
"""A worker refuses weights that leave it less than the smaller of these two for caches."""

MAX_DECODE_S = 3600.0
"""Seconds for one token in one block: more is a mistake or a lie, and the estimate is taken instead."""

_FLOPS_PER_PARAMETER = 2


def capacity_bytes(device: DeviceReport) -> int:
    """Bytes that spans with their caches may take on this device."""
    return min(device.memory_bytes - int(device.memory_bytes * RESERVE_SHARE), weight_capacity_bytes(device))


def weight_capacity_bytes(device: DeviceReport) -> int:
    """Bytes of weights beyond which the worker refuses."""
    return device.memory_bytes - min(CACHE_FLOOR_BYTES, int(device.memory_bytes * CACHE_FLOOR_SHARE))


def span_bytes(
    manifest: Manifest,
    blocks: BlockRange,
    held_as: WeightFormat,
    kv_tokens: int,
    kv_precision: KvPrecision | None = None,
) -> int:
    """Bytes of a span: its weights, what comes before and after if it owns them, and `kv_tokens` of cache."""
    kv = len(blocks) * manifest.kv_elements_per_token * min(kv_tokens, manifest.context_length)
    return span_weight_bytes(manifest, blocks, held_as) + kv_bytes(kv, held_as, kv_precision)


def largest_block_bytes(
    manifest: Manifest, held_as: WeightFormat, kv_tokens: int, kv_precision: KvPrecision | None = None
) -> int:
    """Bytes of the largest block with its cache, at least 1."""
    n_parameters = max(block.n_parameters for block in manifest.blocks)
    kv = manifest.kv_elements_per_token * min(kv_tokens, manifest.context_length)
    return block_weight_bytes(n_parameters, held_as) + kv_bytes(kv, held_as, kv_precision)


def end_bytes(manifest: Manifest, held_as: WeightFormat) -> tuple[int, int, int]:
    """Bytes of what comes before the first block, of what comes after the last, and of both on one worker."""
    return (
        end_weight_bytes(manifest.before, held_as),
        end_weight_bytes(manifest.after, held_as),
        end_weight_bytes((*manifest.before, *manifest.after), held_as),
    )


def spans_bytes(state: ClusterState, spans: Iterable[SpanAssignment], held_as: WeightFormat, kv_tokens: int) -> int:
    """Bytes of all these spans, in `held_as` where nothing else was decided; their models are there."""
    return sum(
        span_bytes(state.models[span.model].manifest, span.blocks, span.quantization or held_as, kv_tokens)
        for span in spans
    )


def decode_s_per_block(
    worker: WorkerRecord,
    manifest: Manifest,
    *,
    has_other_models: bool = False,
    quantization: Quantization | None = None,
) -> float:
    """Seconds that one token takes in one block: as measured, else weights over bandwidth plus products over speed.

    What a worker measured is of the models that it runs; `has_other_models`: so it says little of this one.
    `quantization`: of the block, if it isn't as the worker holds weights otherwise.
    """
    beat = worker.heartbeat
    if beat is not None and 0 < beat.decode_s_per_block < MAX_DECODE_S and not has_other_models:
        return beat.decode_s_per_block
    assert worker.device is not None
    n_parameters = _mean_parameters(manifest.blocks)
    n_bytes = block_weight_bytes(int(n_parameters), quantization or worker.device.held_as)
    return (
        n_bytes / max(worker.device.bandwidth_bytes_per_s, 1.0)
        + _FLOPS_PER_PARAMETER * n_parameters / max(worker.device.flops_per_s, 1.0)
    ) or 1e-9


def _mean_parameters(blocks: tuple[ModelFile, ...]) -> float:
    return sum(block.n_parameters for block in blocks) / len(blocks)
