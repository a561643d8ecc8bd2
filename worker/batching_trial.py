"""Find out whether a loaded stage can run several sessions in one forward: run some together, and each alone.

By trial and not by name: an architecture whose attention doesn't go through transformers' interface, or that does
something of its own between the cache and attention, shows it here, whatever it is called.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from worker.stage import Stage, StageInput
from worker.stage_batching import Batching

_ROUNDS = ((4, 5, 6, 5), (1, 1, 1, 1), (1, 5, 1, 1))
"""Tokens of each session: prompts, decode alone, and decode beside a chunk that continues a prompt."""
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Share of the result's norm by which it may differ: products of more rows are summed in another order."""


def settle_batching(stage: Stage) -> None:
    """Have a stage run sessions together from now on if that gives what each gives alone; else it knows why not."""
    stage.batch(_found(stage))


def _found(stage: Stage) -> Batching:
    if stage.rotary.follows_lengths:
        return Batching(because="its rotary embedding depends on the longest session that runs")
    failure = ""
    for batching in (Batching(), Batching(joins_keys=True)):
        stage.batching = batching
        try:
            differs_by = _largest_difference(stage)
        except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError) as exc:
            if isinstance(exc, (torch.OutOfMemoryError, torch.AcceleratorError)):
                raise
            failure = f"its code can't run several sessions at once ({type(exc).__name__})"
            continue
        if differs_by <= TOLERANCES[stage.dtype]:
            return batching
        failure = f"sessions that run together differ by {differs_by:.1g} from each alone"
    return Batching(because=failure)


def _largest_difference(stage: Stage) -> float:
    """Of any session in any round, between running with the others and alone, as a share of the norm."""
    generator = torch.Generator().manual_seed(0)
    n_positions = max(map(sum, zip(*_ROUNDS, strict=True)))
    together = [stage.new_cache(n_positions) for _ in _ROUNDS[0]]
    alone = [stage.new_cache(n_positions) for _ in _ROUNDS[0]]
    largest = 0.0
    for n_tokens in _ROUNDS:
        inputs = [
            StageInput(payload=trial_payload(stage, n_new, generator), position=cache.length, cache=cache)
            for n_new, cache in zip(n_tokens, together, strict=True)
        ]
        expected = [stage.run([replace(one, cache=cache)])[0] for one, cache in zip(inputs, alone, strict=True)]
        got = stage.run(inputs)
        for one, other in zip(got, expected, strict=True):
            largest = max(largest, difference(one, other))
    return largest


def difference(got: torch.Tensor, right: torch.Tensor) -> float:
    """By how much a result differs from the right one, as a share of that one's norm."""
    share = float((got - right).float().norm() / right.float().norm())
    return share if share == share else float("inf")


def trial_payload(stage: Stage, n_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """What a stage takes for `n_tokens` tokens, at random."""
    if stage.is_first:
        return torch.randint(stage.vocab_size, (n_tokens,), generator=generator, dtype=torch.int32)
    return torch.randn(n_tokens, stage.hidden_size, generator=generator).to(stage.dtype)
