"""What Ollama's `/api/chat` and `/api/generate` are asked, and the turns that they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from client.chat_template import Message
from client.gateway.bodies import ApiBody, json_bytes, refuse_set
from client.gateway.faults import FieldError
from client.gateway.openai_fields import DEFAULT_MAX_TOKENS, checked_options
from client.gateway.turns import ChatTurn
from client.options import GenerationOptions

_OPTIONS = {
    "num_predict": "max_tokens",
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Ollama's names and ours."""
_WITHOUT_EFFECT = frozenset(
    {"num_batch", "num_ctx", "num_gpu", "num_keep", "num_thread", "main_gpu", "low_vram", "numa", "use_mmap"}
    | {"use_mlock", "f16_kv", "vocab_only", "logits_all", "embedding_only", "penalize_newline"}
)
"""How a single machine is to run a model, which workers decide themselves; no answer's text hangs on it."""
_NEUTRAL = {"mirostat": (0,), "tfs_z": (1, 1.0), "typical_p": (1, 1.0)}
"""Ways of sampling that aren't there, and the values that switch them off."""
_WITHOUT_LIMIT = frozenset({-1, -2})
"""As `num_predict`: until the model ends, or its context does."""


class CalledFunction(ApiBody, frozen=True, kw_only=True):
    """What an earlier answer called; Ollama's answers number the calls."""

    name: str
    arguments: dict[str, Any] = msgspec.field(default_factory=dict)
    index: int | None = None
    description: str | None = None


class Call(ApiBody, frozen=True, kw_only=True):
    """One call of an earlier answer."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class OllamaMessage(ApiBody, frozen=True, kw_only=True):
    """One message of the conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[str] | None = None
    tool_calls: list[Call] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None
    name: str | None = None


class AnswerBody(ApiBody, frozen=True, kw_only=True):
    """What both have in common."""

    model: str
    stream: bool | None = None
    """None is true."""
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    keep_alive: float | str | None = None
    """Without effect: which models are loaded is the coordinator's to decide."""
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaChat(AnswerBody, frozen=True, kw_only=True):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(AnswerBody, frozen=True, kw_only=True):
    """`POST /api/generate`."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    images: list[str] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None


_NO_IMAGES = "models here make text alone; leave it out"
_REFUSED = {"logprobs": "leave it out, or ask by /v1/chat/completions", "top_logprobs": "as logprobs"}
_REFUSED_BY_GENERATE = {
    "suffix": "no text is filled in before another; leave it out",
    "template": "the model's own chat template is used, or with raw none; leave it out",
    "context": "give the whole conversation to /api/chat; what was read before isn't read again",
    "width": _NO_IMAGES,
    "height": _NO_IMAGES,
    "steps": _NO_IMAGES,
}


def asked_options(body: AnswerBody, *, timeout_s: float) -> GenerationOptions:
    """How the answer is to be.

    Raises:
        FieldError: something can't be done; names the field.
    """
    refuse_set(body, _REFUSED)
    if body.think not in (None, False):
        raise FieldError(
            "think can't be asked for: whether a model thinks first is up to the model; leave it out", param="think"
        )
    given = {name: value for name, value in (body.options or {}).items() if value is not None}
    _check_known(given)
    fields: dict[str, Any] = {ours: given[theirs] for theirs, ours in _OPTIONS.items() if theirs in given}
    _check_numbers(fields)
    if fields.get("max_tokens") in _WITHOUT_LIMIT:
        del fields["max_tokens"]
    stop = given.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise FieldError("options.stop isn't a list of strings", param="options.stop")
    return checked_options(
        fields
        | {
            "stop": tuple(stops),
            "json_schema": _schema(body.format),
            "default_max_tokens": DEFAULT_MAX_TOKENS,
            "timeout_s": timeout_s,
        }
    )


def chat_turn(body: OllamaChat, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for. FieldError: something in it can't be done; names the field."""
    options = asked_options(body, timeout_s=timeout_s)
    return ChatTurn(
        model=body.model,
        messages=tuple(_messages(body.messages or [])),
        tools=tuple(body.tools or ()),
        options=options,
    )


def generate_turn(body: OllamaGenerate, *, timeout_s: float) -> ChatTurn:
    """The turn that is asked for, unless it is raw. FieldError: something in it can't be done; names the field."""
    refuse_set(body, _REFUSED_BY_GENERATE)
    _refuse_images(body.images, "images")
    messages: list[Message] = [{"role": "system", "content": body.system}] if body.system else []
    return ChatTurn(
        model=body.model,
        messages=(*messages, {"role": "user", "content": body.prompt or ""}),
        options=asked_options(body, timeout_s=timeout_s),
    )


