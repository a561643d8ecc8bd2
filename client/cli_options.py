"""The options of `client generate`, so that the command reads as what it does. Those of all commands: `command`."""

from __future__ import annotations

from typing import Annotated

import typer

from client.options import DEFAULT_MAX_TOKENS, DEFAULT_PRIVATE_BLOCKS

PromptText = Annotated[str | None, typer.Argument(help="The prompt; '-' or nothing: from standard input.")]
Model = Annotated[str | None, typer.Option(help="The model's name; needed if there are several.")]
MaxTokens = Annotated[int | None, typer.Option(help=f"Most tokens of the answer. [default: {DEFAULT_MAX_TOKENS}]")]
Temperature = Annotated[float | None, typer.Option(help="0 always takes the likeliest token.")]
TopP = Annotated[float | None, typer.Option(help="Only the likeliest tokens of this share together.")]
TopK = Annotated[int | None, typer.Option(help="Only this many likeliest tokens; 0: all.")]
MinP = Annotated[float | None, typer.Option(help="Only tokens of this share of the likeliest's.")]
RepetitionPenalty = Annotated[float | None, typer.Option(help="Above 1: repeat less.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same tokens. [default: random]")]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]
System = Annotated[str | None, typer.Option(help="System message, for chat models.")]
IsChat = Annotated[
    bool | None,
    typer.Option("--chat/--raw", help="Lay the prompt out as a chat, or take it as it is. [default: the model's]"),
]
Speculate = Annotated[
    bool, typer.Option(help="Let the workers guess tokens ahead where that pays; the text is the same.")
]
Private = Annotated[
    bool,
    typer.Option(
        "--private",
        help="Run the model's ends (embedding, first and last blocks, head, sampling) on this machine: workers get "
        "hidden states, never text or tokens. That hides them from logs and from the merely curious. Research has "
        "recovered most of a prompt from hidden states: it is no protection against a worker that attacks. Needs "
        "brigade\\[worker] here; nothing is guessed ahead or kept for later prompts.",
    ),
]
PrivateBlocks = Annotated[
    int | None,
    typer.Option(
        help=f"With --private: how many blocks at each end; more are slower here, and make text harder to recover. "
        f"\\[default: {DEFAULT_PRIVATE_BLOCKS}]"
    ),
]
WaitForQuota = Annotated[
    bool,
    typer.Option("--wait", help="If a limit of the key is used up, wait for room within --timeout; else exit 11."),
]
Timeout = Annotated[float, typer.Option(help="Seconds that the whole generation may take.")]
