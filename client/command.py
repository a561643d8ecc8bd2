"""What the commands of `client` have in common: their options, running them, writing to standard output."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from client.config import CONNECT_TIMEOUT_S, ClientConfig
from client.interrupts import Interruption, cancelled_by_signals
from client.output import printable
from protocol.errors import InvalidRequestError, NotFoundError, TooLargeError
from protocol.option_groups import in_place_of
from protocol.rest import ModelInfo

if TYPE_CHECKING:  # takes long to import, and is not for --help
    from client.api import Client

MAX_INPUT_BYTES = 64 * 2**20
R = TypeVar("R")

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        help="The coordinator, https://host:port; several by commas. Else BRIGADE_URL, else the one that keeps its "
        "state on this machine.",
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        help="File that holds the API key. Else BRIGADE_API_KEY, else the client key in the state folder of this "
        "machine's coordinator.",
    ),
]
ConnectTimeout = Annotated[
    float, typer.Option("--connect-timeout", help="Seconds that the coordinator may be away at the start.", min=0.0)
]
MinTrust = Annotated[
    float, typer.Option(help="Only over workers of this trust, from 0 to 1, or more; `coord trust list` shows it.")
]
PinnedEnds = Annotated[
    bool,
    typer.Option(
        "--pinned-ends",
        help="The first and the last worker, which see the tokens, must be ones that the cluster's operator "
        "vouches for (`coord trust pin`).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]

_CLUSTER = {"url": (Url, None), "api_key_file": (KeyFile, None)}
_WAITED_FOR = {"connect_timeout": (ConnectTimeout, CONNECT_TIMEOUT_S)}


def for_cluster(command: Callable[..., R]) -> Callable[..., R]:
    """The command with options in place of its parameter `config`: which cluster is meant, and the key to it."""
    return in_place_of("config", _CLUSTER, ClientConfig.from_env)(command)


def for_cluster_waited_for(command: Callable[..., R]) -> Callable[..., R]:
    """The same, with an option for how long the coordinator may be away at the start."""
    return in_place_of("config", _CLUSTER | _WAITED_FOR, _config)(command)


def _config(url: str | None, api_key_file: Path | None, connect_timeout: float) -> ClientConfig:
    return ClientConfig.from_env(url=url, api_key_file=api_key_file, connect_timeout_s=connect_timeout)


def tell(notice: str) -> None:
    """A line for people on standard error."""
    sys.stderr.write(printable(" ".join(notice.split())) + "\n")
    sys.stderr.flush()


def run(work: Coroutine[Any, Any, int]) -> int:
    """Run a command to its end or to the first signal; the exit code."""

    async def interruptible() -> int:
        with cancelled_by_signals() as interruption:
            try:
                return await work
            except asyncio.CancelledError:
                return _interrupted(interruption)

    return asyncio.run(interruptible())


async def chosen_model(client: Client, name: str | None) -> ModelInfo:
    """The model of this name; without one, the only model that there is.

    Raises:
        NotFoundError: there is none.
        InvalidRequestError: there are several.
    """
    if name is not None:
        return await client.model(name)
    found = await client.models()
    if not found:
        raise NotFoundError(
            "the cluster has no models: add one with `coord model add` on the coordinator's machine"
        )
    if len(found) > 1:
        names = ", ".join(model.name for model in found)
        raise InvalidRequestError(f"the cluster has {len(found)} models ({names}): choose one with --model")
    return found[0]


def standard_input(what: str) -> str:
    """All of it, without the line's end that `echo` adds; `what` it is, for people.

    Raises:
        TooLargeError: it is too long.
        InvalidRequestError: it is not UTF-8.
    """
    if sys.stdin.isatty():
        tell(f"reading {what} from the terminal; end it with Ctrl-D")
    data = sys.stdin.buffer.read(MAX_INPUT_BYTES + 1)
    if len(data) > MAX_INPUT_BYTES:
        raise TooLargeError(f"standard input has more than {MAX_INPUT_BYTES} bytes")
    try:
        return data.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as exc:
        raise InvalidRequestError(f"standard input is not UTF-8 at byte {exc.start}: convert it first") from exc


async def write(text: str) -> None:
    """Write to standard output; in a thread, since a pager that isn't read may block for hours."""
    await asyncio.to_thread(write_now, text)


def write_now(text: str) -> None:
    """Write to standard output, as UTF-8 whatever the terminal says."""
    sys.stdout.buffer.write(text.encode("utf-8", errors="replace"))
    sys.stdout.buffer.flush()


def _interrupted(interruption: Interruption) -> int:
    if interruption.signal_number is None:
        raise asyncio.CancelledError
    return interruption.exit_code
