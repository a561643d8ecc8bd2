"""Ollama's answers: one JSON object, or one a line as they come."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

from client.gateway.answering import WholeAnswer, WholeCall
from client.gateway.bodies import json_bytes
from client.gateway.merging import merged
from client.gateway.streams import KEEP_ALIVE_S
from client.gateway.tool_calls import arguments_object
from client.gateway.turns import TextDelta, ToolCallDelta, TurnEnd, TurnEvent

NDJSON_HEADERS = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
_NS = 1_000_000_000


def timestamp() -> str:
    """Now, as Ollama writes it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


class OllamaAnswer:
    """The shapes of one answer: of `/api/chat`, or else of `/api/generate`."""

    def __init__(self, model: str, *, is_chat: bool) -> None:
        self._model = model
        self._is_chat = is_chat
        self._calls: dict[int, WholeCall] = {}

    def whole(self, answer: WholeAnswer) -> dict[str, Any]:
        """All of it."""
        return self._object(answer.text, answer.calls) | done_fields(answer.end)

    def loaded(self) -> dict[str, Any]:
        """What is said where nothing was asked: here models are loaded or not, whoever asks."""
        return self._object("", ()) | {"done": True, "done_reason": "load"}

    async def lines(self, source: AsyncGenerator[TurnEvent, None]) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        async with merged([source]) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                yield b"".join(json_bytes(line) + b"\n" for line in self._lines([one for _, one in batch]))

    def _lines(self, batch: Sequence[TurnEvent]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        for event in batch:
            match event:
                case TextDelta():
                    lines += self._complete_calls(before=None)
                    if event.text:
                        lines.append(self._object(event.text, ()))
                case ToolCallDelta():
                    lines += self._complete_calls(before=event.index)
                    self._add(event)
                case TurnEnd():
                    lines += self._complete_calls(before=None)
                    lines.append(self._object("", ()) | done_fields(event))
        return lines

    def _add(self, delta: ToolCallDelta) -> None:
        known = self._calls.get(delta.index)
        self._calls[delta.index] = WholeCall(
            id=known.id if known else delta.id or "",
            name=known.name if known else delta.name or "",
            arguments=(known.arguments if known else "") + delta.arguments,
        )

    def _complete_calls(self, before: int | None) -> list[dict[str, Any]]:
        """The calls that nothing more can come of, as this API has each call in one piece."""
        complete = [index for index in self._calls if before is None or index < before]
        return [self._object("", (self._calls.pop(index),)) for index in complete]

    def _object(self, text: str, calls: Sequence[WholeCall]) -> dict[str, Any]:
        common = {"model": self._model, "created_at": timestamp()}
        if not self._is_chat:
            return common | {"response": text, "done": False}
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if calls:
            message["tool_calls"] = [
                {"id": call.id, "function": {"name": call.name, "arguments": arguments_object(call.arguments)}}
                for call in calls
            ]
        return common | {"message": message, "done": False}


def done_fields(end: TurnEnd) -> dict[str, Any]:
    """What the last object has beside: why it ended, and what it took."""
    result = end.result
    n_after_first = max(0, result.completion_tokens - 1)
    eval_s = n_after_first / result.tokens_per_s if result.tokens_per_s > 0 else 0.0
    return {
        "done": True,
        "done_reason": "length" if end.finish_reason == "length" else "stop",
        "total_duration": int((result.ttft_s + eval_s) * _NS),
        "load_duration": 0,
        "prompt_eval_count": end.usage.prompt_tokens,
        "prompt_eval_duration": int(result.ttft_s * _NS),
        "eval_count": end.usage.completion_tokens,
        "eval_duration": int(eval_s * _NS),
    }
