"""Decoders: whether one can be cut into blocks that keep keys and values, and hand on hidden states, alone.

By what transformers builds for the config, without weights, and by what it would cache for it: no table of models.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from coordinator.packing.encoders import CONFIG_ERRORS, positions_behind_padding, without_weights
from protocol.errors import InvalidRequestError

_KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer)
_N_TRIED = 3
"""Tokens of the dry run: no other size of a config is likely to be the same."""
_MOST_SHOWN = 4


class _FirstBlockReached(Exception):  # noqa: N818 - not an error: it ends the dry run
    """The dry run got where it wanted. Carries all that the first block is given."""

    def __init__(self, given: Sequence[Any]) -> None:
        super().__init__("the first block is reached")
        self.given = given


def check_decoder(config: PreTrainedConfig) -> None:
    """Refuse a causal model of which a stage can't have a range of blocks.

    Raises:
        InvalidRequestError: says what its blocks need, and what to do.
    """
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    _check_class(kind)
    _check_cache(config)
    _check_blocks(without_weights(kind, config))


def _check_class(kind: type[PreTrainedModel]) -> None:
    takes = inspect.signature(kind.forward).parameters
    if "past_key_values" not in takes:
        raise _refused(kind.__name__, "keeps no keys and values of earlier tokens")
    if "inputs_embeds" not in takes:
        raise _refused(kind.__name__, "has to be given token ids in every stage")
    if "logits_to_keep" not in takes:
        raise _refused(kind.__name__, "is made to be a part of another model, and always gives all logits")


def _check_cache(config: PreTrainedConfig) -> None:
    name = config.model_type
    try:
        layers = DynamicCache(config=config).layers
    except CONFIG_ERRORS as exc:
        raise _refused(name, f"can't be given a cache ({str(exc)[:200]})") from exc
    recurrent = [n for n, layer in enumerate(layers) if isinstance(layer, LinearAttentionCacheLayerMixin)]
    if recurrent:
        raise _refused(
            name,
            "has recurrent states or convolutions over the text (as Mamba does) in "
            f"{_numbers(recurrent, len(layers))}",
        )
    others = [n for n, layer in enumerate(layers) if type(layer) not in _KEYS_AND_VALUES]
    if others:
        kinds = ", ".join(sorted({type(layers[n]).__name__ for n in others}))
        raise _refused(
            name,
            f"has no plain keys and values of its own in {_numbers(others, len(layers))} ({kinds}): those use "
            "the keys and values of other blocks, or keep something else",
        )
    if getattr(config, "hidden_size_per_layer_input", None):
        raise _refused(
            name,
            "gives each block an embedding of the tokens of its own (hidden_size_per_layer_input is "
            f"{config.hidden_size_per_layer_input})",
        )
    if "shared" in (getattr(config, "indexer_types", None) or ()):
        raise _refused(name, "has blocks that attend where an earlier block's indexer says (indexer_types: shared)")


def _check_blocks(model: PreTrainedModel) -> None:
    name, n_blocks = type(model).__name__, model.config.num_hidden_layers
    path, blocks = _list_of(n_blocks, model)
    if blocks is None:
        raise _refused(name, f"has no list of {n_blocks} blocks, which the config says it has")
    if beside := _beside(blocks, model.get_submodule(path.rpartition(".")[0]), model.get_input_embeddings()):
        raise _refused(name, f"has {beside} beside its blocks, which each of them needs")
    if positions_behind_padding(model):
        raise _refused(name, "counts a text's positions from behind the padding's (as RoBERTa does)")
    given = _given_to(blocks[0], model)
    states = given[0] if given else None
    if not isinstance(states, torch.Tensor):
        return  # the library's code looks at values: only a worker can tell, by its dry run
    hidden_size = model.config.hidden_size
    if states.shape != (1, _N_TRIED, hidden_size):
        raise _refused(
            name,
            f"hands on {states[0, 0].numel():,} numbers a token from block to block, and its hidden_size is "
            f"{hidden_size:,}",
        )
    if any(one.is_floating_point() and one.dim() == 3 and one.shape[1] == _N_TRIED for one in given[1:]):
        raise _refused(name, "gives its blocks embeddings of the tokens beside the hidden states")


def _list_of(n_blocks: int, model: PreTrainedModel) -> tuple[str, nn.ModuleList | None]:
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            return path, module
    return "", None


def _beside(blocks: nn.ModuleList, parent: nn.Module, embedding: nn.Module) -> str:
    """The tables that lie in `parent` with the list of blocks, where the token embedding doesn't."""
    if any(module is embedding for module in parent.modules()):
        return ""
    parts = parent.named_children()
    return ", ".join(name for name, part in parts if part is not blocks and hasattr(part, "num_embeddings"))


def _given_to(block: nn.Module, model: PreTrainedModel) -> list[torch.Tensor]:
    """The tensors that the first block is called with, hidden states first; none if that can't be found out."""

    def reached(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        states = kwargs.pop("hidden_states", None)
        raise _FirstBlockReached(([] if states is None else [states]) + [*args, *kwargs.values()])

    width = getattr(model.get_input_embeddings(), "embedding_dim", model.config.hidden_size)
    hook = block.register_forward_pre_hook(reached, with_kwargs=True)
    try:
        with torch.device("meta"), torch.inference_mode():
            for inputs in (
                {"input_ids": torch.zeros((1, _N_TRIED), dtype=torch.long)},
                {"inputs_embeds": torch.zeros((1, _N_TRIED, width))},
            ):
                try:
                    # with a cache the library doesn't look for texts that are packed into one
                    model(**inputs, past_key_values=DynamicCache(config=model.config), use_cache=True)
                except _FirstBlockReached as exc:
                    return [one for one in exc.given if isinstance(one, torch.Tensor)]
                except CONFIG_ERRORS:
                    continue
    finally:
        hook.remove()
    return []


def _numbers(blocks: Sequence[int], n_blocks: int) -> str:
    more = f" and {len(blocks) - _MOST_SHOWN} more" if len(blocks) > _MOST_SHOWN else ""
    shown = ", ".join(map(str, blocks[:_MOST_SHOWN]))
    return f"block{'s' if len(blocks) > 1 else ''} {shown}{more} of {n_blocks}"


def _refused(name: str, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"{name} {why}; Brigade's workers keep keys and values and hand on hidden states, no more. Take a model "
        "whose blocks all attend and need nothing else: docs/reference/architectures.md names them (Llama, Qwen3, "
        "Gemma 3, Mistral and many more)"
    )
