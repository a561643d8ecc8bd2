"""Linear layers on the CPU, with weights in the order that the processor's kernels work on.

torch multiplies a row-major bfloat16 matrix through oneDNN, but has it go through the matrix as it lies. With
blocks made once at load the same products take 0.6 to 0.9 of the time, for one row as for sixteen. Where the
processor has AVX2 alone, kernels of our own (`worker.panels`) take float32 too. Where those weren't built, FBGEMM's
take a third to a seventh of the time of torch's own loop for several rows of bfloat16 (docs/decisions/0009, 0025).
Sums are float32 in all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import torch
from torch import nn

from worker import fbgemm
from worker.kernels import why_no_products
from worker.onednn import has_bfloat16, is_bfloat16, product
from worker.panels import PanelWeights
from worker.replacing import replace_modules

_N_ROWS = 8
"""How many rows the blocks are made for; a hint, they serve any number."""


class Weights(Protocol):
    """A matrix (n_rows, n_columns) in some kernel's order."""

    @property
    def memory(self) -> Sequence[tuple[int, int]]:
        """Address and size of each piece, as far as they are known."""
        ...

    def dense(self) -> torch.Tensor:
        """The matrix as it was."""
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

    def dense(self) -> torch.Tensor:
        """Likewise."""
        dense: torch.Tensor = self._packed.to_dense()
        return dense

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

    @property
    def weight(self) -> torch.Tensor:
        """As it was: slow, for the rare model code that looks at it."""
        return self.weights.dense()

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

    @property
    def weight(self) -> torch.Tensor:
        """As a packed layer's."""
        return self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The product, (..., out_features), rounded once."""
        result: torch.Tensor = self.layer(x.float())
        return result.to(x.dtype)


def can_pack(dtype: torch.dtype) -> bool:
    """Whether some kernels take weights of this type in an order of their own here."""
    if dtype == torch.bfloat16:
        return has_bfloat16() or not why_no_products() or fbgemm.is_there()
    return dtype == torch.float32 and not why_no_products()


def packed(layer: nn.Linear) -> PackedLinear | InFloat32:
    """What does the same as a layer of float32 or bfloat16 on the CPU, by the kernels that are there."""
    weight = layer.weight.detach()
    if is_bfloat16(weight) and has_bfloat16():
        return PackedLinear(layer, OnednnWeights(weight))
    if not why_no_products():
        return PackedLinear(layer, PanelWeights(weight))
    return InFloat32(PackedLinear(layer, fbgemm.FbgemmWeights(weight)))


@torch.inference_mode()
def product_with(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """What a stage's linear layer with this weight does, so that it can be timed."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    made = packed(layer) if _is_packable(weight) else layer
    return torch.inference_mode()(made)


@torch.no_grad()
def pack_linear_layers(model: nn.Module) -> int:
    """Replace the layers on the CPU whose weights are theirs alone, if there are kernels for them; the number.

    One matrix at a time is held twice.
    """
    n_users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))

    def replacement(layer: nn.Module) -> nn.Module | None:
        if type(layer) is nn.Linear and n_users[id(layer.weight)] == 1 and _is_packable(layer.weight):
            return packed(layer)
        return None

    return replace_modules(model, replacement)


def _is_packable(weight: torch.Tensor) -> bool:
    if weight.device.type != "cpu" or not weight.numel() or not can_pack(weight.dtype):
        return False
    return all(bool(one.isfinite()) for one in torch.aminmax(weight))  # both are no number if any is none
