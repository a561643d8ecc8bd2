"""Root mean square norms, in one operation by a kernel of our own or in three by torch's: the library's take eight.

Torch's is that of layer norms, given x and -x: their mean is 0, so their variance is the mean square of x, and x is
normed by its root mean square (Zhang and Sennrich 2019), in float32, rounding once. Many rows go the library's way,
where our kernel isn't.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.nn.functional import layer_norm

from worker.replacing import replace_modules
from worker.row_kernels import NORM, can_norm, normed

_MOST_ELEMENTS = 16_384
"""Of the input, up to which this is faster in every precision."""
_TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
"""As a share of the largest value: the library rounds once more."""


class RowNorm(nn.Module):
    """Stands where a norm of the library stood, which it uses for many rows."""

    doubled: torch.Tensor
    """(2 width,): what both halves are multiplied by."""

    def __init__(self, norm: nn.Module, scale: torch.Tensor, eps: float) -> None:
        """`scale` (width,) is what the normed values are multiplied by."""
        super().__init__()
        self.norm = norm
        self.register_buffer("doubled", torch.cat((scale, scale)), persistent=False)
        self._width, self._shape, self._eps = len(scale), (2 * len(scale),), eps
        self._dtype = scale.dtype
        self._by_kernel = can_norm(scale)
        self._tensors = (self.doubled,)
        """The same: a module takes longer to look up one of its own than the kernel takes."""
        self.most_elements = sys.maxsize if self._by_kernel else _MOST_ELEMENTS
        """Of the input, beyond which it is the library's norm that runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normed over the last dimension."""
        if self._by_kernel and x.dtype == self._dtype and x.shape[-1] == self._width:
            norm = (
                normed if type(x) is torch.Tensor and x.is_cpu else NORM
            )  # the way through the dispatcher takes as long again
            return norm(x, self._tensors[0], self._eps)
        if x.numel() > self.most_elements or x.dtype != self._dtype:
            result: torch.Tensor = self.norm(x)
            return result
        both: Any = torch.cat((x, x.neg()), dim=-1)
        return layer_norm(both, self._shape, self.doubled, None, self._eps).narrow(-1, 0, self._width).contiguous()


@torch.no_grad()
def use_row_norms(model: nn.Module) -> int:
    """Replace the norms on the CPU that are found, by trial, to be of the root mean square; the number of them."""
    return replace_modules(model, _row_norm)


def _row_norm(norm: nn.Module) -> RowNorm | None:
    tensors = [*norm.parameters(), *norm.buffers()]
    eps = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
    if len(tensors) != 1 or tensors[0].dim() != 1 or not isinstance(eps, float):
        return None
    weight = tensors[0].detach()
    is_fast = weight.device.type == "cpu" and weight.dtype in _TOLERANCES and len(weight) <= _MOST_ELEMENTS
    if not is_fast:
        return None
    generator = torch.Generator().manual_seed(0)
    # one row, however wide, goes the new way; numbers whose mean isn't 0 tell norms apart that take it off
    x = (1 + torch.randn((1, len(weight)), generator=generator)).to(weight.dtype)
    for scale in (weight, weight + 1):  # Gemma's learn the difference from 1
        found = RowNorm(norm, scale, eps)
        try:
            expected = norm(x)
            is_equal = (found(x) - expected).abs().max() <= _TOLERANCES[x.dtype] * expected.abs().max()
        except (RuntimeError, TypeError):
            return None
        if is_equal:
            return found
    return None
