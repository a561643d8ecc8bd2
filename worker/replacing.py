"""Put other modules in the place of some of a model's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_modules(model: nn.Module, replacement: Callable[[nn.Module], nn.Module | None]) -> int:
    """Put what `replacement` gives for a module in its place, and leave those that it gives None for; the number.

    One at a time, so that what was replaced can be let go of before the next.
    """
    n_replaced = 0
    for owner in list(model.modules()):
        for name, child in list(owner.named_children()):
            if (other := replacement(child)) is not None:
                setattr(owner, name, other)
                n_replaced += 1
    return n_replaced
