"""What the gateway's callers send: requests of three APIs, with tools and constraints; and tool calls in texts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from multidict import CIMultiDict

from client.config import ClientConfig
from client.gateway.anthropic_request import MessagesRequest, messages_turn
from client.gateway.bodies import decoded
from client.gateway.callers import caller_key
from client.gateway.config import GatewayConfig
from client.gateway.ollama_request import OllamaChat, OllamaGenerate, generate_turn
from client.gateway.ollama_request import chat_turn as ollama_turn
from client.gateway.openai_chat_request import ChatRequest, chat_turn
from client.gateway.openai_completions import CompletionRequest, _options
from client.gateway.openai_fields import listed_inputs
from client.gateway.openai_responses_request import ResponseRequest, response_turn
from client.gateway.tool_calls import arguments_object, needs_tool_plan, tool_plan
from client.gateway.tool_formats import ARGUMENTS, FORMATS, GENERIC, NAME, ToolFormat
from client.gateway.tool_reader import CallReader
from client.gateway.turns import ChatTurn, TextDelta
from client.model_files import ModelFiles
from client.options import GenerationOptions, SamplingDefaults
from client.tokenizer import ModelTokenizer
from protocol.api_key import new_api_key
from protocol.codec import decode_message, encode_message
from protocol.errors import ContextExceededError, InvalidRequestError, TooLargeError, UnauthenticatedError
from protocol.ids import Revision
from protocol.messages import SamplingParams
from tests.fuzz.target import Target
from tests.support.scripted_cluster import scripted_manifest
from tests.support.tiny_tokenizer import tiny_files

KEY = new_api_key("client", "ab" * 32)
_TIMEOUT_S = 60.0
"""Of the answers, none of which begins here."""


def _asked(kind: type[msgspec.Struct], turn: Callable[..., ChatTurn]) -> Callable[[bytes], ChatTurn]:
    return lambda data: turn(decoded(data, kind), timeout_s=_TIMEOUT_S)


_TURNS: dict[bytes, Callable[[bytes], ChatTurn]] = {
    b"/v1/chat/completions": _asked(ChatRequest, chat_turn),
    b"/v1/responses": _asked(ResponseRequest, response_turn),
    b"/v1/messages": _asked(MessagesRequest, messages_turn),
    b"/api/chat": _asked(OllamaChat, ollama_turn),
    b"/api/generate": _asked(OllamaGenerate, generate_turn),
}


@cache
def _tokenizer() -> ModelTokenizer:
    files = tiny_files()
    manifest = scripted_manifest(files, context_length=2000)
    return ModelTokenizer(ModelFiles(revision=Revision("ab" * 32), manifest=manifest, contents=files))


def gateway_turns(data: bytes) -> None:
    """A request of the API whose path the first line is, up to the prompt's tokens and the answer's limits."""
    path, _, body = data.partition(b"\n")
    turn = _TURNS.get(path, _TURNS[b"/v1/chat/completions"])(body)
    _check_can_be_sent(turn.options)
    if needs_tool_plan(turn):
        _check_can_be_sent(asyncio.run(tool_plan(_tokenizer(), turn)).options)


def gateway_texts(data: bytes) -> None:
    """A request of `/v1/completions`: its prompts, and how the answers are to be."""
    body = decoded(data, CompletionRequest)
    assert 1 <= len(listed_inputs(body.prompt, param="prompt", max_inputs=8)) <= 8
    _check_can_be_sent(_options(body, _TIMEOUT_S))


def _check_can_be_sent(options: GenerationOptions) -> None:
    """What was taken goes to workers as it is: they have to be able to read it."""
    sampling = options.sampling(SamplingDefaults(), stop_token_ids=(0,), max_tokens=options.n_wanted, random_seed=1)
    assert decode_message(encode_message(sampling), SamplingParams) == sampling


def gateway_keys(data: bytes) -> None:
    """Headers of a request, one a line, by which the caller's key is found."""
    lines = [line.partition(":") for line in data.decode("utf-8", "surrogateescape").splitlines()]
    caller_key(CIMultiDict((name, value) for name, _, value in lines), _config())


@cache
def _config() -> GatewayConfig:
    cache_folder = Path("unused")  # nothing is read or written here
    return GatewayConfig(cluster=ClientConfig(url="https://127.0.0.1:1", api_key=KEY, cache=cache_folder))


def tool_calls(data: bytes) -> None:
    """A model's text with calls in the format that the first byte says: however it is cut, the same comes out."""
    form = _FORMS[(data[0] if data else 0) % len(_FORMS)]
    text = data[1:].decode("utf-8", "replace")
    whole = _read(form, [text])
    assert _read(form, [text[at : at + 7] for at in range(0, len(text), 7)]) == whole
    for _, arguments in whole[1]:
        arguments_object(arguments)


_FORMS = (*FORMATS, GENERIC)


def _read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str | None, str]]]:
    """The text that isn't part of calls, and each call's name and arguments."""
    reader = CallReader(form, names=frozenset({"weather", "f"}), new_id=lambda: "id")
    deltas = [delta for piece in pieces for delta in reader.push(TextDelta(text=piece))]
    text, calls = "", dict[int, tuple[str | None, str]]()
    for delta in [*deltas, *reader.flush(is_cut=False)]:
        if isinstance(delta, TextDelta):
            text += delta.text
        else:
            name, arguments = calls.get(delta.index, (delta.name, ""))
            calls[delta.index] = name, arguments + delta.arguments
    assert [*calls] == [*range(len(calls))]
    return text, [*calls.values()]


