"""What a worker tells Prometheus: the engine's work as it is done, everything else as it is when it is read."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import get_args

from prometheus_client import Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from protocol.metrics import SHORT_BUCKETS_S, LoopLag, RefusedConnections, new_registry
from protocol.metrics_address import MetricsAddress
from protocol.metrics_site import metrics_served
from protocol.running_beside import running_beside
from worker.engine import Engine
from worker.holdings import Holdings
from worker.measures import Forward, ForwardKind
from worker.server import DataPlane
from worker.site import Site

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
HOP_SHARES = (0.5, 0.99)


@asynccontextmanager
async def worker_metrics(
    address: MetricsAddress, engine: Engine, data_plane: DataPlane, holdings: Holdings, site: Site
) -> AsyncIterator[str | None]:
    """Have them read at `address` until the context closes; yields where.

    Raises:
        PortInUseError, ConfigError: the address can't be used.
    """
    metrics = WorkerMetrics(engine, data_plane, holdings)
    metrics.registry.register(RefusedConnections(site.n_refused))
    async with metrics_served(metrics.registry, address) as url, running_beside(lag=metrics.lag.watch_forever()):
        yield url


class WorkerMetrics(Collector):
    """Reads of the loop's things on the loop; `observe_forward` alone is for the engine's thread."""

    def __init__(self, engine: Engine, data_plane: DataPlane, holdings: Holdings) -> None:
        self.registry = new_registry("worker")
        self.lag = LoopLag(self.registry)
        self._engine = engine
        self._data_plane = data_plane
        self._holdings = holdings
        self.registry.register(self)
        seconds = Histogram(
            "brigade_engine_step_seconds",
            "One forward through the blocks here. decode: one token of each session; verify: those and guesses of "
            "what follows; prefill: among others a piece of a prompt.",
            ("kind",),
            buckets=SHORT_BUCKETS_S,
            registry=self.registry,
        )
        tokens = Counter(
            "brigade_engine_tokens", "Positions that were run, guesses included.", ("kind",), registry=self.registry
        )
        self._of_kind = {kind: (seconds.labels(kind), tokens.labels(kind)) for kind in get_args(ForwardKind)}
        self._batch_size = Histogram(
            "brigade_engine_batch_size", "Sessions of one forward.", buckets=BATCH_BUCKETS, registry=self.registry
        )
        engine.measures.observe = self.observe_forward

    def observe_forward(self, forward: Forward) -> None:
        """Count a forward."""
        seconds, tokens = self._of_kind[forward.kind]
        seconds.observe(forward.seconds)
        tokens.inc(forward.n_tokens)
        self._batch_size.observe(forward.n_steps)

    def collect(self) -> Iterator[Metric]:
        """Everything that merely is."""
        stats = self._engine.stats()
        used_bytes = stats.kv_budget_bytes - stats.kv_free_bytes
        for name, help_text, value in (
            ("sessions", "Sessions that are open here.", stats.n_sessions),
            ("sessions_waiting", "Sessions that wait for key-value memory.", stats.n_waiting_sessions),
            ("engine_queue", "Steps that wait for the engine, or are being run.", stats.n_pending_steps),
            ("kv_used_bytes", "Key-value memory that open sessions have reserved.", used_bytes),
            ("kv_budget_bytes", "Key-value memory that there is for sessions.", stats.kv_budget_bytes),
        ):
            yield GaugeMetricFamily(f"brigade_{name}", help_text, value)
        hops = GaugeMetricFamily(
            "brigade_hop_seconds",
            "How long a token stayed here, from its arrival to its being handed on: quantiles of the latest ones.",
            labels=["quantile"],
        )
        for share, seconds in zip(HOP_SHARES, self._data_plane.hop_quantiles_s(*HOP_SHARES), strict=True):
            hops.add_metric([str(share)], seconds)
        yield hops
        yield self._blocks()
        yield from self._links()

    def _blocks(self) -> Metric:
        held: Tally[tuple[str, str]] = Tally()
        for status in self._holdings.statuses:
            held[status.model, status.state] += status.blocks.end - status.blocks.start
        blocks = GaugeMetricFamily(
            "brigade_blocks", "Blocks that this worker was told to hold, by state.", labels=["model", "state"]
        )
        for labels, n_blocks in held.items():
            blocks.add_metric(labels, n_blocks)
        return blocks

    def _links(self) -> Iterator[Metric]:
        """By worker at the other end: as many as heartbeats tell of."""
        trips = GaugeMetricFamily(
            "brigade_link_round_trip_seconds", "To workers that this one has a connection to.", labels=["peer"]
        )
        for peer, seconds in self._data_plane.round_trips_s.items():
            trips.add_metric([peer], seconds)
        sent = CounterMetricFamily(
            "brigade_link_sent_bytes", "Sent to them, since the connection was made.", labels=["peer"]
        )
        speed = GaugeMetricFamily(
            "brigade_link_bytes_per_second", "What the link lets through, once that was measured.", labels=["peer"]
        )
        for peer, link in self._data_plane.links.items():
            sent.add_metric([peer], link.n_bytes_sent)
            if link.bytes_per_s > 0.0:
                speed.add_metric([peer], link.bytes_per_s)
        yield from (trips, sent, speed)
