"""Anthropic's `/v1/messages` and `/v1/messages/count_tokens`."""

from __future__ import annotations

from dataclasses import replace

from aiohttp import web

from client.api import Client
from client.gateway.answering import turn_plan, whole_answer
from client.gateway.anthropic_answer import PING, MessageEvents, message_json
from client.gateway.anthropic_errors import ANTHROPIC_SHAPE, PREFIX, error_event
from client.gateway.anthropic_request import MessagesRequest, PromptBody, messages_turn, prompt_turn
from client.gateway.asking import asking_client, found_model, observed
from client.gateway.bodies import json_answer, read_json
from client.gateway.keys import CONFIG, add_error_shape
from client.gateway.merging import collected
from client.gateway.streams import streamed
from client.gateway.turns import ChatTurn, TurnPlan, plan_events
from protocol.rest import ModelInfo


def add_routes(app: web.Application) -> None:
    """Have the application answer Anthropic's clients."""
    add_error_shape(app, ANTHROPIC_SHAPE)
    app.router.add_post(PREFIX, messages)
    app.router.add_post(f"{PREFIX}/count_tokens", count_tokens)


async def messages(request: web.Request) -> web.StreamResponse:
    """`POST /v1/messages`."""
    body = await read_json(request, MessagesRequest)
    turn = messages_turn(body, timeout_s=request.app[CONFIG].timeout_s)
    async with asking_client(request) as client:
        model = await found_model(client, turn.model)
        plan, n_prompt_tokens = await _encoded_plan(client, model, turn)
        n_free = model.context_length - n_prompt_tokens
        is_at_context_end = 0 < n_free < body.max_tokens
        if is_at_context_end:  # asking for more than there is room for is usual with this API
            plan = replace(plan, options=replace(plan.options, max_tokens=n_free))
        source = observed(request, "chat", model, plan_events(client, model, plan))
        if body.stream:
            events = MessageEvents(model.name, n_prompt_tokens=n_prompt_tokens, is_at_context_end=is_at_context_end)
            return await streamed(request, events.of(source), error_event=error_event, keep_alive=PING)
        (found,) = await collected([source])
    return json_answer(message_json(whole_answer(found), model.name, is_at_context_end=is_at_context_end))


async def count_tokens(request: web.Request) -> web.Response:
    """`POST /v1/messages/count_tokens`: how long the prompt is, without an answer to it."""
    turn = prompt_turn(await read_json(request, PromptBody))
    async with asking_client(request) as client:
        model = await found_model(client, turn.model)
        _, n_prompt_tokens = await _encoded_plan(client, model, turn)
    return json_answer({"input_tokens": n_prompt_tokens})


async def _encoded_plan(client: Client, model: ModelInfo, turn: ChatTurn) -> tuple[TurnPlan, int]:
    """The plan with its prompt as tokens, and how many."""
    plan = await turn_plan(client, model, turn)
    token_ids = await client.encoded(model, plan.prompt)
    return replace(plan, prompt=token_ids), len(token_ids)
