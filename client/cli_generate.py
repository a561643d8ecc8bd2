"""`client generate`: one answer, shown as it comes; what is to be said about it goes to standard error."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from client import cli_options as given
from client.command import Json, chosen_model, for_cluster_waited_for, run, standard_input, tell, write, write_now
from client.config import ClientConfig
from client.options import GenerationOptions
from client.output import done_line, piece_line, printable, summary_line, timings_lines
from protocol.errors import BrigadeError, InvalidRequestError
from protocol.exit_codes import EXIT_OK
from protocol.option_groups import in_place_of
from protocol.rest import ModelInfo
from protocol.tracing import given_trace, within

if TYPE_CHECKING:
    from client.api import Prompt, TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One `client generate`."""

    prompt: str = ""
    """Read last: nobody is to type one for nothing."""
    system: str | None
    is_chat: bool | None
    """None: as the model is."""
    model: str | None
    options: GenerationOptions
    is_json: bool
    shows_timings: bool = False

    def check(self) -> None:
        """Refuse what can't be done, before anybody is asked. InvalidRequestError: names the option."""
        if self.options.logprobs is not None and not self.is_json:
            raise InvalidRequestError("--logprobs shows in --json alone: give both")
        if self.system is not None and self.is_chat is False:
            raise InvalidRequestError("--system is for chats: it can't go with --raw")


@in_place_of("options", given.SAMPLING | given.CONSTRAINTS | given.WAY, given.generation_options)
@for_cluster_waited_for
def generate(
    prompt: given.PromptText = None,
    *,
    model: given.Model = None,
    system: given.System = None,
    is_chat: given.IsChat = None,
    options: GenerationOptions,
    timings: given.Timings = False,
    traceparent: given.Traceparent = None,
    is_json: Json = False,
    config: ClientConfig,
) -> int:
    """Generate an answer to PROMPT and show it as it comes."""
    asked = _Asked(
        system=system,
        is_chat=is_chat,
        model=model,
        options=options,
        is_json=is_json,
        shows_timings=timings,
    )
    asked.check()
    asked = replace(asked, prompt=_given_prompt(prompt))
    with within(given_trace(traceparent, "--traceparent")) if traceparent else nullcontext():
        return run(_generate(config, asked))


async def _generate(config: ClientConfig, asked: _Asked) -> int:
    from client.api import Client  # takes long, and is not for --help

    async with Client(config=config, on_notice=tell) as client:
        model = await chosen_model(client, asked.model)
        stream = client.stream(
            model, _laid_out(asked, model), on_notice=lambda notice: _tell(stream, notice), **_fields(asked.options)
        )
        try:
            async with stream:
                await _show(stream, is_json=asked.is_json)
        except asyncio.CancelledError:
            # the workers know already; what came so far is told, whoever cancelled
            _tell_end(stream, asked)
            raise
        except BrigadeError:
            _end_line(stream, is_json=asked.is_json)
            raise
        _tell_end(stream, asked)
    return EXIT_OK


async def _show(stream: TokenStream, *, is_json: bool) -> None:
    is_terminal = sys.stdout.isatty()
    async for piece in stream:
        if is_json:
            await write(piece_line(piece) + "\n")
        elif piece.text:
            await write(printable(piece.text) if is_terminal else piece.text)


def _tell(stream: TokenStream, notice: str) -> None:
    """Say on standard error why no token comes; on a line of its own where the answer is shown beside it."""
    text = stream.result.text
    is_within_line = sys.stdout.isatty() and sys.stderr.isatty() and text != "" and not text.endswith("\n")
    print(("\n" if is_within_line else "") + printable(" ".join(notice.split())), file=sys.stderr, flush=True)


def _tell_end(stream: TokenStream, asked: _Asked) -> None:
    if asked.is_json:
        write_now(done_line(stream.result) + "\n")
    else:
        _end_line(stream, is_json=False)
        print(summary_line(stream.result), file=sys.stderr)
    if asked.shows_timings and stream.result.timings is not None:
        lines = [*timings_lines(stream.result.timings), f"trace {stream.result.trace_id}"]
        print("\n".join(lines), file=sys.stderr)


def _end_line(stream: TokenStream, *, is_json: bool) -> None:
    if not is_json and stream.result.text:
        write_now("\n")


def _laid_out(asked: _Asked, model: ModelInfo) -> Prompt:
    is_chat = model.is_chat if asked.is_chat is None else asked.is_chat
    if not is_chat:
        if asked.system is not None:
            raise InvalidRequestError(f"{model.name} is no chat model, so it takes no --system message")
        return asked.prompt
    messages = [{"role": "user", "content": asked.prompt}]
    return messages if asked.system is None else [{"role": "system", "content": asked.system}, *messages]


def _fields(options: GenerationOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in GenerationOptions.__dataclass_fields__}


def _given_prompt(argument: str | None) -> str:
    text = argument if argument is not None and argument != "-" else standard_input("the prompt")
    if not text.strip():
        raise InvalidRequestError("the prompt is empty: give some text")
    return text
