"""What the churn benchmark asks: conversations whose answers are known from a run that nothing disturbs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from client.api import Client

PROMPTS = (
    "Here is the complete history of the lighthouse, from the first fires on the cliffs to our day:",
    "A recipe for bread, with everything that can go wrong and why:",
    "The three laws of thermodynamics, each with an example from a kitchen:",
)
SAMPLED: Mapping[str, Any] = {"temperature": 0.9, "top_p": 0.95}
GREEDY: Mapping[str, Any] = {"temperature": 0.0}
MORE = " And then? Tell me more of it, and begin with what is most important to know for somebody who is new to it:"
N_TURNS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A generation that always has the same answer."""

    prompt: str | tuple[int, ...]
    options: Mapping[str, Any]
    answer: tuple[int, ...]

    def __str__(self) -> str:
        shown = self.prompt[:20] if isinstance(self.prompt, str) else f"{len(self.prompt)} tokens"
        return f"{dict(self.options)} {shown!r}"


Conversation = tuple[Question, ...]
"""Asked one after the other: each prompt begins with the one before and its answer, which workers may have."""


async def answered(client: Client, model: str, seed: int, *, timeout_s: float) -> list[Conversation]:
    """All conversations, with the answers that a cluster gives which nothing disturbs."""
    found: list[Conversation] = []
    for number, prompt in enumerate(PROMPTS):
        limits = {"max_tokens": 48 + 16 * number, "ignore_eos": True, "timeout_s": timeout_s}
        seeded = {**SAMPLED, "seed": seed + number}
        kinds = [GREEDY, seeded, {**GREEDY, "speculate": False}, {**(GREEDY, seeded)[number % 2], "private": True}]
        found += [(await _answered(client, model, prompt, {**limits, **kind}),) for kind in kinds]
        found.append(await _turns(client, model, prompt, {**limits, **(seeded, GREEDY)[number % 2]}))
    return found


async def _turns(client: Client, model: str, prompt: str, options: Mapping[str, Any]) -> Conversation:
    """As a chat goes, whose every turn is asked with all that was said."""
    text, more = tuple(await client.encoded(model, prompt)), tuple(await client.encoded(model, MORE))
    turns: list[Question] = []
    for _ in range(N_TURNS):
        turns.append(await _answered(client, model, text, options))
        text = (*text, *turns[-1].answer, *more)
    return tuple(turns)


async def _answered(
    client: Client, model: str, prompt: str | tuple[int, ...], options: Mapping[str, Any]
) -> Question:
    result = await client.generate(model, prompt, **options)
    return Question(prompt=prompt, options=options, answer=result.token_ids)
