"""`/v1/responses` in its text form: messages and calls out, whole or as numbered events. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

import msgspec
from aiohttp import web

from client.gateway.answering import turn_plan
from client.gateway.asking import asking_client, found_model, observed
from client.gateway.bodies import json_answer, json_bytes, read_json
from client.gateway.keys import CONFIG
from client.gateway.merging import collected, merged
from client.gateway.openai_errors import openai_error
from client.gateway.openai_response_items import ItemStatus, OutputItems
from client.gateway.openai_responses_request import ResponseRequest, response_turn
from client.gateway.openai_shapes import new_id, now_s
from client.gateway.streams import KEEP_ALIVE_S, streamed
from client.gateway.turns import TurnEnd, TurnEvent, Usage, plan_events
from protocol.errors import BrigadeError
from protocol.rest import ModelInfo


async def responses(request: web.Request) -> web.StreamResponse:
    """`POST /v1/responses`."""
    body = await read_json(request, ResponseRequest)
    turn = response_turn(body, timeout_s=request.app[CONFIG].timeout_s)
    async with asking_client(request) as client:
        model = await found_model(client, turn.model)
        plan = await turn_plan(client, model, turn)
        source = observed(request, "chat", model, plan_events(client, model, plan))
        shape = ResponseShape(body, model)
        if body.stream:
            return await streamed(request, shape.events(source), error_event=shape.failed)
        (events,) = await collected([source])
    return json_answer(shape.whole(events))


class ResponseShape:
    """One answer as OpenAI's response objects, and as the events in which it comes about."""

    def __init__(self, body: ResponseRequest, model: ModelInfo) -> None:
        self._items = OutputItems()
        self._sequence_number = 0
        self._common: dict[str, Any] = {
            "id": new_id("resp_"),
            "object": "response",
            "created_at": now_s(),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": model.name,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"} if body.text is None else body.text.format or {"type": "text"}},
            "tool_choice": msgspec.to_builtins(body.tool_choice or "auto"),
            "tools": msgspec.to_builtins(body.tools or []),
            "top_p": body.top_p,
            "truncation": "disabled",
            "user": body.user,
        }

    async def events(self, source: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        begin = self._begun()
        async with merged([source]) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                said, begin = begin, b""  # where nothing has come for a while, too: it begins with its first event
                yield said + b"".join([self._said(event) for _, event in batch])

    def whole(self, events: Sequence[TurnEvent]) -> dict[str, Any]:
        """The response object of an answer, all of whose events these are."""
        *deltas, end = events
        assert isinstance(end, TurnEnd), "the last event of an answer is its end"
        for delta in deltas:
            self._said(delta)
        self._items.ended(_status(end))
        return self._over(end)

    def failed(self, error: BrigadeError) -> bytes:
        """What a stream ends with that fails."""
        said = openai_error(error).error
        code = said.code if said.code == "rate_limit_exceeded" else "server_error"
        response = self._common | {
            "status": "failed",
            "output": [],
            "usage": None,
            "error": {"code": code, "message": said.message},
        }
        return self._event("response.failed", {"response": response})

    def _begun(self) -> bytes:
        response = self._common | {"status": "in_progress", "output": [], "usage": None}
        created = self._event("response.created", {"response": response})
        return created + self._event("response.in_progress", {"response": response})

    def _said(self, event: TurnEvent) -> bytes:
        if not isinstance(event, TurnEnd):
            return b"".join([self._event(kind, fields) for kind, fields in self._items.of(event)])
        said = b"".join([self._event(kind, fields) for kind, fields in self._items.ended(_status(event))])
        return said + self._event(f"response.{_status(event)}", {"response": self._over(event)})

    def _over(self, end: TurnEnd) -> dict[str, Any]:
        status = _status(end)
        return self._common | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._items.complete,
            "usage": _usage(end.usage),
        }

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = json_bytes({"type": kind, "sequence_number": self._sequence_number} | fields)
        self._sequence_number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"


def _status(end: TurnEnd) -> ItemStatus:
    return "incomplete" if end.finish_reason == "length" else "completed"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
