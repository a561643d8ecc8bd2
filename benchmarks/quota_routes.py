"""How long a request for a route takes whose key has every limit, asked for at a steady rate.

    python -m benchmarks.quota_routes [--database sqlite|postgresql] [--rate 200] [--seconds 10] [--json FILE]
        [--profile FILE]

The coordinator is `coord serve` in a process of its own; the requests come from this one, over connections that are
kept: TLS, HTTP, routing, tickets, and the transaction that reserves. Every generation is reported by its tail a
moment later, as in a cluster. Then a key that is used up halfway: one token beyond that is an
overshoot. PostgreSQL runs beside it in a temporary folder, and waits for its disk as it does in production. Either
database has some thousand generations before that (`benchmarks.served_before`).

Latencies are from when a request was due (`benchmarks.quota_load`), so a busy machine makes them worse: what a
coordinator's request costs it in CPU time is stated too, which others on the machine change little. So is how long
the disk takes to keep 8 KiB, asked at the same rate right afterwards: PostgreSQL waits for it with every commit,
SQLite doesn't. What share of the cores was idle meanwhile says whether there was room at all: the sender and
PostgreSQL's own processes need them too. `--profile` says where the time of the coordinator's event loop goes; it
is slower by that, so the other figures mean nothing then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import pstats
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from rich.console import Console

from benchmarks.quota_load import MAX_TOKENS, N_PROMPT, N_USED, PERCENTILES, REQUEST, Load, load, percentile_of
from benchmarks.route_requests import RouteRequests
from benchmarks.served_before import serve_before
from benchmarks.targets import Outcome, Target, outcomes_json, outcomes_table
from coordinator import state_folder as names
from coordinator.app import RunningCoordinator
from coordinator.state_folder import StateFolder
from demo.local_cluster import LocalCluster
from protocol.background import freeze_heap
from protocol.control_messages import Assign
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.quota_rest import QuotaInfo
from protocol.running_beside import running_beside
from tests.support.coordinators import Http, ReachedCoordinator, http_session, key_of
from tests.support.postgres import postgres_programs, running_postgres
from tests.support.scripted_worker import ScriptedWorker, joined_worker
from tests.support.stored_model import add_model

TARGETS = {
    "route-with-quota": Target(
        name="route-with-quota", what="p99 of a route with quota / 10 ms", bound=1.0, is_least=False
    ),
    "quota-overshoot": Target(
        name="quota-overshoot", what="tokens granted beyond the limit", bound=0.0, is_least=False
    ),
}
P99_BOUND_S = 0.010
WARM_UP = 64
"""At once, so that as many connections are open: clients keep theirs, and handshakes aren't what is measured."""
BEAT_S = 1.0
N_DISK = 400
"""So that the slowest few in a hundred are some."""
N_SHOWN = 40
_WAL_FILES_MADE = (*("SELECT pg_logical_emit_message(false, '', '')", "SELECT pg_switch_wal()") * 6, "CHECKPOINT")
"""A server that has run for a while reuses the files of its log. A new one fills each of 16 MB with zeros and waits
for the disk."""
SETTLE_S = 0.5
"""Reports are written this long after the last answer at most: what they cost belongs to the requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A coordinator in another process, and what of it is needed here."""

    reached: ReachedCoordinator
    process: psutil.Process
    database_url: str

    def cpu_s(self) -> float:
        """What it has taken so far, of all cores."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def database_url(kind: str) -> Iterator[str | None]:
    """An empty database of this kind; None: the coordinator's own SQLite file."""
    if kind == "sqlite":
        yield None
        return
    programs = postgres_programs()
    if programs is None:
        raise SystemExit("no PostgreSQL server is installed here; measure with --database sqlite")
    with running_postgres(programs, is_durable=True) as server:
        url = server.new_database()
        server.run_sql(*_WAL_FILES_MADE)
        yield url


@contextmanager
def served(folder: Path, url: str | None, profile: Path | None = None) -> Iterator[Served]:
    """`coord serve` with its state in `folder`; `profile`: where it leaves what cProfile saw."""
    profiled = ("python", "-m", "cProfile", "-o", str(profile), "-m", "coordinator")
    with LocalCluster(folder) as cluster:
        cluster.start_coordinator(
            *(() if url is None else ("--database-url", url)), program=("coord",) if profile is None else profiled
        )
        state = StateFolder(cluster.state)
        ca_pem, port = state.read(names.CA_CERTIFICATE), urlsplit(cluster.url).port
        assert ca_pem is not None
        assert port is not None
        yield Served(
            reached=ReachedCoordinator(port=port, ca_pem=ca_pem, state_folder=state),
            process=psutil.Process(cluster.processes["coordinator"].pid),
            database_url=url or state.database_url,
        )
        if profile is not None:  # asked once to end: at a second signal it would end at once, and write nothing
            cluster.stop("coordinator")


async def beat_forever(worker: ScriptedWorker) -> None:
    """Heartbeats, as of a worker that serves."""
    while True:
        await asyncio.sleep(BEAT_S)
        await worker.beat()


@asynccontextmanager
async def serving_worker(reached: RunningCoordinator | ReachedCoordinator) -> AsyncIterator[ScriptedWorker]:
    """A worker that says it holds all blocks of the only model."""
    await add_model(reached)
    async with joined_worker(reached) as worker:
        while not (assign := await worker.receive(Assign)).spans:
            pass
        await worker.hold(assign)
        async with running_beside(beats=beat_forever(worker)):
            yield worker


