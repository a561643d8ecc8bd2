"""Fields that OpenAI's APIs have in common, and the options of a generation that they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import msgspec

from client.gateway.bodies import ApiBody, json_bytes, refuse_more
from client.gateway.faults import FieldError
from client.options import GenerationOptions
from protocol.errors import InvalidRequestError
from protocol.messages import MAX_BIASES

TextInput: TypeAlias = str | list[str | int | list[int]]
"""A text, several, the token ids of one, or of several."""
MAX_CHOICES = 8
MAX_TOP_LOGPROBS = 20
MAX_PROMPT_IDS = 2**20
"""In one request: more than the contexts of today's models."""
MAX_CHOICE_TEXTS = 8192
"""To choose from: their grammar has 64 KiB at most."""
DEFAULT_MAX_TOKENS = 2048
"""Where the request doesn't say: what is asked for is reserved, in memory of the workers and in quotas."""


class StreamOptions(ApiBody, frozen=True, kw_only=True):
    """How a streamed answer is to be."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Padding against guesses from lengths: none is added either way."""


class JsonSchema(ApiBody, frozen=True, kw_only=True):
    """A schema, and what OpenAI wants to know of it."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None
    """The answer is held to the schema either way."""


class ResponseFormat(ApiBody, frozen=True, kw_only=True):
    """`text`, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class StructuredOutputs(ApiBody, frozen=True, kw_only=True):
    """As vLLM has it: what the answer is held to."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    """In llguidance's form of Lark."""
    json_object: bool | None = None


class SamplingBody(ApiBody, frozen=True, kw_only=True):
    """What all requests for text have; the last group is vLLM's and ours, not OpenAI's."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    user: str | None = None
    stream: bool | None = None

    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    regex: str | None = None
    grammar: str | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_grammar: str | None = None


class CompletionBody(SamplingBody, frozen=True, kw_only=True):
    """What `/v1/chat/completions` and `/v1/completions` have in common beside that."""

    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    ignore_eos: bool | None = None
    """As vLLM has it: go on after the model's own end, up to `max_tokens`."""
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @property
    def n_choices(self) -> int:
        """How many answers are asked for. FieldError: too many, or none."""
        n = 1 if self.n is None else self.n
        if not 1 <= n <= MAX_CHOICES:
            raise FieldError(f"n is {n}; it must be 1 to {MAX_CHOICES}", param="n")
        return n

    def check_streaming(self) -> None:
        """FieldError: options of streaming without streaming."""
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options is for streamed answers: set stream to true", param="stream_options")


def constraints(body: SamplingBody, format_: ResponseFormat | None) -> dict[str, str]:
    """What the answer is held to, as options of a generation: one at most.

    Raises:
        FieldError: several, or a schema that isn't there.
    """
    outputs = body.structured_outputs or StructuredOutputs()
    given: list[tuple[str, str, str | None]] = [
        ("response_format", "json_schema", _schema_of(format_)),
        ("structured_outputs.json", "json_schema", _schema_text(outputs.json)),
        ("structured_outputs.json_object", "json_schema", _ANY_OBJECT if outputs.json_object else None),
        ("structured_outputs.regex", "regex", outputs.regex),
        ("structured_outputs.choice", "grammar", _choice_grammar(outputs.choice)),
        ("structured_outputs.grammar", "grammar", outputs.grammar),
        ("guided_json", "json_schema", _schema_text(body.guided_json)),
        ("guided_regex", "regex", body.guided_regex),
        ("guided_grammar", "grammar", body.guided_grammar),
        ("regex", "regex", body.regex),
        ("grammar", "grammar", body.grammar),
    ]
    found = [(param, name, text) for param, name, text in given if text is not None]
    if len(found) > 1:
        params = ", ".join(param for param, _, _ in found)
        raise FieldError(f"an answer is held to one thing at most; these are {params}", param=found[1][0])
    return {name: text for _, name, text in found}


def checked_options(fields: Mapping[str, Any]) -> GenerationOptions:
    """The options with these values; None is unset.

    Raises:
        FieldError: a value is out of its range; names the field if that is known.
    """
    options = GenerationOptions(**{name: value for name, value in fields.items() if value is not None})
    try:
        options.check()
    except InvalidRequestError as exc:
        named = [name for name in fields if name in exc.message]
        raise FieldError(exc.message, param=min(named, key=exc.message.index) if named else None) from exc
    return options


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """The stop strings."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def biases_of(logit_bias: dict[str, float] | None) -> dict[int, float]:
    """Biases by token id, which JSON has as text. FieldError: a key is no id, or there are too many."""
    refuse_more(len(logit_bias or {}), MAX_BIASES, "logit_bias", "tokens")
    try:
        return {int(token_id): bias for token_id, bias in (logit_bias or {}).items()}
    except ValueError as exc:
        raise FieldError(
            "logit_bias is from token ids to numbers; a key is no whole number", param="logit_bias"
        ) from exc


_ANY_OBJECT = '{"type":"object"}'


def _schema_of(format_: ResponseFormat | None) -> str | None:
    if format_ is None or format_.type == "text":
        return None
    if format_.type == "json_object":
        return _ANY_OBJECT
    if format_.json_schema is None:
        raise FieldError("response_format of type json_schema needs it", param="response_format.json_schema")
    schema = format_.json_schema.schema
    return _ANY_OBJECT if schema is None else _schema_text(schema)


def _schema_text(schema: dict[str, Any] | str | None) -> str | None:
    if schema is None or isinstance(schema, str):
        return schema
    return json_bytes(schema).decode()


def _choice_grammar(choice: list[str] | None) -> str | None:
    """One of these texts."""
    if choice is None:
        return None
    if not choice:
        raise FieldError(
            "structured_outputs.choice is empty: give the texts to choose from", param="structured_outputs.choice"
        )
    refuse_more(len(choice), MAX_CHOICE_TEXTS, "structured_outputs.choice", "texts")
    return "start: " + " | ".join(json_bytes(text).decode() for text in choice)


def listed_inputs(given: TextInput, *, param: str, max_inputs: int) -> list[str | list[int]]:
    """One text, several, one list of token ids, or several: as a list of texts and lists of ids.

    Raises:
        FieldError: none, too many, or a mixture.
    """
    if isinstance(given, str):
        return [given]
    refuse_more(len(given), MAX_PROMPT_IDS, param, "texts or token ids")
    token_ids = [item for item in given if isinstance(item, int)]
    if token_ids and len(token_ids) == len(given):
        return [token_ids]
    inputs = [item for item in given if not isinstance(item, int)]
    if token_ids or not inputs:
        why = "is empty" if not given else "mixes single token ids with texts"
        raise FieldError(f"{param} {why}: give a text, texts, token ids, or lists of them", param=param)
    if len(inputs) > max_inputs:
        raise FieldError(f"{param} has {len(inputs)} texts; at most {max_inputs} go at once", param=param)
    refuse_more(sum(len(ids) for ids in inputs if isinstance(ids, list)), MAX_PROMPT_IDS, param, "token ids")
    return inputs


def fields_of(body: msgspec.Struct, *names: str) -> dict[str, Any]:
    """These fields by name."""
    return {name: getattr(body, name) for name in names}
