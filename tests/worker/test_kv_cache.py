from __future__ import annotations

import pytest
import torch

from protocol.errors import InternalError
from protocol.messages import KvPrecision
from worker.kv_cache import KVCache

HELD_AS: tuple[KvPrecision | None, ...] = (None, "bfloat16", "int8")
every_precision = pytest.mark.parametrize("held_as", HELD_AS)


def states(n_tokens: int, value: float, width: int = 4) -> torch.Tensor:
    return torch.full((1, 2, n_tokens, width), value)


def written(held_as: KvPrecision | None, n_tokens: int = 20, seed: int = 0, *, chunk: int = 20) -> KVCache:
    """A cache of one block with random keys and values, which are always the same for a seed."""
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, 20, 64, generator=generator)[:, :, :, :n_tokens]
    cache = KVCache(1, 40, held_as)
    for new in zip(keys.split(chunk, 2), values.split(chunk, 2), strict=True):
        cache.update(*new, 0)
    return cache


def assert_same(one: KVCache, other: KVCache) -> None:
    for mine, others in zip(one.blocks[0].filled(), other.blocks[0].filled(), strict=True):
        assert torch.equal(mine, others)


def test_positions_are_appended_in_place() -> None:
    cache = KVCache(2, 8)
    first, _ = cache.update(states(3, 1.0), states(3, 1.0), 0)
    keys, values = cache.update(states(2, 2.0), states(2, 2.0), 0)
    assert keys.data_ptr() == first.data_ptr()
    assert keys[0, 0, :, 0].tolist() == values[0, 1, :, 0].tolist() == [1.0] * 3 + [2.0] * 2
    assert (cache.get_seq_length(0), cache.get_seq_length(1)) == (5, 0)
    assert cache.get_mask_sizes(4, 0) == (9, 0)


@every_precision
def test_what_was_rolled_back_is_written_over(held_as: KvPrecision | None) -> None:
    cache = KVCache(2, 4, held_as)
    for block in range(2):
        cache.update(states(4, 1.0), states(4, 1.0), block)
    cache.truncate(2)
    assert cache.length == 2
    keys, _ = cache.update(states(1, 5.0), states(1, 5.0), 1)
    assert keys[0, 0, :, 0].tolist() == pytest.approx([1.0, 1.0, 5.0], rel=0.01)


@every_precision
def test_chunks_and_guesses_that_did_not_hold_leave_no_trace(held_as: KvPrecision | None) -> None:
    plain, chunked, guessed = written(held_as), written(held_as, chunk=7), written(held_as, 13)
    guessed.update(*torch.randn(2, 1, 2, 6, 64) * 100, 0)
    guessed.truncate(13)
    keys, values = (kept[:, :, 13:] for kept in written(None).blocks[0].filled())
    guessed.update(keys, values, 0)
    assert_same(plain, chunked)
    assert_same(plain, guessed)


@every_precision
def test_a_copy_and_a_cache_of_another_size_hold_the_very_same(held_as: KvPrecision | None) -> None:
    whole, copy = written(held_as), KVCache(1, 25, held_as)
    copy.copy_from(whole, 99)
    assert_same(copy, whole)
    beginning = KVCache(1, 9, held_as)
    beginning.copy_from(whole, 9)
    for capacity in (20, 30, 9):
        whole.resize(capacity)
        assert (whole.capacity, whole.length) == (capacity, min(20, capacity))
        assert_same(whole, copy if capacity > 9 else beginning)
        n_bytes = whole.blocks[0].n_bytes()
        assert n_bytes == KV_BYTES[held_as] * capacity
        assert n_bytes <= whole.blocks[0].store.tensors[0].untyped_storage().nbytes() < n_bytes + 128


KV_BYTES = {None: 2 * 2 * 64 * 4, "bfloat16": 2 * 2 * 64 * 2, "int8": 2 * 2 * (64 + 2 * 2)}
"""Of one position, as `written`; two scales of two bytes for each 64 codes."""


def test_a_cache_that_nothing_was_written_to_takes_no_memory() -> None:
    cache, other = KVCache(2, 8, "int8"), KVCache(2, 4, "int8")
    cache.resize(6)
    other.copy_from(cache, 3)
    assert (cache.capacity, other.length, sum(block.n_bytes() for block in cache.blocks)) == (6, 0, 0)


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
    assert (len(cache), cache.get_max_length(), cache.blocks[0].n_bytes()) == (3, 4, 0)


def index_keys(n_tokens: int, value: float) -> torch.Tensor:
    return torch.full((1, n_tokens, 4), value)


@every_precision
def test_an_indexers_keys_are_kept_as_they_are_and_rolled_back_with_the_others(
    held_as: KvPrecision | None,
) -> None:
    cache = KVCache(1, 8, held_as)
    cache.update(states(5, 1.0), states(5, 1.0), 0)
    without = cache.blocks[0].n_bytes()
    cache.update_indexer(index_keys(5, 1.001), 0)
    assert cache.blocks[0].n_bytes() == without + 8 * 4 * 4
    cache.truncate(3)
    assert cache.update_indexer(index_keys(2, 7.0), 0)[0, :, 0].tolist() == pytest.approx([1.001] * 3 + [7.0] * 2)


def test_an_indexers_keys_go_along_into_another_cache_and_another_size() -> None:
    cache, other = KVCache(1, 8), KVCache(1, 16)
    cache.update(states(5, 1.0), states(5, 1.0), 0)
    cache.update_indexer(index_keys(5, 1.0), 0)
    other.copy_from(cache, 4)
    other.resize(6)
    assert other.update_indexer(index_keys(2, 2.0), 0)[0, :, 0].tolist() == [1.0] * 4 + [2.0] * 2
    with pytest.raises(InternalError, match="position 7 of a session that reserved 6"):
        other.update_indexer(index_keys(1, 3.0), 0)
    other.resize(3)
    assert other.blocks[0].update_indexer(index_keys(0, 0.0)).shape == (1, 3, 4)
