"""Everything that must be reached, measured on this machine: `make bench`.

    python -m benchmarks.run [--only NAME ...] [--repeats 5] [--json FILE] [--source MODEL] [--small]

Workers are real processes of one thread each over TLS on loopback, two of them unless said. What is compared is
measured in turns within this run, and the ratio of each pair is taken; their median has to reach the bound. So it
holds when a shared machine's speed drifts. Other figures are good for this machine only.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import psutil
import torch
import transformers
from rich.console import Console

from benchmarks import guesses, links, measures
from benchmarks.arrangement import Arranged, Arrangement, arranged, coordinator_with
from benchmarks.measures import SMALL, Bench, Figures, Scale
from benchmarks.reference import unquantized
from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table
from demo.local_cluster import ClusterError, LocalCluster, smollm2_gguf
from protocol.errors import BrigadeError, ConfigError

FLOAT32, BFLOAT16 = Arrangement(precision="float32"), Arrangement(precision="bfloat16")
INT8, INT4 = Arrangement(precision="int8", is_unquantized=True), Arrangement(precision="int4")
INT4_COMPILED = Arrangement(precision="int4", compiles=True)
RELAYED = Arrangement(precision="float32", n_workers=links.N_WORKERS, has_relays=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A target and how it is measured: on which workers, by what."""

    target: Target
    arrangement: Arrangement
    measure: Callable[[Bench, Arranged], Awaitable[Figures]]


def _measurement(
    name: str,
    what: str,
    bound: float,
    arrangement: Arrangement,
    measure: Callable[[Bench, Arranged], Awaitable[Figures]],
    *,
    is_least: bool = True,
) -> Measurement:
    target = Target(name=name, what=what, bound=bound, is_least=is_least)
    return Measurement(target=target, arrangement=arrangement, measure=measure)


MEASUREMENTS = (
    _measurement(
        "float32-one",
        "float32, one stream / transformers, one thread",
        1.10,
        FLOAT32,
        partial(measures.one_stream, is_exact=True),
    ),
    _measurement(
        "float32-eight",
        "float32, 8 streams / our one",
        3.5,
        FLOAT32,
        partial(measures.several_streams, n_streams=8),
    ),
    _measurement(
        "first-token-float32",
        "first token of a long prompt / transformers' prefill, two threads, float32",
        1.1,
        FLOAT32,
        partial(measures.first_token, precision="float32"),
        is_least=False,
    ),
    _measurement(
        "second-turn",
        "first token of a chat's second turn / of its first",
        0.25,
        FLOAT32,
        measures.second_turn,
        is_least=False,
    ),
    _measurement(
        "speculation-cost",
        "float32, one stream of a text that doesn't repeat, guessing / token by token",
        0.98,
        FLOAT32,
        guesses.cost,
    ),
    _measurement(
        "bfloat16-sixteen",
        "bfloat16, 16 streams / our one",
        8.0,
        BFLOAT16,
        partial(measures.several_streams, n_streams=16),
    ),
    _measurement(
        "first-token-bfloat16",
        "first token of a long prompt / transformers' prefill, two threads, bfloat16",
        1.1,
        BFLOAT16,
        partial(measures.first_token, precision="bfloat16"),
        is_least=False,
    ),
    _measurement(
        "int4-one",
        "int4, one stream / transformers in float32, one thread",
        2.4,
        INT4,
        partial(measures.one_stream, is_exact=False),
    ),
    _measurement(
        "int4-memory",
        "int4, a worker's memory / (0.35 of its bfloat16 weights + 450 MB)",
        1.0,
        INT4,
        measures.memory,
        is_least=False,
    ),
    _measurement(
        "int4-compiled",
        "int4 with --compile, one stream / transformers in float32, one thread",
        2.4,
        INT4_COMPILED,
        partial(measures.one_stream, is_exact=False),
    ),
    _measurement(
        "links",
        "three workers, 50 ms one way on each link, steps/s / the bound",
        0.93,
        RELAYED,
        links.plain_ring,
    ),
    _measurement(
        "speculation",
        "the same on a repetitive text, guessing / token by token",
        2.0,
        RELAYED,
        guesses.speculation,
    ),
    _measurement(
        "int8-one",
        "int8, one stream / transformers in float32, one thread",
        1.6,
        INT8,
        partial(measures.one_stream, is_exact=False),
    ),
)
"""Those on the same workers follow each other."""


