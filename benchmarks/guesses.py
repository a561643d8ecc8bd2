"""What guessed tokens gain where a text repeats itself, and what they cost where it doesn't."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import links
from benchmarks.arrangement import MODEL, Arranged
from benchmarks.measures import PLAIN, Bench, Figures
from client.results import Generation

NAMES = ("name", "price", "page", "ship", "word", "file", "line")
N_COPIES = 12
"""So many copies of a line of code are gone on with alike by SmolLM2-135M, whichever of the names stands in it.
After copies of prose and most rows of random tokens it says something else; what is guessed is what it says."""


async def speculation(bench: Bench, ready: Arranged) -> Figures:
    """A repetitive text with guessed tokens beside the same one token by token, on slow links."""
    ours, plain = [], []
    with links.linked(ready, links.Link(delay_s=links.TARGET_DELAY_S)):
        for repeat in range(bench.scale.n_repeats):
            prompt = await ready.client.encoded(MODEL, repetitive_text(repeat))
            plain.append(await _answer(bench, ready, prompt, **PLAIN))
            ours.append(await _answer(bench, ready, prompt))
    return _figures([one.tokens_per_s for one in ours], [one.tokens_per_s for one in plain], ours)


async def cost(bench: Bench, ready: Arranged) -> Figures:
    """Text that is drawn at random, and so doesn't repeat itself, with guesses and token by token.

    Raises:
        ValueError: the tokens differ.
    """
    ours, plain, answers = [], [], []
    for repeat in range(-1, bench.scale.n_repeats):
        prompt = bench.prompt(bench.scale.n_short_prompt)
        sampling = {"temperature": 1.0, "seed": repeat + 1}
        # in this order, so that a machine that becomes slower or faster meanwhile favours neither
        turns = [await _answer(bench, ready, prompt, **options, **sampling) for options in ({}, PLAIN, PLAIN, {})]
        if len({turn.token_ids for turn in turns}) > 1:
            raise ValueError(f"with guesses other tokens came than without: {[turn.token_ids for turn in turns]}")
        if repeat >= 0:
            seconds = [1 / turn.tokens_per_s for turn in turns]
            ours.append(2 / (seconds[0] + seconds[3]))
            plain.append(2 / (seconds[1] + seconds[2]))
            answers += [turns[0], turns[3]]
    return _figures(ours, plain, answers)


def repetitive_text(index: int) -> str:
    """One that models go on with as it goes."""
    name = NAMES[index % len(NAMES)]
    return f"for {name} in {name}s: print({name}, len({name}), sep=': ')\n" * N_COPIES


async def _answer(bench: Bench, ready: Arranged, prompt: Sequence[int], **options: Any) -> Generation:
    return await ready.client.generate(
        MODEL, prompt, **{"max_tokens": bench.scale.n_tokens, "temperature": 0.0, "ignore_eos": True, **options}
    )


def _figures(ours: Sequence[float], plain: Sequence[float], guessed: Sequence[Generation]) -> Figures:
    return Figures(
        ratios=tuple(a / b for a, b in zip(ours, plain, strict=True)),
        details={
            "tokens/s": statistics.median(ours),
            "plain": statistics.median(plain),
            "guesses an answer": statistics.mean(one.drafted_tokens for one in guessed),
            "that held": statistics.mean(one.accepted_tokens for one in guessed),
        },
    )
