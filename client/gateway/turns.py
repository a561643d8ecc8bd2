"""One turn of a conversation, by whatever API it came: what is asked, and the answer as events. Knows no HTTP.

OpenAI's, Anthropic's and Ollama's APIs differ in the shapes of what they take and give; between the two is this. A
`ChatTurn` is what was asked. A `TurnPlan` is how it is carried out: the prompt, the options, and what finds tool
calls in the text. `plan_events` runs it: deltas as they come, and one `TurnEnd` last.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from client.api import Client, Prompt
from client.chat_template import Message
from client.gateway.rates import note_rates
from client.gateway.traced import note_timings
from client.options import GenerationOptions
from client.results import Generation, TokenPiece
from protocol.rest import ModelInfo

TurnFinish: TypeAlias = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTool:
    """A choice of tool: this one has to be called."""

    name: str


ToolChoice: TypeAlias = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """What is asked: the conversation so far, and how the answer is to be."""

    model: str
    messages: tuple[Message, ...]
    """As chat templates read them: `role`, `content` (text), and what a role has besides (`tool_calls`, ...)."""
    id_places: Mapping[int, str] = field(default_factory=dict)
    """Where the request has the call that a message is the result of, by the message's number; where it isn't said:
    in `messages[number].tool_call_id`."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """OpenAI's definitions: `{"type": "function", "function": {"name", "description", "parameters"}}`."""
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    options: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token of the answer, how likely it was (natural logarithm), and the likeliest tokens for its place."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """More of the answer's text; empty only if a token has no text and its probability was asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    """Of the tokens that came with it, if asked for. Text that was held back comes after its token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallDelta:
    """More of a call: its first delta has `id` and `name`, all together have the arguments as JSON text."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens, as the cluster counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Of the prompt, that weren't run again."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """The last event of an answer."""

    finish_reason: TurnFinish
    usage: Usage
    result: Generation


TurnDelta: TypeAlias = TextDelta | ToolCallDelta
TurnEvent: TypeAlias = TurnDelta | TurnEnd


class ToolReader(Protocol):
    """Finds tool calls in one answer's text; made anew for each answer."""

    def push(self, delta: TextDelta) -> Sequence[TurnDelta]:
        """What can be said now that this text came."""

    def flush(self, *, is_cut: bool) -> Sequence[TurnDelta]:
        """What was held back; the answer is over, and `is_cut` where it got no longer."""

    @property
    def has_calls(self) -> bool:
        """Whether the answer is (among others) a call: it then ends with `tool_calls`."""

    @property
    def is_over(self) -> bool:
        """Whether nothing after this is wanted (`parallel_tool_calls` is false, and the one call is complete)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnPlan:
    """How a turn is carried out."""

    prompt: Prompt
    options: GenerationOptions
    new_reader: Callable[[], ToolReader] | None = None
    """None: all text is text."""


async def plan_events(client: Client, model: ModelInfo, plan: TurnPlan) -> AsyncGenerator[TurnEvent, None]:
    """The answer as it comes. Closing the generator, or cancelling it, ends the generation on all workers.

    Raises:
        BrigadeError: the generation failed; what came before was given.
    """
    reader = plan.new_reader() if plan.new_reader is not None else None
    async with client.stream(model, plan.prompt, **option_fields(plan.options)) as pieces:
        note_rates(pieces)
        async for piece in pieces:
            delta = _delta(piece)
            if delta is None:
                continue
            if reader is None:
                yield delta
                continue
            for event in reader.push(delta):
                yield event
            if reader.is_over:
                break
        if reader is not None:
            for event in reader.flush(is_cut=pieces.result.finish_reason == "length"):
                yield event
    note_timings(pieces.result)
    # after the context: an answer that was broken off is over on the workers by now
    yield _end(pieces.result, is_call=reader is not None and reader.has_calls)


def option_fields(options: GenerationOptions) -> dict[str, Any]:
    """The options as `Client.stream` takes them."""
    return {name: getattr(options, name) for name in GenerationOptions.__dataclass_fields__}


def _delta(piece: TokenPiece) -> TextDelta | None:
    if piece.logprob is None:
        return TextDelta(text=piece.text) if piece.text else None
    logprob = TokenLogprob(token_id=piece.token_id, logprob=piece.logprob, top=piece.top_logprobs)
    return TextDelta(text=piece.text, logprobs=(logprob,))


def _end(result: Generation, *, is_call: bool) -> TurnEnd:
    finish: TurnFinish = "length" if result.finish_reason == "length" else "stop"
    usage = Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        cached_tokens=result.cached_tokens,
    )
    return TurnEnd(
        finish_reason="tool_calls" if is_call and finish == "stop" else finish, usage=usage, result=result
    )
