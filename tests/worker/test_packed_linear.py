from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from worker.packed_linear import PackedLinear, pack_linear_layers

pytestmark = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 on this processor"
)


@pytest.mark.parametrize("n_rows", [1, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_layer_that_it_replaces(n_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 96, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, n_rows, 48, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x))


def test_what_is_shared_or_of_another_type_stays() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(8, 16), "head": nn.Linear(16, 8, bias=False), "own": nn.Linear(16, 16)}
    ).to(torch.bfloat16)
    model["head"].weight = model["embedding"].weight
    model["exact"] = nn.Linear(16, 16)
    assert pack_linear_layers(model) == 1
    assert [type(model[name]) for name in ("head", "own", "exact")] == [nn.Linear, PackedLinear, nn.Linear]


def test_copies_share_the_weights() -> None:
    model = nn.Sequential(nn.Linear(16, 16, dtype=torch.bfloat16))
    pack_linear_layers(model)
    assert copy.deepcopy(model)[0] is model[0]
