"""What steps have cost so far: running averages, and of prompts by span. Written by the engine's thread alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from worker.batch_bounds import BatchBounds
from worker.prompt_costs import PromptCosts, RunStep
from worker.steps import SpanKey, StepInput

_AVERAGE_WEIGHT = 0.1
"""Of a new measurement in the running averages: the last twenty or so steps count."""


@dataclass(slots=True)
class Average:
    """A running average; 0 until something was measured."""

    value: float = 0.0

    def add(self, measured: float) -> None:
        """Take a measurement in."""
        self.value += (measured - self.value) * (_AVERAGE_WEIGHT if self.value else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeAverage:
    """Running averages of decode steps: what a block takes, and how much of the model's end is in that.

    Since both are averaged alike, `s_per_block` less `ends_per_block` times what the end takes is of blocks alone.
    """

    s_per_block: float = 0.0
    """Of a forward with all that it ran; 0 until measured."""
    ends_per_block: float = 0.0
    """For each block, how many times what comes after a model's last block was run: 1 over the blocks, or 0."""
    n_steps: int = 0

    def with_step(self, s_per_block: float, ends_per_block: float) -> DecodeAverage:
        """Another forward taken in; the first ones count alike, since the very first is often slow."""
        n_steps = self.n_steps + 1
        weight = max(_AVERAGE_WEIGHT, 1 / n_steps)
        return DecodeAverage(
            s_per_block=self.s_per_block + weight * (s_per_block - self.s_per_block),
            ends_per_block=self.ends_per_block + weight * (ends_per_block - self.ends_per_block),
            n_steps=n_steps,
        )


ForwardKind = Literal["decode", "verify", "prefill"]
"""One token of each session; those and guesses of what follows; among others a piece of a prompt."""


@dataclass(frozen=True, slots=True)
class Forward:
    """Steps of one stage that ran together."""

    kind: ForwardKind
    n_steps: int
    n_tokens: int
    seconds: float


@dataclass(slots=True)
class Measures:
    """What steps have cost so far."""

    observe: Callable[[Forward], None] = lambda _forward: None
    """Told of each forward, in the thread that runs it."""

    decode: DecodeAverage = DecodeAverage()
    """Of a forward of decode steps alone, however many: what each of those who read along waits for."""
    prefill_s_per_token_per_block: Average = field(default_factory=Average)
    n_positions_run: int = 0
    bounds: Callable[[], BatchBounds] = BatchBounds
    """Of how long a batch may take now, where sessions of several tenants run."""
    prompt_costs: dict[SpanKey, PromptCosts] = field(default_factory=dict)
    """Of each block of a span."""
    decoded_together: dict[SpanKey, set[int]] = field(default_factory=dict)
    """Of how many sessions each, single tokens ran together in a span."""

    def begin_anew(self) -> None:
        """Forget what decode steps took: other blocks are loaded from now on."""
        self.decode = DecodeAverage()

    def forget(self, span: SpanKey) -> None:
        """Begin anew without a span that is no longer loaded."""
        self.prompt_costs.pop(span, None)
        self.decoded_together.pop(span, None)
        self.begin_anew()

    def note(self, steps: Sequence[StepInput], compute_s: float, *, n_blocks: int, runs_end: bool) -> None:
        """Take in what one forward of these steps took; `runs_end`: with what comes after the last block."""
        n_tokens = sum(step.n_tokens for step in steps)
        self.n_positions_run += n_tokens
        kind: ForwardKind = "prefill"
        if n_tokens == len(steps):
            kind = "decode"
            self.decode = self.decode.with_step(compute_s / n_blocks, runs_end / n_blocks)
        elif any(step.drafts for step in steps):
            kind = "verify"
        else:
            self.prefill_s_per_token_per_block.add(compute_s / n_blocks / n_tokens)
        self.observe(Forward(kind, len(steps), n_tokens, compute_s))

    def note_together(self, span: SpanKey, steps: Sequence[StepInput]) -> None:
        """Take in that these steps ran together in a span."""
        if all(step.n_tokens == 1 for step in steps):
            self.decoded_together.setdefault(span, set()).add(len(steps))

    def note_alone(self, span: SpanKey, step: StepInput, compute_s: float, n_blocks: int) -> None:
        """Take in what a step took that ran through so many blocks of a span without any other."""
        run = RunStep(step.n_tokens, step.position, compute_s / n_blocks)
        self.prompt_costs[span] = self.prompt_costs.get(span, PromptCosts()).with_step(run)
