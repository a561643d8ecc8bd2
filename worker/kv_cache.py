"""Keys and values of one session in one stage, in buffers that are written in place (`worker.kv_store`).

Every block keeps all positions; sliding windows are the mask's business. That costs memory for models with windows,
and buys exact rollback to any position. The byte budget is `worker.cache_plan`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from protocol.errors import InternalError
from protocol.messages import KvPrecision
from worker.kv_store import KVStore, new_store


class BlockKV(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' hook for subclasses
    """Keys and values of one block: `capacity` positions, of which the first `length` are filled.

    Allocated at the first write, from the shapes that really come (keys and values may differ in width). Blocks
    that choose by an indexer which positions they attend to (DeepSeek V3.2) have keys of that here too.
    """

    is_sliding = False

    def __init__(self, capacity: int, held_as: KvPrecision | None = None) -> None:
        """`held_as`: what they are kept in; None: what is computed in."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0
        self.store: KVStore | None = None
        self._held_as = held_as
        self._index: KVStore | None = None
        """The indexer's keys, in what is computed in: roundings would choose other positions."""
        self._n_indexed = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for one sequence; `key_states` and `value_states` are (1, heads, tokens, width)."""
        self.store = new_store(key_states, value_states, self.capacity, self._held_as)
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions; give all filled ones.

        Raises:
            InternalError: more positions than were reserved; the engine checks that before a step begins.
        """
        self.write(key_states, value_states)
        return self.filled()

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Write the new positions.

        Raises:
            InternalError: more positions than were reserved.
        """
        start = self.length
        self.grow(key_states.shape[2], key_states, value_states).write(start, key_states, value_states)

    def grow(self, n_new: int, key_states: torch.Tensor, value_states: torch.Tensor) -> KVStore:
        """Count `n_new` positions more; the store that the caller has to write them to. It is for such states.

        Raises:
            InternalError: more positions than were reserved.
        """
        end = self.length + n_new
        if end > self.capacity:
            raise InternalError(f"position {end} of a session that reserved {self.capacity}")
        if self.store is None:
            self.lazy_initialization(key_states, value_states)
        assert self.store is not None
        self.length = end
        return self.store

    def update_indexer(self, indexer_key_states: torch.Tensor) -> torch.Tensor:
        """Write an indexer's new keys, (1, tokens, width), before or after the block's own; give all of them.

        Raises:
            InternalError: more positions than were reserved.
        """
        keys = indexer_key_states.unsqueeze(1)
        start, end = self._n_indexed, self._n_indexed + keys.shape[2]
        if end > self.capacity:
            raise InternalError(f"position {end} of a session that reserved {self.capacity}")
        if self._index is None:
            self._index = new_store(keys, keys[..., :0], self.capacity, None)
        self._index.write(start, keys, keys[..., :0])
        self._n_indexed = end
        return self._index.read(end)[0].squeeze(1)

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on."""
        self.length = min(self.length, position)
        self._n_indexed = min(self._n_indexed, position)

    def filled(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of all positions written; they may be views, valid until the next write."""
        assert self.store is not None
        return self.store.read(self.length)

    def copy_from(self, other: BlockKV, n_positions: int) -> None:
        """Begin with the first positions of another block's, as many as there are; this one is empty."""
        n_positions = min(n_positions, other.length)
        if n_positions and other.store is not None:
            self.store = other.store.resized(self.capacity, n_positions)
            self.length, self.is_initialized = n_positions, True
        if n_positions and other._index is not None:
            self._index = other._index.resized(self.capacity, n_positions)
            self._n_indexed = n_positions

    def resize(self, capacity: int) -> None:
        """Have room for so many positions, and memory for no more; what doesn't fit is forgotten."""
        self.truncate(capacity)
        if self.store is not None and capacity != self.capacity:
            self.store = self.store.resized(capacity, self.length)
        if self._index is not None and capacity != self.capacity:
            self._index = self._index.resized(capacity, self._n_indexed)
        self.capacity = capacity

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the mask must cover."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def get_max_length(self) -> int:
        """Positions that fit."""
        return self.capacity

    def n_bytes(self) -> int:
        """Bytes allocated; none before something was written."""
        return sum(store.n_bytes for store in (self.store, self._index) if store is not None)


class KVCache(Cache):
    """What a model takes for its cache: one `BlockKV` for each block of the stage."""

    def __init__(self, n_blocks: int, capacity: int, held_as: KvPrecision | None = None) -> None:
        """`held_as`: what keys and values are kept in; None: what is computed in."""
        self.blocks = [BlockKV(capacity, held_as) for _ in range(n_blocks)]
        super().__init__(layers=list(self.blocks))
        self._no = [False] * n_blocks

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self.blocks[0].capacity

    @property
    def length(self) -> int:
        """Positions filled in every block."""
        return self.blocks[0].length

    @property
    def is_sliding(self) -> list[bool]:
        """No block forgets. Built once: every mask asks for it, at every step."""
        return self._no

    @property
    def is_linear(self) -> list[bool]:
        """No block has recurrent state."""
        return self._no

    @property
    def is_dummy(self) -> list[bool]:
        """Every block attends."""
        return self._no

    def copy_from(self, other: KVCache, n_positions: int) -> None:
        """Begin with the first positions of another cache of the same blocks; this one is empty."""
        for block, source in zip(self.blocks, other.blocks, strict=True):
            block.copy_from(source, n_positions)

    def resize(self, capacity: int) -> None:
        """Have room for so many positions, and memory for no more; one block at a time, so little is held twice."""
        for block in self.blocks:
            block.resize(capacity)

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on, in every block; also repairs what a failed step half wrote."""
        for block in self.blocks:
            block.truncate(position)
