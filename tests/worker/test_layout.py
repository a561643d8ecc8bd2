"""The order of weights in memory: other strides, the same model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.layout import lay_out_for_decode

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="the order is MKL's matter")


def tied_model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {
            "embedding": nn.Embedding(100, 16),
            "up": nn.Linear(16, 48),
            "down": nn.Linear(48, 16, bias=False),
            "square": nn.Linear(16, 16),
            "head": nn.Linear(16, 100, bias=False),
        }
    )
    model["head"].weight = model["embedding"].weight
    return model


def test_only_wide_matrices_change_and_only_in_their_strides() -> None:
    model = tied_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert lay_out_for_decode(model) == 2
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model["up"].weight.stride() == (1, 48)
    assert model["down"].weight.is_contiguous()
    assert model["square"].weight.is_contiguous()
    assert model["head"].weight is model["embedding"].weight
    assert lay_out_for_decode(model) == 0


def test_products_and_embeddings_are_the_same() -> None:
    model, reference = tied_model(), tied_model()
    lay_out_for_decode(model)
    x = torch.randn(3, 16)
    for name in ("up", "head"):
        torch.testing.assert_close(model[name](x), reference[name](x), rtol=1e-5, atol=1e-6)
    ids = torch.tensor([[1, 99, 0]])
    assert torch.equal(model["embedding"](ids), reference["embedding"](ids))


def test_other_precisions_are_left_alone() -> None:
    model = tied_model().to(torch.bfloat16)
    assert lay_out_for_decode(model) == 0
    assert model["up"].weight.is_contiguous()
