"""Requests for routes at a steady rate, whatever the answers take; when each came, and what it said.

A request is timed from the moment that it was due, not from when it was sent: a sender that falls behind, or waits
for a connection, makes the figures worse instead of better (Tene's "coordinated omission").
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.route_requests import RouteRequests
from protocol.codec import decode_json
from protocol.control_messages import GenerationReport
from protocol.ids import ModelName
from protocol.rest import RouteGrant, RouteRequest
from tests.support.scripted_worker import ScriptedWorker

N_PROMPT, MAX_TOKENS, N_USED = 10, 20, 5
REQUEST = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=N_PROMPT, max_tokens=MAX_TOKENS)
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What came of the requests."""

    latencies_s: tuple[float, ...]
    n_granted: int
    n_refused: int
    late_s: float
    """How far behind its plan the sender was at worst; what is in the latencies too."""

    @property
    def n_requests(self) -> int:
        """All of them."""
        return len(self.latencies_s)

    def latency_s(self, percentile: float) -> float:
        """The least time within which so many of a hundred requests were answered."""
        return percentile_of(self.latencies_s, percentile)


def percentile_of(values: Sequence[float], percentile: float) -> float:
    """The smallest of `values` that at least so many of a hundred aren't above."""
    ordered = sorted(values)
    rank = -(-len(ordered) * percentile // 100)
    return ordered[max(0, int(rank) - 1)]


async def load(routes: RouteRequests, worker: ScriptedWorker, n_requests: int, rate: float) -> Load:
    """Ask `n_requests` times, one every 1/`rate` s, and have the tail report each that was granted.

    Raises:
        SystemExit: an answer was neither a route nor a limit.
    """
    latencies: list[float] = []
    statuses: list[int] = []
    late_s = 0.0

    async def one(due_s: float) -> None:
        answer = await routes.ask()
        latencies.append(time.perf_counter() - due_s)
        statuses.append(answer.status)
        if answer.status == 200:
            session_id = decode_json(answer.body, RouteGrant).session_id
            await worker.send(
                GenerationReport(
                    session_id=session_id, n_prompt_tokens=N_PROMPT, n_completion_tokens=N_USED, outcome="stop"
                )
            )

    gc.collect()
    gc.disable()  # the sender's own pauses would be taken for the coordinator's
    began_s = time.perf_counter()
    async with asyncio.TaskGroup() as requests:
        for i in range(n_requests):
            due_s = began_s + i / rate
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            late_s = max(late_s, time.perf_counter() - due_s)
            requests.create_task(one(due_s), name=f"route-{i}")
    gc.enable()
    n_granted = statuses.count(200)
    if n_granted + statuses.count(429) != n_requests:
        raise SystemExit(f"answers other than 200 and 429: {sorted(set(statuses))}")
    return Load(latencies_s=tuple(latencies), n_granted=n_granted, n_refused=n_requests - n_granted, late_s=late_s)
