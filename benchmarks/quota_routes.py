"""How long a request for a route takes whose key has every limit, asked for at a steady rate.

    python -m benchmarks.quota_routes [--rate 200] [--seconds 5] [--database-url URL] [--json FILE]

A whole coordinator and its clients in one process: TLS, HTTP, routing, tickets, and the transaction that reserves.
Every generation is reported by its tail a moment later, as in a cluster. Then a key that may use half of what is
asked for: one token beyond that is an overshoot. On a busy machine the sender's own lateness says what it's worth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console

from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table
from coordinator.app import RunningCoordinator
from coordinator.background import freeze_heap, running_beside
from protocol.control_messages import Assign, GenerationReport
from protocol.ids import ModelName
from protocol.key_limits import KeyLimits
from protocol.quota_rest import QuotaInfo
from protocol.rest import CreatedKey, CreateKeyRequest, RouteGrant, RouteRequest
from tests.support.coordinators import (
    Http,
    ScriptedWorker,
    add_model,
    http_session,
    joined_worker,
    key_of,
    running_coordinator,
)

TARGETS = {
    "route-with-quota": Target(
        name="route-with-quota", what="p99 of a route with quota / 10 ms", bound=1.0, is_least=False
    ),
    "quota-overshoot": Target(
        name="quota-overshoot", what="tokens granted beyond the limit", bound=0.0, is_least=False
    ),
}
N_PROMPT, MAX_TOKENS, N_USED = 10, 20, 5
WARM_UP = 64
"""At once, so that as many connections are open: clients keep theirs, and handshakes aren't what is measured."""
BEAT_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of the requests."""

    latencies_s: tuple[float, ...]
    n_granted: int
    n_refused: int
    late_s: float
    """How far behind its plan the sender was at worst."""
    cpu_s: float
    """Of the whole process: coordinator, clients and worker."""


async def load(http: Http, worker: ScriptedWorker, n_requests: int, rate: float) -> Load:
    """Ask `n_requests` times, one every 1/`rate` s whatever the answers take, and report each that was granted."""
    began_cpu_s = time.process_time()
    latencies: list[float] = []
    statuses: list[int] = []
    late_s = 0.0

    async def one() -> None:
        request = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=N_PROMPT, max_tokens=MAX_TOKENS)
        began_s = time.perf_counter()
        answer = await http.ask("POST", "/v1/routes", request)
        latencies.append(time.perf_counter() - began_s)
        statuses.append(answer.status)
        if answer.status == 200:
            session_id = answer.read(RouteGrant).session_id
            await worker.send(
                GenerationReport(
                    session_id=session_id, n_prompt_tokens=N_PROMPT, n_completion_tokens=N_USED, outcome="stop"
                )
            )

    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for i in range(n_requests):
            wait_s = began_s + i / rate - time.perf_counter()
            late_s = max(late_s, -wait_s)
            await asyncio.sleep(max(0.0, wait_s))
            requests.create_task(one(), name=f"route-{i}")
    n_granted = statuses.count(200)
    if n_granted + statuses.count(429) != n_requests:
        raise SystemExit(f"answers other than 200 and 429: {sorted(set(statuses))}")
    return Load(
        latencies_s=tuple(latencies),
        n_granted=n_granted,
        n_refused=n_requests - n_granted,
        late_s=late_s,
        cpu_s=time.process_time() - began_cpu_s,
    )


async def beat_forever(worker: ScriptedWorker) -> None:
    """Heartbeats, as of a worker that serves."""
    while True:
        await asyncio.sleep(BEAT_S)
        await worker.beat()


async def new_key(admin: Http, limits: KeyLimits) -> CreatedKey:
    """A client key with these limits."""
    answer = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="bench", limits=limits))
    return answer.read(CreatedKey)


async def measured(coordinator: RunningCoordinator, rate: float, seconds: float) -> list[Outcome]:
    """Both targets on a running coordinator."""
    n_requests = round(rate * seconds)
    await add_model(coordinator)
    async with (
        joined_worker(coordinator) as worker,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        while not (assign := await worker.receive(Assign)).spans:
            pass
        await worker.hold(assign)
        wide = KeyLimits(requests_per_min=10**9, tokens_per_min=10**9, tokens_per_day=10**9, max_concurrent=10**5)
        key = await new_key(admin, wide)
        freeze_heap()
        async with running_beside(beats=beat_forever(worker)), http_session(coordinator, key.key) as http:
            await load(http, worker, WARM_UP, WARM_UP * 1000)
            done = await load(http, worker, n_requests, rate)
            return [_latency(done, rate), await _overshoot(coordinator, admin, worker, n_requests, rate)]


def _latency(done: Load, rate: float) -> Outcome:
    ordered = sorted(done.latencies_s)
    p50_s, p99_s = ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]
    details = {
        "requests/s": rate,
        "p50 ms": p50_s * 1e3,
        "p99 ms": p99_s * 1e3,
        "sender late ms": done.late_s * 1e3,
        "CPU ms a request": done.cpu_s / len(ordered) * 1e3,
    }
    return Outcome(target=TARGETS["route-with-quota"], ratios=(p99_s / 0.010,), details=details)


async def _overshoot(
    coordinator: RunningCoordinator, admin: Http, worker: ScriptedWorker, n_requests: int, rate: float
) -> Outcome:
    """A key for half of what is asked: what it was granted must be what its day allows, and never more."""
    limit = n_requests // 2 * (N_PROMPT + MAX_TOKENS)
    key = await new_key(admin, KeyLimits(tokens_per_day=limit))
    async with http_session(coordinator, key.key) as http:
        done = await load(http, worker, n_requests, rate)
    answer = await admin.ask("GET", f"/admin/v1/quotas/{key.key_id}")
    (used,) = answer.read(QuotaInfo).rates
    beyond = max(0, used.used - limit, done.n_granted * (N_PROMPT + N_USED) - limit)
    details = {"granted": float(done.n_granted), "refused": float(done.n_refused), "used": float(used.used)}
    return Outcome(target=TARGETS["quota-overshoot"], ratios=(float(beyond),), details=details)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and say by the exit code whether the targets are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--database-url", help="an empty PostgreSQL database; without it SQLite in a new folder")
    parser.add_argument("--json", type=Path, help="write the figures there too")
    given = parser.parse_args(argv)

    async def run() -> list[Outcome]:
        config = {} if given.database_url is None else {"database_url": given.database_url}
        with tempfile.TemporaryDirectory() as folder:
            async with running_coordinator(Path(folder), **config) as coordinator:
                return await measured(coordinator, given.rate, given.seconds)

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    outcomes = asyncio.run(run())
    Console().print(outcomes_table(outcomes, "Routes with quota"))
    if given.json is not None:
        given.json.write_text(json.dumps(outcomes_json(outcomes), indent=2) + "\n")
    return 0 if all(outcome.is_reached for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
