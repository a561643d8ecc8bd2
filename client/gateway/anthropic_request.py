"""What Anthropic's `/v1/messages` is asked, and the turn that it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import msgspec

from client.chat_template import Message
from client.gateway.bodies import ApiBody, json_bytes, refuse_set
from client.gateway.faults import FieldError
from client.gateway.openai_fields import checked_options, fields_of
from client.gateway.turns import ChatTurn, NamedTool, ToolChoice


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a message; what it has beyond this (where to cache, citations) is without effect here."""

    type: str
    text: str | None = None
    thinking: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: Any = None
    is_error: bool = False


class InputMessage(ApiBody, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class Tool(msgspec.Struct, frozen=True, kw_only=True):
    """A tool that the caller runs."""

    name: str
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool | None = None


class Choice(ApiBody, frozen=True, kw_only=True):
    """Which tools may or must be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the model is to think first, which is up to the model here."""

    type: Literal["enabled", "disabled", "adaptive"]


class OutputFormat(ApiBody, frozen=True, kw_only=True):
    """What the answer is held to."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(ApiBody, frozen=True, kw_only=True):
    """How the answer is to be."""

    format: OutputFormat | None = None
    effort: str | None = None


class PromptBody(ApiBody, frozen=True, kw_only=True):
    """What `/v1/messages` and `/v1/messages/count_tokens` have in common."""

    model: str
    messages: list[InputMessage]
    system: str | list[Block] | None = None
    tools: list[Tool] | None = None
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: Any = None
    """Without effect: whatever begins as an earlier prompt did is taken from there anyway."""
    context_management: Any = None
    mcp_servers: Any = None
    speed: Literal["standard", "fast"] | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None


class MessagesRequest(PromptBody, frozen=True, kw_only=True):
    """`POST /v1/messages`; the last of these are without effect."""

    max_tokens: int
    stream: bool = False
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    container: Any = None
    diagnostics: Any = None
    inference_geo: str | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None


_REFUSED = {
    "context_management": "leave it out, and leave out of messages what needn't be read",
    "mcp_servers": "the gateway calls no servers; give tools and run them yourself",
}
_REFUSED_TOO = {
    "container": "the gateway runs no code; leave it out",
    "diagnostics": "leave it out",
    "inference_geo": "the workers are where they are; leave it out",
}


def prompt_turn(body: PromptBody) -> ChatTurn:
    """The turn of a request that asks for no answer.

    Raises:
        FieldError: something in it can't be done; names the field.
    """
    refuse_set(body, _REFUSED)
    if body.speed == "fast":
        raise FieldError("speed can be 'standard' alone: leave it out", param="speed")
    if body.thinking is not None and body.thinking.type == "enabled":
        raise FieldError(
            "thinking can't be enabled by the request: whether and how long a model thinks is up to the model; "
            "leave thinking out, or give the type 'adaptive'",
            param="thinking",
        )
    if body.output_config is not None and body.output_config.effort is not None:
        raise FieldError("output_config.effort isn't supported: leave it out", param="output_config.effort")
    choice = body.tool_choice
    return ChatTurn(
        model=body.model,
        messages=tuple(_messages(body)),
        tools=tuple(_function(number, tool) for number, tool in enumerate(body.tools or ())),
        tool_choice=_tool_choice(choice),
        parallel_tool_calls=choice is None or not choice.disable_parallel_tool_use,
    )


def messages_turn(body: MessagesRequest, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for. FieldError: something in it can't be done; names the field."""
    refuse_set(body, _REFUSED_TOO)
    if body.max_tokens < 1:
        raise FieldError(f"max_tokens is {body.max_tokens}; it must be at least 1", param="max_tokens")
    held_to = body.output_config.format if body.output_config is not None else None
    options = checked_options(
        {
            **fields_of(body, "max_tokens", "temperature", "top_p", "top_k"),
            "json_schema": None if held_to is None else json_bytes(held_to.schema).decode(),
            "stop": tuple(body.stop_sequences or ()),
            "timeout_s": timeout_s,
        }
    )
    return replace(prompt_turn(body), options=options)


def _messages(body: PromptBody) -> Iterator[Message]:
    if not body.messages:
        raise FieldError("messages: at least one message is required", param="messages")
    if body.messages[-1].role == "assistant":
        raise FieldError(
            "the last message is the assistant's, but answers can't be begun for the model (prefill): end with a "
            "user message",
            param="messages",
        )
    if body.system:
        yield {"role": "system", "content": _joined_text(body.system, "system")}
    for number, message in enumerate(body.messages):
        where = f"messages[{number}].content"
        if isinstance(message.content, str) or message.role == "system":
            yield {"role": message.role, "content": _joined_text(message.content, where)}
        elif message.role == "assistant":
            yield _answer(message.content, where)
        else:
            yield from _user_messages(message.content, where)


def _joined_text(content: str | Sequence[Block], where: str) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(_text(block, f"{where}[{number}]") for number, block in enumerate(content))


def _text(block: Block, where: str) -> str:
    if block.type != "text":
        raise FieldError(
            f"{where} is of type {block.type[:40]!r}: models here take text alone, no images or documents",
            param=where,
        )
    if block.text is None:
        raise FieldError(f"{where} has no text", param=f"{where}.text")
    return block.text


def _answer(blocks: Sequence[Block], where: str) -> Message:
    """An earlier answer, with what it called."""
    found: dict[str, Any] = {"role": "assistant", "content": ""}
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        match block:
            case Block(type="tool_use", id=str(call_id), name=str(name)):
                arguments = json_bytes(block.input or {}).decode()
                function = {"name": name, "arguments": arguments}
                calls.append({"id": call_id, "type": "function", "function": function})
            case Block(type="thinking"):
                found["reasoning_content"] = block.thinking or ""
            case Block(type="redacted_thinking"):
                pass
            case _:
                texts.append(_text(block, f"{where}[{number}]"))
    found["content"] = "\n".join(texts)
    return found | {"tool_calls": calls} if calls else found


def _user_messages(blocks: Sequence[Block], where: str) -> Iterator[Message]:
    """What a user's message is for templates: results of calls have messages of their own."""
    if not blocks:
        raise FieldError(f"{where} is empty: give at least one block", param=where)
    texts: list[str] = []
    for number, block in enumerate(blocks):
        place = f"{where}[{number}]"
        if block.type != "tool_result":
            texts.append(_text(block, place))
            continue
        if texts:
            raise FieldError(f"{place} is a tool_result after text: results come first", param=place)
        if block.tool_use_id is None:
            raise FieldError(f"{place} answers a call, but which? give tool_use_id", param=f"{place}.tool_use_id")
        yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": _result(block, f"{place}.content")}
    if texts:
        yield {"role": "user", "content": "\n".join(texts)}


def _result(block: Block, where: str) -> str:
    try:
        content = msgspec.convert(block.content or "", str | list[Block])
    except msgspec.ValidationError as exc:
        raise FieldError(f"{where} is neither text nor a list of blocks", param=where) from exc
    text = _joined_text(content, where)
    return f"Error: {text}" if block.is_error else text


def _function(number: int, tool: Tool) -> dict[str, Any]:
    if tool.type not in (None, "custom"):
        raise FieldError(
            f"tools[{number}] is of type {tool.type[:60]!r}, which Anthropic's own servers run: give tools of your "
            "own, with an input_schema",
            param=f"tools[{number}].type",
        )
    if tool.input_schema is None:
        raise FieldError(f"tools[{number}] has no input_schema", param=f"tools[{number}].input_schema")
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
    return {"type": "function", "function": function | {"strict": tool.strict}}


def _tool_choice(choice: Choice | None) -> ToolChoice:
    match choice:
        case None | Choice(type="auto"):
            return "auto"
        case Choice(type="any"):
            return "required"
        case Choice(type="none"):
            return "none"
        case Choice(type="tool", name=str(name)):
            return NamedTool(name=name)
        case _:
            raise FieldError("tool_choice of type 'tool' needs a name", param="tool_choice.name")
