"""What is, for Prometheus: workers, coverage, what runs and waits. Looked up when it is read, counted nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from coordinator.audits import Auditor
from coordinator.cluster import Cluster
from coordinator.policy.coverage import ready_counts
from coordinator.policy.standing import state_word
from coordinator.policy.state import ClusterState
from coordinator.repository import Repository
from coordinator.running_generations import RunningGenerations
from protocol.audit_rest import AuditOutcome
from protocol.cluster_rest import TrustLevel
from protocol.control_messages import WorkerState


class StateMetrics(Collector):
    """Looks at one coordinator; on its event loop, which owns all of it."""

    def __init__(
        self,
        cluster: Cluster,
        repository: Repository,
        running: RunningGenerations,
        auditor: Auditor,
        *,
        n_waiting: Callable[[], int],
        registry: CollectorRegistry,
    ) -> None:
        self._cluster = cluster
        self._repository = repository
        self._running = running
        self._auditor = auditor
        self._n_waiting = n_waiting
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Everything as it is now."""
        state, now_s = self._cluster.state, self._cluster.now_s()
        yield from _worker_metrics(state, now_s)
        yield from _model_metrics(state)
        yield GaugeMetricFamily(
            "brigade_generations_running",
            "Sessions whose route was given out and whose end wasn't reported.",
            len(self._running),
        )
        yield GaugeMetricFamily(
            "brigade_routes_waiting", "Requests that wait for a route to appear.", self._n_waiting()
        )
        yield GaugeMetricFamily(
            "brigade_database_up",
            "1 if the database could be used when it last was to be.",
            not self._repository.problem,
        )
        audits = CounterMetricFamily(
            "brigade_audits", "Audits of workers, by what they found of the one that was due.", labels=["outcome"]
        )
        for outcome in get_args(AuditOutcome):
            audits.add_metric([outcome], self._auditor.n_found[outcome])
        yield audits


def _worker_metrics(state: ClusterState, now_s: float) -> Iterator[Metric]:
    states = Counter(state_word(state, worker, now_s) for worker in state.workers.values())
    levels = Counter(worker.trust.level for worker in state.workers.values())
    by_state = GaugeMetricFamily(
        "brigade_workers", "Workers by state, as `coord status` says it.", labels=["state"]
    )
    for name in get_args(WorkerState):
        by_state.add_metric([name], states[name])
    by_trust = GaugeMetricFamily("brigade_workers_by_trust", "Workers by level of trust.", labels=["level"])
    for level in get_args(TrustLevel):
        by_trust.add_metric([level], levels[level])
    yield from (by_state, by_trust)


def _model_metrics(state: ClusterState) -> Iterator[Metric]:
    blocks = GaugeMetricFamily("brigade_model_blocks", "Blocks of a model.", labels=["model"])
    covered = GaugeMetricFamily(
        "brigade_model_blocks_covered", "Of those, the ones that some worker can run now.", labels=["model"]
    )
    replicas = GaugeMetricFamily(
        "brigade_model_replicas", "Workers that can run the block that fewest can run.", labels=["model"]
    )
    wanted = GaugeMetricFamily("brigade_model_replicas_wanted", "Workers wanted for each block.", labels=["model"])
    for name, model in state.models.items():
        counts = ready_counts(state.workers.values(), model)
        blocks.add_metric([name], len(counts))
        covered.add_metric([name], sum(n > 0 for n in counts))
        replicas.add_metric([name], min(counts, default=0))
        wanted.add_metric([name], model.n_replicas)
    yield from (blocks, covered, replicas, wanted)