async def new_key(admin: Http, limits: KeyLimits) -> CreatedKey:
    """A client key with these limits."""
    answer = await admin.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="bench", limits=limits))
    return answer.read(CreatedKey)


async def measured(served: Served, rate: float, seconds: float) -> list[Outcome]:
    """Both targets on a running coordinator."""
    n_requests = round(rate * seconds)
    wide = KeyLimits(requests_per_min=10**9, tokens_per_min=10**9, tokens_per_day=10**9, max_concurrent=10**5)
    async with (
        serving_worker(served.reached) as worker,
        http_session(served.reached, key_of(served.reached, "admin")) as admin,
    ):
        key = await new_key(admin, wide)
        freeze_heap()
        async with _routes(served, key) as routes:
            await load(routes, worker, WARM_UP, WARM_UP * 1000)
            await asyncio.sleep(SETTLE_S)
            await serve_before(served.database_url)
            before_s, before = served.cpu_s(), psutil.cpu_times()
            done = await load(routes, worker, n_requests, rate)
            idle = _idle_share(before, psutil.cpu_times())
            await asyncio.sleep(SETTLE_S)
            used_s = served.cpu_s() - before_s
            disk = await asyncio.to_thread(disk_s, rate)
            latency = _latency(done, rate, used_s, disk, idle)
            return [latency, await _overshoot(served, admin, worker, n_requests, rate)]


def _idle_share(before: Any, after: Any) -> float:
    """Of all cores, between two `psutil.cpu_times()`."""
    passed_s = sum(after) - sum(before)
    return (after.idle - before.idle) / passed_s if passed_s else 0.0


def _routes(served: Served, key: CreatedKey) -> RouteRequests:
    return RouteRequests(port=served.reached.port, ca_pem=served.reached.ca_pem, key=key.key, request=REQUEST)


def _latency(done: Load, rate: float, cpu_s: float, disk: Sequence[float], idle: float) -> Outcome:
    details = {"requests/s": rate}
    details |= {f"p{percentile:g} ms": done.latency_s(percentile) * 1e3 for percentile in PERCENTILES}
    details |= {
        "sender late ms": done.late_s * 1e3,
        "coordinator's CPU ms a request": cpu_s / done.n_requests * 1e3,
        "cores idle %": idle * 100,
    }
    details |= {f"disk keeps 8 KiB in ms, p{p:g}": percentile_of(disk, p) * 1e3 for p in (50.0, 99.0, 100.0)}
    ratio = done.latency_s(99.0) / P99_BOUND_S
    return Outcome(target=TARGETS["route-with-quota"], ratios=(ratio,), details=details)


def disk_s(rate: float) -> list[float]:
    """What the disk takes to keep 8 KiB, `N_DISK` times, `rate` a second, in a file that is there as a log's is."""
    times_s = []
    with tempfile.TemporaryFile() as file:
        file.write(bytes(8192 * N_DISK))
        file.flush()
        os.fsync(file.fileno())
        began_s = time.perf_counter()
        for i in range(N_DISK):
            time.sleep(max(0.0, began_s + i / rate - time.perf_counter()))
            asked_s = time.perf_counter()
            os.pwrite(file.fileno(), bytes(8192), 8192 * i)
            os.fdatasync(file.fileno())
            times_s.append(time.perf_counter() - asked_s)
    return times_s


def show_profile(path: Path) -> None:
    """The functions that took most, by themselves and with all that they called."""
    for order in ("tottime", "cumulative"):
        pstats.Stats(str(path)).strip_dirs().sort_stats(order).print_stats(N_SHOWN)


async def _overshoot(served: Served, admin: Http, worker: ScriptedWorker, n_requests: int, rate: float) -> Outcome:
    """A key that is used up halfway, as half of each comes back: it is granted what its day allows, and no more."""
    limit = n_requests // 4 * (N_PROMPT + MAX_TOKENS)
    key = await new_key(admin, KeyLimits(tokens_per_day=limit))
    before_s = served.cpu_s()
    async with _routes(served, key) as routes:
        done = await load(routes, worker, n_requests, rate)
    answer = await admin.ask("GET", f"/admin/v1/quotas/{key.key_id}")
    (used,) = answer.read(QuotaInfo).rates
    beyond = max(0, used.used - limit, done.n_granted * (N_PROMPT + N_USED) - limit)
    details = {
        "granted": float(done.n_granted),
        "refused": float(done.n_refused),
        "used": float(used.used),
        "coordinator's CPU ms a request": (served.cpu_s() - before_s) / done.n_requests * 1e3,
    }
    return Outcome(target=TARGETS["quota-overshoot"], ratios=(float(beyond),), details=details)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, show, and say by the exit code whether the targets are reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path, help="write the figures there too")
    parser.add_argument("--profile", type=Path, help="profile the coordinator, keep it there, and show it")
    given = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="brigade-quota-") as folder,
        database_url(given.database) as url,
        served(Path(folder), url, given.profile) as coordinator,
    ):
        outcomes = uvloop.run(measured(coordinator, given.rate, given.seconds))
    Console().print(outcomes_table(outcomes, f"Routes with quota, {given.database}"))
    if given.profile is not None:
        show_profile(given.profile)
    if given.json is not None:
        given.json.write_text(json.dumps(outcomes_json(outcomes), indent=2) + "\n")
    return 0 if all(outcome.is_reached for outcome in outcomes) else 1


if __name__ == "__main__":
    raise SystemExit(main())
