"""From a turn to its answer: plans, runs, and puts together. What every API of the gateway calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from client.api import Client
from client.gateway.tool_calls import needs_tool_plan, tool_plan
from client.gateway.turns import (
    ChatTurn,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TurnEnd,
    TurnEvent,
    TurnPlan,
)
from protocol.rest import ModelInfo

SEEDS = 2**63
"""So many there are, from 0 on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeCall:
    """A tool call that is complete; the arguments are the model's own words, JSON if it made no mistake."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeAnswer:
    """All events of one answer, put together."""

    text: str
    logprobs: tuple[TokenLogprob, ...]
    calls: tuple[WholeCall, ...]
    end: TurnEnd


async def turn_plan(client: Client, model: ModelInfo, turn: ChatTurn) -> TurnPlan:
    """How the turn is carried out with this model.

    Raises:
        InvalidRequestError: the model can't do what is asked.
    """
    if needs_tool_plan(turn):
        return await tool_plan(await client.tokenizer(model.revision), turn)
    return TurnPlan(prompt=turn.messages, options=turn.options)


async def several(client: Client, model: ModelInfo, plan: TurnPlan, n: int) -> list[TurnPlan]:
    """The plans of `n` answers to the same: the prompt is encoded once, the seeds follow each other."""
    if n == 1:
        return [plan]
    token_ids = await client.encoded(model, plan.prompt)
    seed = plan.options.seed
    seeds = [None if seed is None else (seed + number) % SEEDS for number in range(n)]
    return [replace(plan, prompt=token_ids, options=replace(plan.options, seed=one)) for one in seeds]


def after_the_first(plans: Sequence[TurnPlan]) -> list[TurnPlan]:
    """The plans of one request, of which only the first is refused where a limit of the key is used up.

    The others wait for their turn: a key that may run one at once could never have two answers otherwise.
    """
    return [
        replace(plan, options=replace(plan.options, wait_for_quota=True)) if number else plan
        for number, plan in enumerate(plans)
    ]


def whole_answer(events: Iterable[TurnEvent]) -> WholeAnswer:
    """The answer that these events are, the end included."""
    texts: list[str] = []
    logprobs: list[TokenLogprob] = []
    calls: dict[int, list[ToolCallDelta]] = {}
    end: TurnEnd | None = None
    for event in events:
        match event:
            case TextDelta():
                texts.append(event.text)
                logprobs += event.logprobs
            case ToolCallDelta():
                calls.setdefault(event.index, []).append(event)
            case TurnEnd():
                end = event
    assert end is not None, "the last event of an answer is its end"
    whole = tuple(_whole_call(deltas) for _, deltas in sorted(calls.items()))
    return WholeAnswer(text="".join(texts), logprobs=tuple(logprobs), calls=whole, end=end)


def _whole_call(deltas: list[ToolCallDelta]) -> WholeCall:
    return WholeCall(
        id=deltas[0].id or "", name=deltas[0].name or "", arguments="".join(delta.arguments for delta in deltas)
    )
