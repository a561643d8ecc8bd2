"""`/v1/completions`: how texts go on, without any chat template."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from aiohttp import web

from client.api import Client
from client.gateway.answering import WholeAnswer, after_the_first, several, whole_answer
from client.gateway.asking import asking_client, found_model, observed, token_bytes
from client.gateway.bodies import json_answer, json_bytes, read_json, refuse_set
from client.gateway.faults import FieldError
from client.gateway.keys import CONFIG
from client.gateway.merging import collected, merged
from client.gateway.openai_chat import DONE, error_event
from client.gateway.openai_fields import (
    MAX_TOP_LOGPROBS,
    CompletionBody,
    TextInput,
    biases_of,
    checked_options,
    constraints,
    fields_of,
    listed_inputs,
    stops_of,
)
from client.gateway.openai_shapes import (
    TokenBytesOf,
    fingerprint_of,
    new_id,
    now_s,
    summed,
    text_logprobs,
    usage_json,
    usage_of,
)
from client.gateway.streams import KEEP_ALIVE_S, streamed
from client.gateway.turns import TextDelta, TurnEnd, TurnEvent, TurnPlan, plan_events
from client.options import GenerationOptions
from protocol.rest import ModelInfo

MAX_PROMPTS = 64
DEFAULT_TEXT_TOKENS = 16
"""OpenAI's own, for this API."""


class CompletionRequest(CompletionBody, frozen=True, kw_only=True):
    """`POST /v1/completions`."""

    prompt: TextInput
    max_tokens: int | None = None
    logprobs: int | None = None
    echo: bool | None = None
    best_of: Any = None
    suffix: Any = None


_REFUSED = {
    "best_of": "ask for n answers and choose among them",
    "suffix": "models here only go on from a prompt's end; leave it out",
}


async def completions(request: web.Request) -> web.StreamResponse:
    """`POST /v1/completions`."""
    body = await read_json(request, CompletionRequest)
    prompts = listed_inputs(body.prompt, param="prompt", max_inputs=MAX_PROMPTS)
    options, n_choices = _options(body, request.app[CONFIG].timeout_s), body.n_choices
    async with asking_client(request) as client:
        model = await found_model(client, body.model)
        plans: list[TurnPlan] = []
        for prompt in prompts:
            plans += await several(client, model, TurnPlan(prompt=prompt, options=options), n_choices)
        bytes_of = await token_bytes(client, model)
        echoes = [await _echo(client, model, prompt) if body.echo else "" for prompt in prompts]
        sources = [
            observed(request, "text_completion", model, plan_events(client, model, plan))
            for plan in after_the_first(plans)
        ]
        shape = TextShape(model, bytes_of, [echoes[number // n_choices] for number in range(len(plans))], n_choices)
        if body.stream:
            wants_usage = body.stream_options is not None and body.stream_options.include_usage is True
            chunks = shape.chunks(sources, wants_usage=wants_usage)
            return await streamed(request, chunks, error_event=error_event)
        return json_answer(shape.whole([whole_answer(events) for events in await collected(sources)]))


class TextShape:
    """The answers to one request as OpenAI's text completions."""

    def __init__(self, model: ModelInfo, bytes_of: TokenBytesOf, echoes: Sequence[str], n_choices: int) -> None:
        self._common = {
            "id": new_id("cmpl-"),
            "object": "text_completion",
            "created": now_s(),
            "model": model.name,
            "system_fingerprint": fingerprint_of(model),
        }
        self._bytes_of = bytes_of
        self._echoes = list(echoes)
        self._n_choices = n_choices
        self._offsets = [len(echo) for echo in echoes]

    def whole(self, answers: Sequence[WholeAnswer]) -> dict[str, Any]:
        """All at once."""
        choices = [
            {
                "index": index,
                "text": self._echoes[index] + answer.text,
                "logprobs": self._logprobs(index, TextDelta(text=answer.text, logprobs=answer.logprobs)),
                "finish_reason": answer.end.finish_reason,
            }
            for index, answer in enumerate(answers)
        ]
        return self._common | {"choices": choices, "usage": self._usage([answer.end for answer in answers])}

    async def chunks(
        self, sources: Sequence[AsyncGenerator[TurnEvent, None]], *, wants_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """All that is ready in one piece, again and again; empty after a while without anything."""
        common = b"data: " + json_bytes(self._common)[:-1]
        tail = b',"usage":null}\n\n' if wants_usage else b"}\n\n"
        ends: dict[int, TurnEnd] = {}
        async with merged(sources) as together:
            while (batch := await together.batch(KEEP_ALIVE_S)) is not None:
                ends |= {index: event for index, event in batch if isinstance(event, TurnEnd)}
                choices = [json_bytes([self._choice(index, event)]) for index, event in batch]
                yield b"".join([common + b',"choices":' + choice + tail for choice in choices])
        last = b""
        if wants_usage:
            usage = json_bytes(self._usage([ends[index] for index in sorted(ends)]))
            last = common + b',"choices":[],"usage":' + usage + b"}\n\n"
        yield last + DONE

    def _choice(self, index: int, event: TurnEvent) -> dict[str, Any]:
        echo, self._echoes[index] = self._echoes[index], ""
        if isinstance(event, TextDelta):
            text, logprobs, finish_reason = event.text, self._logprobs(index, event), None
        else:
            assert isinstance(event, TurnEnd), "no plan of this API finds tool calls"
            text, logprobs, finish_reason = "", None, event.finish_reason
        return {"index": index, "text": echo + text, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, index: int, delta: TextDelta) -> dict[str, Any] | None:
        if not delta.logprobs:
            return None
        found = text_logprobs(delta.logprobs, self._bytes_of, offset=self._offsets[index])
        self._offsets[index] += sum(len(text) for text in found["tokens"])
        return found

    def _usage(self, ends: Sequence[TurnEnd]) -> dict[str, Any]:
        """Each prompt is counted once, however many answers it has."""
        of_prompts = [ends[start : start + self._n_choices] for start in range(0, len(ends), self._n_choices)]
        return usage_json(summed([usage_of(of_one) for of_one in of_prompts]))


def _options(body: CompletionRequest, timeout_s: float) -> GenerationOptions:
    refuse_set(body, _REFUSED)
    body.check_streaming()
    if body.logprobs is not None and not 0 <= body.logprobs <= MAX_TOP_LOGPROBS:
        raise FieldError(f"logprobs is {body.logprobs}; it must be 0 to {MAX_TOP_LOGPROBS}", param="logprobs")
    if body.echo and body.logprobs is not None:
        raise FieldError("echo with logprobs isn't supported: a prompt's own have none here", param="echo")
    return checked_options(
        {
            **fields_of(body, "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "ignore_eos"),
            **fields_of(body, "presence_penalty", "frequency_penalty", "logprobs"),
            **constraints(body, body.response_format),
            "max_tokens": body.max_tokens,
            "default_max_tokens": DEFAULT_TEXT_TOKENS,
            "stop": stops_of(body.stop),
            "logit_bias": biases_of(body.logit_bias),
            "timeout_s": timeout_s,
        }
    )


async def _echo(client: Client, model: ModelInfo, prompt: str | list[int]) -> str:
    """The prompt as text."""
    if isinstance(prompt, str):
        return prompt
    bytes_of = await token_bytes(client, model)
    return b"".join(map(bytes_of, await client.encoded(model, prompt))).decode(errors="replace")
