"""One stream round a ring of three workers whose links are slow: steps a second beside what the links allow.

    python -m benchmarks.links [--delays 5 25 50 100] [--mbits 10 100 1000] [--tokens 32] [--json]

Between the workers, and between them and the client, stand relays that delay every byte and let through so many
bits a second (`benchmarks.relay`). The bound is 1 / (three delays + the time of a step of the same cluster without
any), both measured in turns. First tokens are those of a long prompt, which crosses each link whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.arrangement import MODEL, Arranged, Arrangement, arranged, coordinator_with
from benchmarks.measures import PLAIN, Bench, Figures, Scale
from benchmarks.streams_at_once import stream_times
from demo.local_cluster import smollm2_gguf

N_WORKERS = 3
TARGET_DELAY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What is between any two programs."""

    delay_s: float
    """One way."""
    bits_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFigures:
    """What one kind of link gave."""

    link: Link
    steps_per_s: float
    bound_per_s: float
    """1 / (the links' delays + a step without them)."""
    shares: tuple[float, ...]
    """Of the bound, one a repeat."""
    first_token_s: float
    """Of a long prompt."""


@contextmanager
def linked(ready: Arranged, link: Link) -> Iterator[None]:
    """Have every link be like this while the context is open."""
    for relay in ready.relays:
        relay.delay_s, relay.bits_per_s = link.delay_s, link.bits_per_s
    try:
        yield
    finally:
        for relay in ready.relays:
            relay.delay_s, relay.bits_per_s = 0.0, None


async def step_s(ready: Arranged, prompt: Sequence[int], n_tokens: int, **options: object) -> float:
    """Seconds between tokens, over all after the first."""
    times = await stream_times(ready.client, prompt, n_tokens, **options)
    return (times[-1] - times[0]) / (len(times) - 1)


async def link_figures(bench: Bench, ready: Arranged, link: Link) -> LinkFigures:
    """One kind of link, in turns with none at all."""
    scale = bench.scale
    steps, bounds, firsts = [], [], []
    for _ in range(scale.n_repeats):
        compute_s = await step_s(ready, bench.prompt(scale.n_short_prompt), scale.n_tokens, **PLAIN)
        with linked(ready, link):
            steps.append(await step_s(ready, bench.prompt(scale.n_short_prompt), scale.n_tokens, **PLAIN))
            prompt = bench.prompt(scale.n_prefill)
            firsts.append((await ready.client.generate(MODEL, prompt, max_tokens=1)).ttft_s)
        bounds.append(len(ready.relays) * link.delay_s + compute_s)
    return LinkFigures(
        link=link,
        steps_per_s=1 / statistics.median(steps),
        bound_per_s=1 / statistics.median(bounds),
        shares=tuple(bound / step for bound, step in zip(bounds, steps, strict=True)),
        first_token_s=statistics.median(firsts),
    )


async def plain_ring(bench: Bench, ready: Arranged) -> Figures:
    """Steps per second beside the bound, with `TARGET_DELAY_S` one way on each link."""
    found = await link_figures(bench, ready, Link(delay_s=TARGET_DELAY_S))
    return Figures(ratios=found.shares, details={"steps/s": found.steps_per_s, "bound": found.bound_per_s})


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delays", nargs="+", type=float, default=[5, 25, 50, 100], help="milliseconds one way")
    parser.add_argument("--mbits", nargs="+", type=float, default=[10, 100, 1000], help="Mbit/s of each link")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--source", type=Path, default=None, help="a GGUF file or a folder [SmolLM2-135M]")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    scale = Scale(n_tokens=arguments.tokens, n_prefill=512, n_repeats=arguments.repeats)
    links = [Link(delay_s=ms / 1000, bits_per_s=mbit * 1e6) for ms in arguments.delays for mbit in arguments.mbits]
    bench = Bench(source=arguments.source or smollm2_gguf(), scale=scale)
    found = asyncio.run(measured(bench, links, arguments.precision))
    if arguments.json:
        json.dump([asdict(figures) for figures in found], sys.stdout, indent=1)
    else:
        Console(width=120).print(links_table(found, arguments.precision))


async def measured(bench: Bench, links: Sequence[Link], precision: str) -> list[LinkFigures]:
    """The figures of every kind of link."""
    with (
        tempfile.TemporaryDirectory(prefix="brigade-links-") as folder,
        coordinator_with(bench.source, Path(folder)) as cluster,
    ):
        async with arranged(
            cluster, Arrangement(precision=precision, n_workers=N_WORKERS, has_relays=True)
        ) as ready:
            found = []
            for link in links:
                print(f"measuring {_named(link)}", file=sys.stderr, flush=True)
                found.append(await link_figures(bench, ready, link))
            return found


def links_table(found: Sequence[LinkFigures], precision: str) -> Table:
    """The figures for people."""
    table = Table(title=f"one stream, three workers in {precision}, prompt of 512 tokens, plain decoding")
    for column in ("link", "steps/s", "bound", "of the bound", "first token s"):
        table.add_column(column, justify="right")
    for figures in found:
        table.add_row(
            _named(figures.link),
            *(
                f"{figures.steps_per_s:.2f}",
                f"{figures.bound_per_s:.2f}",
                f"{statistics.median(figures.shares):.3f}",
            ),
            f"{figures.first_token_s:.2f}",
        )
    return table


def _named(link: Link) -> str:
    speed = "" if link.bits_per_s is None else f", {link.bits_per_s / 1e6:g} Mbit/s"
    return f"{1000 * link.delay_s:g} ms{speed}"


if __name__ == "__main__":
    main()