def _check_known(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name == "repeat_last_n" and value != -1:
            raise FieldError(
                "options.repeat_last_n can be -1 alone (the whole text): leave it out",
                param="options.repeat_last_n",
            )
        if name in _NEUTRAL and value not in _NEUTRAL[name]:
            raise FieldError(f"options.{name} isn't supported: leave it out", param=f"options.{name}")
        is_known = name in _OPTIONS or name in _NEUTRAL or name in _WITHOUT_EFFECT
        if not is_known and name not in ("stop", "repeat_last_n", "mirostat_tau", "mirostat_eta"):
            raise FieldError(f"Unknown option: {name[:100]}", param=f"options.{name[:100]}")


def _check_numbers(fields: Mapping[str, Any]) -> None:
    names = {ours: theirs for theirs, ours in _OPTIONS.items()}
    for ours, value in fields.items():
        wants_whole = ours in ("max_tokens", "top_k", "seed")
        if isinstance(value, bool) or not isinstance(value, int if wants_whole else int | float):
            kind = "a whole number" if wants_whole else "a number"
            raise FieldError(f"options.{names[ours]} isn't {kind}", param=f"options.{names[ours]}")


def _schema(given: str | dict[str, Any] | None) -> str | None:
    match given:
        case None | "":
            return None
        case "json":
            return '{"type":"object"}'
        case dict():
            return json_bytes(given).decode()
        case _:
            raise FieldError("format can be 'json' or a JSON schema (an object)", param="format")


def _messages(messages: list[OllamaMessage]) -> Iterator[Message]:
    """As templates read them: results of calls, which have no ids here, belong to the calls in their order."""
    open_ids: list[tuple[str, str]] = []
    n_calls = 0
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        _refuse_images(message.images, f"{where}.images")
        if message.role not in ("system", "user", "assistant", "tool"):
            raise FieldError(
                f"{where}.role is {message.role[:40]!r}; it must be system, user, assistant or tool",
                param=f"{where}.role",
            )
        found: dict[str, Any] = {"role": message.role, "content": message.content or ""}
        if message.thinking:
            found["reasoning_content"] = message.thinking
        if message.tool_calls:
            ids = [call.id or f"call_{n_calls + place}" for place, call in enumerate(message.tool_calls)]
            n_calls += len(ids)
            open_ids = [
                (call_id, call.function.name) for call_id, call in zip(ids, message.tool_calls, strict=True)
            ]
            found["tool_calls"] = [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {
                        "name": call.function.name,
                        "arguments": json_bytes(call.function.arguments).decode(),
                    },
                }
                for call_id, call in zip(ids, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            found |= _result_of(message, open_ids, where)
        yield found


def _result_of(message: OllamaMessage, open_ids: list[tuple[str, str]], where: str) -> dict[str, str]:
    """Which call the result is of: the first that has none yet, of this tool if it is named."""
    name = message.tool_name or message.name
    for call_id, called in open_ids:
        if message.tool_call_id in (None, call_id) and name in (None, called):
            open_ids.remove((call_id, called))
            return {"tool_call_id": call_id, "name": called}
    what = f" of the tool {name[:100]!r}" if name else ""
    raise FieldError(
        f"{where} is a result{what}, but no assistant message before it has a call that waits for it",
        param=f"{where}.tool_name",
    )


def _refuse_images(images: list[str] | None, where: str) -> None:
    if images:
        raise FieldError(f"{where}: models here take text alone, no images", param=where)


def has_prompt(body: OllamaChat | OllamaGenerate) -> bool:
    """Whether anything is asked: without, Ollama only loads the model."""
    return bool(body.messages) if isinstance(body, OllamaChat) else bool(body.prompt)


def raw_options(body: OllamaGenerate, *, timeout_s: float) -> GenerationOptions:
    """Of a prompt that no template lays out. FieldError: something in it can't be done; names the field."""
    refuse_set(body, _REFUSED_BY_GENERATE)
    _refuse_images(body.images, "images")
    if body.system:
        why = "raw is true" if body.raw else "the model has no chat template"
        raise FieldError(f"{why}, so that nothing takes system: put it into the prompt", param="system")
    return asked_options(body, timeout_s=timeout_s)
