"""Cut a transformers model down to a range of its blocks. Knows no model by name.

The blocks are the first module list as long as the config says. What runs before the first block and what runs
after the last is found by calling the model up to its first block and noting what it called. Modules that a stage
doesn't own become stand-ins without parameters, so that the model's own `forward` still runs around the blocks that
are left; `worker.stage` replaces what goes into the first of them and takes what comes out of the last.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from protocol.errors import UntrustedFileError
from protocol.ids import BlockRange
from worker.attention import implementation_of, set_implementation
from worker.kv_cache import KVCache
from worker.packed_linear import PackedLinear
from worker.replacing import replace_modules
from worker.rotary import rotary_modules

_NUMBER_NAMES = ("layer_idx", "layer_id")
"""What modules call the number of their block, by which they find their part of the cache."""


class NoEmbedding(nn.Module):
    """Stands in for an embedding of an earlier stage: adds nothing, whatever it is asked for."""

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        """Zero, without a shape, so that it adds to anything."""
        return torch.zeros(())


class PassThrough(nn.Module):
    """Stands in for a norm, a projection, or a module of all embeddings, that another stage owns."""

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The hidden states that came in: not ids or positions, which embeddings are given beside them."""
        given = (one for one in (*args, *kwargs.values()) if isinstance(one, torch.Tensor))
        return next(one for one in given if one.is_floating_point())


class _FirstBlockReached(Exception):  # noqa: N818 - not an error: it ends the dry run
    """The dry run got where it wanted."""


def cut_modules(model: PreTrainedModel, kept: BlockRange) -> None:
    """Keep the blocks `kept` (counted from the model's first one now) and what their stage owns besides.

    The config stays as it is: loading still consults it. Call `cut_config` when the weights are there.

    Raises:
        UntrustedFileError: the architecture has no list of blocks, or can't be called up to the first of them.
    """
    parent, leaf, blocks = find_blocks(model)
    is_first, is_last = kept.start == 0, kept.end == len(blocks)
    before = _modules_before_blocks(model, blocks)
    embedding = model.get_input_embeddings()
    kept_embedding = embedding if is_first or (is_last and model.all_tied_weights_keys) else None
    for owner, name, module in _modules_outside(model, blocks):
        if module is kept_embedding or (is_first if module in before else is_last):
            continue
        setattr(owner, name, _stand_in(module, embedding, kept_embedding))
    setattr(parent, leaf, blocks[kept.start : kept.end])
    _renumber(getattr(parent, leaf), kept.start)
    forget_lost_ties(model)


def cut_config(model: PreTrainedModel, kept: BlockRange) -> None:
    """Shorten every per-block list of every config in the model, and the number of blocks."""
    n_blocks = model.config.num_hidden_layers
    for config in configs_of(model):
        if getattr(config, "num_hidden_layers", None) != n_blocks:
            continue  # of another part of the model
        for name, value in list(vars(config).items()):
            # lists of block *numbers* of just that length (Qwen's mlp_only_layers) are only read in constructors
            if isinstance(value, list) and len(value) == n_blocks:
                setattr(config, name, value[kept.start : kept.end])
        config.num_hidden_layers = len(kept)


def free_embedding(model: PreTrainedModel) -> None:
    """Let go of the embedding of a stage that isn't the first: the head was tied to it, and nothing calls it."""
    embedding = model.get_input_embeddings()
    if not isinstance(embedding, NoEmbedding):
        replace_modules(model, lambda module: NoEmbedding() if module is embedding else None)


def configs_of(model: PreTrainedModel) -> list[PreTrainedConfig]:
    """Every config in the model, the model's own first."""
    seen: dict[int, PreTrainedConfig] = {}
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            seen[id(config)] = config
    return list(seen.values())


def find_blocks(model: PreTrainedModel) -> tuple[nn.Module, str, nn.ModuleList]:
    """The module that has the list of blocks, the attribute it is under, and the list.

    Raises:
        UntrustedFileError: no module list is as long as the config says.
    """
    n_blocks = model.config.num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == n_blocks:
            parent_path, _, leaf = path.rpartition(".")
            return model.get_submodule(parent_path), leaf, module
    raise UntrustedFileError(f"{type(model).__name__} has no list of {n_blocks} blocks; it can't be split")


def base_of(model: PreTrainedModel) -> nn.Module:
    """The model without its head; itself if it has none.

    Found by where the blocks are if the class names another part for it than it has (`Llama4ForCausalLM`).
    """
    base: nn.Module = model.base_model
    if base is not model:
        return base
    blocks = find_blocks(model)[2]
    for part in model.children():
        if isinstance(part, PreTrainedModel) and any(module is blocks for module in part.modules()):
            return part
    return model