_SCHEMA = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
_FUNCTION = {"name": "weather", "description": "says it", "parameters": _SCHEMA, "strict": True}
_CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
_SAMPLING = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
_USER = {"role": "user", "content": "hi"}


_USES = {"type": "tool_use", "id": "c", "name": "weather", "input": {"city": "Oslo"}}
_USED = {"type": "tool_result", "tool_use_id": "c", "content": "rain"}
_RESPONSES: tuple[dict[str, Any], ...] = (
    {"input": "hi", "instructions": "x", "max_output_tokens": 2, "text": {"format": {"type": "json_object"}}},
    {
        "input": [
            _USER,
            {"type": "function_call", "call_id": "c", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "rain"},
        ],
        "tools": [{"type": "function", **_FUNCTION}],
    },
)
_MESSAGES: tuple[dict[str, Any], ...] = (
    {
        "max_tokens": 3,
        "system": [{"type": "text", "text": "x"}],
        "messages": [_USER, {"role": "assistant", "content": [_USES]}, {"role": "user", "content": [_USED]}],
        "tools": [{"name": "weather", "input_schema": _SCHEMA}],
        "tool_choice": {"type": "any"},
        "stop_sequences": ["x"],
    },
    {
        "max_tokens": 3,
        "messages": [_USER],
        "output_config": {"format": {"type": "json_schema", "schema": _SCHEMA}},
    },
)
_OLLAMA: tuple[dict[str, Any], ...] = (
    {
        "messages": [
            {**_USER, "images": []},
            {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "x"}}}]},
            {"role": "tool", "tool_name": "weather", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}],
        "options": {"num_predict": -1, "temperature": 0.5, "stop": ["x"], "seed": 3, "mirostat": 0},
        "keep_alive": "5m",
    },
    {"messages": [_USER], "format": _SCHEMA, "think": False},
)
_GENERATE = {"prompt": "hi", "system": "x", "format": "json", "options": {"top_k": 3, "num_ctx": 9}}


def _turn_seeds() -> list[bytes]:
    by_path = {
        "/v1/chat/completions": _chat_seeds(),
        "/v1/responses": _RESPONSES,
        "/v1/messages": _MESSAGES,
        "/api/chat": _OLLAMA,
        "/api/generate": (_GENERATE,),
    }
    return [f"{path}\n{json.dumps({'model': 'm', **each})}".encode() for path in by_path for each in by_path[path]]


def _chat_seeds() -> list[dict[str, Any]]:
    tool = {"type": "function", "function": _FUNCTION}
    asked = [_USER, {"role": "assistant", "content": None, "tool_calls": [_CALL]}]
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "rain"}]}
    named = {"type": "function", "function": {"name": "weather"}}
    held = {"type": "json_schema", "json_schema": {"name": "x", "schema": _SCHEMA}}
    return [
        {
            "messages": [_USER],
            **_SAMPLING,
            "logit_bias": {"5": 2.5},
            "logprobs": True,
            "top_logprobs": 2,
            "stop": "x",
        },
        {"messages": [*asked, result], "tools": [tool], "tool_choice": named, "parallel_tool_calls": False},
        {"messages": [*asked, result], "tools": [tool], "tool_choice": "auto", "response_format": held},
        {"messages": [_USER], "tools": [tool], "guided_json": json.dumps(_SCHEMA)},
        {"messages": [_USER], "structured_outputs": {"choice": ["yes", "no"]}, "seed": 4, "max_tokens": 5},
    ]


def _text_seeds() -> list[bytes]:
    bodies: list[dict[str, Any]] = [
        {
            "prompt": "hi",
            "max_tokens": 2,
            **_SAMPLING,
            "logprobs": 3,
            "n": 2,
            "stop": ["a", "b"],
            "guided_regex": "a+",
        },
        {"prompt": [[1, 2], [3]], "logit_bias": {"7": -100}, "seed": 1, "stream": True, "stream_options": {}},
        {"prompt": [1, 2, 3], "structured_outputs": {"grammar": "start: /a/"}, "presence_penalty": 1},
    ]
    return [json.dumps({"model": "m", **body}).encode() for body in bodies]


def _call_seeds() -> list[bytes]:
    seeds: list[bytes] = []
    for number, form in enumerate(_FORMS):
        call = form.call.replace(NAME, "weather").replace(ARGUMENTS, '{"city": "Rome", "a": [1, {"b": "}"}]}')
        text = f"I see. {form.first or ''}{call}{form.between}{call}{form.last} And so on."
        seeds += [bytes([number]) + text.encode(), bytes([number]) + call.encode()]
    return seeds


GATEWAY_TARGETS = (
    Target(
        name="gateway-turns",
        run=gateway_turns,
        seeds=_turn_seeds,
        allowed=(InvalidRequestError, ContextExceededError, TooLargeError),
    ),
    Target(
        name="gateway-texts", run=gateway_texts, seeds=_text_seeds, allowed=(InvalidRequestError, TooLargeError)
    ),
    Target(
        name="gateway-keys",
        run=gateway_keys,
        seeds=lambda: [
            f"Authorization: Bearer {KEY.text()}".encode(),
            b"x-api-key: sk-1\nX-Forwarded-For: 1.2.3.4",
        ],
        allowed=(UnauthenticatedError,),
    ),
    Target(name="tool-calls", run=tool_calls, seeds=_call_seeds),
)
