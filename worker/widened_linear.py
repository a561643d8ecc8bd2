"""Products of bfloat16 on a CPU without instructions for it, whose weights aren't packed: widened, in pieces.

torch's own product takes as long for each further row as for the first there. To make float32 of a piece of the
matrix, which stays in the processor's cache, and multiply that, costs as much as two rows, and little more for
eight (docs/decisions/0009). So one row or two go as they did, and more go this way.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear

from worker.onednn import has_bfloat16, is_bfloat16
from worker.replacing import replace_modules

_FEW_ROWS = 2
"""Rows of the input up to which torch's own product is the faster."""
_PIECE = 2**20
"""Numbers of the matrix that are widened at a time."""


class WidenedLinear(nn.Module):
    """Does what an `nn.Linear` does, whose weight and bias it takes over."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self._most_elements = _FEW_ROWS * self.in_features
        """Of the input, beyond which the matrix is widened; recordings call the layer as it is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features)."""
        if x.numel() <= self._most_elements:
            return linear(x, self.weight, self.bias)
        return widened_product(x, self.weight, self.bias)


def widened_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `linear`, computed in float32; of the weights only a piece is held in it at a time."""
    rows = x.float().reshape(-1, x.shape[-1])
    result = x.new_empty((len(rows), len(weight)))
    n_at_once = max(1, _PIECE // weight.shape[1])
    wide = torch.empty((min(n_at_once, len(weight)), weight.shape[1]), dtype=torch.float32)
    for start in range(0, len(weight), n_at_once):
        part = weight[start : start + n_at_once]
        piece = linear(rows, wide[: len(part)].copy_(part))
        if bias is not None:
            piece += bias[start : start + n_at_once]
        result[:, start : start + n_at_once] = piece
    return result.view(*x.shape[:-1], len(weight))


def matmul(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """As `torch.matmul`; of bfloat16 by float32 where that is the faster."""
    if not is_bfloat16(x) or has_bfloat16():
        return torch.matmul(x, values)
    return torch.matmul(x.float(), values.float()).to(x.dtype)


@torch.no_grad()
def widen_linear_layers(model: nn.Module) -> int:
    """Replace the bfloat16 linear layers on the CPU if it has no instructions for that type; the number of them."""
    if has_bfloat16():
        return 0

    def replacement(layer: nn.Module) -> WidenedLinear | None:
        if type(layer) is nn.Linear and is_bfloat16(layer.weight) and layer.weight.numel():
            return WidenedLinear(layer)
        return None

    return replace_modules(model, replacement)
