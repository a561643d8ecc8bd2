"""Attention of one new token of each session by a kernel of our own, which reads every cache as it lies.

torch's kernel takes two to six times as long for one query: it is called session by session, and most of a short
text's time is overhead (docs/decisions/0025). Sums are float32, in one order, with whomever a session runs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from worker.kernels import KINDS, UNIT, Call, are_there, kernels

_DTYPES = (torch.float32, torch.bfloat16)

Place = tuple[int, int, int, int, int, int, int]
"""Of keys and values: their addresses, the bytes from one head and from one position to the next of keys, and of
values, and the number of positions."""


def serves(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the kernel attends with queries (1, heads, sessions, width) to (1, key heads, positions, width)."""
    return (
        _serves(query)
        and keys.dtype == values.dtype == query.dtype
        and keys.shape[3] == query.shape[3]
        and values.shape[3] % UNIT == 0
        and keys.shape[:3] == values.shape[:3]
        and keys.stride(3) == values.stride(3) == 1
    )


def serves_all(query: torch.Tensor, kept: Sequence[torch.Tensor]) -> bool:
    """Whether it attends to what each of the sessions keeps in one tensor, (2, key heads, capacity, width)."""
    _, n_key_heads, _, _ = kept[0].shape
    like = n_key_heads, query.shape[3]
    return _serves(query) and all(one.dtype == query.dtype and one.shape[1::2] == like for one in kept)


def _serves(query: torch.Tensor) -> bool:
    n_texts, _, _, width = query.shape
    return n_texts == 1 and width % UNIT == 0 and query.dtype in _DTYPES and query.is_cpu and are_there()


def place_of(keys: torch.Tensor, values: torch.Tensor) -> Place:
    """Of one session's, (1, key heads, positions, width) each."""
    n_bytes = keys.itemsize
    return (
        keys.data_ptr(),
        values.data_ptr(),
        keys.stride(1) * n_bytes,
        keys.stride(2) * n_bytes,
        values.stride(1) * n_bytes,
        values.stride(2) * n_bytes,
        keys.shape[2],
    )


def place_in(kept: torch.Tensor, n_positions: int) -> Place:
    """Of one session's in one tensor, (2, key heads, capacity, width), without gaps."""
    _, n_key_heads, capacity, width = kept.shape
    by_position = width * kept.itemsize
    by_head = capacity * by_position
    start = kept.data_ptr()
    return start, start + n_key_heads * by_head, by_head, by_position, by_head, by_position, n_positions


def attend(
    query: torch.Tensor, places: Sequence[Place], n_key_heads: int, value_width: int, scaling: float | None
) -> torch.Tensor:
    """What all sessions attend to, (1, n_sessions, heads, value width); `query` is (1, heads, n_sessions, width).

    Raises:
        ValueError: not as many places as queries, or none that `n_key_heads` can be shared by.
    """
    _, n_heads, n_sessions, _ = query.shape
    if len(places) != n_sessions:
        raise ValueError(f"{n_sessions} queries for {len(places)} caches")
    if query.stride(3) != 1:
        query = query.contiguous()
    result = query.new_empty((1, n_sessions, n_heads, value_width))
    kernel, arguments = attend_into(query, n_key_heads, scaling, result)
    kernel(*arguments, places)
    return result


def attend_into(query: torch.Tensor, n_key_heads: int, scaling: float | None, result: torch.Tensor) -> Call:
    """What puts that into `result`; it is still to be told of as many places as there are sessions.

    Raises:
        ValueError: `n_key_heads` can't be shared by so many heads.
    """
    _, n_heads, _, width = query.shape
    if n_heads % n_key_heads:
        raise ValueError(f"{n_heads} heads for {n_key_heads} with keys")
    return kernels().attend, (
        query.data_ptr(),
        query.stride(2) * query.itemsize,
        query.stride(1) * query.itemsize,
        result.data_ptr(),
        n_heads,
        n_key_heads,
        width,
        result.shape[3],
        width**-0.5 if scaling is None else scaling,
        KINDS[query.dtype],
        torch.get_num_threads(),
    )
