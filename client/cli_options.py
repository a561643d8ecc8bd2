"""The options of `client generate` and `client chat`, and what they make. Those of all commands: `command`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from client.command import MinTrust, PinnedEnds, tell
from client.options import (
    DEFAULT_MAX_TOKENS,
    DEFAULT_PRIVATE_BLOCKS,
    DEFAULT_TIMEOUT_S,
    GenerationOptions,
    SamplingDefaults,
)
from protocol.errors import InvalidRequestError
from protocol.messages import MAX_BIASES, MAX_CONSTRAINT_BYTES, MAX_LOGPROBS

_NO_ADVICE = SamplingDefaults()
"""Of a model that recommends nothing."""


def _models_own(value: float) -> str:
    return f"\\[default: the model's own, else {value:g}]"


PromptText = Annotated[str | None, typer.Argument(help="The prompt; '-' or nothing: from standard input.")]
Model = Annotated[str | None, typer.Option(help="The model's name; needed if there are several.")]
MaxTokens = Annotated[
    int | None, typer.Option(help=f"Most tokens of the answer. \\[default: {DEFAULT_MAX_TOKENS}]")
]
Temperature = Annotated[
    float | None,
    typer.Option(help=f"0 always takes the likeliest token. {_models_own(_NO_ADVICE.temperature)}"),
]
TopP = Annotated[
    float | None,
    typer.Option(help=f"Only the likeliest tokens of this share together. {_models_own(_NO_ADVICE.top_p)}"),
]
TopK = Annotated[
    int | None,
    typer.Option(help=f"Only this many likeliest tokens; 0: all. {_models_own(_NO_ADVICE.top_k)}"),
]
MinP = Annotated[
    float | None,
    typer.Option(help=f"Only tokens of this share of the likeliest's. {_models_own(_NO_ADVICE.min_p)}"),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(help=f"Above 1: repeat less. {_models_own(_NO_ADVICE.repetition_penalty)}"),
]
PresencePenalty = Annotated[
    float | None,
    typer.Option(help="-2 to 2: above 0, favour tokens that the answer hasn't got yet. \\[default: 0]"),
]
FrequencyPenalty = Annotated[
    float | None,
    typer.Option(
        help="-2 to 2: above 0, take a token the less, the oftener the answer has it. \\[default: 0]",
    ),
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ID=VALUE",
        help=f"Add VALUE (-100 to 100) to the score of the token ID; may be repeated, for {MAX_BIASES} tokens.",
    ),
]
Logprobs = Annotated[
    int | None,
    typer.Option(
        help=f"With --json: the logarithm of each token's probability, and of this many likeliest ones (0 to "
        f"{MAX_LOGPROBS}), by the model alone."
    ),
]
JsonSchema = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Hold the answer to this JSON schema. It is cut where --max-tokens end, as ever.",
    ),
]
Regex = Annotated[
    str | None, typer.Option(help="Hold the answer to this regular expression, which it matches as a whole.")
]
Grammar = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Hold the answer to this grammar, in llguidance's form of Lark.")
]
Seed = Annotated[
    int | None,
    typer.Option(help="The same seed gives the same tokens, as far as precision allows. \\[default: random]"),
]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.")]
System = Annotated[str | None, typer.Option(help="System message, for chat models.")]
IsChat = Annotated[
    bool | None,
    typer.Option(
        "--chat/--raw", help="Lay the prompt out as a chat, or take it as it is. \\[default: the model's]"
    ),
]
Speculate = Annotated[
    bool | None,
    typer.Option(
        "--speculate/--no-speculate",
        help="Let the workers guess tokens ahead where that pays; the text is the same. \\[default: speculate]",
    ),
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
Wait = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="Wait within --timeout where a limit of the key is used up (else exit 11), and for workers where none "
        "holds the model or is about to (else exit 7).",
    ),
]
Timings = Annotated[
    bool,
    typer.Option(
        "--timings",
        help="Say at the end, on standard error, where the time went: on this machine, on each worker, and between "
        "them; and the trace id that stands in their logs. (In --json it is there anyway.)",
    ),
]
Traceparent = Annotated[
    str | None,
    typer.Option(
        metavar="TRACEPARENT",
        envvar="TRACEPARENT",
        help="The trace that this is part of, as W3C writes it: 00-<32 digits>-<16 digits>-01. "
        "\\[default: a new one]",
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds that the whole generation may take.")]


SAMPLING = {
    "max_tokens": (MaxTokens, None),
    "temperature": (Temperature, None),
    "top_p": (TopP, None),
    "top_k": (TopK, None),
    "min_p": (MinP, None),
    "repetition_penalty": (RepetitionPenalty, None),
    "presence_penalty": (PresencePenalty, None),
    "frequency_penalty": (FrequencyPenalty, None),
    "seed": (Seed, None),
    "stop": (Stop, None),
}
CONSTRAINTS = {
    "logit_bias": (LogitBias, None),
    "logprobs": (Logprobs, None),
    "json_schema": (JsonSchema, None),
    "regex": (Regex, None),
    "grammar": (Grammar, None),
}
WAY = {
    "speculate": (Speculate, None),
    "private": (Private, False),
    "private_blocks": (PrivateBlocks, None),
    "wait": (Wait, False),
    "min_trust": (MinTrust, 0.0),
    "pinned_ends": (PinnedEnds, False),
    "timeout": (Timeout, DEFAULT_TIMEOUT_S),
}


def generation_options(
    *,
    stop: Sequence[str] | None,
    timeout: float,
    logit_bias: Sequence[str] | None = None,
    json_schema: Path | None = None,
    grammar: Path | None = None,
    speculate: bool | None = None,
    private: bool = False,
    wait: bool = False,
    **as_they_are: Any,
) -> GenerationOptions:
    """What the options say, each by its name. Of one that another makes useless, people are told.

    Raises:
        InvalidRequestError: one can't be read, or can't be done.
    """
    options = GenerationOptions(
        stop=tuple(stop or ()),
        timeout_s=timeout,
        logit_bias=biases(logit_bias),
        json_schema=text_of(json_schema, "--json-schema"),
        grammar=text_of(grammar, "--grammar"),
        speculate=speculate is not False,
        private=private,
        wait_for_quota=wait,
        wait_for_workers=wait,
        **as_they_are,
    )
    options.check()
    if speculate and private:
        tell("--speculate does nothing with --private: workers that see no tokens can't guess any")
    return options


def biases(given: Sequence[str] | None) -> dict[int, float]:
    """What `--logit-bias` says.

    Raises:
        InvalidRequestError: one isn't ID=VALUE, or a token has two.
    """
    found: dict[int, float] = {}
    for text in given or ():
        token_id, _, value = text.partition("=")
        try:
            pair = int(token_id), float(value)
        except ValueError as exc:
            raise InvalidRequestError(f"--logit-bias {text}: it must be ID=VALUE, a token id and a number") from exc
        if pair[0] in found:
            raise InvalidRequestError(f"--logit-bias {text}: token {pair[0]} has a bias already")
        found[pair[0]] = pair[1]
    return found


def text_of(path: Path | None, option: str) -> str | None:
    """The text of a small file that an option names, if it does.

    Raises:
        InvalidRequestError: it can't be read, is no text, or is too big.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONSTRAINT_BYTES + 1)
        if len(data) > MAX_CONSTRAINT_BYTES:
            raise InvalidRequestError(f"{option} {path}: more than the {MAX_CONSTRAINT_BYTES} bytes that are taken")
        return data.decode("utf-8")
    except OSError as exc:
        raise InvalidRequestError(f"{option} {path} can't be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"{option} {path} is not UTF-8 at byte {exc.start}") from exc
