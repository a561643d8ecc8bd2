"""What happened lately, for plots: of the cluster and of each worker, an hour finely and a day coarsely, in memory.

Tokens don't pass the coordinator, so what is known of them is what tails report: they count when a generation ends.
All of it begins anew with the program; what of trust is to be kept is in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from coordinator.cluster import Cluster
from coordinator.policy.state import ClusterState, WorkerRecord
from coordinator.ring_buffer import RingBuffer
from coordinator.running_generations import RunningGenerations
from coordinator.stored_rows import StoredGeneration
from protocol.dashboard_rest import HistoryAnswer, HistoryPoint
from protocol.ids import WorkerId

SAMPLE_S = 5.0
COARSE_S = 120.0
WORKER_SAMPLE_S = 15.0
HOUR_S, DAY_S = 3600.0, 86_400.0
MAX_WORKERS = 2000
"""Whose past is kept: 19 kB each."""

Span = Literal["hour", "day"]
CLUSTER_SERIES = (
    "tokens_in_per_s",
    "tokens_out_per_s",
    "n_generations",
    "n_waiting",
    "n_workers_ready",
    "ended_per_min",
    "failed_per_min",
    "generation_p50_s",
    "generation_p95_s",
    "first_token_p50_s",
    "first_token_p95_s",
    "token_p50_s",
    "token_p95_s",
    "hop_p50_s",
    "hop_p99_s",
)
WORKER_SERIES = ("n_sessions", "n_queued", "free_kv_bytes", "hop_p50_s", "trust")


@dataclass(slots=True)
class _Ended:
    """Generations that ended since the last sample."""

    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    n_failed: int = 0
    seconds: list[float] = field(default_factory=list)
    seconds_per_token: list[float] = field(default_factory=list)
    seconds_to_first: list[float] = field(default_factory=list)


class Histories:
    """Told of generations that end; looks at everything else every `SAMPLE_S`."""

    def __init__(self, cluster: Cluster, running: RunningGenerations, n_waiting: Callable[[], int]) -> None:
        self._cluster = cluster
        self._running = running
        self._n_waiting = n_waiting
        self._ended = _Ended()
        self._sampled_s: float | None = None
        self._of_cluster = _rings(CLUSTER_SERIES, SAMPLE_S)
        self._of_workers: dict[WorkerId, dict[Span, RingBuffer]] = {}

    def take_finished(
        self, generation: StoredGeneration, first_token_s: float | None = None, s_per_token: float | None = None
    ) -> None:
        """A generation is over, as its tail reported; None: it doesn't say, being older than these."""
        ended, n_tokens = self._ended, generation.n_completion_tokens or 0
        ended.n_prompt_tokens += generation.n_prompt_tokens
        ended.n_completion_tokens += n_tokens
        ended.n_failed += generation.outcome == "failed"
        if generation.finished_at is None or generation.outcome not in ("stop", "length"):
            return
        seconds = max(0.0, (generation.finished_at - generation.started_at).total_seconds())
        ended.seconds.append(seconds)
        if first_token_s is not None and generation.continues is None:
            ended.seconds_to_first.append(first_token_s)
        if s_per_token is not None:
            ended.seconds_per_token.append(s_per_token)
        elif n_tokens and first_token_s is None:
            ended.seconds_per_token.append(seconds / n_tokens)

    def sample(self) -> HistoryPoint:
        """Look at everything now."""
        now_s, state = self._cluster.now_s(), self._cluster.state
        self._running.forget(now_s, state.lost_workers)
        point = HistoryPoint(at_s=now_s, values=self._cluster_values(state, now_s))
        for ring in self._of_cluster.values():
            ring.put(now_s, point.values)
        self._sampled_s, self._ended = now_s, _Ended()
        self._sample_workers(state, now_s)
        return point

    def of_cluster(self, span: Span) -> HistoryAnswer:
        """All series of the cluster."""
        return _answer(self._of_cluster[span])

    def of_worker(self, worker_id: WorkerId, span: Span) -> HistoryAnswer | None:
        """All series of a worker; None if nothing is known of it."""
        rings = self._of_workers.get(worker_id)
        return None if rings is None else _answer(rings[span])

    async def sample_forever(self, tell: Callable[[HistoryPoint], None], *, every_s: float = SAMPLE_S) -> None:
        """Sample every `every_s` seconds until cancelled, and tell of each."""
        while True:
            tell(self.sample())
            await asyncio.sleep(every_s)

    def _cluster_values(self, state: ClusterState, now_s: float) -> dict[str, float | None]:
        ended, is_first = self._ended, self._sampled_s is None
        past_s = max(1e-3, now_s - (self._sampled_s or now_s - SAMPLE_S))
        beats = [w.heartbeat for w in state.workers.values() if w.presence == "here" and w.heartbeat is not None]
        hops = [beat for beat in beats if beat.hop_p50_s > 0.0]
        rates: dict[str, float | None] = {
            "tokens_in_per_s": ended.n_prompt_tokens / past_s,
            "tokens_out_per_s": ended.n_completion_tokens / past_s,
            "ended_per_min": 60.0 * len(ended.seconds) / past_s,
            "failed_per_min": 60.0 * ended.n_failed / past_s,
        }
        return (dict.fromkeys(rates) if is_first else rates) | {
            "n_generations": float(len(self._running)),
            "n_waiting": float(self._n_waiting()),
            "n_workers_ready": float(sum(is_ready(worker) for worker in state.workers.values())),
            "generation_p50_s": quantile(ended.seconds, 0.5),
            "generation_p95_s": quantile(ended.seconds, 0.95),
            "first_token_p50_s": quantile(ended.seconds_to_first, 0.5),
            "first_token_p95_s": quantile(ended.seconds_to_first, 0.95),
            "token_p50_s": quantile(ended.seconds_per_token, 0.5),
            "token_p95_s": quantile(ended.seconds_per_token, 0.95),
            "hop_p50_s": median(beat.hop_p50_s for beat in hops) if hops else None,
            "hop_p99_s": max(beat.hop_p99_s for beat in hops) if hops else None,
        }

    def _sample_workers(self, state: ClusterState, now_s: float) -> None:
        for worker_id in [known for known in self._of_workers if known not in state.workers]:
            del self._of_workers[worker_id]
        for worker_id, worker in state.workers.items():
            rings = self._of_workers.get(worker_id)
            if rings is None:
                if len(self._of_workers) >= MAX_WORKERS:
                    continue
                rings = self._of_workers[worker_id] = _rings(WORKER_SERIES, WORKER_SAMPLE_S)
            values = _worker_values(worker)
            for ring in rings.values():
                ring.put(now_s, values)


