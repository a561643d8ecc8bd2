"""What the gateway costs beside `client generate`'s own way, and whether it holds many streams at once.

    python -m benchmarks.gateway [--model FOLDER] [--rounds 20] [--tokens 64] [--streams 200] [--times 2]
        [--json FILE]

Coordinator, two workers and `client serve` are processes of their own. In turns, one stream by the Python client in
this process and one over the gateway's SSE: when the first token came, and how far apart the others were. The same
route, the same tokens; what differs is the gateway. Then so many SSE streams at once, all read to their end, and
the same again: how many failed, and by how much the gateway's memory grew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from rich.console import Console

from benchmarks.arrangement import MODEL, Arrangement, arranged, coordinator_with
from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table
from client.api import Client
from demo.local_cluster import LocalCluster, smollm2_gguf

FIRST_TOKEN = Target(
    name="gateway-first-token",
    what="first token over the gateway, beyond the client's, / 15 ms",
    bound=1.0,
    is_least=False,
)
EACH_TOKEN = Target(
    name="gateway-each-token",
    what="each token over the gateway, beyond the client's, / 1 ms",
    bound=1.0,
    is_least=False,
)
STREAMS = Target(name="gateway-streams", what="failed streams, so many at once", bound=0.0, is_least=False)
MEMORY = Target(
    name="gateway-memory", what="growth of the gateway's memory a stream / 1 MB", bound=1.0, is_least=False
)
FIRST_BOUND_S, EACH_BOUND_S, STREAM_BYTES = 0.015, 0.001, 10**6
PROMPT = "Once upon a time"
STREAM_TIMEOUT_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of one stream, in seconds."""

    first_s: float
    each_s: float


def times_of(began_s: float, came_at_s: list[float], n_tokens: int) -> Times:
    """When the first text came, and the mean time of a token from then to the end: the same tokens either way."""
    return Times(first_s=came_at_s[0] - began_s, each_s=(came_at_s[-1] - came_at_s[0]) / (n_tokens - 1))


async def by_client(client: Client, n_tokens: int) -> Times:
    """As `client generate` does it."""
    now_s = asyncio.get_running_loop().time
    began_s = now_s()
    model = await client.model(MODEL)
    async with client.stream(model, PROMPT, max_tokens=n_tokens, temperature=0.0, ignore_eos=True) as pieces:
        came_at_s = [now_s() async for piece in pieces if piece.text]
    return times_of(began_s, [*came_at_s, now_s()], n_tokens)


async def by_gateway(http: aiohttp.ClientSession, url: str, n_tokens: int) -> Times:
    """Over SSE, as OpenAI's clients do it."""
    now_s = asyncio.get_running_loop().time
    body = {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": n_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    began_s = now_s()
    async with http.post(f"{url}/v1/completions", json=body) as response:
        response.raise_for_status()
        came_at_s = [now_s() async for line in response.content if line.startswith(b"data: ")]
    return times_of(began_s, came_at_s, n_tokens)


async def compared(
    client: Client, url: str, gateway: psutil.Process, *, n_rounds: int, n_tokens: int
) -> list[Outcome]:
    """In turns, after a round that isn't counted."""
    direct: list[Times] = []
    over: list[Times] = []
    cpu_before_s = _cpu_s(gateway)
    async with aiohttp.ClientSession() as http:
        for number in range(n_rounds + 1):
            one, other = await by_client(client, n_tokens), await by_gateway(http, url, n_tokens)
            if number:
                direct.append(one)
                over.append(other)
    cpu_s = (_cpu_s(gateway) - cpu_before_s) / ((n_rounds + 1) * n_tokens)
    pairs = list(zip(direct, over, strict=True))
    return [
        Outcome(
            target=FIRST_TOKEN,
            ratios=tuple((b.first_s - a.first_s) / FIRST_BOUND_S for a, b in pairs),
            details={
                "client ms": 1e3 * statistics.median(a.first_s for a in direct),
                "gateway ms": 1e3 * statistics.median(b.first_s for b in over),
            },
        ),
        Outcome(
            target=EACH_TOKEN,
            ratios=tuple((b.each_s - a.each_s) / EACH_BOUND_S for a, b in pairs),
            details={
                "client ms": 1e3 * statistics.median(a.each_s for a in direct),
                "gateway ms": 1e3 * statistics.median(b.each_s for b in over),
                "gateway's CPU ms a token": 1e3 * cpu_s,
            },
        ),
    ]


@dataclass(slots=True)
class Held:
    """What came of so many streams at once."""

    n_failed: int = 0
    n_open: int = 0
    """Streams whose first token has come, and whose end hasn't."""
    n_most: int = 0
    """The most of them at any time."""
    peak_bytes: int = 0
    cpu_s: float = 0.0
    """What the gateway computed meanwhile."""

    @contextmanager
    def streaming(self) -> Iterator[None]:
        """For one of them."""
        self.n_open += 1
        self.n_most = max(self.n_most, self.n_open)
        try:
            yield
        finally:
            self.n_open -= 1


async def held(url: str, gateway: psutil.Process, *, n_streams: int, n_tokens: int) -> Held:
    """All streams at once, to their end."""
    found, cpu_before_s = Held(), _cpu_s(gateway)
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=STREAM_TIMEOUT_S)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:

        async def read(number: int) -> None:
            said = b""
            try:
                async with http.post(f"{url}/v1/completions", json=_stream_body(number, n_tokens)) as response:
                    said = await response.content.readline()
                    with found.streaming():
                        said += await response.read()
            except (aiohttp.ClientError, TimeoutError) as exc:
                said += repr(exc).encode()
            if not said.endswith(b"data: [DONE]\n\n"):
                found.n_failed += 1
                print(f"stream {number} ended with {said[-300:]!r}")

        async with asyncio.TaskGroup() as tasks:
            streams = [tasks.create_task(read(number)) for number in range(n_streams)]
            while not all(stream.done() for stream in streams):
                found.peak_bytes = max(found.peak_bytes, gateway.memory_info().rss)
                await asyncio.wait(streams, timeout=0.2)
    found.cpu_s = _cpu_s(gateway) - cpu_before_s
    return found


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _stream_body(number: int, n_tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": f"{PROMPT} {number}",
        "max_tokens": n_tokens,
        "seed": number,
        "ignore_eos": True,
        "stream": True,
    }


