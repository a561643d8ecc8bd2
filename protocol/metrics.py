"""Metrics as Prometheus reads them: what those of the three programs have in common.

Names follow OpenTelemetry's semantic conventions for generative AI where these have one, and begin with `brigade_`
elsewhere. Labels take few values: models, states, limits, kinds; never sessions, keys, prompts or tokens.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from protocol.door import Refusal
from protocol.version import program_version

OPERATION = "gen_ai_operation_name"
MODEL = "gen_ai_request_model"
ERROR = "error_type"
USAGE_TYPE = "gen_ai_token_type"
"""Labels that the conventions name."""

REQUEST_BUCKETS_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1),
    *(0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0),
)
PER_TOKEN_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
)
TOKEN_BUCKETS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
"""Where the conventions put the boundaries; of tokens' times a few more below, as small models need."""
SHORT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Of what takes milliseconds if all is well."""
LAG_LOOK_S = 0.5
OPEN_METRICS = "application/openmetrics-text"


class BuildInfo(Collector):
    """Which version of which program this is."""

    def __init__(self, program: str) -> None:
        self._info = InfoMetricFamily(
            "brigade_build", "The program and its version.", {"program": program, "version": program_version()}
        )

    def collect(self) -> list[InfoMetricFamily]:
        """The one sample."""
        return [self._info]


class RefusedConnections(Collector):
    """How many connections a port refused, by what their address had too many of, as `door` names it."""

    def __init__(self, n_refused: Mapping[Refusal, int]) -> None:
        self._n_refused = n_refused

    def collect(self) -> list[CounterMetricFamily]:
        """One sample for each reason."""
        refused = CounterMetricFamily(
            "brigade_connections_refused",
            "Connections refused because their address had too many: open, or TLS handshakes under way.",
            labels=["reason"],
        )
        for reason in get_args(Refusal):
            refused.add_metric([reason], self._n_refused[reason])
        return [refused]


def new_registry(program: str) -> CollectorRegistry:
    """A registry of one program: its version, and what the system says of its process."""
    # what it leaves out is one more series for each, which nobody draws
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the package has no type for it
    registry = CollectorRegistry(auto_describe=False)
    registry.register(BuildInfo(program))
    ProcessCollector(registry=registry)
    return registry


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """All metrics, and their content type: OpenMetrics for who accepts it, else Prometheus's own text."""
    # not `accept` itself: on versions that are no numbers the package raises TypeError
    encode, content_type = choose_encoder(OPEN_METRICS if OPEN_METRICS in accept else "")
    return encode(registry), content_type


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenTimes:
    """How long generations take, by operation and model: whole, to the first token, and for each token after it."""

    whole: Histogram
    """By what they ended with, too."""
    first: Histogram
    per_token: Histogram

    @classmethod
    def of(
        cls,
        registry: CollectorRegistry,
        *,
        whole: tuple[str, str],
        first: tuple[str, str],
        per_token: tuple[str, str],
    ) -> TokenTimes:
        """With these names and descriptions: the conventions have others for servers than for their clients."""
        own = (OPERATION, MODEL)
        return cls(
            whole=Histogram(*whole, (*own, ERROR), buckets=REQUEST_BUCKETS_S, registry=registry),
            first=Histogram(*first, own, buckets=FIRST_TOKEN_BUCKETS_S, registry=registry),
            per_token=Histogram(*per_token, own, buckets=PER_TOKEN_BUCKETS_S, registry=registry),
        )


class LoopLag:
    """How late the event loop is with what is due: what any request waits beside its own work."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "brigade_event_loop_lag_seconds",
            f"How late a timer of the event loop was; looked at every {LAG_LOOK_S:g} s.",
            buckets=SHORT_BUCKETS_S,
            registry=registry,
        )

    async def watch_forever(self) -> None:
        """Look again and again until cancelled."""
        now_s = time.perf_counter  # uvloop's own clock counts milliseconds
        while True:
            due_s = now_s() + LAG_LOOK_S
            await asyncio.sleep(LAG_LOOK_S)
            self._lag.observe(max(0.0, now_s() - due_s))
