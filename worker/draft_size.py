"""How much memory a draft model is going to take, found without reading its weights.

It is loaded when the worker is connected already, and what the worker has room for is asked before that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from protocol.errors import BrigadeError, ConfigError
from worker.draft_model import MAX_POSITIONS, OTHERWISE, DraftModelRequest, check_draft_model, weight_files
from worker.gguf_file import is_gguf, tensor_table
from worker.loading import load_config

_MADE_BITS, _END_BITS = {"int8": 10, "int4": 5}, 10
"""Bits of a weight that is held as a code, with its part of a group's numbers; 8 outside the blocks always."""
_KEPT_BITS = {"Q4_0": 5, "Q4_1": 5, "Q8_0": 10}
"""Likewise where a file's codes are kept."""
_MARGIN = 1.05
"""For buffers, and what layouts round up to: too much is no harm, of too little blocks would be refused later."""


def expected_bytes(request: DraftModelRequest) -> int:
    """Bytes of its weights, and of the caches that are set aside. Blocks: it reads the files' headers.

    Raises:
        ConfigError: it is no such model; the message says what to do.
    """
    path = request.path
    check_draft_model(path)
    try:
        weights, n_cached = _of_gguf(request) if is_gguf(path) else _of_folder(request)
    except BrigadeError as exc:
        raise ConfigError(f"--draft-model {path}: {exc.message}; {OTHERWISE}") from exc
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as exc:
        raise ConfigError(f"--draft-model {path} can't be read: {exc}; {OTHERWISE}") from exc
    return int(_MARGIN * (weights + MAX_POSITIONS * n_cached * _bits(request) // 8))


def _of_folder(request: DraftModelRequest) -> tuple[int, int]:
    """Bytes of weights, and keys and values of a position."""
    config = load_config(request.path).get_text_config()
    n_bits = sum(_tensor_bits(request, shape, config.vocab_size) for shape in _shapes(request.path))
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    return n_bits // 8, 2 * config.num_hidden_layers * kv_heads * head


def _shapes(folder: Path) -> Iterator[Sequence[int]]:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118 - it is no mapping
                yield weights.get_slice(name).get_shape()


def _of_gguf(request: DraftModelRequest) -> tuple[int, int]:
    """Likewise."""
    said, tensors = tensor_table(request.path)
    n_tokens = said.get("vocab_size", 0)
    n_bits = sum(_tensor_bits(request, shape, n_tokens, encoding) for encoding, shape in tensors)
    heads = said["attention.head_count"]
    head = said.get("attention.key_length", said["embedding_length"] // heads)
    return n_bits // 8, 2 * said["block_count"] * said.get("attention.head_count_kv", heads) * head


def _tensor_bits(request: DraftModelRequest, shape: Sequence[int], n_tokens: int, encoding: str = "") -> int:
    n_elements = math.prod(shape)
    if request.quantization is None or len(shape) < 2:
        return n_elements * _bits(request)
    if n_tokens in shape:
        return n_elements * _END_BITS
    return n_elements * _KEPT_BITS.get(encoding, _MADE_BITS[request.quantization])


def _bits(request: DraftModelRequest) -> int:
    """Of a number in what is computed in."""
    dtype: torch.dtype = getattr(torch, request.precision)
    return 8 * dtype.itemsize
