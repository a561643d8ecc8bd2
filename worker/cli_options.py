"""The options of `worker join`, and what each is turned into: so that the command reads as what it does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from protocol.errors import ConfigError, InvalidRequestError
from protocol.ids import BlockRange, ModelName, block_range_from_text, checked_model_name
from worker.config import size_from_text

T = TypeVar("T")


def _one_of(option: str, *choices: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        if text not in choices:
            raise ConfigError(f"{option} {text!r}: one of {', '.join(choices)}")
        return text

    return checked


def _size_of(option: str) -> Callable[[str], int]:
    return lambda text: size_from_text(text, option)


def _named(option: str, read: Callable[[str], T]) -> Callable[[str], T]:
    """`read`, whose errors say which option they are of."""

    def named(text: str) -> T:
        try:
            return read(text)
        except InvalidRequestError as exc:
            raise ConfigError(f"{option}: {exc.message}") from exc

    return named


Urls = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[URL...]",
        help="The coordinator, https://HOST:PORT. Several addresses of it, with spaces or commas in between, "
        "are tried in order: at the start, and whenever it can't be reached at one of them. Without any: the "
        "invite's, else whichever coordinator on the local network proves that it knows the secret.",
        show_default=False,
    ),
]
Invite = Annotated[
    str | None,
    typer.Option(
        help="An invite (`coord invite`) in place of address and secret. Anybody here can see it in `ps`: better "
        "set BRIGADE_INVITE, or use --invite-file.",
        show_default=False,
    ),
]
InviteFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the invite; keep it: the worker comes in again by it, also when it is used up. Else "
        "BRIGADE_INVITE.",
        show_default=False,
    ),
]
Secret = Annotated[
    str | None,
    typer.Option(
        help="The join secret itself. Anybody here can see it in `ps`: better set BRIGADE_SECRET, or "
        "use --secret-file.",
        show_default=False,
    ),
]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        help="File with the join secret; read again whenever the worker joins anew, since it may be rotated. "
        "Without it (and --secret): BRIGADE_SECRET.",
        show_default=False,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        help="Folder for this worker's key and its cache of model files; each worker needs its own. "
        "Else BRIGADE_WORKER_STATE, else the user's own.",
        show_default=False,
    ),
]
Listen = Annotated[
    str | None,
    typer.Option(
        help="Where clients and other workers connect to: HOST or HOST:PORT. Else the address that faces the "
        "coordinator (loopback if that is on this machine), any free port.",
        show_default=False,
    ),
]
Advertise = Annotated[
    str | None,
    typer.Option(help="What others use instead to reach it: https://HOST:PORT.", show_default=False),
]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda or mps. auto: cuda, else mps, else cpu.",
        parser=_one_of("--device", "auto", "cpu", "cuda", "mps"),
        metavar="<str>",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16, float16, int8 or int4. auto: bfloat16, or float32 if that is clearly "
        "faster here; and int8 or int4 where a model doesn't fit into the cluster's memory otherwise. int8 and "
        "int4 hold weights in fewer bits, and compute in bfloat16; float16 is for accelerators. The coordinator "
        "changes nothing but auto.",
        parser=_one_of("--precision", "auto", "float32", "bfloat16", "float16", "int8", "int4"),
        metavar="<str>",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="CPU threads for the model, as many as the machine has CPUs at most. Else torch's choice.",
        show_default=False,
    ),
]
Memory = Annotated[
    int | None,
    typer.Option(
        help="Most memory for weights and key-value caches together, such as 8GiB. Else what is free, less a "
        "reserve.",
        parser=_size_of("--memory"),
        metavar="SIZE",
        show_default=False,
    ),
]
KvMemory = Annotated[
    int | None,
    typer.Option(
        help="Of that, for key-value caches. Else four fifths of what the weights leave.",
        parser=_size_of("--kv-memory"),
        metavar="SIZE",
        show_default=False,
    ),
]
KvPrecision = Annotated[
    str,
    typer.Option(
        help="What key-value caches are kept in: auto, bfloat16 or int8. auto: what is computed in. int8 takes "
        "half of what bfloat16 takes, room for twice the sessions; steps of long sessions take longer.",
        parser=_one_of("--kv-precision", "auto", "bfloat16", "int8"),
        metavar="<str>",
    ),
]
CacheSize = Annotated[
    int | None,
    typer.Option(
        help="Most disk space for model files, and for what --precision int8 and int4 made of them, such as "
        "100GB; the latter go first, then the least recently used. Else what the disk has.",
        parser=_size_of("--cache-size"),
        metavar="SIZE",
        show_default=False,
    ),
]
Model = Annotated[
    ModelName | None,
    typer.Option(
        help="Hold blocks of this model only.",
        parser=_named("--model", checked_model_name),
        metavar="NAME",
        show_default=False,
    ),
]
Blocks = Annotated[
    BlockRange | None,
    typer.Option(
        help="Hold exactly these blocks: start:end, counted from 0, end not included. Else the coordinator "
        "chooses.",
        parser=_named("--blocks", block_range_from_text),
        metavar="START:END",
        show_default=False,
    ),
]
Wire = Annotated[
    str,
    typer.Option(
        help="How activations go to the next worker. exact: as computed. int8: in half the bytes or less, and "
        "not quite the same. auto: exact, but prompts in bfloat16 and float16 as int8 over links that are "
        "measured to be slow.",
        parser=_one_of("--wire", "auto", "exact", "int8"),
        metavar="<str>",
    ),
]
ChunkTokens = Annotated[
    int | None,
    typer.Option(
        help="Most prompt tokens that are run at a time, of generations that begin here. Without it, as many as "
        "make the prompt done soonest, by what steps were measured to take here: 32 to 512, and 128 at most where "
        "others wait for their tokens.",
        show_default=False,
    ),
]
DraftModel = Annotated[
    Path | None,
    typer.Option(
        help="A small model of the same vocabulary, as a .gguf file or a folder with config.json and safetensors: "
        "where it pays, it guesses the next tokens of generations that begin here, which are then verified several "
        "at a time. "
        "The answers stay the same. Its weights, and caches for 4096 tokens, count as --memory.",
        metavar="FILE|FOLDER",
        show_default=False,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile",
        help="Have torch compile the step of one token, once for each kind of block: loading takes up to a minute "
        "longer the first time, and single streams run faster. Needs a C++ compiler. Where it can't be done, the "
        "log and `coord status` say why, and blocks run as they do without it.",
    ),
]
TrustAuthor = Annotated[
    list[str] | None,
    typer.Option(
        help="Load only models that this author signed, whatever the coordinator says: his public key, "
        "ed25519:..., or the .pub file of `coord model keygen`. May be repeated.",
        metavar="KEY|FILE",
        show_default=False,
    ),
]
JoinTimeout = Annotated[
    float | None,
    typer.Option(
        help="Seconds to wait for a coordinator that can't be reached, then end with code 3. Else for ever.",
        min=0.0,
        show_default=False,
    ),
]
MetricsListen = Annotated[
    str | None,
    typer.Option(
        help="Where Prometheus reads metrics over plain HTTP, HOST:PORT (9464 if no port is given). Else nowhere.",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more, on standard error.")]
