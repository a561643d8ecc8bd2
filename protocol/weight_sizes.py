"""How many bytes a model's weights take in memory, by the format that a worker holds them in.

Coordinator and worker reckon alike: one gives as many blocks as the other then accepts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from protocol.ids import BlockRange
from protocol.manifest import Manifest, ModelFile
from protocol.messages import QUANTISED_PRECISION, KvPrecision, Precision, WeightFormat

_BLOCK_BITS: Mapping[WeightFormat, int] = {
    "float32": 32,
    "bfloat16": 16,
    "float16": 16,
    "int8": 10,
    "int4": 5,
}
"""Bits of a weight in a block. Quantised: its code, and for each 32 codes (twice for int8) two numbers of 16."""
_END_BITS: Mapping[WeightFormat, int] = {**_BLOCK_BITS, "int4": 10}
"""Bits of one weight outside the blocks: the embedding and the head keep 8 bits."""
_KV_BITS: Mapping[KvPrecision, float] = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8.5}
"""Bits of one key or value; 32 codes share a scale of 16."""
_COMPUTED_IN: Mapping[WeightFormat, Precision] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
    "int8": QUANTISED_PRECISION,
    "int4": QUANTISED_PRECISION,
}


def block_weight_bytes(n_parameters: int, held_as: WeightFormat) -> int:
    """Bytes of so many weights of a block."""
    return -(-n_parameters * _BLOCK_BITS[held_as] // 8)


def end_weight_bytes(files: Iterable[ModelFile], held_as: WeightFormat) -> int:
    """Bytes of the weights before or after the blocks; each file once, wherever it is named."""
    unique = {file.sha256: file.n_parameters for file in files}
    return -(-sum(unique.values()) * _END_BITS[held_as] // 8)


def span_weight_bytes(manifest: Manifest, blocks: BlockRange, held_as: WeightFormat) -> int:
    """Bytes of the weights that a stage of `blocks` holds.

    Raises:
        ValueError: the range ends after the last block.
    """
    inside = manifest.blocks[blocks.start : blocks.end]
    in_blocks = {file.sha256 for file in inside}
    ends = [file for file in manifest.weight_files(blocks) if file.sha256 not in in_blocks]
    unique = {file.sha256: file.n_parameters for file in inside}
    return block_weight_bytes(sum(unique.values()), held_as) + end_weight_bytes(ends, held_as)


def kv_bytes(n_elements: int, held_as: WeightFormat, kv_precision: KvPrecision | None = None) -> int:
    """Bytes of so many keys and values; they are kept in what is computed in, unless something else is said."""
    return math.ceil(n_elements * _KV_BITS[kv_precision or _COMPUTED_IN[held_as]] / 8)
