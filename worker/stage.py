"""A stage: the model cut to a range of blocks, called with tokens or hidden states of one session or of several.

Masks, rotary embeddings, windows, experts and scalings are the library's own code; a stage only decides what goes
into its first block and where its result is taken. Used by the engine thread alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from protocol.errors import InvalidRequestError
from protocol.ids import BlockRange
from protocol.messages import KvPrecision
from worker.attention import BatchCache, attending_apart, implementation_of, shorten
from worker.cut import base_of, configs_of, cut_config, cut_modules, find_blocks, takes_position_ids
from worker.kv_cache import KVCache
from worker.packed_linear import PackedLinear
from worker.quantised_matrix import UnpackedMatrix
from worker.replacing import replace_modules
from worker.rotary import Rotary
from worker.screened_head import ScreenedHead
from worker.stage_batching import UNTRIED, Batching
from worker.taps import Taps, into_first_block


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInput:
    """New positions of one session."""

    payload: torch.Tensor
    """Token ids (n_tokens,) for the first stage, else hidden states (n_tokens, hidden_size)."""
    position: int
    """Of the first new token; everything before is in `cache`."""
    cache: KVCache
    """From `Stage.new_cache`; grows by n_tokens."""
    n_prompt: int = 0
    """Of how many tokens the session's prompt is; 0: not said (see `worker.text_lengths`)."""
    n_logits: int = 0
    """Of how many positions, the last ones, logits are wanted, rather than hidden states of all."""
    wants_likeliest: bool = False
    """Whether of those logits only the largest of each position has to be right, and the others only be less."""
    wants_inputs: bool = False
    """Whether what goes into the first block is wanted, rather than what comes out of the last."""


Decode = Callable[[Sequence[StageInput]], list[torch.Tensor]]
"""Gives what `Stage.run` gives of one new token of each of some sessions."""


