"""What the coordinator counts for Prometheus: routes, refusals, failovers, generations, transactions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import get_args

from prometheus_client import Counter, Histogram

from coordinator.policy.quota import CONCURRENT
from coordinator.stored_rows import StoredGeneration
from coordinator.transactions import TransactionKind
from protocol.control_messages import GenerationReport
from protocol.error_forms import all_errors
from protocol.errors import BrigadeError, InternalError, OverLimitError, QuotaExceededError
from protocol.key_limits import LimitName
from protocol.metrics import (
    SHORT_BUCKETS_S,
    LoopLag,
    TokenTimes,
    new_registry,
)
from protocol.rest import STALLED, RouteRequest

GENERATE = "text_completion"
"""The conventions' word for the operation; whether a prompt was a conversation nobody tells the coordinator."""
KNOWN_FAILURES = frozenset({kind.code for kind in all_errors()} | {STALLED})
"""Clients say why a route failed; whatever else they say is counted as one."""
ENDED_WELL = ("stop", "length")


class CoordinatorMetrics:
    """Told of what happens by those who see it. What merely is, `coordinator.metrics_state` looks up."""

    def __init__(self) -> None:
        self.registry = new_registry("coordinator")
        self.lag = LoopLag(self.registry)
        self._routes = Histogram(
            "brigade_route_seconds",
            "From a request for a route to its answer, waiting for one included; outcome is granted or the error.",
            ("outcome",),
            buckets=(*SHORT_BUCKETS_S, 15.0, 60.0),
            registry=self.registry,
        )
        self._refusals = Counter(
            "brigade_quota_refusals",
            "Requests for routes that a limit of their API key refused.",
            ("limit",),
            registry=self.registry,
        )
        for name in (*get_args(LimitName), CONCURRENT):
            self._refusals.labels(name)
        self._failovers = Counter(
            "brigade_failovers",
            "Routes given out in place of one that failed, by why it failed as the client says.",
            ("reason",),
            registry=self.registry,
        )
        transactions = Histogram(
            "brigade_database_transaction_seconds",
            "Transactions on the database, without waiting for their turn; failed ones too.",
            ("kind",),
            buckets=SHORT_BUCKETS_S,
            registry=self.registry,
        )
        self._transactions = {kind: transactions.labels(kind) for kind in get_args(TransactionKind)}
        self._generations = GenerationMetrics(self)

    @contextmanager
    def route_asked(self, wanted: RouteRequest) -> Iterator[None]:
        """Around the answer to a request for a route."""
        began_s, outcome = time.perf_counter(), "cancelled"
        try:
            yield
            outcome = "granted"
        except BrigadeError as error:
            outcome = error.code
            if isinstance(error, QuotaExceededError | OverLimitError) and error.limit_name:
                self._refusals.labels(error.limit_name).inc()
            raise
        except ConnectionError:  # the caller hung up
            raise
        except Exception:
            outcome = InternalError.code
            raise
        finally:
            self._routes.labels(outcome).observe(time.perf_counter() - began_s)
        if wanted.continues is not None and wanted.failure is not None:
            code = wanted.failure.code
            self._failovers.labels(code if code in KNOWN_FAILURES else "other").inc()

    def transaction_done(self, kind: TransactionKind, seconds: float) -> None:
        """A transaction of a kind, `reading` or `writing`, is over."""
        self._transactions[kind].observe(seconds)

    def take_finished(self, generation: StoredGeneration, report: GenerationReport) -> None:
        """A generation is over, as its tail reported."""
        self._generations.take(generation, report)


class GenerationMetrics:
    """What tails report of generations, by model."""

    def __init__(self, metrics: CoordinatorMetrics) -> None:
        registry = metrics.registry
        self._ended = Counter(
            "brigade_generations",
            "Sessions that ended, by outcome; one that goes on elsewhere is another session.",
            ("model", "outcome"),
            registry=registry,
        )
        self._tokens = Counter(
            "brigade_tokens",
            "Tokens of generations that ended: of prompts (input) and of answers (output).",
            ("model", "type"),
            registry=registry,
        )
        self._times = TokenTimes.of(
            registry,
            whole=(
                "gen_ai_server_request_duration_seconds",
                "From a generation's route given out to its end reported.",
            ),
            first=(
                "gen_ai_server_time_to_first_token_seconds",
                "From the client's coming to the last worker to the first token on its way to it, as that worker "
                "says.",
            ),
            per_token=(
                "gen_ai_server_time_per_output_token_seconds",
                "Of the tokens after the first: the mean of each generation, as its last worker says.",
            ),
        )

    def take(self, generation: StoredGeneration, report: GenerationReport) -> None:
        """Count one."""
        model, outcome = generation.model, generation.outcome or ""
        self._ended.labels(model, outcome).inc()
        self._tokens.labels(model, "input").inc(generation.n_prompt_tokens)
        self._tokens.labels(model, "output").inc(generation.n_completion_tokens or 0)
        if generation.finished_at is not None:
            seconds = max(0.0, (generation.finished_at - generation.started_at).total_seconds())
            error = "" if outcome in ENDED_WELL else outcome
            self._times.whole.labels(GENERATE, model, error).observe(seconds)
        if report.first_token_s is not None and generation.continues is None:
            self._times.first.labels(GENERATE, model).observe(report.first_token_s)
        if report.s_per_token is not None:
            self._times.per_token.labels(GENERATE, model).observe(report.s_per_token)