def is_ready(worker: WorkerRecord) -> bool:
    """Whether it is there, and everything that it is to hold is ready."""
    return worker.is_routable and bool(worker.ready) and len(worker.ready) == len(worker.assignment.spans)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The value that this share of the others doesn't exceed; None of nothing."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else None


def _worker_values(worker: WorkerRecord) -> Mapping[str, float | None]:
    beat = worker.heartbeat if worker.presence == "here" else None
    load: dict[str, float | None] = {"trust": worker.trust.score}
    if beat is not None:
        load |= {
            "n_sessions": float(beat.n_sessions),
            "n_queued": float(beat.n_queued),
            "free_kv_bytes": float(beat.free_kv_bytes),
            "hop_p50_s": beat.hop_p50_s or None,
        }
    return load


def _rings(names: Sequence[str], fine_s: float) -> dict[Span, RingBuffer]:
    return {
        "hour": RingBuffer(names, step_s=fine_s, n_steps=int(HOUR_S / fine_s)),
        "day": RingBuffer(names, step_s=COARSE_S, n_steps=int(DAY_S / COARSE_S)),
    }


def _answer(ring: RingBuffer) -> HistoryAnswer:
    return HistoryAnswer(step_s=ring.step_s, end_s=ring.end_s, series=ring.series())
