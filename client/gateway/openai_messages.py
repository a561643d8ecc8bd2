"""OpenAI's messages, and what they are for a chat template."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from client.chat_template import Message
from client.gateway.bodies import ApiBody, refuse_more
from client.gateway.faults import FieldError


class CalledFunction(ApiBody, frozen=True, kw_only=True):
    """What an earlier answer called: the arguments are JSON as text."""

    name: str
    arguments: str
    parsed_arguments: Any = None
    """Without effect: what OpenAI's own package adds to answers that it parses; they are sent back as they are."""


class ToolCall(ApiBody, frozen=True, kw_only=True):
    """One call of an earlier answer."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None
    """What a stream's deltas have; some programs send it back."""


class ContentPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message; what isn't text is refused by its type, whatever else is in it."""

    type: str
    text: str | None = None
    refusal: str | None = None


class ChatMessage(ApiBody, frozen=True, kw_only=True):
    """One message; the fields of an answer are taken too, so that answers can be sent back as they came."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    audio: Any = None
    function_call: Any = None
    annotations: Any = None
    parsed: Any = None
    """As `parsed_arguments`."""


MAX_MESSAGES = 16_384
"""A message is four tokens or more of any template: so many fill the longest contexts."""
MAX_PARTS = 16_384

_TEXT_TYPES = frozenset({"text", "input_text", "output_text"})


def template_messages(messages: list[ChatMessage]) -> tuple[Message, ...]:
    """The conversation as templates read it.

    Raises:
        FieldError: nothing in it, or a part that isn't text; names the message.
    """
    if not messages:
        raise FieldError("messages is empty: give at least one", param="messages")
    refuse_more(len(messages), MAX_MESSAGES, "messages", "messages")
    return tuple(_template_message(message, f"messages[{number}]") for number, message in enumerate(messages))


def text_of(content: str | list[ContentPart] | None, where: str) -> str:
    """The text of a message's content.

    Raises:
        FieldError: a part that isn't text; names it.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    refuse_more(len(content), MAX_PARTS, where, "parts")
    return "".join(_part_text(part, f"{where}[{number}]") for number, part in enumerate(content))


def _part_text(part: ContentPart, where: str) -> str:
    if part.type == "refusal":
        return part.refusal or ""
    if part.type not in _TEXT_TYPES:
        raise FieldError(
            f"{where} is of type {part.type[:40]!r}: models here take text alone, no images, audio or files",
            param=where,
            code="unsupported_content",
        )
    if part.text is None:
        raise FieldError(f"{where} has no text", param=f"{where}.text")
    return part.text


def _template_message(message: ChatMessage, where: str) -> Message:
    if message.audio is not None or message.function_call is not None:
        name = "audio" if message.audio is not None else "function_call"
        raise FieldError(f"{where}.{name} isn't supported: leave it out", param=f"{where}.{name}")
    if message.content is None and not message.tool_calls and message.role != "assistant":
        raise FieldError(f"{where} has no content", param=f"{where}.content")
    if message.role == "tool" and message.tool_call_id is None:
        raise FieldError(f"{where} answers a call, but which? give tool_call_id", param=f"{where}.tool_call_id")
    # templates know `system`; `developer` is OpenAI's newer word for it
    role = "system" if message.role == "developer" else message.role
    found: dict[str, Any] = {"role": role, "content": text_of(message.content, f"{where}.content")}
    for key in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, key)) is not None:
            found[key] = value
    if message.tool_calls:
        found["tool_calls"] = [msgspec.to_builtins(call) for call in message.tool_calls]
    return found
