"""How many bytes and seconds blocks take on a worker: the numbers that placement and routing weigh."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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

MIN_DECODE_S = 1e-9
"""Less is one too, and what is divided by it may be endless."""

BLOCK_START_S = 0.0005
"""What a block takes whatever its size, for norms, attention and starting them: 0.6 ms were measured on a core. The
head is one product: beside small blocks it takes less than its weights say."""

HEAD_SHARE = 2 / 3
"""How much of the head counts where blocks are shared out. A prompt goes through it with one position, so it runs
in the time of tokens alone: 1.7 s of 64 beside 0.9 of a prompt of 1,024 (SmolLM2, bfloat16, one stream)."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeTimes:
    """Seconds that one token takes on a worker."""

    block_s: float
    after_s: float
    """After the last block, for the final norm and, of a decoder, the head, as they count (`HEAD_SHARE`)."""

    def of_range(self, blocks: BlockRange, n_blocks: int) -> float:
        """In these blocks of so many, and after the last of all."""
        return len(blocks) * self.block_s + (self.after_s if blocks.end == n_blocks else 0.0)


def decode_times(
    worker: WorkerRecord,
    manifest: Manifest,
    *,
    has_other_models: bool = False,
    quantization: Quantization | None = None,
) -> DecodeTimes:
    """As measured, else weights over bandwidth plus products over speed; of the model's end `HEAD_SHARE` counts.

    What a worker measured is of the models that it runs; `has_other_models`: so it says little of this one.
    `quantization`: of the weights, if they aren't as the worker holds them otherwise.
    """
    assert worker.device is not None
    block_s = 0.0 if has_other_models else worker.block_s
    block_s = block_s or _estimated_block_s(worker.device, manifest, quantization)
    return DecodeTimes(
        block_s=block_s, after_s=block_s * counted_end_in_blocks(worker.device, manifest, quantization)
    )


def counted_end_in_blocks(
    device: DeviceReport, manifest: Manifest, quantization: Quantization | None = None
) -> float:
    """What comes after the last block, as it counts where blocks are shared out, in blocks that take as long."""
    return HEAD_SHARE * end_in_blocks(device, manifest, quantization)


def end_in_blocks(device: DeviceReport, manifest: Manifest, quantization: Quantization | None = None) -> float:
    """What comes after the last block, in blocks that take as long on this device; by the weights of both."""
    held_as = quantization or device.held_as
    n_parameters = sum({file.sha256: file.n_parameters for file in manifest.after}.values())
    end_s = _products_s(device, end_weight_bytes(manifest.after, held_as), n_parameters)
    return end_s / (_estimated_block_s(device, manifest, quantization) + BLOCK_START_S)


def _estimated_block_s(device: DeviceReport, manifest: Manifest, quantization: Quantization | None) -> float:
    n_parameters = _mean_parameters(manifest.blocks)
    n_bytes = block_weight_bytes(int(n_parameters), quantization or device.held_as)
    return max(_products_s(device, n_bytes, n_parameters), MIN_DECODE_S)


def _products_s(device: DeviceReport, n_bytes: float, n_parameters: float) -> float:
    return n_bytes / max(device.bandwidth_bytes_per_s, 1.0) + (
        _FLOPS_PER_PARAMETER * n_parameters / max(device.flops_per_s, 1.0)
    )


def _mean_parameters(blocks: tuple[ModelFile, ...]) -> float:
    return sum(block.n_parameters for block in blocks) / len(blocks)
