"""Linear layers of bfloat16 on the CPU, with weights in the blocks that oneDNN's kernels work on.

torch multiplies a row-major bfloat16 matrix through oneDNN too, but has it go through the matrix as it lies. With
blocks made once at load the same products take 0.6 to 0.9 of the time, for one row as for sixteen
(docs/decisions/0009). Sums are float32 in both.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Self

import torch
from torch import nn

from worker.onednn import product
from worker.replacing import replace_modules

_N_ROWS = 8
"""How many rows the blocks are made for; a hint, they serve any number."""


class PackedLinear(nn.Module):
    """Does what an `nn.Linear` does, whose weight it takes over."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.n_weight_bytes = linear.weight.nbytes
        self.bias = linear.bias
        # neither a parameter nor a buffer: whoever goes through those expects strides
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _N_ROWS)  # noqa: SLF001

    @property
    def memory(self) -> tuple[int, int]:
        """Address and size of the packed weights."""
        return torch.ops.mkldnn.data_ptr(self._packed), torch.ops.mkldnn._nbytes(self._packed)  # noqa: SLF001

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features)."""
        return product(x, self._packed, self.bias)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Itself: it never changes, and views of a stage share its weights."""
        return self


@torch.no_grad()
def pack_linear_layers(model: nn.Module) -> int:
    """Replace the bfloat16 linear layers on the CPU whose weights are theirs alone; the number of them.

    One matrix at a time is held twice.
    """
    if not _has_kernels():
        return 0
    n_users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))

    def replacement(layer: nn.Module) -> PackedLinear | None:
        if type(layer) is nn.Linear and _is_packable(layer.weight) and n_users[id(layer.weight)] == 1:
            return PackedLinear(layer)
        return None

    return replace_modules(model, replacement)


def _has_kernels() -> bool:
    is_built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built_in and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


def _is_packable(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16
