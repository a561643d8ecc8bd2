from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from worker.batching_trial import settle_batching
from worker.onednn import has_bfloat16
from worker.prompt_attention import LEAST_PRODUCTS, attend, is_faster, pays
from worker.stage import StageInput


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def causal_mask(n_tokens: int, n_positions: int, window: int = 10**6) -> torch.Tensor:
    """(1, 1, n_tokens, n_positions), of the last tokens; each attends to `window` positions, its own counted."""
    seen = torch.ones(n_tokens, n_positions, dtype=torch.bool).tril(n_positions - n_tokens)
    seen &= ~torch.ones_like(seen).tril(n_positions - n_tokens - window)
    return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)[None, None]


def expected_of(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    """In float64, (1, n_tokens, heads, width)."""
    given = (one.double() for one in (query, key, value))
    attended = scaled_dot_product_attention(
        *given,
        attn_mask=None if mask is None else mask.double(),
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=True,
    )
    return attended.transpose(1, 2)


@pytest.mark.parametrize(("n_heads", "n_key_heads", "value_width"), [(9, 3, 48), (4, 4, 48), (8, 2, 20)])
@pytest.mark.parametrize("window", [10**6, 33])
@pytest.mark.parametrize(("n_tokens", "n_positions"), [(70, 70), (70, 5000), (257, 900), (1, 400)])
def test_it_is_what_attention_is(
    n_heads: int, n_key_heads: int, value_width: int, window: int, n_tokens: int, n_positions: int
) -> None:
    query = drawn(1, n_tokens, n_heads, 48).transpose(1, 2)  # as models hand it over
    key, value = drawn(1, n_key_heads, n_positions, 48), drawn(1, n_key_heads, n_positions, value_width)
    mask = causal_mask(n_tokens, n_positions, window)
    attended = attend(query, key, value, mask, 0.2)
    assert attended.is_contiguous()
    torch.testing.assert_close(attended.double(), expected_of(query, key, value, mask, 0.2), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("n_tokens", [3, 400, 1500])
def test_without_a_mask_each_token_attends_to_itself_and_those_before(n_tokens: int) -> None:
    query, key, value = drawn(1, 4, n_tokens, 32), drawn(1, 2, n_tokens, 32), drawn(1, 2, n_tokens, 32)
    torch.testing.assert_close(
        attend(query, key, value, None, None).double(),
        expected_of(query, key, value, None, None),
        atol=2e-6,
        rtol=1e-5,
    )


def test_what_is_added_to_scores_may_be_more_than_whether_they_count() -> None:
    query, key, value = drawn(1, 4, 90, 32), drawn(1, 2, 300, 32), drawn(1, 2, 300, 32)
    mask = causal_mask(90, 300) - torch.arange(300).flip(0) * 0.05  # the nearer, the more
    torch.testing.assert_close(
        attend(query, key, value, mask, None).double(),
        expected_of(query, key, value, mask, None),
        atol=2e-6,
        rtol=1e-5,
    )


@pytest.mark.skipif(not has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")
def test_in_bfloat16_it_is_as_exact_as_torchs_kernel() -> None:
    query, key, value = (drawn(1, n, m, 64, dtype=torch.bfloat16) for n, m in ((6, 128), (2, 1024), (2, 1024)))
    mask = causal_mask(128, 1024).bfloat16()
    expected = expected_of(query, key, value, mask, None)
    kernels = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True).transpose(1, 2)
    error, kernels_error = (
        (one.double() - expected).square().mean().sqrt() for one in (attend(query, key, value, mask, None), kernels)
    )
    assert error < 1.15 * kernels_error


def test_a_block_of_positions_that_nobody_has_written_isnt_read() -> None:
    held = drawn(2, 2, 700, 32)
    held[:, :, 600:] = torch.nan
    key, value = held.narrow(2, 0, 600).split(1)  # as a cache gives them: views of a larger tensor
    query = drawn(1, 4, 80, 32)
    mask = causal_mask(80, 600)
    torch.testing.assert_close(
        attend(query, key, value, mask, None).double(),
        expected_of(query, key, value, mask, None),
        atol=2e-6,
        rtol=1e-5,
    )


def test_few_products_are_left_to_the_kernel() -> None:
    n_positions = LEAST_PRODUCTS // (3 * 16 * 64)
    query, key = drawn(1, 9, 16, 64), drawn(1, 3, n_positions + 1, 64)
    assert not pays(query, key[:, :, :n_positions])
    assert not pays(query.half(), key.half())
    assert pays(query, key) == is_faster(torch.float32, torch.get_num_threads())


@pytest.mark.parametrize("name", ["llama", "qwen2", "mistral"])
@pytest.mark.parametrize("pieces", [[1500], [700, 800], [1, 1499]])
def test_a_long_prompt_gives_the_librarys_states(
    checkpoint: Callable[[str], TinyCheckpoint], name: str, pieces: list[int]
) -> None:
    tiny = checkpoint(name)
    stage = tiny.load(BlockRange(0, N_BLOCKS))
    settle_batching(stage)
    ids = torch.arange(sum(pieces)) * 7 % stage.vocab_size
    cache = stage.new_cache(len(ids))
    got = [
        stage.run([StageInput(payload=part.int(), position=cache.length, cache=cache)])[0]
        for part in ids.split(pieces)
    ]
    torch.testing.assert_close(torch.cat(got), tiny.expected(ids)[0], atol=2e-5, rtol=1e-4)
