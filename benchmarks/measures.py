"""How each target is measured: ours and what it is compared with in turns, ratio by ratio."""

from __future__ import annotations

import asyncio
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.arrangement import MODEL, Arranged
from benchmarks.reference import reference_decode, reference_model, reference_prefill_s, vocab_size, weight_bytes
from benchmarks.streams_at_once import total_tokens_per_s

PLAIN: dict[str, Any] = {"speculate": False}
"""Token by token: guesses pay or not by the text, and would blur what is compared."""
BEYOND_WEIGHTS_BYTES = 450e6
"""What a worker may take beside its weights: the interpreter, torch, transformers, buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is measured."""

    n_tokens: int = 64
    n_prefill: int = 1024
    n_history: int = 1000
    n_repeats: int = 5
    n_short_prompt: int = 20
    rest_s: float = 12.0
    """After warming up: workers that nobody asks for 2 s record the steps that they were asked for."""


SMALL = Scale(n_tokens=24, n_prefill=40, n_history=40, n_repeats=1, n_short_prompt=4, rest_s=0.0)
"""To see that it works; the figures mean nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a measurement gave."""

    ratios: tuple[float, ...]
    details: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Bench:
    """What all measurements need. References are loaded when first wanted."""

    source: Path
    scale: Scale
    _references: dict[str, Any] = field(default_factory=dict)
    _n_prompts: int = 0
    _vocab_size: int | None = None

    def reference(self, precision: str) -> Any:
        """The model in transformers. Blocks."""
        if precision not in self._references:
            self._references.clear()  # one at a time: they are as large as a worker
            self._references[precision] = reference_model(self.source, precision)
        return self._references[precision]

    def prompt(self, n_tokens: int) -> list[int]:
        """Token ids that no session has begun with yet: no worker has computed any of it."""
        self._n_prompts += 1
        if self._vocab_size is None:
            self._vocab_size = vocab_size(self.source)
        return [3 + (1009 * (self._n_prompts + i * i)) % (self._vocab_size - 3) for i in range(n_tokens)]


@dataclass(slots=True)
class _Pairs:
    """Figures of ours and others taken in turns."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, ours: float, theirs: float) -> None:
        self.ours.append(ours)
        self.theirs.append(theirs)

    def figures(self, ours: str, theirs: str) -> Figures:
        ratios = tuple(a / b for a, b in zip(self.ours, self.theirs, strict=True))
        details = {ours: statistics.median(self.ours), theirs: statistics.median(self.theirs)}
        return Figures(ratios=ratios, details=details)


async def one_stream(bench: Bench, arranged: Arranged, *, is_exact: bool) -> Figures:
    """Decoding beside transformers in float32 with one thread; if `is_exact`, the ids have to be the same too."""
    scale, pairs = bench.scale, _Pairs()
    reference = await asyncio.to_thread(bench.reference, "float32")
    for repeat in range(-1, scale.n_repeats):
        prompt = bench.prompt(scale.n_short_prompt)
        ids, theirs = await asyncio.to_thread(reference_decode, reference, prompt, scale.n_tokens)
        ours = await arranged.client.generate(
            MODEL, prompt, max_tokens=scale.n_tokens, temperature=0.0, ignore_eos=True, **PLAIN
        )
        if is_exact and list(ours.token_ids) != ids:
            raise ValueError(f"our greedy tokens {ours.token_ids} differ from transformers' {ids}")
        if repeat >= 0:
            pairs.add(ours.tokens_per_s, theirs)
    return pairs.figures("tokens/s", "transformers'")


async def several_streams(bench: Bench, arranged: Arranged, *, n_streams: int) -> Figures:
    """All tokens of several streams beside those of one."""
    scale, pairs = bench.scale, _Pairs()
    for repeat in range(-1, scale.n_repeats):
        prompts = [bench.prompt(scale.n_short_prompt) for _ in range(n_streams + 1)]
        one = await total_tokens_per_s(arranged.client, prompts[:1], scale.n_tokens, **PLAIN)
        several = await total_tokens_per_s(arranged.client, prompts[1:], scale.n_tokens, **PLAIN)
        if repeat >= 0:
            pairs.add(several, one)
        else:
            await asyncio.sleep(scale.rest_s)
    return pairs.figures(f"tokens/s of {n_streams}", "of one")


async def first_token(bench: Bench, arranged: Arranged, *, precision: str) -> Figures:
    """A long prompt beside transformers' prefill with as many threads as there are workers."""
    scale, pairs = bench.scale, _Pairs()
    reference = await asyncio.to_thread(bench.reference, precision)
    for repeat in range(-1, scale.n_repeats):
        prompt = bench.prompt(scale.n_prefill)
        theirs = await asyncio.to_thread(reference_prefill_s, reference, prompt, len(arranged.blocks))
        ours = await arranged.client.generate(MODEL, prompt, max_tokens=1, temperature=0.0, **PLAIN)
        if repeat >= 0:
            pairs.add(ours.ttft_s, theirs)
    return pairs.figures("s", "transformers'")


async def second_turn(bench: Bench, arranged: Arranged) -> Figures:
    """The first token of a chat's second turn beside that of its first."""
    scale, pairs = bench.scale, _Pairs()
    n_answer = scale.n_short_prompt
    for repeat in range(-1, scale.n_repeats):
        prompt = bench.prompt(scale.n_history - n_answer)
        first = await arranged.client.generate(
            MODEL, prompt, max_tokens=n_answer, temperature=0.0, ignore_eos=True, **PLAIN
        )
        asked = bench.prompt(scale.n_short_prompt)
        second = await arranged.client.generate(
            MODEL, [*prompt, *first.token_ids, *asked], max_tokens=n_answer, temperature=0.0, **PLAIN
        )
        if repeat >= 0:
            pairs.add(second.ttft_s, first.ttft_s)
    return pairs.figures("s", "first turn's")


async def memory(bench: Bench, arranged: Arranged) -> Figures:
    """Each worker's memory beside 0.35 of its weights in bfloat16 and what a worker takes without any."""
    reference = await asyncio.to_thread(bench.reference, "float32")
    weights = [weight_bytes(reference, blocks.start, blocks.stop) for blocks in arranged.blocks]
    allowed = [0.35 * n_bytes + BEYOND_WEIGHTS_BYTES for n_bytes in weights]
    ratios = tuple(rss / most for rss, most in zip(arranged.worker_rss_bytes, allowed, strict=True))
    return Figures(
        ratios=(max(ratios),),
        details={"MB": max(arranged.worker_rss_bytes) / 1e6, "bfloat16 weights": max(weights) / 1e6},
    )
