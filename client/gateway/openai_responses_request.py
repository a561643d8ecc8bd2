"""What `/v1/responses` is asked, in its text form, and the turn that it is."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from client.gateway.bodies import ApiBody, refuse_more, refuse_set
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
from client.gateway.openai_messages import (
    MAX_MESSAGES,
    CalledFunction,
    ChatMessage,
    ContentPart,
    ToolCall,
    template_messages,
    text_of,
)
from client.gateway.turns import ChatTurn, NamedTool


class InputItem(msgspec.Struct, frozen=True, kw_only=True):
    """A message, a call or its result; an answer's own items can be sent back as they came."""

    type: str = "message"
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[ContentPart] | None = None


class ResponseTool(ApiBody, frozen=True, kw_only=True):
    """A tool that the caller runs: a function as by chats, but flat."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseToolByName(ApiBody, frozen=True, kw_only=True):
    """That this tool has to be called."""

    type: Literal["function"]
    name: str


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
    tools: list[ResponseTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | ResponseToolByName | None = None
    parallel_tool_calls: bool | None = None

    # Taken and without effect: what OpenAI's own servers do with them isn't there to be done.
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    truncation: Literal["disabled"] | None = None
    include: list[str] | None = None
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
    "max_tool_calls": "the gateway runs no tools, and ends an answer once it has called: count them yourself",
    "context_management": "leave it out",
}

_NEEDED = {
    "message": "role and content",
    "function_call": "call_id, name and arguments",
    "function_call_output": "call_id and output",
}
"""By the type of an item."""


def response_turn(body: ResponseRequest, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for.

    Raises:
        FieldError: something in it can't be done; names the field.
    """
    refuse_set(body, _REFUSED)
    for name, why in (
        ("store", "this gateway keeps no answers: set it to false"),
        ("background", "answers come on the request that asks for them: leave it out"),
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
    messages, id_places = _messages(body)
    choice = body.tool_choice or "auto"
    return ChatTurn(
        model=body.model,
        messages=template_messages(messages),
        id_places=id_places,
        tools=tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(body.tools or ())),
        tool_choice=NamedTool(name=choice.name) if isinstance(choice, ResponseToolByName) else choice,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        options=options,
    )


def _messages(body: ResponseRequest) -> tuple[list[ChatMessage], dict[int, str]]:
    """The conversation, and where the calls are named that its messages are results of."""
    messages = [] if body.instructions is None else [ChatMessage(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        return [*messages, ChatMessage(role="user", content=body.input)], {}
    refuse_more(len(body.input), MAX_MESSAGES, "input", "items")
    if not body.input and not messages:
        raise FieldError("input is empty: give a text, or at least one item", param="input")
    id_places = {}
    for number, item in enumerate(body.input):
        where = f"input[{number}]"
        messages += _message(item, where, messages)
        if item.type == "function_call_output":
            id_places[len(messages) - 1] = f"{where}.call_id"
    return messages, id_places


def _message(item: InputItem, where: str, before: list[ChatMessage]) -> list[ChatMessage]:
    """The message that an item is. A call goes to the assistant's message before it, which is taken from there."""
    match item:
        case InputItem(type="message", role=role, content=str() | list() as content) if role is not None:
            return [ChatMessage(role=role, content=text_of(content, f"{where}.content"))]
        case InputItem(type="function_call", call_id=str(call_id), name=str(name), arguments=str(arguments)):
            is_same = bool(before) and before[-1].role == "assistant"
            said = before.pop() if is_same else ChatMessage(role="assistant")
            call = ToolCall(id=call_id, function=CalledFunction(name=name, arguments=arguments))
            return [msgspec.structs.replace(said, tool_calls=[*(said.tool_calls or ()), call])]
        case InputItem(type="function_call_output", call_id=str(call_id), output=str() | list() as output):
            return [ChatMessage(role="tool", tool_call_id=call_id, content=text_of(output, f"{where}.output"))]
        case InputItem(type=kind) if kind in _NEEDED:
            raise FieldError(f"{where} needs {_NEEDED[kind]}", param=where)
        case _:
            raise FieldError(
                f"{where} is of type {item.type[:40]!r}; it must be {', '.join(_NEEDED)}", param=f"{where}.type"
            )


def _tool(tool: ResponseTool, where: str) -> dict[str, Any]:
    if tool.type != "function":
        raise FieldError(
            f"{where} is of type {tool.type[:40]!r}, which OpenAI's own servers run: give functions of your own",
            param=f"{where}.type",
            code="unsupported_parameter",
        )
    return {"type": "function", "function": fields_of(tool, "name", "description", "parameters", "strict")}


def _format(text: TextSettings | None) -> ResponseFormat | None:
    if text is None or text.format is None:
        return None
    given = text.format
    if given.type != "json_schema":
        return ResponseFormat(type=given.type)
    if given.schema is None:
        raise FieldError("text.format of type json_schema needs schema", param="text.format.schema")
    return ResponseFormat(type="json_schema", json_schema=JsonSchema(name=given.name or "", schema=given.schema))
