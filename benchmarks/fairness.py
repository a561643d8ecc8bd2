"""One stream of a key alone, beside many of another key, and beside as many of its own: what it is slowed by.

    python -m benchmarks.fairness [--streams 50] [--precision float32] [--tokens 48] [--repeats 3] [--json]

Two workers. All in turns, so that what else the machine does slows each alike; figures are medians of the turns.
Each turn also has prompts of 1,000 tokens of the other key, one after the other, beside the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.arrangement import MODEL, Arrangement, arranged, coordinator_with
from benchmarks.measures import PLAIN, Bench, Scale
from benchmarks.streams_at_once import stream_times
from client.api import Client
from client.config import ClientConfig
from demo.local_cluster import ClusterError, LocalCluster, smollm2_gguf
from protocol.api_key import api_key_from_text

N_LONG_PROMPT = 1000
BACKGROUND_TOKENS = 256
"""Of each of many streams, before it begins anew."""
N_WARM_UP = 16
"""Tokens of a stream that don't count: while it begins, its prompt is run, and costs are learned."""
BEGIN_WITHIN_S = 240.0
ALONE_S = 4.0
"""For which the others are counted before the stream begins."""
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """One stream beside what else ran."""

    what: str
    token_s: float
    """Between two of its tokens, in the mean."""
    longest_s: float
    others_per_s: float
    """Tokens that the others had meanwhile, a second; of prompts, those of the prompt."""
    worker_cpu_s: float
    """CPU time of all workers, a second."""
    without_per_s: float = 0.0
    """What the others had before the stream began."""


