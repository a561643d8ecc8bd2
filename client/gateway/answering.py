"""From a turn to its answer: plans, runs, and puts together. What every API of the gateway calls."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass, replace

from client.api import Client
from client.gateway.asking import found_model
from client.gateway.tool_calls import needs_tool_plan, tool_plan
from client.gateway.turns import (
    ChatTurn,
    TextDelta,
    TokenLogprob,
    ToolCallDelta,
    TurnEnd,
    TurnEvent,
    TurnPlan,
    plan_events,
)
from protocol.rest import ModelInfo


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
    seeds = [None if seed is None else seed + number for number in range(n)]
    return [replace(plan, prompt=token_ids, options=replace(plan.options, seed=one)) for one in seeds]


async def turn_events(client: Client, turn: ChatTurn) -> AsyncGenerator[TurnEvent, None]:
    """The answer to a turn as it comes; as `plan_events`."""
    model = await found_model(client, turn.model)
    async for event in plan_events(client, model, await turn_plan(client, model, turn)):
        yield event


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
