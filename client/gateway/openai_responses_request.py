"""What `/v1/responses` is asked, in its text form, and the turn that it is."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from client.gateway.bodies import ApiBody, refuse_set
from client.gateway.faults import FieldError
from client.gateway.openai_fields import (
    DEFAULT_MAX_TOKENS,
    JsonSchema,
    ResponseFormat,
    SamplingBody,
    StreamOptions,
    checked_options,
    constraints,
    fields_of,
)
from client.gateway.openai_messages import ChatMessage, ContentPart, template_messages
from client.gateway.turns import ChatTurn


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """A message of the input; an answer's own items can be sent back as they came."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None


class TextFormat(ApiBody, frozen=True, kw_only=True):
    """As `response_format` of chats, with the schema's fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextSettings(ApiBody, frozen=True, kw_only=True):
    """How the answer's text is to be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None
    """What OpenAI takes for granted; others can't be had."""


class ResponseRequest(SamplingBody, frozen=True, kw_only=True):
    """`POST /v1/responses`."""

    input: str | list[InputItem]
    instructions: str | None = None
    max_output_tokens: int | None = None
    text: TextSettings | None = None
    store: bool | None = None
    stream_options: StreamOptions | None = None

    # Taken and without effect: what OpenAI's own servers do with them isn't there to be done.
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    truncation: Literal["disabled"] | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    tools: list[Any] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    background: bool | None = None

    previous_response_id: Any = None
    conversation: Any = None
    prompt: Any = None
    reasoning: Any = None
    top_logprobs: Any = None
    max_tool_calls: Any = None
    context_management: Any = None


_REFUSED = {
    "previous_response_id": "this gateway keeps no answers; send the whole conversation as input",
    "conversation": "this gateway keeps no conversations; send the whole of it as input",
    "prompt": "this gateway keeps no prompts; send input and instructions",
    "reasoning": "how long a model thinks is up to the model; leave it out",
    "top_logprobs": "ask /v1/chat/completions for them",
    "max_tool_calls": "there are no tools in this API here; ask /v1/chat/completions",
    "context_management": "leave it out",
}


def response_turn(body: ResponseRequest, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for.

    Raises:
        FieldError: something in it can't be done; names the field.
    """
    refuse_set(body, _REFUSED)
    for name, why in (
        ("store", "this gateway keeps no answers: set it to false"),
        ("background", "answers come on the request that asks for them: leave it out"),
        ("tools", "tools are for /v1/chat/completions here: leave them out"),
        ("include", "there is nothing to include: leave it out"),
    ):
        if getattr(body, name):
            raise FieldError(f"{name} isn't supported: {why}", param=name, code="unsupported_parameter")
    options = checked_options(
        {
            **fields_of(body, "temperature", "top_p", "top_k", "min_p", "repetition_penalty"),
            **constraints(body, _format(body.text)),
            "max_tokens": body.max_output_tokens,
            "default_max_tokens": DEFAULT_MAX_TOKENS,
            "timeout_s": timeout_s,
        }
    )
    messages = [] if body.instructions is None else [ChatMessage(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        messages.append(ChatMessage(role="user", content=body.input))
    else:
        messages += [_message(item, f"input[{number}]") for number, item in enumerate(body.input)]
    return ChatTurn(model=body.model, messages=template_messages(messages), options=options)


def _message(item: InputItem, where: str) -> ChatMessage:
    if item.type != "message":
        raise FieldError(
            f"{where} is of type {item.type[:40]!r}: messages alone are supported here", param=f"{where}.type"
        )
    if item.role is None or item.content is None:
        raise FieldError(f"{where} needs role and content", param=where)
    return ChatMessage(role=item.role, content=item.content)


def _format(text: TextSettings | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    given = text.format
    if given.type != "json_schema":
        return ResponseFormat(type=given.type)
    if given.schema is None:
        raise FieldError("text.format of type json_schema needs schema", param="text.format.schema")
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name=given.name or "", schema=given.schema))
