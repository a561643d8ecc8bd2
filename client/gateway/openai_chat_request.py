"""What `/v1/chat/completions` is asked, and the turn that it is."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from client.gateway.bodies import ApiBody, refuse_more, refuse_set
from client.gateway.faults import FieldError
from client.gateway.openai_fields import (
    DEFAULT_MAX_TOKENS,
    MAX_TOP_LOGPROBS,
    CompletionBody,
    biases_of,
    checked_options,
    constraints,
    fields_of,
    stops_of,
)
from client.gateway.openai_messages import ChatMessage, template_messages
from client.gateway.tool_calls import MAX_TOOLS
from client.gateway.turns import ChatTurn, NamedTool, ToolChoice


class FunctionDefinition(ApiBody, frozen=True, kw_only=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(ApiBody, frozen=True, kw_only=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionDefinition


class FunctionName(ApiBody, frozen=True, kw_only=True):
    """A function by its name."""

    name: str


class ToolByName(ApiBody, frozen=True, kw_only=True):
    """That this tool has to be called."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(CompletionBody, frozen=True, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[ToolDefinition] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolByName | None = None
    parallel_tool_calls: bool | None = None

    # Taken and without effect: what OpenAI's own servers do with them isn't there to be done.
    service_tier: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    safety_identifier: str | None = None
    modalities: list[str] | None = None

    audio: Any = None
    function_call: Any = None
    functions: Any = None
    prediction: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None
    web_search_options: Any = None


_REFUSED = {
    "audio": "answers are text; leave it out",
    "function_call": "use tool_choice, which replaced it",
    "functions": "use tools, which replaced it",
    "prediction": "leave it out",
    "reasoning_effort": "how long a model thinks is up to the model; leave it out",
    "verbosity": "say it in a message instead",
    "web_search_options": "the cluster searches nothing; leave it out",
}


def chat_turn(body: ChatRequest, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for.

    Raises:
        FieldError: something in it can't be done; names the field.
    """
    refuse_set(body, _REFUSED)
    if body.store:
        raise FieldError("store is true, but this gateway keeps no answers: leave it out", param="store")
    if body.modalities is not None and body.modalities != ["text"]:
        raise FieldError("modalities can be text alone", param="modalities")
    body.check_streaming()
    refuse_more(len(body.tools or ()), MAX_TOOLS, "tools", "tools")
    options = checked_options(
        {
            **fields_of(body, "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos"),
            **fields_of(body, "presence_penalty", "frequency_penalty"),
            **constraints(body, body.response_format),
            "max_tokens": _max_tokens(body),
            "default_max_tokens": DEFAULT_MAX_TOKENS,
            "stop": stops_of(body.stop),
            "logit_bias": biases_of(body.logit_bias),
            "logprobs": _n_logprobs(body),
            "timeout_s": timeout_s,
        }
    )
    return ChatTurn(
        model=body.model,
        messages=template_messages(body.messages),
        tools=tuple(msgspec.to_builtins(tool) for tool in body.tools or ()),
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        options=options,
    )


def _max_tokens(body: ChatRequest) -> int | None:
    old, new = body.max_tokens, body.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise FieldError(
            f"max_tokens is {old} and max_completion_tokens {new}: give one of them", param="max_tokens"
        )
    return old if new is None else new


def _n_logprobs(body: ChatRequest) -> int | None:
    n_top = body.top_logprobs
    if n_top is not None and not body.logprobs:
        raise FieldError("top_logprobs needs logprobs to be true", param="top_logprobs")
    if n_top is not None and not 0 <= n_top <= MAX_TOP_LOGPROBS:
        raise FieldError(f"top_logprobs is {n_top}; it must be 0 to {MAX_TOP_LOGPROBS}", param="top_logprobs")
    return (n_top or 0) if body.logprobs else None


def _tool_choice(body: ChatRequest) -> ToolChoice:
    names = {tool.function.name for tool in body.tools or ()}
    match body.tool_choice:
        case ToolByName(function=FunctionName(name=name)):
            if name not in names:
                raise FieldError(f"tool_choice is {name[:64]!r}, which isn't in tools", param="tool_choice")
            return NamedTool(name=name)
        case None:
            return "auto"
        case "required" if not names:
            raise FieldError("tool_choice is required, but there are no tools", param="tool_choice")
        case choice:
            return choice