async def held_again(
    url: str, gateway: psutil.Process, *, n_times: int, n_streams: int, n_tokens: int
) -> list[Outcome]:
    """So many streams at once, again and again: what the first time took is there for the next."""
    before_bytes = gateway.memory_info().rss
    times: list[Held] = []
    after_bytes: list[int] = []
    for _ in range(n_times):
        times.append(await held(url, gateway, n_streams=n_streams, n_tokens=n_tokens))
        after_bytes.append(gateway.memory_info().rss)
    memory = {"before MB": before_bytes / 1e6}
    for number, (one, after) in enumerate(zip(times, after_bytes, strict=True), start=1):
        memory |= {f"peak {number} MB": one.peak_bytes / 1e6, f"after {number} MB": after / 1e6}
    at_once = {f"at once {number}": float(one.n_most) for number, one in enumerate(times, start=1)}
    cpu_s = sum(one.cpu_s for one in times) / (n_times * n_streams * n_tokens)
    return [
        Outcome(
            target=STREAMS,
            ratios=(float(sum(one.n_failed for one in times)),),
            details={"streams": float(n_streams), "gateway's CPU ms a token": 1e3 * cpu_s} | at_once,
        ),
        Outcome(
            target=MEMORY,
            ratios=tuple((one.peak_bytes - before_bytes) / n_streams / STREAM_BYTES for one in times),
            details=memory,
        ),
    ]


async def measured(cluster: LocalCluster, asked: argparse.Namespace) -> list[Outcome]:
    """All figures of one cluster."""
    async with arranged(cluster, Arrangement(precision="float32")) as arrangement:
        url = cluster.start_gateway()
        process = psutil.Process(cluster.processes["gateway"].pid)
        outcomes = await compared(arrangement.client, url, process, n_rounds=asked.rounds, n_tokens=asked.tokens)
        outcomes += await held_again(
            url, process, n_times=asked.times, n_streams=asked.streams, n_tokens=asked.tokens
        )
        cluster.stop("gateway")
    return outcomes


def main() -> None:
    """Measure and show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder or GGUF file; SmolLM2-135M otherwise")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--times", type=int, default=2, help="how often so many streams are held at once")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        coordinator_with(asked.model or smollm2_gguf(), Path(folder)) as cluster,
    ):
        outcomes = asyncio.run(measured(cluster, asked))
    Console().print(outcomes_table(outcomes, "The gateway"))
    if asked.json is not None:
        asked.json.write_text(json.dumps(outcomes_json(outcomes), indent=2))


if __name__ == "__main__":
    main()
