"""Keys and values of one session in one stage, in buffers that are allocated once and written in place.

Every block keeps all positions; sliding windows are the mask's business. That costs memory for models with windows,
and buys exact rollback to any position. The byte budget is `worker.cache_plan`'s.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from protocol.errors import InternalError


class BlockKV(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' hook for subclasses
    """Keys and values of one block: `capacity` positions, of which the first `length` are filled.

    Allocated at the first write, from the shapes that really come (keys and values may differ in width).
    """

    is_sliding = False

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate for one sequence; `key_states` and `value_states` are (1, heads, tokens, width)."""
        self.keys = key_states.new_empty((*key_states.shape[:2], self.capacity, key_states.shape[3]))
        self.values = value_states.new_empty((*value_states.shape[:2], self.capacity, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new positions; give views of all filled ones, valid until the next write.

        Raises:
            InternalError: more positions than were reserved; the engine checks that before a step begins.
        """
        if self.keys is None or self.values is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        n_new = key_states.shape[2]
        end = self.length + n_new
        if end > self.capacity:
            raise InternalError(f"position {end} of a session that reserved {self.capacity}")
        self.keys.narrow(2, self.length, n_new).copy_(key_states)
        self.values.narrow(2, self.length, n_new).copy_(value_states)
        self.length = end
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def copy_from(self, other: BlockKV, n_positions: int) -> None:
        """Begin with the first positions of another block's, as many as there are."""
        n_positions = min(n_positions, other.length)
        if n_positions and other.keys is not None and other.values is not None:
            self.update(other.keys.narrow(2, 0, n_positions), other.values.narrow(2, 0, n_positions))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that the mask must cover."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions filled."""
        return self.length

    def get_max_length(self) -> int:
        """Positions that fit."""
        return self.capacity

    def n_bytes_per_position(self) -> int:
        """Bytes that one position takes, once something was written."""
        if self.keys is None or self.values is None:
            return 0
        return sum(t.shape[1] * t.shape[3] * t.element_size() for t in (self.keys, self.values))


class KVCache(Cache):
    """What a model takes for its cache: one `BlockKV` for each block of the stage."""

    def __init__(self, n_blocks: int, capacity: int) -> None:
        self.blocks = [BlockKV(capacity) for _ in range(n_blocks)]
        super().__init__(layers=list(self.blocks))
        self.capacity = capacity
        self._no = [False] * n_blocks

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

    def truncate(self, position: int) -> None:
        """Forget everything from `position` on, in every block; also repairs what a failed step half wrote."""
        for block in self.blocks:
            block.length = min(block.length, position)
