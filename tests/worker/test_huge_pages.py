from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from worker.huge_pages import collapse_to_huge_pages, move_to_huge_pages
from worker.onednn import has_bfloat16
from worker.packed_linear import OnednnWeights, PackedLinear


@pytest.mark.skipif(sys.platform != "linux", reason="pages of 2 MB are asked for on Linux")
def test_weights_are_the_same_elsewhere_side_by_side() -> None:
    model = nn.Sequential(nn.Linear(700, 500), nn.Linear(500, 300), nn.Linear(300, 500))
    model[2].weight = nn.Parameter(model[2].weight.detach().t().contiguous().t())
    model.append(nn.Linear(700, 500)).get_submodule("3").weight = model[0].weight  # tied
    before = [(parameter.clone(), parameter.stride(), parameter.data_ptr()) for parameter in model.parameters()]
    n_bytes = move_to_huge_pages(model)
    assert n_bytes >= sum(parameter.nbytes for parameter in model.parameters())
    for parameter, (values, stride, address) in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, values)
        assert parameter.stride() == stride
        assert parameter.data_ptr() != address
        assert parameter.data_ptr() % 64 == 0
    assert model[0].weight is model[3].weight
    assert model[0].weight.data_ptr() % 2**21 == 0


def test_a_small_model_stays_where_it_is() -> None:
    model = nn.Linear(8, 8)
    address = model.weight.data_ptr()
    assert move_to_huge_pages(model) == 0
    assert model.weight.data_ptr() == address


@pytest.mark.skipif(not has_bfloat16(), reason="oneDNN has no bfloat16 on this processor")
@pytest.mark.skipif(sys.platform != "linux", reason="pages of 2 MB are asked for on Linux")
def test_packed_weights_stay_what_they_are_in_large_pages() -> None:
    linears = [nn.Linear(1024, 1024, dtype=torch.bfloat16) for _ in range(8)]
    layers = [PackedLinear(linear, OnednnWeights(linear.weight.detach())) for linear in linears]
    x = torch.randn(2, 1024, dtype=torch.bfloat16)
    with torch.inference_mode():
        before = [layer(x) for layer in layers]
        assert collapse_to_huge_pages(piece for layer in layers for piece in layer.weights.memory) % 2**21 == 0
        assert all(torch.equal(layer(x), expected) for layer, expected in zip(layers, before, strict=True))
    assert collapse_to_huge_pages([(0, 100)]) == 0
