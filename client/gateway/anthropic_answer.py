"""Anthropic's answers: a message whole, or as the events that it comes in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from client.gateway.answering import WholeAnswer
from client.gateway.bodies import json_bytes
from client.gateway.merging import merged
from client.gateway.openai_shapes import new_id
from client.gateway.streams import KEEP_ALIVE_S
from client.gateway.tool_calls import arguments_object
from client.gateway.turns import TextDelta, ToolCallDelta, TurnEnd, TurnEvent


def event(kind: str, **fields: Any) -> bytes:
    """One event of a stream."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), json_bytes({"type": kind, **fields}))


PING = event("ping")


def message_json(answer: WholeAnswer, model: str, *, is_at_context_end: bool) -> dict[str, Any]:
    """The whole answer. `is_at_context_end`: whether there was room for less than was asked for."""
    content: list[dict[str, Any]] = [{"type": "text", "text": answer.text}] if answer.text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": arguments_object(call.arguments)}
        for call in answer.calls
    ]
    return _message(model) | {
        "content": content,
        **_stop(answer.end, is_at_context_end=is_at_context_end),
        "usage": _usage(answer.end),
    }


class MessageEvents:
    """The events of one streamed answer, as bytes."""

    def __init__(self, model: str, *, n_prompt_tokens: int, is_at_context_end: bool) -> None:
        self._model = model
        self._n_prompt_tokens = n_prompt_tokens
        self._is_at_context_end = is_at_context_end
        self._is_begun = False
        self._n_blocks = 0
        self._open = ""
        """What the open block is: `text`, `tool_use`, or empty if there is none."""

    async def of(self, source: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        async with merged([source]) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                begin = b"" if self._is_begun else self._start()
                yield begin + b"".join(self._events([one for _, one in batch]))

    def _start(self) -> bytes:
        self._is_begun = True
        usage = {
            "input_tokens": self._n_prompt_tokens,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        }
        return event("message_start", message=_message(self._model) | {"usage": usage}) + PING

    def _events(self, batch: Sequence[TurnEvent]) -> list[bytes]:
        said: list[bytes] = []
        texts: list[str] = []
        for one in batch:
            if isinstance(one, TextDelta):
                texts.append(one.text)
                continue
            said += self._text("".join(texts))
            texts.clear()
            said += self._call(one) if isinstance(one, ToolCallDelta) else self._end(one)
        return [*said, *self._text("".join(texts))]

    def _text(self, text: str) -> list[bytes]:
        if not text:
            return []
        begin = [] if self._open == "text" else self._block({"type": "text", "text": ""})
        return [*begin, self._delta({"type": "text_delta", "text": text})]

    def _call(self, delta: ToolCallDelta) -> list[bytes]:
        begin: list[bytes] = []
        if delta.id is not None:
            begin = self._block({"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}})
        if not delta.arguments:
            return begin
        return [*begin, self._delta({"type": "input_json_delta", "partial_json": delta.arguments})]

    def _block(self, block: dict[str, Any]) -> list[bytes]:
        closed = self._close()
        self._open = block["type"]
        self._n_blocks += 1
        return [*closed, event("content_block_start", index=self._n_blocks - 1, content_block=block)]

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return event("content_block_delta", index=self._n_blocks - 1, delta=delta)

    def _close(self) -> list[bytes]:
        if not self._open:
            return []
        self._open = ""
        return [event("content_block_stop", index=self._n_blocks - 1)]

    def _end(self, end: TurnEnd) -> list[bytes]:
        stop = _stop(end, is_at_context_end=self._is_at_context_end)
        return [*self._close(), event("message_delta", delta=stop, usage=_usage(end)), event("message_stop")]


def _message(model: str) -> dict[str, Any]:
    """What is known of an answer before it begins."""
    return {
        "id": new_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop(end: TurnEnd, *, is_at_context_end: bool) -> dict[str, Any]:
    stop_string = end.result.stop_string
    reasons = {
        "tool_calls": "tool_use",
        "length": "model_context_window_exceeded" if is_at_context_end else "max_tokens",
        "stop": "stop_sequence" if stop_string else "end_turn",
    }
    reason = reasons[end.finish_reason]
    return {"stop_reason": reason, "stop_sequence": stop_string if reason == "stop_sequence" else None}


def _usage(end: TurnEnd) -> dict[str, int]:
    """Anthropic counts what came out of a cache apart."""
    return {
        "input_tokens": end.usage.prompt_tokens - end.usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": end.usage.cached_tokens,
        "output_tokens": end.usage.completion_tokens,
    }
