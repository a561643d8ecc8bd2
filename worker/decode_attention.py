"""Attention of sessions that have one new token each: by a kernel of our own if it is there, else by torch's.

torch's is called session by session, and of short texts most of its time is overhead. So those are copied side by
side in float32, padded to the longest: then all scores are one product, and what is attended to another. Long
texts, and such of very different lengths, would be more to copy than is gained (docs/decisions/0009).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from worker import decode_kernel

Parts = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each session, (1, key heads, positions, width) each; maybe made one after the other."""

_DTYPES = (torch.bfloat16, torch.float16)
"""In float32 nearly nothing was gained, and so nothing is rounded in another order than alone."""
_LEAST_SESSIONS = 4
_MOST_NUMBERS = 2**16
"""Of the keys and values of the longest session."""
_MOST_PADDED_BYTES = 4 * 2**20
_LEAST_FILLED = 0.75
"""Of what is padded, to be worth it."""
_PLACES_AT_ONCE = 64
"""Positions by which room grows: what the C library has just got back then fits the next step, too."""


class DecodeAttention:
    """Attends in each block of one step of the sessions, which have so many positions, the new ones among them."""

    def __init__(self, n_positions: Sequence[int]) -> None:
        self._n_positions = n_positions
        self._longest = max(n_positions)
        n_padded = len(n_positions) * self._longest
        self._may_pay = len(n_positions) >= _LEAST_SESSIONS and sum(n_positions) >= _LEAST_FILLED * n_padded
        self._pools: dict[tuple[int, int], _Pool] = {}
        """By key heads and width: blocks may differ."""

    def attend(
        self, query: torch.Tensor, kept: Sequence[torch.Tensor], scaling: float | None
    ) -> torch.Tensor | None:
        """Attention of all, (1, n_sessions, heads, width), or None if one by one is faster.

        `query` is (1, heads, n_sessions, width); `kept` has the keys and values of each, (2, key heads, capacity,
        width).
        """
        _, n_key_heads, _, width = kept[0].shape
        if decode_kernel.serves_all(query, kept):
            places = [decode_kernel.place_in(both, n) for both, n in zip(kept, self._n_positions, strict=True)]
            return decode_kernel.attend(query, places, n_key_heads, width, scaling)
        if not self._pays(query, n_key_heads * width):
            return None
        pool = self._pools.get((n_key_heads, width))
        if pool is None:
            pool = self._pools[n_key_heads, width] = _Pool(self._n_positions, n_key_heads, width)
        return pool.attend(query, kept, width**-0.5 if scaling is None else scaling)

    def _pays(self, query: torch.Tensor, position_numbers: int) -> bool:
        n_numbers = 2 * self._longest * position_numbers
        return (
            self._may_pay
            and query.dtype in _DTYPES
            and query.device.type == "cpu"
            and n_numbers <= _MOST_NUMBERS
            and 4 * n_numbers * len(self._n_positions) <= _MOST_PADDED_BYTES
        )


def attend_one_by_one(query: torch.Tensor, parts: Parts, scaling: float | None) -> torch.Tensor:
    """Likewise, (1, n_sessions, heads, width)."""
    if query.shape[2] == 1:
        return attend_one(query, *next(iter(parts)), scaling)
    return torch.cat(
        [
            attend_one(one, *both, scaling)
            for one, both in zip(query.split_with_sizes([1] * query.shape[2], 2), parts, strict=True)
        ],
        1,
    )


def attend_one(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of one session, (1, 1, heads, width); `query` is (1, heads, 1, width).

    For torch's kernel heads that share keys and values become the rows of one query: its own way of sharing them
    takes four times as long in bfloat16.
    """
    _, n_heads, _, width = query.shape
    n_key_heads = keys.shape[1]
    if decode_kernel.serves(query, keys, values):
        place = decode_kernel.place_of(keys, values)
        return decode_kernel.attend(query, [place], n_key_heads, values.shape[3], scaling)
    rows = query.reshape(1, n_key_heads, n_heads // n_key_heads, width)
    return scaled_dot_product_attention(rows, keys, values, scale=scaling).reshape(1, 1, n_heads, -1)


class _Pool:
    """Room for the keys and values of one block at a time, in float32; for one step of the sessions.

    Behind each session's positions there are zeros, which no other session's numbers ever reach: they count for
    nothing, but nothing times what is no number is none.
    """

    def __init__(self, n_positions: Sequence[int], n_key_heads: int, width: int) -> None:
        n_sessions, longest = len(n_positions), max(n_positions)
        room = -(-longest // _PLACES_AT_ONCE) * _PLACES_AT_ONCE
        memory = torch.zeros(2, n_sessions, n_key_heads, room, width)
        self._n_positions = n_positions
        self._places = [
            place.narrow(2, 0, n) for place, n in zip(memory.unbind(1), n_positions, strict=True)
        ]  # (2, key heads, n, width) each
        # (n_sessions key heads, longest, width) each
        keys, self._values = memory.flatten(1, 2).narrow(2, 0, longest).unbind()
        self._keys = keys.transpose(1, 2)
        is_behind = torch.arange(longest) >= torch.tensor(n_positions).unsqueeze(1)
        mask = torch.zeros(is_behind.shape).masked_fill_(is_behind, -torch.inf)
        self._mask = mask.repeat_interleave(n_key_heads, 0).unsqueeze(1)  # (n_sessions key heads, 1, longest)

    def attend(self, query: torch.Tensor, kept: Sequence[torch.Tensor], scaling: float) -> torch.Tensor:
        _, n_heads, n_sessions, width = query.shape
        filled = [both.narrow(2, 0, n) for both, n in zip(kept, self._n_positions, strict=True)]
        torch._foreach_copy_(self._places, filled)
        n_key_heads = kept[0].shape[1]
        rows = query.view(n_key_heads, -1, n_sessions, width).permute(2, 0, 1, 3).to(torch.float32)
        rows = rows.reshape(n_sessions * n_key_heads, -1, width)
        shares = torch.baddbmm(self._mask, rows, self._keys, alpha=scaling).softmax(-1)
        return shares.bmm(self._values).to(query.dtype).view(1, n_sessions, n_heads, width)
