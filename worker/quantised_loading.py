"""Put quantised layers into a cut model in place of its linear layers, and fill them from the files.

The weights of these layers never pass through transformers: they are read, rounded and packed one matrix after the
other, a few hundred rows at a time; what was rounded is kept on the disk. Everything else (norms, biases, experts
in one tensor, GPT-2's transposed layers, routers) is loaded as ever, in the precision that is computed in.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from protocol.errors import ConfigError, UntrustedFileError
from protocol.messages import Quantization
from worker.codes import GROUP, PackedCodes, full_precision_coded, pack_codes
from worker.cut import forget_lost_ties
from worker.file_tensors import FileTensor
from worker.gguf_blocks import EncodedTensor
from worker.quantised import QuantisedEmbedding, QuantisedLinear
from worker.quantised_cache import QuantisedCache
from worker.quantised_forms import MatrixForms
from worker.quantised_matrix import CodedMatrix

log = structlog.get_logger(__name__)

_BITS: Mapping[Quantization, int] = {"int8": 8, "int4": 4}
_END_BITS = 8
"""Of the embedding and the head, with int4 too: they feel rounding more than any block."""
_CPU = torch.device("cpu")
_LEAST_ROWS = 64
"""Smaller ones are routers and the like: a wrong choice of expert is worse than the bytes are worth."""
_SAY_EVERY_S = 5.0
"""How often it is said how far the rounding has come."""

_Layer = QuantisedLinear | QuantisedEmbedding


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """Layers that share one matrix, which isn't there yet."""

    tensor: FileTensor | EncodedTensor
    n_bits: int
    layers: list[_Layer]
    block: int | None
    """Counted from 0; None: outside of the blocks."""


class QuantisedLayers:
    """The layers that were put into a model and wait for their weights."""

    def __init__(self, waiting: list[_Waiting] | None = None) -> None:
        self._waiting = waiting or []
        self._n_blocks = len({one.block for one in self._waiting} - {None})
        self._said_s = time.monotonic()

    def fill(self, forms: MatrixForms, cache: QuantisedCache | None = None) -> None:
        """Read, round and pack the weights, one tensor after the other; the files must still be open.

        What is rounded is kept in `cache` for the next time; the files must go by their hashes then.
        """
        for waiting in self._waiting:
            matrix = self._matrix(waiting, forms, cache)
            for layer in waiting.layers:
                layer.matrix = matrix
        self._waiting.clear()

    def _matrix(self, waiting: _Waiting, forms: MatrixForms, cache: QuantisedCache | None) -> CodedMatrix:
        """The file's own codes if they have no more bits than wanted, else its values rounded."""
        tensor = waiting.tensor
        n_rows, n_columns = tensor.get_shape()
        looks_up = any(isinstance(layer, QuantisedEmbedding) for layer in waiting.layers)
        form = forms.embedding if looks_up else forms.linear
        if isinstance(tensor, EncodedTensor) and tensor.n_bits <= waiting.n_bits:
            kept, raw = tensor, tensor.raw()
            return form(n_rows, n_columns, kept.n_bits, lambda start, end: kept.coded(raw[start:end]))
        codes = cache.get(tensor.origin, waiting.n_bits) if cache is not None else None
        if codes is None:
            codes = self._rounded(waiting)
            if cache is not None:
                cache.put(tensor.origin, waiting.n_bits, codes)
        return form(n_rows, n_columns, waiting.n_bits, codes.rows)

    def _rounded(self, waiting: _Waiting) -> PackedCodes:
        self._say_where(waiting)
        values = waiting.tensor[...]  # a slice of it would read as much
        return pack_codes(
            len(values), lambda start, end: full_precision_coded(values[start:end], waiting.n_bits), _CPU
        )

    def _say_where(self, waiting: _Waiting) -> None:
        now_s = time.monotonic()
        if now_s - self._said_s < _SAY_EVERY_S:
            return
        self._said_s = now_s
        where = "embedding or head" if waiting.block is None else f"block {waiting.block + 1} of {self._n_blocks}"
        log.info("quantising", where=where, n_bits=waiting.n_bits)


def put_quantised_layers(
    model: PreTrainedModel, tensors: dict[str, Any], quantization: Quantization
) -> QuantisedLayers:
    """Replace the linear layers, and the embedding, of a cut model whose weights are among `tensors`.

    Their weights are taken out of `tensors`, which is what transformers then loads.

    Raises:
        UntrustedFileError: a tensor isn't of its layer's shape.
        ConfigError: most of the weights aren't in layers that can be replaced.
    """
    waiting: list[_Waiting] = []
    n_all, n_replaced = sum(parameter.numel() for parameter in model.parameters()), 0
    head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    ends = (model.get_input_embeddings(), head)
    for name, parameter_name in _directly_loaded(model, tensors).items():
        users = _users(model, parameter_name)
        if not users or not all(_is_quantisable(module) for module in users.values()):
            continue
        found, needed = tuple(tensors[name].get_shape()), tuple(model.get_parameter(parameter_name).shape)
        if found != needed:
            raise UntrustedFileError(f"{name} is of the wrong shape: {found}, the model needs {needed}")
        n_replaced += math.prod(needed)
        is_end = any(module in ends for module in users.values())
        waiting.append(
            _Waiting(
                tensor=tensors.pop(name),
                n_bits=_END_BITS if is_end else _BITS[quantization],
                layers=[_replaced(model, path, module) for path, module in users.items()],
                block=next((int(part) for part in parameter_name.split(".") if part.isdigit()), None),
            )
        )
    if 2 * n_replaced < n_all:
        raise ConfigError(
            f"--precision {quantization}: {n_replaced:,} of the {n_all:,} weights of these blocks of a "
            f"{model.config.model_type} model can be held so, the others aren't in linear layers with a multiple "
            f"of {GROUP} inputs; say --precision bfloat16"
        )
    forget_lost_ties(model)
    return QuantisedLayers(waiting)


def _directly_loaded(model: PreTrainedModel, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Tensors that become a parameter as they are, renamed at most, and which; as transformers would load them."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    found: dict[str, str] = {}
    for name in tensors:
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if renamed in state and pattern is None:
            found[name] = renamed
    return found


def _users(model: PreTrainedModel, parameter_name: str) -> dict[str, nn.Module]:
    """The modules whose weight this parameter is, its own and those tied to it, by their paths; none if a bias."""
    names = [parameter_name]
    names += [target for target, source in (model.all_tied_weights_keys or {}).items() if source == parameter_name]
    paths = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    return {path: model.get_submodule(path) for path in paths} if len(paths) == len(names) else {}


def _is_quantisable(module: nn.Module) -> bool:
    """Exactly the library's classes: a subclass does more than multiply or look up."""
    if type(module) not in (nn.Linear, nn.Embedding):
        return False
    weight: Any = module.weight
    n_rows, n_columns = weight.shape
    return bool(n_rows >= _LEAST_ROWS and n_columns % GROUP == 0)


def _replaced(model: PreTrainedModel, path: str, module: nn.Module) -> _Layer:
    layer: _Layer
    if isinstance(module, nn.Linear):
        layer = QuantisedLinear(module)
    else:
        assert isinstance(module, nn.Embedding)
        layer = QuantisedEmbedding(module)
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, layer)
    return layer
