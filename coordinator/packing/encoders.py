"""Encoder-only models (BERT and its kin): which they are, which of their tensors count, how long a text they take.

By what transformers builds for the config, without weights and without heads: no table of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from protocol.errors import InvalidRequestError, UntrustedFileError

CONFIG_ERRORS = (
    ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, ArithmeticError, ImportError,
)  # fmt: skip
"""What the library's classes raise on configs that they don't expect, and where they look at values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderTensors:
    """The tensors of a checkpoint that the encoder itself uses, and those of heads and poolers."""

    used: frozenset[str]
    left_out: tuple[str, ...]
    most_positions: int | None
    """As learned positions allow; None: it has none, or they say no more than the config."""


def is_encoder_type(model_type: str) -> bool:
    """Whether configs of this type may be of an encoder that transformers has classes for."""
    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and isinstance(MODEL_MAPPING_NAMES.get(model_type), str)


def is_encoder(config: PreTrainedConfig) -> bool:
    """Whether it fills masks rather than going on; BERT and its kin may be decoders too: their configs say so."""
    if not is_encoder_type(config.model_type) or config.is_encoder_decoder:
        return False
    return config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or not getattr(config, "is_decoder", False)


def encoder_class_name(config: PreTrainedConfig) -> str:
    """The base model's class: without a head."""
    return str(MODEL_MAPPING_NAMES[config.model_type])


def encoder_tensors(config: PreTrainedConfig, names: Iterable[str]) -> EncoderTensors:
    """Sort a checkpoint's tensors into those that the encoder uses and the rest.

    Raises:
        InvalidRequestError: transformers can't build the model.
        UntrustedFileError: tensors are missing.
    """
    names = frozenset(names)
    model = _encoder(config)
    found = _names_in(model, names)
    missing = sorted({name for name, _ in model.named_parameters()} - set(found.values()))
    if missing:
        raise UntrustedFileError(
            f"{len(missing)} tensors of the {config.model_type} model are missing, among them {missing[0]}: files "
            "are missing, the config belongs to another model, or the checkpoint has a form that can't be cut"
        )
    return EncoderTensors(
        used=frozenset(found), left_out=tuple(sorted(names - found.keys())), most_positions=_most_positions(model)
    )


def _names_in(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """By a checkpoint's tensors: what transformers calls them in the model, as far as the model has them."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    state = model.state_dict()
    prefix = model.base_model_prefix
    found = {name: rename_source_key(name, renamings, converters, prefix, state)[0] for name in names}
    return {name: own for name, own in found.items() if own in state}


def _encoder(config: PreTrainedConfig) -> PreTrainedModel:
    kind: Any = MODEL_MAPPING[type(config)]
    # what a pooler learned was for a head that isn't here either
    extra = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(kind).parameters else {}
    return without_weights(kind, config, **extra)


def without_weights(kind: Any, config: PreTrainedConfig, **extra: Any) -> PreTrainedModel:
    """What transformers builds of a class for a config, on no device.

    Raises:
        InvalidRequestError: it can't.
    """
    try:
        with torch.device("meta"):
            model: PreTrainedModel = kind(config, **extra).eval()
    except CONFIG_ERRORS as exc:
        raise InvalidRequestError(f"the config describes a model that can't be built: {str(exc)[:300]}") from exc
    return model


def _most_positions(model: nn.Module) -> int | None:
    """Positions behind the padding's: RoBERTa counts a text's from there on, and has so many fewer."""
    return min(positions_behind_padding(model), default=None)


def positions_behind_padding(model: nn.Module) -> list[int]:
    """How many positions each table of learned ones has behind that of the padding, if it has one for padding."""
    learned = [
        module
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    return [one.num_embeddings - one.padding_idx - 1 for one in learned if one.padding_idx is not None]
