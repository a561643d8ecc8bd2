from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.column_linear import ColumnLinear, use_columns
from worker.layout import lay_out_for_decode


@pytest.mark.parametrize("n_rows", [1, 2, 3, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_layer_that_it_replaces(n_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 192, bias=bias)).requires_grad_(False)
    x = torch.randn(1, n_rows, 48)
    with torch.inference_mode():
        expected = model(x)
        lay_out_for_decode(model)
        assert use_columns(model) == 1
        torch.testing.assert_close(model(x), expected)


def test_ties_hold_and_other_layers_stay() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(64, 16), "head": nn.Linear(16, 64, bias=False), "narrow": nn.Linear(16, 16)}
    )
    model["head"].weight = model["embedding"].weight
    lay_out_for_decode(model)
    assert use_columns(model) == 1
    assert model["head"].weight is model["embedding"].weight
    assert [type(model[name]) for name in ("head", "narrow")] == [ColumnLinear, nn.Linear]


def test_bfloat16_stays() -> None:
    model = nn.Sequential(nn.Linear(16, 64, dtype=torch.bfloat16))
    model[0].weight = nn.Parameter(model[0].weight.detach().t().contiguous().t())
    assert use_columns(model) == 0
