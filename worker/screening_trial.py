"""Find out whether a stage's head is quicker when it looks closely only at the tokens that can be the likeliest.

By trial: processors without instructions for sums of 8-bit products take longer by them, and an architecture may
move one logit past another (leave out some, say), so that the largest of the head isn't the likeliest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import structlog
import torch
from torch import nn

from worker.batching_trial import trial_payload
from worker.column_linear import ColumnLinear
from worker.huge_pages import collapse_to_huge_pages
from worker.screened_head import ScreenedHead
from worker.stage import Stage, StageInput

log = structlog.get_logger(__name__)

MIN_WEIGHTS = 4 * 2**20
"""Of a head: smaller ones take no time that would count."""
_WORTH = 1.25
"""How much quicker it has to be: its codes are a fourth of the matrix more."""
_CACHE_SHARE = 8
"""One of so many bytes that caches have may go to codes: the coordinator reckons with those caches."""
_MAX_ROWS = 8
_TRIES = 5
_PROBES = (-20.0, -1.0, 0.0, 1.0, 20.0)
"""What all tokens are given for a logit, to see what the model makes of it."""


def settle_screening(stage: Stage, cache_bytes: int | None = None) -> None:
    """Have a stage find the likeliest tokens without all exact logits from now on, if that is quicker here.

    `cache_bytes`: what caches have, of which the codes may take one part in `_CACHE_SHARE`; None: plenty.
    """
    before = stage.head
    if not isinstance(before, ColumnLinear) or before.weight.numel() < MIN_WEIGHTS:
        return
    n_bytes = before.weight.numel()
    if cache_bytes is not None and n_bytes > cache_bytes // _CACHE_SHARE:
        room = f"its codes take {n_bytes / 1e6:,.0f} MB, and caches have {cache_bytes / 1e6:,.0f} MB in all"
        log.info("head_not_screened", blocks=str(stage.blocks), reason=room)
        return
    try:
        screened = screen(stage, before)
        if screened is not None and _is_worth_it(stage, screened):
            return
    except (RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as exc:
        if isinstance(exc, (torch.OutOfMemoryError, torch.AcceleratorError)):
            raise
        log.info("head_not_screened", blocks=str(stage.blocks), reason=f"{type(exc).__name__}: {exc}")
    stage.replace_head(before)


def screen(stage: Stage, head: ColumnLinear) -> ScreenedHead | None:
    """Put a head that screens in the place of the stage's; None, and nothing, if the likeliest could be another."""
    if not bool(torch.isfinite(head.weight.sum())):
        return None
    screened = ScreenedHead(head)
    if not screened.sums_exactly():
        log.info(
            "head_not_screened", blocks=str(stage.blocks), reason="this processor cuts sums of 8-bit products off"
        )
        return None
    stage.replace_head(screened)
    if not keeps_order(stage, screened):
        stage.replace_head(head)
        return None
    return screened


def _is_worth_it(stage: Stage, screened: ScreenedHead) -> bool:
    collapse_to_huge_pages([screened.memory])
    exact_s, screened_s = _seconds(stage, screened)
    times = {"exact_ms": round(1e3 * exact_s, 2), "screened_ms": round(1e3 * screened_s, 2)}
    log.info("head_tried", blocks=str(stage.blocks), **times)
    screened.max_rows = min(_MAX_ROWS, int(exact_s / screened_s))
    return exact_s >= _WORTH * screened_s


def keeps_order(stage: Stage, screened: ScreenedHead) -> bool:
    """Whether a larger logit of the head is one of the model, whichever token's it is."""
    before: torch.Tensor | None = None
    for value in _PROBES:
        with _hooked(screened, partial(_all_equal, value)):
            (after,) = _logits(stage)
        if bool((after != after[0]).any()) or (before is not None and not bool(after[0] > before[0])):
            return False
        before = after
    return True


def _seconds(stage: Stage, screened: ScreenedHead) -> tuple[float, float]:
    """What one row takes by the exact product, and by looking closely at few: the least of a few times in turns."""
    rows: list[torch.Tensor] = []
    with _hooked(screened, lambda _module, inputs, _logits: rows.append(inputs[0])):
        _logits(stage)
    exact, close = [], []
    for _ in range(_TRIES):
        exact.append(_timed(partial(screened, rows[0])))
        with screened.screening():
            close.append(_timed(partial(screened, rows[0])))
    return min(exact), min(close)


def _all_equal(value: float, _module: nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    return torch.full_like(logits, value)


def _logits(stage: Stage) -> torch.Tensor:
    """Logits (1, vocab_size) of a row of its own choice."""
    payload = trial_payload(stage, 1, torch.Generator().manual_seed(0))
    return stage.run([StageInput(payload=payload, position=0, cache=stage.new_cache(1), n_logits=1)])[0]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.inference_mode()
def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
