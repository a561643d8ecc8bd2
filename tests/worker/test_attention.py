from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from protocol.errors import InternalError
from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import TinyCheckpoint
from worker.attention import BatchCache, attending_apart, attention_of, implementation_of
from worker.batching_trial import settle_batching
from worker.cut import configs_of


@pytest.mark.parametrize(("name", "expected"), [("llama", "brigade_sdpa"), ("gemma2", "eager")])
def test_a_model_attends_in_its_own_way_again_after_a_batch(
    checkpoint: Callable[[str], TinyCheckpoint], name: str, expected: str
) -> None:
    stage = checkpoint(name).load(BlockRange(1, 3))
    configs = configs_of(stage._model)
    settle_batching(stage)
    assert implementation_of(configs[0]) == expected
    batch = BatchCache([stage.new_cache(4)], [1], implementation=expected, joins_keys=False)
    with suppress(InternalError), attending_apart(batch, configs):
        assert implementation_of(configs[0]) == "brigade_sessions"
        raise InternalError("a forward failed")
    assert implementation_of(configs[0]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_heads", "n_key_heads", "value_width"), [(9, 3, 64), (4, 4, 64), (8, 2, 32)])
def test_a_chunk_attends_with_the_librarys_bits(
    dtype: torch.dtype, n_heads: int, n_key_heads: int, value_width: int
) -> None:
    n_new, n_positions, width = 40, 100, 64
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    module = nn.Module()
    module.num_key_value_groups = n_heads // n_key_heads
    query = drawn(1, n_new, n_heads, width).transpose(1, 2)
    filled = drawn(1, n_key_heads, n_positions, width), drawn(1, n_key_heads, n_positions, value_width)
    mask = torch.ones(n_new, n_positions, dtype=torch.bool).tril(n_positions - n_new)[None, None]
    expected = sdpa_attention_forward(module, query, *filled, mask, scaling=0.1)[0]
    attended = attention_of(module, "brigade_sdpa")(module, query, *filled, mask, scaling=0.1)[0]
    assert attended.is_contiguous()
    assert torch.equal(attended, expected)


class LargestMade(TorchDispatchMode):
    """The bytes of the largest tensor that is made while it is open, views left out."""

    n_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple) else (made,):
            if isinstance(one, torch.Tensor) and not one._is_view():
                self.n_bytes = max(self.n_bytes, one.nbytes)
        return made


def test_a_long_chunk_of_a_long_text_takes_no_mask_for_each_of_the_heads() -> None:
    n_new, n_positions, n_heads = 512, 16_384, 8
    module = nn.Module()
    module.num_key_value_groups = n_heads
    query = torch.randn(1, n_new, n_heads, 8, generator=torch.Generator().manual_seed(0)).transpose(1, 2)
    filled = torch.ones(1, 1, n_positions, 8), torch.ones(1, 1, n_positions, 8)
    mask = torch.zeros(1, 1, n_new, n_positions)
    with LargestMade() as largest:
        attended = attention_of(module, "brigade_sdpa")(module, query, *filled, mask)[0]
    # a product of 16,384 terms, all of one sign: oneDNN's sums are 1.4e-5 off
    assert torch.allclose(attended, torch.ones_like(attended), rtol=0, atol=5e-5)
    assert largest.n_bytes <= mask.nbytes
