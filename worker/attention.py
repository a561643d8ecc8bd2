"""Attention over several sessions at once: their new tokens lie side by side, and each attends to its own cache.

Everything else in a model works on each token alone, so its own `forward` runs once for all of them. Only where it
asks transformers' attention interface for a mask or for attention does it get here; both are then the library's
own, called once for each session. One call for all of them was slower: caches of different lengths have to be
padded and copied first; but where they are short and alike see `worker.decode_attention` (docs/decisions/0009).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from worker import prompt_attention
from worker.decode_attention import DecodeAttention, Parts, attend_one, attend_one_by_one
from worker.kv_cache import BlockKV, KVCache
from worker.kv_store import write_together

SESSIONS = "brigade_sessions"
"""Under this name a model's attention is that of the batch that runs."""
_ALONE = "brigade_sdpa"

_MOST_MASK_BYTES = 32 * 2**20
"""Of the heads that share keys: 512 tokens of four heads after 8,000 others in bfloat16. It is a copy, beside
weights and caches, that grows with the text."""

_batch: ContextVar[BatchCache] = ContextVar("brigade_batch")
"""The batch that is running: neither a mask nor an attention function is told."""


class BatchCache(Cache):
    """What a model takes for its cache while it runs the tokens of several sessions, one after the other in a row.

    With `joins_keys` a block is given all keys of all sessions, end to end, because it works on them before it
    attends (DeepSeek's latents); without, only the new ones, and attention finds the rest here.
    """

    def __init__(
        self, caches: Sequence[KVCache], n_tokens: Sequence[int], *, implementation: str, joins_keys: bool
    ) -> None:
        super().__init__(layers=list(caches[0].blocks))
        self.n_tokens = list(n_tokens)
        self.starts = [cache.length for cache in caches]
        self.implementation = implementation
        """Of attention, by the library's name, that the model would use alone."""
        self.no_masks = (None,) * len(n_tokens) if max(n_tokens) == 1 else ()
        """The masks of sessions that have one new token each, if none of them needs one."""
        self._caches = caches
        self._joins_keys = joins_keys
        self._blocks: list[BlockKV] = []
        """Of each session, the one that is running."""
        self._kept: list[torch.Tensor] = []
        """Of each session, the keys and values of that block, if they lie in one tensor."""
        self._decode = DecodeAttention([start + 1 for start in self.starts]) if self.no_masks else None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Give each session its share of the new positions."""
        self._blocks = [cache.blocks[layer_idx] for cache in self._caches]
        grown = zip(self._blocks, self.n_tokens, strict=True)
        stores = [block.grow(n_new, key_states, value_states) for block, n_new in grown]
        self._kept = write_together(stores, self.starts, self.n_tokens, key_states, value_states)
        if not self._joins_keys:
            return key_states, value_states
        parts = [block.filled() for block in self._blocks]
        return torch.cat([keys for keys, _ in parts], 2), torch.cat([values for _, values in parts], 2)

    def parts(self, keys: torch.Tensor, values: torch.Tensor) -> Parts:
        """Keys and values of each session, out of what the block has made of those that `update` gave.

        Made one session at a time: of caches in fewer bits, all together may be more than there is memory for.
        """
        if not self._joins_keys:
            return (block.filled() for block in self._blocks)
        ends = [start + n_new for start, n_new in zip(self.starts, self.n_tokens, strict=True)]
        return zip(keys.split_with_sizes(ends, 2), values.split_with_sizes(ends, 2), strict=True)

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int) -> torch.Tensor:
        """Refused: an indexer chooses among the keys of one session, so such sessions run one at a time."""
        raise NotImplementedError(f"block {layer_idx} chooses by an indexer which positions it attends to")

    def attend_with_one_token_each(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """Attention of sessions that have one new token each, (1, n_sessions, heads, width)."""
        if self._kept and self._decode is not None and not self._joins_keys:
            attended = self._decode.attend(query, self._kept, scaling)
            if attended is not None:
                return attended
        return attend_one_by_one(query, self.parts(keys, values), scaling)

    def get_seq_length(self, layer_idx: int | None = None) -> int:
        """No position is the first of all: a model must go by the positions that it is told.

        Raises:
            NotImplementedError: a block asks, of its own cache: all positions would be taken for the first ones
                (Llama 4's scales), so such sessions run one at a time.
        """
        if layer_idx is not None:
            raise NotImplementedError(f"block {layer_idx} takes positions from the length of its cache")
        return 0

    def get_mask_sizes(self, query_length: int, _layer_idx: int) -> tuple[int, int]:
        """Whatever the model asks for, the masks are made for each session."""
        return query_length, 0

    def get_query_offset(self, _layer_idx: int = 0) -> int:
        """Likewise."""
        return 0

    @property
    def is_sliding(self) -> list[bool]:
        """No block forgets."""
        return self._caches[0].is_sliding

    @property
    def is_linear(self) -> list[bool]:
        """No block has recurrent state."""
        return self._caches[0].is_linear

    @property
    def is_dummy(self) -> list[bool]:
        """Every block attends."""
        return self._caches[0].is_dummy


@contextmanager
def attending_apart(batch: BatchCache, configs: Sequence[PreTrainedConfig]) -> Iterator[None]:
    """While this is open, the models of these configs attend session by session, as they would do alone."""
    token = _batch.set(batch)
    try:
        set_implementation(configs, SESSIONS)
        yield
    finally:
        set_implementation(configs, batch.implementation)
        _batch.reset(token)


def shorten(configs: Sequence[PreTrainedConfig]) -> None:
    """Have models that attend by torch's kernel reach it the short way (`_attend_alone`)."""
    set_implementation([config for config in configs if implementation_of(config) == "sdpa"], _ALONE)


def implementation_of(config: PreTrainedConfig) -> str:
    """The library's name of the attention that a model of this config uses."""
    name: str = config._attn_implementation  # noqa: SLF001 - the library has no public name for it
    return name


def set_implementation(configs: Sequence[PreTrainedConfig], name: str) -> None:
    """Have the models of these configs ask the library for the attention of this name."""
    for config in configs:  # its setter would go through the parts of a config that aren't used here
        config._attn_implementation_internal = name  # noqa: SLF001


def _masks(*, batch_size: int, q_length: int, kv_length: int, q_offset: int, kv_offset: int, **rule: Any) -> Any:  # noqa: ARG001
    """The mask of each session by the model's own `rule`; None for those that need none."""
    batch = _batch.get()
    return tuple(
        mask_of(batch.implementation, start, n_new, rule)
        for start, n_new in zip(batch.starts, batch.n_tokens, strict=True)
    )


def mask_of(implementation: str, start: int, n_new: int, rule: dict[str, Any]) -> torch.Tensor | None:
    """The mask of one session's `n_new` tokens from position `start` on; None if it needs none."""
    make: Callable[..., torch.Tensor | None] = ALL_MASK_ATTENTION_FUNCTIONS[implementation]
    return make(batch_size=1, q_length=n_new, kv_length=start + n_new, q_offset=start, kv_offset=0, **rule)


def attention_of(module: nn.Module, implementation: str) -> Callable[..., tuple[torch.Tensor, Any]]:
    """The function by which a model's attention module would attend, under this name of the library's."""
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own: Callable[..., tuple[torch.Tensor, Any]] = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
    return own


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,  # by this name, which some models give it by
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """What the model's own attention gives for each session, (1, n_tokens, heads, width), end to end."""
    batch = _batch.get()
    masks = (None,) * len(batch.n_tokens) if attention_mask is None else attention_mask
    attention = attention_of(module, batch.implementation)
    if attention in _OF_KERNEL and masks == batch.no_masks and _is_plain(arguments):
        return batch.attend_with_one_token_each(query, key, value, arguments.get("scaling")), None
    parts = batch.parts(key, value)
    queries = query.split_with_sizes(batch.n_tokens, 2)
    attended = [
        attention(module, part, keys, values, mask, **arguments)[0]
        for part, (keys, values), mask in zip(queries, parts, masks, strict=True)
    ]
    return torch.cat(attended, 1), None


def _attend_alone(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """The library's attention by torch's kernel; without what the library does around it where it needn't."""
    mask = attention_mask
    if query.shape[2] == 1 and mask is None and _is_plain(arguments):
        return attend_one(query, key, value, arguments.get("scaling")), None
    if query.device.type == "cpu" and _is_plain(arguments):
        if (
            mask is None
            and _is_whole_and_causal(module, query, key, arguments)
            and prompt_attention.pays(query, key)
        ):
            return prompt_attention.attend(query, key, value, None, arguments.get("scaling")), None
        if mask is not None and mask.shape[1] == 1 and mask.is_floating_point():
            return _attend_masked(query, key, value, mask, arguments.get("scaling")), None
    attended: tuple[torch.Tensor, None] = sdpa_attention_forward(module, query, key, value, mask, **arguments)
    return attended


def _mask_alone(*, dtype: torch.dtype, **rule: Any) -> torch.Tensor | None:
    """The library's mask for torch's kernel, on the CPU in the numbers that this would make of it in each block."""
    mask: torch.Tensor | None = sdpa_mask(dtype=dtype, **rule)
    if mask is None or mask.device.type != "cpu":
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask.logical_not(), -torch.inf)


def _attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of several new tokens, (1, n_tokens, heads, width), on the CPU; by torch's kernel if they are few.

    For the kernel the heads that share keys and values become the rows of one query: longer ones take less time
    each, and nothing but the mask has to be copied for each head, as the library does with keys and values wherever
    there is a mask. The same bits, but for roundings where there are few tokens.
    """
    if prompt_attention.pays(query, key):
        return prompt_attention.attend(query, key, value, mask, scaling)
    _, n_heads, n_tokens, width = query.shape
    n_key_heads = key.shape[1]
    if mask.nbytes * n_heads // n_key_heads > _MOST_MASK_BYTES:
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True)
        return attended.transpose(1, 2).contiguous()
    rows = query.reshape(1, n_key_heads, n_heads // n_key_heads * n_tokens, width)
    row_mask = mask.expand(1, n_heads // n_key_heads, n_tokens, -1).reshape(1, 1, rows.shape[2], -1)
    attended = scaled_dot_product_attention(rows, key, value, attn_mask=row_mask, scale=scaling)
    return attended.view(1, n_heads, n_tokens, -1).transpose(1, 2).contiguous()


def attends_plainly(module: nn.Module, implementation: str, arguments: dict[str, Any]) -> bool:
    """Whether a block attends by torch's kernel or what stands for it, if it needs no mask, and nothing more."""
    return attention_of(module, implementation) in _OF_KERNEL and _is_plain(arguments)


def _is_whole_and_causal(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, arguments: dict[str, Any]
) -> bool:
    """Whether no mask means that each of these tokens attends to those before, and there are no others before."""
    is_causal = arguments.get("is_causal")
    return bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and (
        1 < query.shape[2] == key.shape[2]
    )


def _is_plain(arguments: dict[str, Any]) -> bool:
    """Whether attention is to do nothing that only the library's function knows of (or refuses)."""
    return arguments.get("softcap") is None and arguments.get("position_bias") is None


_OF_KERNEL = (sdpa_attention_forward, _attend_alone)

AttentionInterface.register(SESSIONS, _attend)
AttentionMaskInterface.register(SESSIONS, _masks)
AttentionInterface.register(_ALONE, _attend_alone)
AttentionMaskInterface.register(_ALONE, _mask_alone)
