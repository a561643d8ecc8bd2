"""Other weights than those that a stage was loaded with, put where they lie."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from worker.packed_linear import PackedLinear
from worker.panels import PanelWeights


@torch.no_grad()
def change_weights_of(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Each parameter, and each matrix that a packed layer has in panels, becomes what `change` makes of it."""
    for parameter in module.parameters():
        parameter.copy_(change(parameter))
    for layer in module.modules():
        if isinstance(layer, PackedLinear):
            assert isinstance(layer.weights, PanelWeights), "how others lie isn't known"
            layer.weights._panels.copy_(PanelWeights(change(layer.weight))._panels)
