from __future__ import annotations

import pytest
import torch
from torch import nn

from worker import widened_linear
from worker.onednn import has_bfloat16
from worker.widened_linear import WidenedLinear, matmul, widen_linear_layers


@pytest.mark.parametrize("n_rows", [1, 2, 3, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_layer_that_it_replaces(
    n_rows: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(widened_linear, "_PIECE", 20 * 48)  # 96 rows are five pieces, the last a shorter one
    torch.manual_seed(0)
    linear = nn.Linear(48, 96, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, n_rows, 48, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(WidenedLinear(linear)(x), linear(x))


def test_ties_hold_and_layers_of_other_types_stay() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(64, 16), "head": nn.Linear(16, 64, bias=False)})
    model.to(torch.bfloat16)
    model["head"].weight = model["embedding"].weight
    model["exact"] = nn.Linear(16, 16)
    assert widen_linear_layers(model) == (0 if has_bfloat16() else 1)
    assert model["head"].weight is model["embedding"].weight
    assert isinstance(model["head"], nn.Linear if has_bfloat16() else WidenedLinear)
    assert type(model["exact"]) is nn.Linear


@pytest.mark.parametrize("is_there", [True, False])
def test_products_of_several_matrices_are_torchs(is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widened_linear, "has_bfloat16", lambda: is_there)
    torch.manual_seed(0)
    x, values = torch.randn(70, 48).to(torch.bfloat16), torch.randn(4, 48, 16).to(torch.bfloat16)
    result = matmul(x, values)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result, torch.matmul(x, values))
