"""Tensors that note what is brought from them to where Python can read it, as from an accelerator's memory."""

from __future__ import annotations

from typing import Any

import torch

_READS = {"cpu", "numpy", "tolist", "item", "__bool__", "__int__", "__float__"}


class OnAccelerator(torch.Tensor):
    """A tensor of the CPU, and all that is made from it, of which every copy to the CPU is noted."""

    copied: list[int] = []  # noqa: RUF012 - of whoever clears it: one test
    """How many numbers each copy had."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        is_moved = name == "to" and any(str(each) == "cpu" for each in (*args[1:], *(kwargs or {}).values()))
        if name in _READS or is_moved:
            cls.copied.append(args[0].numel())
        return super().__torch_function__(func, types, args, kwargs or {})
