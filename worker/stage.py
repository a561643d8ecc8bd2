"""A stage: the model cut to a range of blocks, called with tokens or hidden states of one session.

Masks, rotary embeddings, windows, experts and scalings are the library's own code; a stage only decides what goes
into its first block and where its result is taken. Used by the engine thread alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange
from worker.cut import cut_config, cut_modules, find_blocks, takes_position_ids
from worker.kv_cache import KVCache
from worker.loading import load_config, load_cut_model


@dataclass(slots=True)
class _Taps:
    """What the hooks on the first and the last block read and write."""

    incoming: torch.Tensor | None = None
    """(1, n_tokens, hidden): replaces whatever the model made of its embeddings."""
    outgoing: torch.Tensor | None = None
    """(1, n_tokens, hidden): what the last block gave."""


class Stage:
    """Blocks `blocks` of a model of `n_blocks`, with the embeddings if first, and norm and head if last."""

    def __init__(self, model: PreTrainedModel, blocks: BlockRange, *, n_blocks: int) -> None:
        self.blocks = blocks
        self.n_blocks = n_blocks
        self.is_first = blocks.start == 0
        self.is_last = blocks.end == n_blocks
        parameter = next(find_blocks(model)[2].parameters())
        self.device = parameter.device
        self.dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self._model = model
        self._base: nn.Module = model.base_model
        self._takes_position_ids = takes_position_ids(self._base)
        self._taps = _Taps()
        self._hooks: list[Any] = []
        self._views: dict[BlockRange, Stage] = {}
        self._add_hooks()

    def new_cache(self, n_positions: int) -> KVCache:
        """An empty cache for one session of at most `n_positions`; memory is taken at the first step."""
        return KVCache(len(self.blocks), n_positions)

    @torch.inference_mode()
    def hidden(self, payload: torch.Tensor, position: int, cache: KVCache) -> torch.Tensor:
        """Run new positions; give hidden states (n_tokens, hidden_size), after the final norm if the stage is last.

        Args:
            payload: token ids (n_tokens,) for the first stage, else hidden states (n_tokens, hidden_size).
            position: of the first new token; everything before is in `cache`.
            cache: from `new_cache`; grows by n_tokens.
        """
        inputs = self._inputs(payload, position, cache)
        result = self._base(**inputs)[0]
        if not self.is_last:
            result, self._taps.outgoing = self._taps.outgoing, None
        assert result is not None
        states: torch.Tensor = result[0]
        return states

    @torch.inference_mode()
    def logits(self, payload: torch.Tensor, position: int, cache: KVCache) -> torch.Tensor:
        """Run new positions through the last stage; give the logits (vocab_size,) of the last of them."""
        assert self.is_last
        inputs = self._inputs(payload, position, cache)
        result: torch.Tensor = self._model(**inputs, logits_to_keep=1).logits
        return result[0, -1]

    def view(self, blocks: BlockRange) -> Stage:
        """The part `blocks` of this stage as a stage, sharing its weights. Made once, then kept.

        Raises:
            InvalidRequestError: not a part of this stage.
        """
        if blocks == self.blocks:
            return self
        if not self.blocks.contains(blocks):
            raise InvalidRequestError(f"blocks {blocks} are not within {self.blocks}, which is what is loaded")
        if blocks not in self._views:
            self._views[blocks] = self._cut_view(blocks)
        return self._views[blocks]

    def n_weight_bytes(self) -> int:
        """Bytes of parameters and buffers, shared ones counted once."""
        tensors = {t.data_ptr(): t.nbytes for t in (*self._model.parameters(), *self._model.buffers())}
        return sum(tensors.values())

    def kv_bytes_by_block(self) -> tuple[int, ...]:
        """Bytes of cache that one position takes in each block, measured by a token; warms the stage up too."""
        cache = self.new_cache(1)
        if self.is_first:
            payload = torch.zeros(1, dtype=torch.int32)
        else:
            payload = torch.zeros(1, self.hidden_size, dtype=self.dtype)
        (self.logits if self.is_last else self.hidden)(payload, 0, cache)
        return tuple(block.n_bytes_per_position() for block in cache.blocks)

    def _inputs(self, payload: torch.Tensor, position: int, cache: KVCache) -> dict[str, Any]:
        inputs: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.is_first:
            inputs["input_ids"] = payload.to(self.device, torch.long).unsqueeze(0)
        else:
            incoming = payload.to(self.device, self.dtype).unsqueeze(0)
            inputs["inputs_embeds"] = self._taps.incoming = incoming
        if self._takes_position_ids:
            n_tokens = payload.shape[0]
            inputs["position_ids"] = torch.arange(position, position + n_tokens, device=self.device).unsqueeze(0)
        return inputs

    def _cut_view(self, blocks: BlockRange) -> Stage:
        kept = BlockRange(blocks.start - self.blocks.start, blocks.end - self.blocks.start)
        self._remove_hooks()  # they belong to this stage and must not be copied
        try:
            shared = {id(t): t for t in (*self._model.parameters(), *self._model.buffers())}
            model = copy.deepcopy(self._model, shared)
        finally:
            self._add_hooks()
        cut_modules(model, kept)
        cut_config(model, kept)
        return Stage(model, blocks, n_blocks=self.n_blocks)

    def _add_hooks(self) -> None:
        blocks = find_blocks(self._model)[2]
        if not self.is_first:
            self._hooks.append(blocks[0].register_forward_pre_hook(self._replace_input, with_kwargs=True))
        if not self.is_last:
            self._hooks.append(blocks[-1].register_forward_hook(self._take_output))

    def _remove_hooks(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _replace_input(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        incoming, self._taps.incoming = self._taps.incoming, None
        if args:
            return (incoming, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": incoming}

    def _take_output(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._taps.outgoing = output[0] if isinstance(output, tuple) else output


def load_stage(
    config_folder: Path,
    files: Sequence[Path],
    blocks: BlockRange,
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> Stage:
    """Load `blocks` from their files (see `worker.loading`).

    Raises:
        UntrustedFileError: config or weights aren't what they should be.
        StorageError: a file can't be read.
    """
    config = load_config(config_folder)
    n_blocks = config.num_hidden_layers
    model = load_cut_model(config, files, blocks, dtype=dtype, device=device)
    return Stage(model, blocks, n_blocks=n_blocks)
