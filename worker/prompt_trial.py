"""What launching a step costs on a stage: short steps and longer ones are tried while nobody waits for anything."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from worker.batching_trial import trial_payload
from worker.prompt_costs import PromptCosts, RunStep
from worker.stage import Stage, StageInput

_SHORT, _LONG = 32, 128
"""Tokens."""
_N_TIMES = 3
"""The first time of each, kernels are chosen and made."""
_SLOW_S = 0.1
"""Of a short step: launching it is little beside that, and who comes meanwhile would have to wait for it."""


class PromptTrial:
    """A stage's steps that are still to be tried, and those that were."""

    def __init__(self, stage: Stage, context_length: int) -> None:
        """Nothing longer than `context_length` is tried."""
        self._stage = stage
        self._left = [_SHORT] * _N_TIMES + [_LONG] * _N_TIMES if context_length >= _LONG else []
        self._tried: list[RunStep] = []

    def is_due(self, costs: PromptCosts) -> bool:
        """Whether there is a step left, and who comes meanwhile needn't wait long for it, by what prompts took."""
        known = costs.fitted() if self._left else None
        return known is not None and known.of_blocks(len(self._stage.blocks)).seconds(_SHORT, 0) <= _SLOW_S

    def run_one(self) -> bool:
        """Run the next step; whether there is another."""
        n_tokens = self._left.pop(0)
        self._tried.append(RunStep(n_tokens, 0, self._seconds(n_tokens) / len(self._stage.blocks)))
        return bool(self._left)

    def added_to(self, costs: PromptCosts) -> PromptCosts:
        """What is known of each of the stage's blocks with what was tried."""
        for step in self._tried:
            costs = costs.with_step(step)
        short_s, long_s = (
            min((step.seconds for step in self._tried if step.n_tokens == n), default=None) for n in (_SHORT, _LONG)
        )
        if short_s is None or long_s is None:
            return costs
        per_token_s = max(0.0, long_s - short_s) / (_LONG - _SHORT)
        return replace(costs, base_s=max(0.0, short_s - per_token_s * _SHORT))

    def _seconds(self, n_tokens: int) -> float:
        payload = trial_payload(self._stage, n_tokens, torch.Generator().manual_seed(0))
        cache = self._stage.new_cache(n_tokens)
        began_s = time.perf_counter()
        self._stage.run([StageInput(payload=payload, position=0, cache=cache)])
        if self._stage.device.type != "cpu":
            torch.accelerator.synchronize(self._stage.device)
        return time.perf_counter() - began_s
