from __future__ import annotations

import pytest
import torch

from protocol.errors import InternalError
from worker.kv_cache import KVCache


def states(n_tokens: int, value: float, width: int = 4) -> torch.Tensor:
    return torch.full((1, 2, n_tokens, width), value)


def test_positions_are_appended_in_place() -> None:
    cache = KVCache(2, 8)
    first, _ = cache.update(states(3, 1.0), states(3, 1.0), 0)
    keys, values = cache.update(states(2, 2.0), states(2, 2.0), 0)
    assert keys.data_ptr() == first.data_ptr()
    assert keys[0, 0, :, 0].tolist() == values[0, 1, :, 0].tolist() == [1.0] * 3 + [2.0] * 2
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (5, 0)
    assert cache.get_mask_sizes(4, 0) == (9, 0)


def test_keys_and_values_may_differ_in_width() -> None:
    cache = KVCache(1, 8)
    keys, values = cache.update(states(3, 1.0, width=6), states(3, 1.0, width=2), 0)
    assert (keys.shape, values.shape) == ((1, 2, 3, 6), (1, 2, 3, 2))
    assert cache.blocks[0].n_bytes_per_position() == 2 * (6 + 2) * 4


def test_what_was_rolled_back_is_written_over() -> None:
    cache = KVCache(2, 4)
    for block in range(2):
        cache.update(states(4, 1.0), states(4, 1.0), block)
    cache.truncate(2)
    assert cache.length == 2
    keys, _ = cache.update(states(1, 5.0), states(1, 5.0), 1)
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 5.0]


def test_truncating_never_lengthens() -> None:
    cache = KVCache(2, 4)
    cache.update(states(3, 1.0), states(3, 1.0), 0)  # a step that failed between the blocks
    cache.truncate(2)
    assert [block.length for block in cache.blocks] == [2, 0]


def test_more_than_was_reserved_is_refused() -> None:
    cache = KVCache(1, 4)
    cache.update(states(4, 1.0), states(4, 1.0), 0)
    with pytest.raises(InternalError, match="position 5 of a session that reserved 4"):
        cache.update(states(1, 1.0), states(1, 1.0), 0)


def test_it_says_what_models_ask() -> None:
    cache = KVCache(3, 4)
    assert cache.is_sliding == cache.is_linear == cache.is_dummy == [False] * 3
    assert (len(cache), cache.get_max_length(), cache.blocks[0].n_bytes_per_position()) == (3, 4, 0)
