"""`client chat`: a conversation with a model, in the terminal or by lines of standard input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from client import cli_options as given
from client.command import ConnectTimeout, KeyFile, MinTrust, PinnedEnds, Url, run
from client.config import CONNECT_TIMEOUT_S, ClientConfig
from client.options import DEFAULT_TIMEOUT_S, GenerationOptions
from client.terminal.sampling_settings import DEFAULT_CHAT_TOKENS

ChatModel = Annotated[
    str | None,
    typer.Option(
        help="The model's name; needed if there are several, unless --resume names a file, which has one."
    ),
]
ChatTokens = Annotated[
    int | None,
    typer.Option(
        help=f"Most tokens of an answer. \\[default: {DEFAULT_CHAT_TOKENS}, or what the context has room for]"
    ),
]
System = Annotated[str | None, typer.Option(help="System message: what the model is told before all turns.")]
Resume = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Go on with a conversation that /save wrote to FILE.")
]
NoHistory = Annotated[
    bool, typer.Option("--no-history", help="Don't keep what is typed for the arrow keys of later chats.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that one answer may take.")]
JsonLines = Annotated[
    bool,
    typer.Option(
        "--json", help="Print each answer as one line of JSON; for messages that come from standard input."
    ),
]


def chat(
    *,
    model: ChatModel = None,
    system: System = None,
    resume: Resume = None,
    max_tokens: ChatTokens = None,
    temperature: given.Temperature = None,
    top_p: given.TopP = None,
    top_k: given.TopK = None,
    min_p: given.MinP = None,
    repetition_penalty: given.RepetitionPenalty = None,
    presence_penalty: given.PresencePenalty = None,
    frequency_penalty: given.FrequencyPenalty = None,
    seed: given.Seed = None,
    stop: given.Stop = None,
    speculate: given.Speculate = True,
    is_private: given.Private = False,
    private_blocks: given.PrivateBlocks = None,
    wait: given.WaitForQuota = False,
    min_trust: MinTrust = 0.0,
    pinned_ends: PinnedEnds = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    no_history: NoHistory = False,
    is_json: JsonLines = False,
    url: Url = None,
    api_key_file: KeyFile = None,
    connect_timeout: ConnectTimeout = CONNECT_TIMEOUT_S,
) -> int:
    """Chat with a model: /help in it says how. If standard input is no terminal, each of its lines is a message."""
    from client.terminal.chat import Wanted, chatted  # noqa: PLC0415 - takes long, and is not for --help

    options = GenerationOptions(
        max_tokens=max_tokens,
        default_max_tokens=DEFAULT_CHAT_TOKENS,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
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
    options.check()
    config = ClientConfig.from_env(url=url, api_key_file=api_key_file, connect_timeout_s=connect_timeout)
    if no_history:
        config = replace(config, chat_history=None)
    wanted = Wanted(model=model, system=system, resume=resume, options=options, is_json=is_json)
    return run(chatted(config, wanted))
