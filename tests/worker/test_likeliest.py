from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worker.likeliest import likeliest_tokens


def logits(n_rows: int, vocab_size: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (3 * torch.randn(n_rows, vocab_size, generator=torch.Generator().manual_seed(seed))).to(dtype)


@given(
    vocab_size=st.sampled_from([1, 7, 40, 96, 257, 512, 1536]),
    n_rows=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 1000),
)
def test_they_are_those_that_torch_finds_row_by_row(
    vocab_size: int, n_rows: list[int], dtype: torch.dtype, seed: int
) -> None:
    rows = [logits(n, vocab_size, dtype, seed + i) for i, n in enumerate(n_rows)]
    assert likeliest_tokens(rows) == [int(row.float().argmax()) for each in rows for row in each]


@pytest.mark.parametrize("vocab_size", [40, 512])
def test_of_several_that_are_as_likely_it_is_the_first(vocab_size: int) -> None:
    row = torch.zeros(vocab_size)
    row[[vocab_size - 1, 33, 35]] = 2.0
    assert likeliest_tokens([torch.stack([row, torch.zeros(vocab_size), -1.0 - row])]) == [33, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_only_rows_that_are_not_finite_have_none(value: float) -> None:
    rows = logits(3, 512, torch.bfloat16, 5)
    expected = [int(row.float().argmax()) for row in rows]
    rows[1, 300] = value
    assert likeliest_tokens([rows[:1], rows[1:]]) == [expected[0], None, expected[2]]


def test_no_rows_have_none() -> None:
    assert likeliest_tokens([]) == []
