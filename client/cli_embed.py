"""`client embed`: texts as vectors, or a text's hidden states after any block, one JSON object a line."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from client.command import (
    MinTrust,
    PinnedEnds,
    chosen_model,
    for_cluster_waited_for,
    run,
    standard_input,
    tell,
    write,
)
from client.config import ClientConfig
from client.options import DEFAULT_TIMEOUT_S
from protocol.errors import InvalidRequestError
from protocol.exit_codes import EXIT_OK

Texts = Annotated[list[str] | None, typer.Argument(help="The texts; none: each line of standard input is one.")]
Model = Annotated[str | None, typer.Option(help="The model's name; needed if there are several.")]
PoolingOption = Annotated[
    str,
    typer.Option(
        metavar="[auto|mean|last|cls]",
        help="How one vector is made of all tokens' states; auto: as the model's authors do, else the mean of an "
        "encoder's, the last of a decoder's.",
    ),
]
Dimensions = Annotated[
    int | None, typer.Option(help="Only the first so many numbers, for models that were trained so (Matryoshka).")
]
Normalize = Annotated[bool, typer.Option(help="Make each vector of length 1.")]
Truncate = Annotated[bool, typer.Option("--truncate", help="Cut texts that are too long.")]
HiddenStates = Annotated[
    int | None,
    typer.Option(
        metavar="BLOCK",
        help="Instead of a vector of each text, the states of all its tokens after so many blocks; 0: what goes "
        "into the first. Only workers that hold these blocks are asked.",
    ),
]
Wait = Annotated[
    bool, typer.Option("--wait", help="If a limit of the key is used up, or no worker holds the model, wait.")
]
Timeout = Annotated[float, typer.Option(help="Seconds that it may take.")]


@for_cluster_waited_for
def embed(
    texts: Texts = None,
    *,
    model: Model = None,
    pooling: PoolingOption = "auto",
    normalize: Normalize = True,
    dimensions: Dimensions = None,
    truncate: Truncate = False,
    hidden_states: HiddenStates = None,
    wait: Wait = False,
    min_trust: MinTrust = 0.0,
    pinned_ends: PinnedEnds = False,
    timeout: Timeout = DEFAULT_TIMEOUT_S,
    config: ClientConfig,
) -> int:
    """Print the vector of each text as a line of JSON."""
    given = texts or [line for line in standard_input("texts").splitlines() if line.strip()]
    if not given:
        raise InvalidRequestError("no texts: give them as arguments, or one a line on standard input")
    how: dict[str, Any] = {
        "pooling": pooling,
        "normalize": normalize,
        "dimensions": dimensions,
        "truncate": truncate,
    }
    if hidden_states is not None and (pooling, normalize, dimensions, truncate) != ("auto", True, None, False):
        raise InvalidRequestError("--hidden-states gives states as they are: no option of vectors goes with it")
    common: dict[str, Any] = {
        "timeout_s": timeout,
        "min_trust": min_trust,
        "pinned_ends": pinned_ends,
        "waits_for_quota": wait,
        "waits_for_workers": wait,
    }
    if hidden_states is not None:
        return run(_print_states(config, model, given, hidden_states, common))
    return run(_print_vectors(config, model, given, how | common))


async def _print_vectors(config: ClientConfig, model: str | None, texts: list[str], options: dict[str, Any]) -> int:
    from client.api import Client  # takes long, and is not for --help

    async with Client(config=config, on_notice=tell) as client:
        found = await client.embed(await chosen_model(client, model), texts, **options)
    for vector in found.vectors:
        await write(_line({"embedding": vector.tolist()}))
    done = {"n_tokens": found.n_tokens, "pooling": found.pooling, "n_truncated": found.n_truncated}
    await write(_line({"done": done | {"failovers": found.failovers}}))
    return EXIT_OK


async def _print_states(
    config: ClientConfig, model: str | None, texts: list[str], block: int, options: dict[str, Any]
) -> int:
    from client.api import Client  # takes long, and is not for --help

    async with Client(config=config, on_notice=tell) as client:
        info = await chosen_model(client, model)
        for text in texts:
            rows = await client.hidden_states(info, text, block=block, **options)
            await write(_line({"block": block, "hidden_states": rows.tolist()}))
    return EXIT_OK


def _line(value: Any) -> str:
    return msgspec.json.encode(value).decode() + "\n"
