"""The `client` command: text goes to standard output, everything about it to standard error.

Exit codes are those of `protocol/errors.py`; an error is one line, never a traceback.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from client import cli_bench, cli_chat, cli_embed, cli_serve
from client import cli_options as given
from client.api import Client, Prompt, TokenStream
from client.cli_config import CLIENT, GATEWAY
from client.command import (
    ConnectTimeout,
    Json,
    KeyFile,
    MinTrust,
    PinnedEnds,
    Url,
    chosen_model,
    run,
    standard_input,
    tell,
    write,
    write_now,
)
from client.config import CONNECT_TIMEOUT_S, ClientConfig
from client.options import DEFAULT_TIMEOUT_S, GenerationOptions
from client.output import done_line, models_line, models_table, piece_line, printable, summary_line, timings_lines
from protocol.configured_commands import take_config
from protocol.errors import BrigadeError, InvalidRequestError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_INTERNAL, EXIT_OK, EXIT_STORAGE, EXIT_USAGE
from protocol.rest import ModelInfo
from protocol.tracing import given_trace, within
from protocol.version import program_version

EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="client",
    help="Use a Brigade cluster's models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(cli_bench.bench)
app.command()(cli_chat.chat)
app.command()(cli_serve.serve)
app.command()(cli_embed.embed)


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
        self.options.check()
        if self.options.logprobs is not None and not self.is_json:
            raise InvalidRequestError("--logprobs shows in --json alone: give both")
        if self.system is not None and self.is_chat is False:
            raise InvalidRequestError("--system is for chats: it can't go with --raw")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    try:
        code = app(args=argv, prog_name="client", standalone_mode=False)
    except BrigadeError as exc:
        return _failed(exc.message, exc.exit_code)
    except TyperException as exc:
        return _failed(_usage_message(exc), EXIT_USAGE)
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_CANCELLED
    except BrokenPipeError:
        # whoever read has gone; what is still buffered must not be written at exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except OSError as exc:
        return _failed(f"the answer can't be written: {exc.strerror or exc}", EXIT_STORAGE)
    except Exception as exc:  # noqa: BLE001 - the program's outermost edge
        return _failed(f"a defect in Brigade: {type(exc).__name__}: {exc}", EXIT_INTERNAL)
    return code if isinstance(code, int) else EXIT_OK


@app.callback(invoke_without_command=True)
def client(
    show_version: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version.")] = False,
) -> None:
    """Use a Brigade cluster's models."""
    if show_version:
        print(f"brigade {program_version()}")
        raise typer.Exit


@app.command()
def generate(
    prompt: given.PromptText = None,
    model: given.Model = None,
    max_tokens: given.MaxTokens = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    min_p: given.MinP = None,
    repetition_penalty: given.RepetitionPenalty = None,
    presence_penalty: given.PresencePenalty = None,
    frequency_penalty: given.FrequencyPenalty = None,
    logit_bias: given.LogitBias = None,
    logprobs: given.Logprobs = None,
    json_schema: given.JsonSchema = None,
    regex: given.Regex = None,
    grammar: given.Grammar = None,
    seed: given.Seed = None,
    stop: given.Stop = None,
    system: given.System = None,
    is_chat: given.IsChat = None,
    speculate: given.Speculate = True,
    is_private: given.Private = False,
    private_blocks: given.PrivateBlocks = None,
    wait: given.WaitForQuota = False,
    min_trust: MinTrust = 0.0,
    pinned_ends: PinnedEnds = False,
    timeout: given.Timeout = DEFAULT_TIMEOUT_S,
    timings: given.Timings = False,
    traceparent: given.Traceparent = None,
    is_json: Json = False,
    url: Url = None,
    api_key_file: KeyFile = None,
    connect_timeout: ConnectTimeout = CONNECT_TIMEOUT_S,
) -> int:
    """Generate an answer to PROMPT and show it as it comes."""
    options = GenerationOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=given.biases(logit_bias),
        logprobs=logprobs,
        json_schema=given.text_of(json_schema, "--json-schema"),
        regex=regex,
        grammar=given.text_of(grammar, "--grammar"),
        seed=seed,
        stop=tuple(stop or ()),
        speculate=speculate,
        private=is_private,
        private_blocks=private_blocks,
        wait_for_quota=wait,
        min_trust=min_trust,
        pinned_ends=pinned_ends,
        timeout_s=timeout,
    )
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
    config = ClientConfig.from_env(url=url, api_key_file=api_key_file, connect_timeout_s=connect_timeout)
    with within(given_trace(traceparent, "--traceparent")) if traceparent else nullcontext():
        return run(_generate(config, asked))


@app.command()
def models(
    is_json: Json = False,
    url: Url = None,
    api_key_file: KeyFile = None,
    connect_timeout: ConnectTimeout = CONNECT_TIMEOUT_S,
) -> int:
    """List the cluster's models and whether they can be used now."""
    config = ClientConfig.from_env(url=url, api_key_file=api_key_file, connect_timeout_s=connect_timeout)
    return run(_models(config, is_json=is_json))


take_config(app, CLIENT, GATEWAY)


async def _models(config: ClientConfig, *, is_json: bool) -> int:
    async with Client(config=config, on_notice=tell) as client:
        found = await client.models()
    await write("\n".join([models_line(found)] if is_json else models_table(found)) + "\n")
    return EXIT_OK


async def _generate(config: ClientConfig, asked: _Asked) -> int:
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


def _failed(message: str, exit_code: int) -> int:
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return exit_code


def _usage_message(exc: TyperException) -> str:
    named = getattr(exc, "format_message", None)  # which names the option too
    return str(named() if named is not None else exc) or "no command: see --help"
