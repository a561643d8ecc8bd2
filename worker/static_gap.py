"""A gap of a recorded step, where a block attends, with queries, keys and values that stay where they are.

Where sessions keep what the block computes, as it is, and none needs a mask, two calls of kernels fill it for all
of them. Else it is filled as it is everywhere, and what comes is copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch

from worker import decode_kernel
from worker.attention import BatchCache, attends_plainly, implementation_of
from worker.compiled_recording import Fill, Gap
from worker.kv_cache import KVCache
from worker.kv_store import FloatStore, KVStore
from worker.row_kernels import can_keep, keep_from, room_in


class StaticGap:
    """Puts into `result` what the sessions attend to."""

    def __init__(
        self,
        gap: Gap,
        fill: Fill,
        states: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        computed: Sequence[torch.Tensor],
        result: torch.Tensor,
    ) -> None:
        """`states`: query, key and value; `result` (1, n_sessions, heads, width) without gaps."""
        self._gap, self._fill, self._states, self._computed, self._result = gap, fill, states, computed, result
        query, self._key, self._value = states
        self._keep = self._attend = None
        arguments = gap.fixed | dict(zip(gap.computed, computed, strict=True))
        own: Any = gap.module.config
        if attends_plainly(gap.module, implementation_of(own), arguments) and self._is_for_kernels(query):
            self._keep = keep_from(self._key, self._value)
            scaling = gap.fixed.get("scaling")
            self._attend = decode_kernel.attend_into(query, self._key.shape[1], scaling, result)

    def _is_for_kernels(self, query: torch.Tensor) -> bool:
        one = self._key[:, :, :1]
        return (
            self._key.shape == self._value.shape
            and query.stride(3) == 1
            and query.shape[1] % self._key.shape[1] == 0
            and decode_kernel.serves(query, self._key, self._value)
            and can_keep(one, self._key, self._value)
        )

    def fill(self, caches: Sequence[KVCache], cache: KVCache | BatchCache, masks: Sequence[Any]) -> None:
        """`cache`: that of the only session, or the batch of all; `masks` by the numbers of their rules.

        Raises:
            ValueError: not as many sessions as there are queries.
        """
        if len(caches) != self._key.shape[2]:
            raise ValueError(f"{len(caches)} sessions for {self._key.shape[2]} queries")
        blocks = [one.blocks[self._gap.block] for one in caches]
        if self._keep is None or self._attend is None or self._has_mask(masks):
            kept: list[torch.Tensor] = []
        else:
            kept = [block.store.tensors[0] for block in blocks if self._is_kept_as_it_is(block.store)]
        if len(kept) < len(blocks) or self._keep is None or self._attend is None:
            self._result.copy_(self._fill(cache, masks, self._states, self._computed))
            return
        rooms, places = [], []
        for block, both in zip(blocks, kept, strict=True):
            block.grow(1, self._key, self._value)
            rooms.append(room_in(both, block.length - 1, self._key))
            places.append(decode_kernel.place_in(both, block.length))
        keep, arguments = self._keep
        keep(*arguments, rooms)
        attend, arguments = self._attend
        attend(*arguments, places)

    def _has_mask(self, masks: Sequence[Any]) -> bool:
        mask = None if self._gap.mask is None else masks[self._gap.mask]
        if isinstance(mask, tuple):  # of each session
            return any(one is not None for one in mask)
        return mask is not None

    def _is_kept_as_it_is(self, store: KVStore | None) -> TypeGuard[FloatStore]:
        return isinstance(store, FloatStore) and store.is_joined and store.tensors[0].dtype == self._key.dtype
