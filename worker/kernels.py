"""Kernels of our own for the CPU (`worker.cpu_kernels`, in C): whether they are there, and what they may be told.

They are built when Brigade is installed, and take addresses: what they are given is checked here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import structlog
import torch

try:
    from worker import cpu_kernels as _built
except ImportError:  # without a C compiler, or with a torch whose threads they can't use
    _kernels: ModuleType | None = None
else:
    _kernels = _built

log = structlog.get_logger(__name__)

MISSING = (
    "kernels for this processor weren't built when Brigade was installed; torch's take two to five times as long "
    "for weights of 4 and 8 bits, and for several sessions at once"
)
MEND = "install gcc and Python's headers (python3-dev), then Brigade again with CC=gcc"
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Types of numbers, as the kernels call them."""
UNIT = 16
"""Widths of rows are multiples of it, but for products."""

Call = tuple[Callable[..., object], tuple[Any, ...]]
"""A function, and all that it is called with: of a kernel, addresses too, so the tensors have to stay."""


def are_there() -> bool:
    """Whether they were built, and this processor has the instructions (AVX2, FMA, F16C)."""
    return _kernels is not None and _kernels.IS_SUPPORTED


def why_no_products(instructions: str | None = None) -> str:
    """Why products aren't left to these kernels here; empty if they are.

    `instructions` are the CPU's vector instructions as torch names them, by default what it finds.
    """
    instructions = instructions or torch.backends.cpu.get_cpu_capability()
    if instructions != "AVX2":  # torch's are better with more, ours need no less
        return f"they are for processors with AVX2 alone, this one has {instructions}"
    if _kernels is None:
        return "they weren't built"
    return "" if _kernels.IS_SUPPORTED else "this processor lacks FMA or F16C"


def are_missing() -> bool:
    """Whether they would serve here if they had been built."""
    return _kernels is None and torch.backends.cpu.get_cpu_capability() == "AVX2"


@cache
def say_if_missing() -> None:
    """Once."""
    if are_missing():
        log.warning("cpu_kernels_missing", reason=MISSING, next_step=MEND)


def kernels() -> ModuleType:
    """The kernels, where they are."""
    assert _kernels is not None
    return _kernels


def check_input(x: torch.Tensor, dtype: torch.dtype, n_columns: int) -> None:
    """Keep the kernels, which are told addresses, from reading what isn't there.

    Raises:
        ValueError: not of this type, not that many columns, or not in the processor's memory.
    """
    if x.dtype != dtype or x.shape[-1] != n_columns or not x.is_cpu:
        raise ValueError(f"{tuple(x.shape)} {x.dtype} on {x.device} for a matrix of {n_columns} columns in {dtype}")


def check_bias(bias: torch.Tensor, dtype: torch.dtype, n_rows: int) -> None:
    """Likewise.

    Raises:
        ValueError: not of this type, not that many numbers side by side, or not in the processor's memory.
    """
    if bias.dtype != dtype or bias.shape != (n_rows,) or not bias.is_contiguous() or bias.device.type != "cpu":
        raise ValueError(f"a bias {tuple(bias.shape)} {bias.dtype} on {bias.device} for {n_rows} rows in {dtype}")
