"""How long something takes on the CPU."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


@torch.inference_mode()
def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes now."""
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s
