from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from worker.kernels import are_there
from worker.row_norm import RowNorm, use_row_norms


@pytest.fixture(params=["our kernel", "torch's"], autouse=True)
def kernel(request: pytest.FixtureRequest) -> None:
    if request.param != "our kernel":
        request.getfixturevalue("torch_kernels")
    elif not are_there():
        pytest.skip("no kernels here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [LlamaRMSNorm, Gemma2RMSNorm, nn.RMSNorm])
@pytest.mark.parametrize("n_rows", [1, 5, 300])
def test_norms_are_those_of_the_module_that_it_replaces(
    kind: type[nn.Module], dtype: torch.dtype, n_rows: int
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(96, eps=1e-5)).to(dtype).requires_grad_(False)
    model[0].weight.copy_(torch.randn(96) * 0.2 + 0.7)
    x = torch.randn(1, n_rows, 96).to(dtype) * 3
    with torch.inference_mode():
        expected = model(x)
        assert use_row_norms(model) == 1
        assert isinstance(model[0], RowNorm)
        tolerance = 1e-6 if dtype is torch.float32 else 1e-2
        torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
        assert model(x).is_contiguous()


def test_other_modules_stay() -> None:
    class Shifted(LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 1 + super().forward(hidden_states)

    model = nn.Sequential(nn.LayerNorm(8), nn.LayerNorm(8, bias=False), nn.Linear(8, 8), Shifted(8))
    assert use_row_norms(model) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [4096, 8192])
@pytest.mark.parametrize("size", [1.0, 0.003])
def test_wide_norms_that_take_the_mean_off_stay(width: int, dtype: torch.dtype, size: float) -> None:
    model = nn.Sequential(nn.LayerNorm(width, bias=False)).to(dtype).requires_grad_(False)
    model[0].weight.fill_(size)
    assert use_row_norms(model) == 0
    model = nn.Sequential(LlamaRMSNorm(width)).to(dtype).requires_grad_(False)
    model[0].weight.fill_(size)
    assert use_row_norms(model) == 1


def test_norms_that_are_never_of_use_stay() -> None:
    assert use_row_norms(nn.Sequential(LlamaRMSNorm(20_000))) == 0
