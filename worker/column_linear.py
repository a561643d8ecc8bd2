"""Linear layers of float32 on the CPU whose weights lie by columns: one row or two by MKL, more by oneDNN.

MKL streams such a matrix for one row (see `worker.layout`), and goes through it once for nearly every row that
there is: four rows with a head of (49152, 576) take four times as long as one. oneDNN takes the same weights, as
they lie, and needs 1.7 times as long as one row for four, 2 for eight (docs/decisions/0009).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from torch.nn.functional import linear

from worker.onednn import product
from worker.replacing import replace_modules

_FEW_ROWS = 2
"""Rows of the input up to which MKL is the faster."""


class ColumnLinear(nn.Module):
    """Does what an `nn.Linear` does, whose weight and bias it takes over."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.most_elements = _FEW_ROWS * self.in_features
        """Of the input, beyond which oneDNN is asked."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features)."""
        if x.numel() <= self.most_elements:
            return linear(x, self.weight, self.bias)
        return product(x, self.weight, self.bias)


@torch.no_grad()
def use_columns(model: nn.Module) -> int:
    """Replace the layers whose float32 weights lie by columns; the number of them."""

    def replacement(layer: nn.Module) -> ColumnLinear | None:
        if type(layer) is nn.Linear and _lies_by_columns(layer.weight) and _onednn_takes_columns():
            return ColumnLinear(layer)
        return None

    return replace_modules(model, replacement)


def _lies_by_columns(weight: torch.Tensor) -> bool:
    is_by_columns = weight.t().is_contiguous() and not weight.is_contiguous()
    return is_by_columns and weight.device.type == "cpu" and weight.dtype == torch.float32


@cache
def _onednn_takes_columns() -> bool:
    """Tried out: it isn't documented, and oneDNN isn't built for every processor."""
    x, weight = torch.linspace(-1, 1, 48).view(3, 16), torch.linspace(-1, 1, 512).view(16, 32).t()
    try:
        by_onednn = product(x, weight)
    except (RuntimeError, NotImplementedError, AttributeError):
        return False
    return bool(torch.allclose(by_onednn, linear(x, weight), atol=1e-4))