def main() -> None:
    """Measure and print; exits with 1 if something isn't reached."""
    names = [measurement.target.name for measurement in MEASUREMENTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--repeats", type=int, default=None)
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the outcomes here too")
    parser.add_argument("--source", type=Path, default=None, help="a GGUF file or a folder [SmolLM2-135M]")
    parser.add_argument("--small", action="store_true", help="only to see that it works")
    arguments = parser.parse_args()
    scale = SMALL if arguments.small else Scale()
    if arguments.repeats is not None:
        scale = replace(scale, n_repeats=arguments.repeats)
    bench = Bench(source=arguments.source or smollm2_gguf(), scale=scale)
    chosen = [measurement for measurement in MEASUREMENTS if measurement.target.name in arguments.only]
    with tempfile.TemporaryDirectory(prefix="brigade-bench-") as folder:
        outcomes = asyncio.run(measured(bench, chosen, Path(folder)))
    Console(width=150).print(outcomes_table(outcomes, title(bench)))
    if arguments.json is not None:
        report = {"title": title(bench), "outcomes": outcomes_json(outcomes)}
        arguments.json.write_text(json.dumps(report, indent=1))
    sys.exit(0 if all(outcome.is_reached for outcome in outcomes) else 1)


async def measured(bench: Bench, chosen: Sequence[Measurement], folder: Path) -> list[Outcome]:
    """The outcomes of all, arrangement by arrangement."""
    outcomes: list[Outcome] = []
    for is_unquantized, part in groupby(chosen, key=lambda measurement: measurement.arrangement.is_unquantized):
        source = bench.source
        if is_unquantized:
            source = await asyncio.to_thread(unquantized, source, folder / "unquantized")
        with coordinator_with(source, folder / f"cluster-{len(outcomes)}") as cluster:
            for arrangement, group in groupby(part, key=lambda measurement: measurement.arrangement):
                outcomes += await _on_workers(cluster, arrangement, list(group), bench)
    return outcomes


async def _on_workers(
    cluster: LocalCluster, arrangement: Arrangement, group: Sequence[Measurement], bench: Bench
) -> list[Outcome]:
    _say(f"starting {arrangement.n_workers} workers in {arrangement.precision}")
    outcomes: list[Outcome] = []
    try:
        async with arranged(cluster, arrangement) as ready:
            for measurement in group:
                _say(f"measuring {measurement.target.name}")
                outcomes.append(await _outcome(measurement, bench, ready))
    except (ClusterError, ConfigError) as exc:  # a precision that isn't there: the others are measured all the same
        failure = str(exc).splitlines()[-1]
        outcomes += [Outcome(target=one.target, failure=failure) for one in group[len(outcomes) :]]
    return outcomes


async def _outcome(measurement: Measurement, bench: Bench, ready: Arranged) -> Outcome:
    try:
        figures = await measurement.measure(bench, ready)
    except (BrigadeError, ValueError, ExceptionGroup) as exc:
        return Outcome(target=measurement.target, failure=_sentence(exc))
    return Outcome(target=measurement.target, ratios=figures.ratios, details=figures.details)


def _sentence(exc: Exception) -> str:
    """What failed; of several at once, the first."""
    while isinstance(exc, ExceptionGroup):
        exc = exc.exceptions[0]
    return str(exc) or type(exc).__name__


def title(bench: Bench) -> str:
    """What was measured, and on what."""
    return (
        f"{bench.source.name}, medians of {bench.scale.n_repeats}; torch {torch.__version__}, "
        f"transformers {transformers.__version__}, {psutil.cpu_count()} cores ({_processor()})"
    )


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