def is_bare(model: PreTrainedModel) -> bool:
    """Whether it is a base model, without a head: an encoder."""
    return base_of(model) is model


def has_stand_ins(module: nn.Module) -> bool:
    """Whether parts of it belong to another stage."""
    return any(isinstance(part, NoEmbedding | PassThrough) for part in module.modules())


def takes_position_ids(model: nn.Module) -> bool:
    """Whether the model's forward has to be told the positions (BLOOM works them out from its cache)."""
    return "position_ids" in inspect.signature(model.forward).parameters


@contextmanager
def _without_frequencies(model: nn.Module) -> Iterator[None]:
    """Rotary embeddings don't look at positions: without weights they can't, or keep frequencies without values."""
    rotary = rotary_modules(model)
    for module in rotary:
        module.forward = lambda states, *_args, **_kwargs: (states, states)  # nobody before the blocks uses it
    try:
        yield
    finally:
        for module in rotary:
            del module.forward


@contextmanager
def _with_whole_masks(model: PreTrainedModel) -> Iterator[None]:
    """Masks are made in any case: to leave one out, the library looks at values (BioGPT has a mask of padding)."""
    configs = configs_of(model)
    before = [implementation_of(config) for config in configs]
    set_implementation(configs, "eager")
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            set_implementation([config], name)


def _modules_outside(model: PreTrainedModel, blocks: nn.ModuleList) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Owner, attribute and module of everything with weights that isn't in a block and doesn't hold them."""
    pending: list[nn.Module] = [model]
    while pending:
        owner = pending.pop()
        for name, child in list(owner.named_children()):
            if child is blocks:
                continue
            if any(module is blocks for module in child.modules()):
                pending.append(child)
            elif _has_weights(child):
                yield owner, name, child


def _has_weights(module: nn.Module) -> bool:
    if next(module.parameters(), None) is not None:
        return True
    return any(isinstance(part, PackedLinear) for part in module.modules())  # theirs are no parameters


def _modules_before_blocks(model: PreTrainedModel, blocks: nn.ModuleList) -> set[nn.Module]:
    """The modules that the model calls before its first block: a dry run of one token that stops there."""
    base, embedding = base_of(model), model.get_input_embeddings()
    called: set[nn.Module] = {embedding}

    def note(module: nn.Module, _args: Any, _kwargs: Any) -> None:
        if module is blocks[0]:
            raise _FirstBlockReached
        called.add(module)

    modules = [blocks[0], *(module for _, _, module in _modules_outside(model, blocks))]
    hooks = [module.register_forward_pre_hook(note, with_kwargs=True) for module in modules]
    device, dtype = model.device, model.dtype
    # embeddings rather than ids: some models look at the ids' values, which weightless tensors don't have
    width = getattr(embedding, "embedding_dim", model.config.hidden_size)
    inputs: dict[str, Any] = {"inputs_embeds": torch.zeros((1, 1, width), device=device, dtype=dtype)}
    if takes_position_ids(base):
        inputs["position_ids"] = torch.zeros((1, 1), dtype=torch.long, device=device)
    if base is not model:
        inputs |= {"past_key_values": KVCache(len(blocks), 1), "use_cache": True}
    try:
        with torch.inference_mode(), _without_frequencies(model), _with_whole_masks(model):
            base(**inputs)
    except _FirstBlockReached:
        return called
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError) as exc:
        raise UntrustedFileError(f"{type(model).__name__} can't be split: {exc}") from exc
    finally:
        for hook in hooks:
            hook.remove()
    raise UntrustedFileError(f"{type(model).__name__} doesn't call the blocks that it has; it can't be split")


def _stand_in(module: nn.Module, embedding: nn.Module, kept_embedding: nn.Module | None) -> nn.Module:
    """What takes a module's place in a stage that doesn't own it; the model still finds its `embedding` in it.

    That is the real one where a head is tied to it.
    """
    if hasattr(module, "num_embeddings"):
        return NoEmbedding()
    stand_in = PassThrough()
    for name, part in module.named_children():
        if part is embedding:
            stand_in.add_module(name, kept_embedding or NoEmbedding())
    return stand_in


def _renumber(blocks: nn.ModuleList, start: int) -> None:
    for module, name in product(blocks.modules(), _NUMBER_NAMES):
        if isinstance(index := getattr(module, name, None), int):
            setattr(module, name, index - start)


def forget_lost_ties(model: PreTrainedModel) -> None:
    """Drop ties whose two ends aren't both there any more: loading would look for them."""
    there = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    model.all_tied_weights_keys = {
        target: source
        for target, source in (model.all_tied_weights_keys or {}).items()
        if target in there and source in there
    }
