"""Products by oneDNN, which torch itself asks in some places only."""

from __future__ import annotations

import torch


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """As `torch.nn.functional.linear`; `weight` as it lies, or in oneDNN's own blocks.

    Raises:
        AttributeError: torch is built without it. That is found out here, not at import.
        RuntimeError, NotImplementedError: not for this processor, or not of this type.
    """
    result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001 - no public name
    return result
