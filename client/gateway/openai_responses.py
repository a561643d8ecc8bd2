"""`/v1/responses` in its text form: one message out, whole or as numbered events. Nothing is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Literal

from aiohttp import web

from client.gateway.answering import turn_plan, whole_answer
from client.gateway.asking import asking_client, found_model
from client.gateway.bodies import json_answer, json_bytes, read_json
from client.gateway.keys import CONFIG
from client.gateway.merging import collected, merged
from client.gateway.openai_errors import openai_error
from client.gateway.openai_responses_request import ResponseRequest, response_turn
from client.gateway.openai_shapes import new_id, now_s
from client.gateway.streams import KEEP_ALIVE_S, streamed
from client.gateway.turns import TextDelta, TurnEnd, TurnEvent, Usage, plan_events
from protocol.errors import BrigadeError
from protocol.rest import ModelInfo


async def responses(request: web.Request) -> web.StreamResponse:
    """`POST /v1/responses`."""
    body = await read_json(request, ResponseRequest)
    turn = response_turn(body, timeout_s=request.app[CONFIG].timeout_s)
    async with asking_client(request) as client:
        model = await found_model(client, turn.model)
        source = plan_events(client, model, await turn_plan(client, model, turn))
        shape = ResponseShape(body, model)
        if body.stream:
            return await streamed(request, shape.events(source), error_event=shape.failed)
        (events,) = await collected([source])
    answer = whole_answer(events)
    return json_answer(shape.over(answer.text, answer.end))


class ResponseShape:
    """One answer as OpenAI's response objects, and as the events in which it comes about."""

    def __init__(self, body: ResponseRequest, model: ModelInfo) -> None:
        self._item_id = new_id("msg_")
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
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"} if body.text is None else body.text.format or {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.top_p,
            "truncation": "disabled",
            "user": body.user,
        }

    async def events(self, source: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        texts: list[str] = []
        begin = self._begun()
        async with merged([source]) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                if not batch:
                    yield b""
                    continue
                said, begin = begin, b""
                for _, event in batch:
                    if isinstance(event, TextDelta):
                        texts.append(event.text)
                        said += self._delta(event.text)
                    elif isinstance(event, TurnEnd):
                        said += self._ended("".join(texts), event)
                yield said

    def over(self, text: str, end: TurnEnd) -> dict[str, Any]:
        """The response object of an answer that is over."""
        is_cut = end.finish_reason == "length"
        status: Literal["incomplete", "completed"] = "incomplete" if is_cut else "completed"
        return self._common | {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "output": [self._item(text, status)],
            "usage": _usage(end.usage),
        }

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
        item = {"id": self._item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        return (
            self._event("response.created", {"response": response})
            + self._event("response.in_progress", {"response": response})
            + self._event("response.output_item.added", {"output_index": 0, "item": item})
            + self._event("response.content_part.added", self._place() | {"part": _part("")})
        )

    def _delta(self, text: str) -> bytes:
        return self._event("response.output_text.delta", self._place() | {"delta": text, "logprobs": []})

    def _ended(self, text: str, end: TurnEnd) -> bytes:
        response = self.over(text, end)
        last = f"response.{response['status']}"
        return (
            self._event("response.output_text.done", self._place() | {"text": text, "logprobs": []})
            + self._event("response.content_part.done", self._place() | {"part": _part(text)})
            + self._event("response.output_item.done", {"output_index": 0, "item": response["output"][0]})
            + self._event(last, {"response": response})
        )

    def _event(self, kind: str, fields: dict[str, Any]) -> bytes:
        data = json_bytes({"type": kind, "sequence_number": self._sequence_number} | fields)
        self._sequence_number += 1
        return b"event: " + kind.encode() + b"\ndata: " + data + b"\n\n"

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    def _item(self, text: str, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_part(text)],
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
