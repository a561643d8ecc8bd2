"""`/v1/chat/completions`: a conversation's next message, whole or as it comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from aiohttp import web

from client.gateway.answering import WholeAnswer, after_the_first, several, turn_plan, whole_answer
from client.gateway.asking import asking_client, found_model, observed, token_bytes
from client.gateway.bodies import json_answer, json_bytes, read_json
from client.gateway.keys import CONFIG
from client.gateway.merging import collected, merged
from client.gateway.openai_chat_request import ChatRequest, chat_turn
from client.gateway.openai_errors import openai_error
from client.gateway.openai_shapes import (
    TokenBytesOf,
    chat_logprobs,
    fingerprint_of,
    new_id,
    now_s,
    usage_json,
    usage_of,
)
from client.gateway.streams import KEEP_ALIVE_S, streamed
from client.gateway.turns import TextDelta, ToolCallDelta, TurnEnd, TurnEvent, plan_events
from protocol.errors import BrigadeError
from protocol.rest import ModelInfo

DONE = b"data: [DONE]\n\n"


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/chat/completions`."""
    body = await read_json(request, ChatRequest)
    turn = chat_turn(body, timeout_s=request.app[CONFIG].timeout_s)
    n_choices = body.n_choices
    async with asking_client(request) as client:
        model = await found_model(client, turn.model)
        plans = after_the_first(await several(client, model, await turn_plan(client, model, turn), n_choices))
        sources = [observed(request, "chat", model, plan_events(client, model, plan)) for plan in plans]
        bytes_of = await token_bytes(client, model)
        if body.stream:
            wants_usage = body.stream_options is not None and body.stream_options.include_usage is True
            chunks = ChatChunks(model, bytes_of, wants_usage=wants_usage)
            return await streamed(request, chunks.of(sources), error_event=error_event)
        answers = [whole_answer(events) for events in await collected(sources)]
    return json_answer(_completion(model, answers, bytes_of))


def error_event(error: BrigadeError) -> bytes:
    """What a stream ends with that fails: OpenAI's clients raise it."""
    return b"data: " + json_bytes(openai_error(error)) + b"\n\n"


class ChatChunks:
    """The events of one streamed answer as bytes. What is alike in all of them is encoded once."""

    def __init__(self, model: ModelInfo, bytes_of: TokenBytesOf, *, wants_usage: bool) -> None:
        common = {
            "id": new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": now_s(),
            "model": model.name,
            "system_fingerprint": fingerprint_of(model),
        }
        self._common = b"data: " + json_bytes(common)[:-1]
        self._begin = self._common + b',"choices":[{"index":'
        self._end = b'],"usage":null}\n\n' if wants_usage else b"]}\n\n"
        self._bytes_of = bytes_of
        self._wants_usage = wants_usage
        self._ends: dict[int, TurnEnd] = {}
        self._begun: set[int] = set()

    async def of(self, sources: Sequence[AsyncGenerator[TurnEvent, None]]) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        async with merged(sources) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                yield b"".join([self._event(index, event) for index, event in batch])
        yield self._last() + DONE

    def _event(self, index: int, event: TurnEvent) -> bytes:
        begin = b""
        if index not in self._begun:
            self._begun.add(index)
            begin = self._chunk(index, b'{"role":"assistant","content":"","refusal":null}')
        match event:
            case TextDelta():
                logprobs = json_bytes(chat_logprobs(event.logprobs, self._bytes_of)) if event.logprobs else b"null"
                return begin + self._chunk(index, b'{"content":' + json_bytes(event.text) + b"}", logprobs)
            case ToolCallDelta():
                return begin + self._chunk(index, json_bytes({"tool_calls": [_call_delta(event)]}))
            case TurnEnd():
                self._ends[index] = event
                return begin + self._chunk(index, b"{}", finish=json_bytes(event.finish_reason))

    def _chunk(self, index: int, delta: bytes, logprobs: bytes = b"null", finish: bytes = b"null") -> bytes:
        return (
            b'%b%d,"delta":%b,"logprobs":%b,"finish_reason":%b}%b'
            % (self._begin, index, delta, logprobs, finish, self._end)
        )  # fmt: skip

    def _last(self) -> bytes:
        if not self._wants_usage:
            return b""
        usage = json_bytes(usage_json(usage_of(self._ends.values())))
        return self._common + b',"choices":[],"usage":' + usage + b"}\n\n"


def _call_delta(event: ToolCallDelta) -> dict[str, Any]:
    if event.id is None:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.index, "id": event.id, "type": "function", "function": function}


def _completion(model: ModelInfo, answers: Sequence[WholeAnswer], bytes_of: TokenBytesOf) -> dict[str, Any]:
    return {
        "id": new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now_s(),
        "model": model.name,
        "system_fingerprint": fingerprint_of(model),
        "choices": [_choice(index, answer, bytes_of) for index, answer in enumerate(answers)],
        "usage": usage_json(usage_of(answer.end for answer in answers)),
    }


def _choice(index: int, answer: WholeAnswer, bytes_of: TokenBytesOf) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in answer.calls
        ]
    logprobs = chat_logprobs(answer.logprobs, bytes_of) if answer.logprobs else None
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": answer.end.finish_reason,
    }
