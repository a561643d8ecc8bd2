from __future__ import annotations

from torch import nn

from worker.replacing import replace_modules


def test_what_a_replacement_is_given_for_is_replaced_however_deep() -> None:
    model = nn.ModuleDict({"a": nn.Linear(1, 1), "b": nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(1, 1)))})
    assert replace_modules(model, lambda module: nn.Identity() if isinstance(module, nn.Linear) else None) == 2
    kinds = [type(module) for module in model.modules()]
    assert kinds == [nn.ModuleDict, nn.Identity, nn.Sequential, nn.ReLU, nn.Sequential, nn.Identity]
