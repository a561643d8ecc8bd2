"""`client bench`: how fast a cluster answers one stream and several, for whoever runs it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from client.bench import DEFAULT_STREAMS, Bench, BenchPlan
from client.bench_figures import BenchReport, figures_table
from client.cli_options import Speculate
from client.command import Json, MinTrust, PinnedEnds, chosen_model, for_cluster, run, tell, write_now
from client.config import ClientConfig
from client.output import printable
from protocol.errors import InvalidRequestError
from protocol.exit_codes import EXIT_OK, EXIT_UNAVAILABLE

_WIDTH = 120
"""Of the table where there is no terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """One `client bench`."""

    model: str | None
    streams: tuple[int, ...]
    n_rounds: int
    n_prompt_tokens: int
    max_tokens: int
    timeout_s: float
    min_trust: float
    pinned_ends: bool
    speculate: bool
    is_json: bool


@for_cluster
def bench(
    model: Annotated[str | None, typer.Argument(help="The model's name; needed if there are several.")] = None,
    *,
    streams: Annotated[str, typer.Option(help="How many streams at once, one level after the other.")] = ",".join(
        map(str, DEFAULT_STREAMS)
    ),
    rounds: Annotated[int, typer.Option(help="Generations of each stream, one after the other.")] = 1,
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 128,
    max_tokens: Annotated[int, typer.Option(help="Tokens of each answer; none ends earlier.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds that one generation may take.")] = 600.0,
    min_trust: MinTrust = 0.0,
    pinned_ends: PinnedEnds = False,
    speculate: Speculate = None,
    is_json: Json = False,
    config: ClientConfig,
) -> int:
    """Measure MODEL: times to the first token and between tokens, tokens a second, for 1 to 16 streams at once.

    Nothing of it is free: it counts as any other use of the key. Ctrl-C ends it and shows what was measured. The
    exit code is 7 if a generation failed.
    """
    asked = _Asked(
        model=model,
        streams=_levels(streams),
        n_rounds=rounds,
        n_prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        timeout_s=timeout,
        min_trust=min_trust,
        pinned_ends=pinned_ends,
        speculate=speculate is not False,
        is_json=is_json,
    )
    return run(_bench(config, asked))


def _levels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InvalidRequestError(
            f"--streams is {text!r}; give numbers separated by commas, as in 1,2,4,8,16"
        ) from None


async def _bench(config: ClientConfig, asked: _Asked) -> int:
    from client.api import Client  # takes long, and is not for --help

    async with Client(config=config, on_notice=tell, prefix_cache=False) as client:
        plan = BenchPlan(
            model=await chosen_model(client, asked.model),
            streams=asked.streams,
            n_rounds=asked.n_rounds,
            n_prompt_tokens=asked.n_prompt_tokens,
            max_tokens=asked.max_tokens,
            timeout_s=asked.timeout_s,
            min_trust=asked.min_trust,
            pinned_ends=asked.pinned_ends,
            speculate=asked.speculate,
        )
        plan.check()
        measuring = Bench(client, plan)
        try:
            with _progress() as measuring.on_progress:
                await measuring.run()
        except asyncio.CancelledError:
            _show(measuring.report(), is_json=asked.is_json)
            raise
    report = measuring.report()
    _show(report, is_json=asked.is_json)
    return EXIT_UNAVAILABLE if report.failures else EXIT_OK


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A line that changes on a terminal; nothing elsewhere. On standard error, as all that is not the result."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _text: None
        return
    with console.status("measuring") as status:
        yield status.update


def _show(report: BenchReport, *, is_json: bool) -> None:
    if is_json:
        write_now(msgspec.json.encode(report.as_json()).decode() + "\n")
    else:
        console = Console() if sys.stdout.isatty() else Console(width=_WIDTH)
        console.print(figures_table(report))
    for failure, n_failed in sorted(report.failures.items()):
        sys.stderr.write(f"{n_failed} failed: {printable(' '.join(failure.split()))}\n")
