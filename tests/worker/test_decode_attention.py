from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from protocol.messages import KvPrecision
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS
from worker.batching_trial import TOLERANCES, difference, settle_batching, trial_payload
from worker.decode_attention import DecodeAttention, attend_one_by_one
from worker.stage import StageInput

CAPACITY = 2048
EVEN = (40, 37, 44, 44, 38)


def drawn(shape: Sequence[int], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def block_of(
    n_sessions: int,
    n_key_heads: int = 3,
    n_groups: int = 3,
    width: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Queries and keys with values of a block, as a model and its caches give them."""
    query = drawn((1, n_sessions, n_key_heads * n_groups, width), seed, dtype).transpose(1, 2)
    kept = [drawn((2, n_key_heads, CAPACITY, width), seed + 1 + i, dtype) for i in range(n_sessions)]
    return query, kept


def apart(
    query: torch.Tensor, kept: Sequence[torch.Tensor], n_positions: Sequence[int], scaling: float | None
) -> torch.Tensor:
    filled = (both.narrow(2, 0, n).split(1) for both, n in zip(kept, n_positions, strict=True))
    return attend_one_by_one(query, ((keys, values) for keys, values in filled), scaling)


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("n_positions", [EVEN, (1, 1, 1, 1), (64, 64, 64, 64), (65, 60, 65, 63)])
@pytest.mark.parametrize(("n_key_heads", "n_groups", "width"), [(3, 3, 64), (4, 1, 32), (1, 8, 128)])
def test_together_is_what_each_gives_alone_and_as_exact(
    dtype: torch.dtype,
    scaling: float | None,
    n_positions: Sequence[int],
    n_key_heads: int,
    n_groups: int,
    width: int,
) -> None:
    query, kept = block_of(len(n_positions), n_key_heads, n_groups, width, dtype)
    together = DecodeAttention(n_positions).attend(query, kept, scaling)
    alone = apart(query, kept, n_positions, scaling)
    exact = apart(query.double(), [both.double() for both in kept], n_positions, scaling)
    assert together is not None
    assert (together.shape, together.dtype) == (alone.shape, dtype)
    n_bits = {torch.bfloat16: 8, torch.float16: 11}[dtype]
    off_by, alone_off_by = ((one.double() - exact).abs().max() for one in (together, alone))
    assert off_by <= alone_off_by + exact.abs().max() * 2**-n_bits
    assert off_by <= exact.abs().max() * 2 ** (1 - n_bits)


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize(
    ("n_positions", "dtype", "because"),
    [
        (EVEN, torch.float32, "rounds as alone"),
        ((40, 40), torch.bfloat16, "too few"),
        ((40, 10, 10, 10), torch.bfloat16, "too uneven"),
        ((400, 400, 400, 400), torch.bfloat16, "too long"),
        ((150,) * 20, torch.bfloat16, "too much in all"),
    ],
)
def test_it_is_left_to_the_kernel_where_nothing_is_gained(
    n_positions: Sequence[int], dtype: torch.dtype, because: str
) -> None:
    query, kept = block_of(len(n_positions), dtype=dtype)
    assert DecodeAttention(n_positions).attend(query, kept, None) is None, because


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_in_one_session_stays_there(bad: float) -> None:
    attention = DecodeAttention(EVEN)
    query, kept = block_of(len(EVEN))
    sound = attention.attend(query, kept, None)
    kept[2][:, :, : EVEN[2]] = bad
    broken = attention.attend(query, kept, None)
    kept[2].copy_(kept[1])
    again = attention.attend(query, kept, None)
    assert sound is not None
    assert broken is not None
    assert again is not None
    others = [0, 1, 3, 4]
    assert not broken[0, 2].isfinite().any()
    assert torch.equal(broken[0, others], sound[0, others])
    assert torch.equal(again[0, others], sound[0, others])
    assert again.isfinite().all()


@pytest.mark.usefixtures("torch_kernels")
def test_what_lies_behind_a_sessions_positions_counts_for_nothing() -> None:
    query, kept = block_of(len(EVEN))
    expected = DecodeAttention(EVEN).attend(query, kept, None)
    for both, n in zip(kept, EVEN, strict=True):
        both[:, :, n:] = float("nan")
    got = DecodeAttention(EVEN).attend(query, kept, None)
    assert expected is not None
    assert got is not None
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("torch_kernels")
def test_blocks_of_one_step_may_differ_in_shape() -> None:
    attention = DecodeAttention(EVEN)
    for n_key_heads, n_groups, width in ((3, 3, 64), (2, 4, 32), (3, 3, 64)):
        query, kept = block_of(len(EVEN), n_key_heads, n_groups, width, seed=n_key_heads)
        got = attention.attend(query, kept, None)
        assert got is not None
        torch.testing.assert_close(got, apart(query, kept, EVEN, None), rtol=0.02, atol=0.02)


class ProductsMade(TorchDispatchMode):
    """How many blocks attended by products of all sessions while it is open."""

    n_blocks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_blocks += func is torch.ops.aten.baddbmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize("held_as", [None, "float32", "int8"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2"])
def test_sessions_that_decode_together_are_as_close_as_is_asked_of_them(
    checkpoint: Callable[[str], TinyCheckpoint], name: str, held_as: KvPrecision | None
) -> None:
    stage = checkpoint(name).load(WHOLE, torch.bfloat16)
    settle_batching(stage)
    generator = torch.Generator().manual_seed(0)
    together, alone = ([stage.new_cache(12, held_as) for _ in range(6)] for _ in range(2))
    for n_tokens in ((7, 8, 9, 8, 7, 9), (1,) * 6, (1,) * 6):
        inputs = [
            StageInput(payload=trial_payload(stage, n, generator), position=cache.length, cache=cache)
            for n, cache in zip(n_tokens, together, strict=True)
        ]
        expected = [stage.run([replace(one, cache=own)])[0] for one, own in zip(inputs, alone, strict=True)]
        with ProductsMade() as products:
            results = stage.run(inputs)
        for got, right in zip(results, expected, strict=True):
            assert difference(got, right) <= TOLERANCES[torch.bfloat16]
        is_decode = n_tokens == (1,) * 6
        assert products.n_blocks == (N_BLOCKS if is_decode and held_as != "int8" else 0)
