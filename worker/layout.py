"""How weights lie in memory: the order in which one token's products read them fastest, and nothing beside them.

A row-major (out, in) matrix is read row by row, one dot product each; with short rows MKL reaches half of the
memory's speed. Column by column it adds scaled columns, and a wide matrix (out >= 2 in) streams. Measured on one
core, float32, one row: 1.1 to 1.9 times as fast for every such shape from (1152, 576) to (151936, 1024), slower for
narrow ones; with 128 rows no difference (docs/decisions/0005). The rule is fixed, not measured at each start, so
that all workers round alike.
"""

from __future__ import annotations

import torch
from torch import nn

_WIDE = 2
"""Outputs for each input from which the columns are the better order."""


@torch.no_grad()
def lay_out_for_decode(model: nn.Module) -> int:
    """Store wide float32 matrices of linear layers on the CPU column by column; the number of them.

    Values, shapes and ties stay as they are; only strides change. One matrix at a time is held twice.
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return 0
    n_changed = 0
    for module in model.modules():
        if isinstance(module, nn.Linear) and _reads_better_by_columns(module.weight):
            module.weight.data = module.weight.data.t().contiguous().t()
            n_changed += 1
    return n_changed


def _reads_better_by_columns(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and weight.shape[0] >= _WIDE * weight.shape[1]
    )
