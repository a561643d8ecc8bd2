"""Linear layers of bfloat16 on the CPU, with weights in the order that the processor's kernels work on.

torch multiplies a row-major bfloat16 matrix through oneDNN, but has it go through the matrix as it lies. With
blocks made once at load the same products take 0.6 to 0.9 of the time, for one row as for sixteen. Where the
processor has no instructions for bfloat16, torch has a loop of its own, and FBGEMM's kernels take a third to a
seventh of its time for several rows (docs/decisions/0009). Sums are float32 in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import nn

from worker import fbgemm
from worker.onednn import has_bfloat16, is_bfloat16, product
from worker.replacing import replace_modules

_N_ROWS = 8
"""How many rows the blocks are made for; a hint, they serve any number."""


class Weights(Protocol):
    """A matrix (n_rows, n_columns) in some kernel's order."""

    @property
    def memory(self) -> Sequence[tuple[int, int]]:
        """Address and size of each piece, as far as they are known."""
        ...

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`x` (..., n_columns) times the matrix, transposed, and the bias added: (..., n_rows), as `x` is."""
        ...


class OnednnWeights:
    """In oneDNN's blocks."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _N_ROWS)  # noqa: SLF001

    @property
    def memory(self) -> Sequence[tuple[int, int]]:
        """As of all weights."""
        return [(torch.ops.mkldnn.data_ptr(self._packed), torch.ops.mkldnn._nbytes(self._packed))]  # noqa: SLF001

    def product(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Likewise."""
        return product(x, self._packed, bias)


class PackedLinear(nn.Module):
    """Does what an `nn.Linear` does, whose weight it takes over."""

    def __init__(self, linear: nn.Linear, weights: Weights) -> None:
        """`weights`: those of `linear`."""
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.n_weight_bytes = linear.weight.nbytes
        self.bias = linear.bias
        self.weights = weights
        """Neither a parameter nor a buffer: whoever goes through those expects strides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features)."""
        return self.weights.product(x, self.bias)

    def __deepcopy__(self, _memo: dict[int, Any]) -> Self:
        """Itself: it never changes, and views of a stage share its weights."""
        return self


class InFloat32(nn.Module):
    """Does what a packed layer does whose kernels take and give float32, for rows of fewer bits."""

    def __init__(self, layer: PackedLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features), rounded once."""
        result: torch.Tensor = self.layer(x.float())
        return result.to(x.dtype)


def can_pack() -> bool:
    """Whether some kernels take bfloat16 weights in an order of their own here."""
    return has_bfloat16() or fbgemm.is_there()


def packed(layer: nn.Linear) -> PackedLinear | InFloat32:
    """What does the same as a layer of bfloat16 on the CPU, by the kernels that are there."""
    if has_bfloat16():
        return PackedLinear(layer, OnednnWeights(layer.weight.detach()))
    return InFloat32(PackedLinear(layer, fbgemm.FbgemmWeights(layer.weight.detach())))


@torch.inference_mode()
def product_with(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a stage's linear layer with this weight does, so that it can be timed."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    made = packed(layer) if _is_packable(weight) and can_pack() else layer
    return torch.inference_mode()(made)


@torch.no_grad()
def pack_linear_layers(model: nn.Module) -> int:
    """Replace the bfloat16 linear layers on the CPU whose weights are theirs alone; the number of them.

    One matrix at a time is held twice.
    """
    if not can_pack():
        return 0
    n_users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))

    def replacement(layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Linear and n_users[id(layer.weight)] == 1 and _is_packable(layer.weight):
            return packed(layer)
        return None

    return replace_modules(model, replacement)


def _is_packable(weight: torch.Tensor) -> bool:
    if not is_bfloat16(weight) or not weight.numel():
        return False
    return all(bool(one.isfinite()) for one in torch.aminmax(weight))  # both are no number if any is none