class Stage:
    """Blocks `blocks` of a model of `n_blocks`, with the embeddings if first, and norm and head if last."""

    is_encoder = False
    """Whether it takes a text whole (`worker.encoder_stage`)."""
    working_bytes = 0
    """Then: bytes that one position takes while its text is run, beside what is kept."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: BlockRange,
        *,
        n_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        batching: Batching = UNTRIED,
    ) -> None:
        self.blocks = blocks
        self.n_blocks = n_blocks
        self.batching = batching
        self.is_first = blocks.start == 0
        self.is_last = blocks.end == n_blocks
        self.dtype = dtype
        """Of the computing, and of hidden states: codes and packed weights don't show it."""
        self.device = device
        self.hidden_size: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size
        self._model = model
        self._base: nn.Module = base_of(model)
        self.configs = configs_of(model)
        self._takes_position_ids = takes_position_ids(self._base)
        self.rotary = Rotary(model)
        self._blocks = find_blocks(model)[2]
        self.head = self._found_head(model)
        """What makes logits of the last states; None where there are none."""
        self._taps = Taps(self._blocks, is_first=self.is_first, is_last=self.is_last)
        self._decodes: dict[int, Decode] = {}
        self._views: dict[BlockRange, Stage] = {}
        self._taps.attach()

    def new_cache(self, n_positions: int, held_as: KvPrecision | None = None) -> KVCache:
        """An empty cache for one session of at most `n_positions`; memory is taken at the first step.

        `held_as`: what keys and values are kept in; None: what is computed in.
        """
        return KVCache(len(self.blocks), n_positions, held_as)

    @torch.inference_mode()
    def run(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Run new positions of different sessions, in one forward if the architecture allows it.

        For each input: hidden states (n_tokens, hidden_size), after the final norm if the stage is last; or, of
        those that want logits, which only a last stage has, logits (n_logits, vocab_size).
        """
        if isinstance(self.head, ScreenedHead) and all(one.wants_likeliest for one in inputs if one.n_logits):
            with self.head.screening():
                return self._run(inputs)
        return self._run(inputs)

    def replace_head(self, head: nn.Module) -> None:
        """Make logits by this from now on; views that are made from now on do likewise."""
        before, self.head = self.head, head
        replace_modules(self._model, lambda module: head if module is before else None)

    def batch(self, batching: Batching) -> None:
        """Run sessions together from now on, or one at a time; views that are made from now on do likewise."""
        self.batching = batching
        if not batching.because:
            shorten(self.configs)

    def decode_by(self, decode: Decode, sizes: range) -> None:
        """Run single new tokens, of so many sessions at once, by this from now on. Not in views."""
        self._decodes.update(dict.fromkeys(sizes, decode))

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
        packed = {id(layer): layer.n_weight_bytes for layer in self.packed_linears()}
        return sum(tensors.values()) + sum(packed.values())

    def modules(self) -> Iterator[nn.Module]:
        """Of the model, all of them."""
        return self._model.modules()

    def packed_linears(self) -> list[PackedLinear]:
        """The linear layers whose weights are no ordinary tensors."""
        return [module for module in self.modules() if isinstance(module, PackedLinear)]

    @property
    def unpacked_because(self) -> str:
        """Why codes are unpacked for each product, which takes longer than it might; empty if they aren't."""
        matrices = (module for module in self.modules() if isinstance(module, UnpackedMatrix))
        return next((matrix.because for matrix in matrices if matrix.because), "")

    def kv_bytes_by_block(self, held_as: KvPrecision | None = None) -> tuple[int, ...]:
        """Bytes of cache that one position takes in each block, measured by a token; warms the stage up too."""
        cache = self.new_cache(1, held_as)
        if self.is_first:
            payload = torch.zeros(1, dtype=torch.int32)
        else:
            payload = torch.zeros(1, self.hidden_size, dtype=self.dtype)
        self.run([StageInput(payload=payload, position=0, cache=cache, n_logits=int(self.is_last))])
        return tuple(block.n_bytes() for block in cache.blocks)

    def _run(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        decode = self._decodes.get(len(inputs))
        if decode is not None and all(self._is_decode(one) for one in inputs):
            return decode(inputs)
        if len(inputs) == 1 or self.batching.because or any(one.wants_inputs for one in inputs):
            return [self._run_one(one) for one in inputs]
        return self.run_together(inputs)

    def run_alone(self, one: StageInput) -> torch.Tensor:
        """Run new positions of one session by the model's own code."""
        with self.rotary.rotating(one.position, len(one.payload), one.n_prompt):
            return self.forward(one.payload, self._positions((one,)), one.cache, one.n_logits)

    def _run_apart(self, one: StageInput) -> torch.Tensor:
        """As `run_alone`, without the session's cache."""
        return self.run_alone(replace(one, cache=self.new_cache(len(one.payload))))

    def forward(self, payload: torch.Tensor, positions: torch.Tensor, cache: Cache, n_logits: int) -> torch.Tensor:
        """Likewise, with the positions as a tensor (n_tokens,): for whoever writes down what the model does."""
        arguments = self._arguments(payload, positions, cache)
        if n_logits:
            logits: torch.Tensor = self._model(**arguments, logits_to_keep=n_logits).logits
            return logits[0]
        return self._states(self._base(**arguments)[0])

    def _is_decode(self, one: StageInput) -> bool:
        return len(one.payload) == 1 and one.n_logits == int(self.is_last) and not one.wants_inputs

    def _run_one(self, one: StageInput) -> torch.Tensor:
        if one.wants_inputs:
            return into_first_block(self._blocks, lambda: self._run_apart(one))[0]
        return self.run_alone(one)

    def run_together(self, inputs: Sequence[StageInput]) -> list[torch.Tensor]:
        """Run new positions of several sessions in one forward, by the model's own code; it must allow that."""
        n_tokens = [len(one.payload) for one in inputs]
        batch = BatchCache(
            [one.cache for one in inputs],
            n_tokens,
            implementation=implementation_of(self.configs[0]),
            joins_keys=self.batching.joins_keys,
        )
        arguments = self._arguments(torch.cat([one.payload for one in inputs]), self._positions(inputs), batch)
        with attending_apart(batch, self.configs):
            if not any(one.n_logits for one in inputs):
                return list(self._states(self._base(**arguments)[0]).split_with_sizes(n_tokens))
            return self._with_logits(arguments, inputs, n_tokens)

    def _with_logits(
        self, arguments: dict[str, Any], inputs: Sequence[StageInput], n_tokens: Sequence[int]
    ) -> list[torch.Tensor]:
        """Logits of the rows that want them; who wants none gets the states that the head saw."""
        ends = list(accumulate(n_tokens))
        rows = [row for one, end in zip(inputs, ends, strict=True) for row in range(end - one.n_logits, end)]
        states: list[torch.Tensor] = []
        # not of the base model: some heads call the decoder in it
        decoder = find_blocks(self._model)[0]
        hook = decoder.register_forward_hook(lambda _module, _inputs, output: states.append(output[0][0]))
        try:
            # 0 is all of them, without a copy
            keep = 0 if len(rows) == ends[-1] else torch.tensor(rows, device=self.device)
            logits = self._model(**arguments, logits_to_keep=keep).logits[0]
        finally:
            hook.remove()
        shares = zip(
            inputs,
            logits.split_with_sizes([one.n_logits for one in inputs]),
            states[0].split_with_sizes(n_tokens),
            strict=True,
        )
        return [wanted if one.n_logits else own for one, wanted, own in shares]

    def _states(self, result: torch.Tensor) -> torch.Tensor:
        """(n_tokens, hidden_size): what the base model gave, or the last block if another stage owns the rest."""
        return self._rows(result)[0]

    def _rows(self, result: torch.Tensor) -> torch.Tensor:
        """The same with the batch's dimension in front."""
        if self.is_last:
            return result
        assert self._taps.outgoing is not None
        result, self._taps.outgoing = self._taps.outgoing, None
        return result

    def _arguments(self, payload: torch.Tensor, positions: torch.Tensor, cache: Cache) -> dict[str, Any]:
        arguments: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if self.is_first:
            arguments["input_ids"] = payload.to(self.device, torch.long).unsqueeze(0)
        else:
            incoming = payload.to(self.device, self.dtype).unsqueeze(0)
            arguments["inputs_embeds"] = self._taps.incoming = incoming
        if self._takes_position_ids:
            arguments["position_ids"] = positions.unsqueeze(0)
        return arguments

    def _positions(self, inputs: Sequence[StageInput]) -> torch.Tensor:
        positions = [
            torch.arange(one.position, one.position + len(one.payload), device=self.device) for one in inputs
        ]
        return positions[0] if len(positions) == 1 else torch.cat(positions)

    def _found_head(self, model: PreTrainedModel) -> nn.Module | None:
        if self.is_encoder or not self.is_last:
            return None
        head: nn.Module | None = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        return head

    def _cut_view(self, blocks: BlockRange) -> Stage:
        kept = BlockRange(blocks.start - self.blocks.start, blocks.end - self.blocks.start)
        self._taps.detach()  # they belong to this stage and must not be copied
        try:
            shared = {id(t): t for t in (*self._model.parameters(), *self._model.buffers())}
            model = copy.deepcopy(self._model, shared)
        finally:
            self._taps.attach()
        cut_modules(model, kept)
        cut_config(model, kept)
        return type(self)(
            model, blocks, n_blocks=self.n_blocks, dtype=self.dtype, device=self.device, batching=self.batching
        )
