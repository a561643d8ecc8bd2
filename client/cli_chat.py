"""`client chat`: a conversation with a model, in the terminal or by lines of standard input."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from client import cli_options as given
from client.command import for_cluster_waited_for, run
from client.config import ClientConfig
from client.options import DEFAULT_TIMEOUT_S, GenerationOptions
from client.terminal.sampling_settings import DEFAULT_CHAT_TOKENS
from protocol.option_groups import in_place_of

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


_OPTIONS = given.SAMPLING | given.WAY | {"max_tokens": (ChatTokens, None), "timeout": (Timeout, DEFAULT_TIMEOUT_S)}


@in_place_of("options", _OPTIONS, partial(given.generation_options, default_max_tokens=DEFAULT_CHAT_TOKENS))
@for_cluster_waited_for
def chat(
    *,
    model: ChatModel = None,
    system: System = None,
    resume: Resume = None,
    options: GenerationOptions,
    no_history: NoHistory = False,
    is_json: JsonLines = False,
    config: ClientConfig,
) -> int:
    """Chat with a model: /help in it says how. If standard input is no terminal, each of its lines is a message."""
    from client.terminal.chat import Wanted, chatted  # takes long, and is not for --help

    if no_history:
        config = replace(config, chat_history=None)
    wanted = Wanted(model=model, system=system, resume=resume, options=options, is_json=is_json)
    return run(chatted(config, wanted))
