"""Find out whether a stage's head is quicker when it looks closely only at the tokens that can be the likeliest.

By trial: processors without instructions for sums of 8-bit products take longer by them, and an architecture may
move one logit past another (leave out some, say), so that the largest of the head isn't the likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import structlog
import torch
from torch import nn

from worker.batching_trial import trial_payload
from worker.byte_sizes import size_text
from worker.column_linear import ColumnLinear
from worker.huge_pages import collapse_to_huge_pages
from worker.screened_head import ScreenedHead
from worker.screening import NO_SCREENING, Screening
from worker.stage import Stage, StageInput
from worker.timed import timed

log = structlog.get_logger(__name__)

MIN_WEIGHTS = 4 * 2**20
"""Of a head: smaller ones take no time that would count."""
_WORTH = 1.25
"""How much quicker it has to be: its codes are a fourth of the matrix more."""
_CACHE_SHARE = 8
"""One of so many bytes that caches have may go to codes: the coordinator reckons with those caches."""
_MAX_ROWS = 8
_TRIES = 3
_PROBES = (-20.0, -5.0, -1.0, -0.1, 0.0, 0.1, 1.0, 5.0, 20.0)
"""What all tokens are given for a logit, to see what the model makes of it. Each is a position's: one forward tells
it of all."""


def settle_screening(stage: Stage, cache_bytes: int | None = None) -> Screening:
    """Have a stage find the likeliest tokens without all exact logits from now on, if that is quicker here.

    `cache_bytes`: what caches have, of which the codes may take one part in `_CACHE_SHARE`; None: plenty.
    """
    before = stage.head
    if not isinstance(before, ColumnLinear) or before.weight.numel() < MIN_WEIGHTS:
        return NO_SCREENING
    n_bytes = before.weight.numel()
    if cache_bytes is not None and n_bytes > cache_bytes // _CACHE_SHARE:
        because = f"its codes take {size_text(n_bytes)}, and caches have {size_text(cache_bytes)} in all"
    else:
        because = _tried(stage, before)
    if because:
        log.info("head_not_screened", blocks=str(stage.blocks), reason=because)
        stage.replace_head(before)
    return Screening(is_on=not because, off_because=because)


def _tried(stage: Stage, head: ColumnLinear) -> str:
    try:
        screened = screen(stage, head)
        return _unworthy_because(stage, screened) if isinstance(screened, ScreenedHead) else screened
    except (RuntimeError, TypeError, ValueError, AttributeError, MemoryError) as exc:
        if isinstance(exc, (torch.OutOfMemoryError, torch.AcceleratorError)):
            raise
        return f"{type(exc).__name__}: {exc}"


def screen(stage: Stage, head: ColumnLinear) -> ScreenedHead | str:
    """Put a head that screens in the place of the stage's, which stays if the likeliest could be another: why."""
    if not bool(torch.isfinite(head.weight.sum())):
        return "its weights aren't all finite"
    screened = ScreenedHead(head)
    if not screened.sums_exactly():
        return "this processor cuts sums of 8-bit products off"
    stage.replace_head(screened)
    if not keeps_order(stage, screened):
        stage.replace_head(head)
        return "the model moves one token's logit past another's"
    return screened


def _unworthy_because(stage: Stage, screened: ScreenedHead) -> str:
    collapse_to_huge_pages([screened.memory])
    exact_s, screened_s = _seconds(screened, _final_rows(stage, screened))
    screened.max_rows = min(_MAX_ROWS, int(exact_s / screened_s))
    times = f"{1e3 * screened_s:.2f} ms a token with it, {1e3 * exact_s:.2f} without"
    log.info("head_tried", blocks=str(stage.blocks), times=times)
    return "" if exact_s >= _WORTH * screened_s else f"it isn't quicker here: {times}"


def keeps_order(stage: Stage, screened: ScreenedHead) -> bool:
    """Whether a larger logit of the head is one of the model, whichever token's it is."""
    with _hooked(screened, _probed):
        logits = _logits(stage)
    rises = bool((logits[1:, 0] > logits[:-1, 0]).all())
    return rises and bool((logits == logits[:, :1]).all())


def _final_rows(stage: Stage, screened: ScreenedHead) -> torch.Tensor:
    """What goes into the head at the positions of a text, (n, hidden_size)."""
    found: list[torch.Tensor] = []
    with _hooked(screened, lambda _module, inputs, _logits: found.append(inputs[0])):
        _logits(stage)
    return found[0].reshape(-1, found[0].shape[-1])


def _seconds(screened: ScreenedHead, rows: torch.Tensor) -> tuple[float, float]:
    """What a row takes by the exact product, and by looking closely at few: the middle of several rows.

    How many tokens have to be looked at closely differs from row to row, so a single one says little. Of each it is
    the least of a few times in turns, since others may run on the processor meanwhile.
    """
    exact, close = [], []
    for row in rows[::2, None]:
        times = [_both_timed(screened, row) for _ in range(_TRIES)]
        exact.append(min(one for one, _ in times))
        close.append(min(other for _, other in times))
    return median(exact), median(close)


def _both_timed(screened: ScreenedHead, row: torch.Tensor) -> tuple[float, float]:
    exact_s = timed(partial(screened, row))
    with screened.screening():
        return exact_s, timed(partial(screened, row))


def _probed(_module: nn.Module, _inputs: Any, logits: torch.Tensor) -> torch.Tensor:
    return logits.new_tensor(_PROBES)[:, None].expand_as(logits).clone()


def _logits(stage: Stage) -> torch.Tensor:
    """Logits (n, vocab_size) of as many positions as there are probes, of a text of its own choice."""
    n = len(_PROBES)
    payload = trial_payload(stage, n, torch.Generator().manual_seed(0))
    return stage.run([StageInput(payload=payload, position=0, cache=stage.new_cache(n), n_logits=n)])[0]


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, Any, Any], Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