class Background:
    """Streams that go on, each beginning anew once it is over."""

    def __init__(self, client: Client, bench: Bench) -> None:
        self.n_tokens = 0
        self._client = client
        self._bench = bench
        self._n_begun = 0
        self._changed = asyncio.Event()

    async def stream(self) -> None:
        """One stream, until cancelled."""
        is_first = True
        while True:
            options = {"temperature": 0.0, "ignore_eos": True, **PLAIN}
            prompt = self._bench.prompt(self._bench.scale.n_short_prompt)
            async with self._client.stream(MODEL, prompt, max_tokens=BACKGROUND_TOKENS, **options) as pieces:
                async for _ in pieces:
                    self.n_tokens += 1
                    self._n_begun += is_first
                    is_first = False
                    self._changed.set()

    async def prompts(self) -> None:
        """Prompts one after the other, until cancelled."""
        while True:
            await self._client.generate(MODEL, self._bench.prompt(N_LONG_PROMPT), max_tokens=1, **PLAIN)
            self.n_tokens += N_LONG_PROMPT
            self._n_begun += 1
            self._changed.set()

    async def begun(self, n_streams: int) -> None:
        """Wait until so many have had a token."""
        async with asyncio.timeout(BEGIN_WITHIN_S):
            while self._n_begun < n_streams:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def running(background: Background, *streams: Coroutine[object, object, None]) -> AsyncIterator[Background]:
    """Have these run side by side, all begun, until the context ends."""
    async with asyncio.TaskGroup() as tasks:
        started = [tasks.create_task(one, name=f"background {i}") for i, one in enumerate(streams)]
        try:
            await background.begun(len(streams))
            yield background
        finally:
            for task in started:
                task.cancel()


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoKeys:
    """A cluster, and a client for each of two keys."""

    one: Client
    other: Client
    workers: tuple[psutil.Process, ...]

    def cpu_s(self) -> float:
        """CPU time of all workers so far."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers)


@asynccontextmanager
async def two_keys(cluster: LocalCluster, precision: str) -> AsyncIterator[TwoKeys]:
    """Two workers, and two keys of the same class."""
    arrangement = Arrangement(precision=precision)  # type: ignore[arg-type]  # argparse has looked at it
    made = await asyncio.to_thread(cluster.run, "coord", "key", "create", f"other of {precision}")
    if made.returncode:
        raise ClusterError(made.stderr.decode())
    key = api_key_from_text(made.stdout.decode())
    config = ClientConfig(url=cluster.url, api_key=key, cache=cluster.folder / "other-cache")
    async with arranged(cluster, arrangement) as ready, Client(config=config) as other:
        workers = (process for name, process in cluster.processes.items() if name.startswith(precision))
        yield TwoKeys(
            one=ready.client, other=other, workers=tuple(psutil.Process(process.pid) for process in workers)
        )


async def one_beside(what: str, bench: Bench, keys: TwoKeys, background: Background | None) -> Beside:
    """The stream's tokens, and the others' while they came."""
    now_s = asyncio.get_running_loop().time
    await stream_times(keys.one, bench.prompt(bench.scale.n_short_prompt), N_WARM_UP, **PLAIN)
    began_s, cpu_s = now_s(), keys.cpu_s()
    n_before = background.n_tokens if background else 0
    times = await stream_times(keys.one, bench.prompt(bench.scale.n_short_prompt), bench.scale.n_tokens, **PLAIN)
    took_s = now_s() - began_s
    print(f"{what}: {1000 * (times[-1] - times[0]) / (len(times) - 1):.0f} ms a token", file=sys.stderr, flush=True)
    return Beside(
        what=what,
        token_s=(times[-1] - times[0]) / (len(times) - 1),
        longest_s=max(after - earlier for earlier, after in pairwise(times)),
        others_per_s=(background.n_tokens - n_before) / took_s if background else 0.0,
        worker_cpu_s=(keys.cpu_s() - cpu_s) / took_s,
    )


async def alone_per_s(background: Background, seconds: float) -> float:
    """Tokens that streams have a second while nobody else is there."""
    before = background.n_tokens
    await asyncio.sleep(seconds)
    return (background.n_tokens - before) / seconds


async def turn(bench: Bench, keys: TwoKeys, n_streams: int) -> list[Beside]:
    """Everything once."""
    found = [await one_beside("alone", bench, keys, None)]
    for what, client in (("another key's streams", keys.other), ("streams of its own key", keys.one)):
        streams = Background(client, bench)
        async with running(streams, *(streams.stream() for _ in range(n_streams))):
            per_s = await alone_per_s(streams, ALONE_S)
            beside = await one_beside(what, bench, keys, streams)
            found.append(replace(beside, without_per_s=per_s))
    prompts = Background(keys.other, bench)
    async with running(prompts, prompts.prompts()):
        found.append(await one_beside("another key's prompts", bench, keys, prompts))
    return found


async def measured(bench: Bench, precisions: Sequence[str], n_streams: int) -> dict[str, list[list[Beside]]]:
    """By precision: all turns."""
    turns: dict[str, list[list[Beside]]] = {}
    with (
        tempfile.TemporaryDirectory(prefix="brigade-fairness-") as folder,
        coordinator_with(bench.source, Path(folder)) as cluster,
    ):
        for precision in precisions:
            async with two_keys(cluster, precision) as keys:
                turns[precision] = []
                for i in range(bench.scale.n_repeats):
                    print(f"measuring {precision}, turn {i + 1}", file=sys.stderr, flush=True)
                    turns[precision].append(await turn(bench, keys, n_streams))
    return turns


def table_of(precision: str, turns: Sequence[Sequence[Beside]], n_streams: int) -> Table:
    """Medians of the turns."""
    table = Table(title=f"one stream beside {n_streams} others, two workers in {precision}")
    for column in ("beside", "ms a token", "times alone", "longest ms", "others/s", "without it", "CPU"):
        table.add_column(column, justify="left" if column == "beside" else "right")
    for case in zip(*turns, strict=True):
        slower = [beside.token_s / alone[0].token_s for beside, alone in zip(case, turns, strict=True)]
        table.add_row(
            case[0].what,
            f"{1000 * statistics.median(one.token_s for one in case):.0f}",
            f"{statistics.median(slower):.2f} ({min(slower):.2f} to {max(slower):.2f})",
            f"{1000 * statistics.median(one.longest_s for one in case):.0f}",
            f"{statistics.median(one.others_per_s for one in case):.0f}",
            f"{statistics.median(one.without_per_s for one in case):.0f}",
            f"{statistics.median(one.worker_cpu_s for one in case):.2f}",
        )
    return table


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=50, help="of the other key [50]")
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="may be repeated [float32 and bfloat16]"
    )
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--source", type=Path, default=None, help="a GGUF file or a folder [SmolLM2-135M]")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    scale = Scale(n_tokens=asked.tokens, n_repeats=asked.repeats)
    bench = Bench(source=asked.source or smollm2_gguf(), scale=scale)
    found = asyncio.run(measured(bench, asked.precision or PRECISIONS, asked.streams))
    if asked.json:
        turns = {name: [[asdict(one) for one in each] for each in of_name] for name, of_name in found.items()}
        json.dump(turns, sys.stdout, indent=1)
        return
    for precision, turns_of in found.items():
        Console(width=120).print(table_of(precision, turns_of, asked.streams))


if __name__ == "__main__":
    main()
