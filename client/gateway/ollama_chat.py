"""Ollama's `/api/chat` and `/api/generate`."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from aiohttp import web

from client.api import Client
from client.gateway.answering import turn_plan, whole_answer
from client.gateway.asking import asking_client, observed
from client.gateway.bodies import json_answer, read_json
from client.gateway.keys import CONFIG
from client.gateway.merging import collected
from client.gateway.metrics import Operation
from client.gateway.ollama_answer import NDJSON_HEADERS, OllamaAnswer
from client.gateway.ollama_errors import error_line
from client.gateway.ollama_models import named_model
from client.gateway.ollama_request import (
    OllamaChat,
    OllamaGenerate,
    chat_turn,
    generate_turn,
    has_prompt,
    raw_options,
)
from client.gateway.streams import streamed
from client.gateway.turns import TurnEvent, TurnPlan, plan_events
from protocol.rest import ModelInfo


async def chat(request: web.Request) -> web.StreamResponse:
    """`POST /api/chat`."""
    return await _answer(request, await read_json(request, OllamaChat, types=None))


async def generate(request: web.Request) -> web.StreamResponse:
    """`POST /api/generate`."""
    return await _answer(request, await read_json(request, OllamaGenerate, types=None))


async def _answer(request: web.Request, body: OllamaChat | OllamaGenerate) -> web.StreamResponse:
    timeout_s = request.app[CONFIG].timeout_s
    async with asking_client(request) as client:
        model = await named_model(client, body.model)
        shapes = OllamaAnswer(body.model, is_chat=isinstance(body, OllamaChat))
        if not has_prompt(body):
            return json_answer(shapes.loaded())
        operation: Operation = "chat" if isinstance(body, OllamaChat) else "text_completion"
        source = observed(request, operation, model, await _source(client, model, body, timeout_s))
        if body.stream is not False:
            return await streamed(
                request, shapes.lines(source), error_event=error_line, headers=NDJSON_HEADERS, keep_alive=b"\n"
            )
        (found,) = await collected([source])
    return json_answer(shapes.whole(whole_answer(found)))


async def _source(
    client: Client, model: ModelInfo, body: OllamaChat | OllamaGenerate, timeout_s: float
) -> AsyncGenerator[TurnEvent, None]:
    if isinstance(body, OllamaGenerate) and (body.raw or not model.is_chat):
        plan = TurnPlan(prompt=body.prompt or "", options=raw_options(body, timeout_s=timeout_s))
    elif isinstance(body, OllamaGenerate):
        plan = await turn_plan(client, model, generate_turn(body, timeout_s=timeout_s))
    else:
        plan = await turn_plan(client, model, chat_turn(body, timeout_s=timeout_s))
    return plan_events(client, model, plan)
