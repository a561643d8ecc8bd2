"""Products by oneDNN, which torch itself asks in some places only."""

from __future__ import annotations

import torch


def has_bfloat16() -> bool:
    """Whether it multiplies bfloat16 on this processor; if not, torch has a loop of its own for that."""
    is_built_in = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return is_built_in and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - no public name


def is_bfloat16(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of that type, and on the CPU."""
    return tensor.device.type == "cpu" and tensor.dtype == torch.bfloat16


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `torch.nn.functional.linear`; `weight` as it lies, or in oneDNN's own blocks.

    Raises:
        AttributeError: torch is built without it. That is found out here, not at import.
        RuntimeError, NotImplementedError: not for this processor, or not of this type.
    """
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - no public name
    return result
