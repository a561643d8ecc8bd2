"""What the gateway counts for Prometheus: requests by their answers, generations as its users meet them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from typing import Literal

from aiohttp import web
from prometheus_client import Counter, Gauge, Histogram

from client.gateway.gate import Gate
from client.gateway.turns import TurnEnd, TurnEvent
from client.results import Generation
from protocol.errors import BrigadeError
from protocol.metrics import (
    MODEL,
    OPERATION,
    TOKEN_BUCKETS,
    USAGE_TYPE,
    LoopLag,
    TokenTimes,
    new_registry,
)
from protocol.rest import ModelInfo

Operation = Literal["chat", "text_completion", "embeddings"]
"""In the conventions' words."""
BROKEN_OFF = "cancelled"
"""What an answer ended by if its caller went away."""


class GatewayMetrics:
    """Told of what happens by those who answer. Names of models are the cluster's, never what a caller wrote."""

    def __init__(self, gate: Gate) -> None:
        self.registry = registry = new_registry("gateway")
        self.lag = LoopLag(registry)
        self._requests = Counter(
            "brigade_gateway_requests", "Requests that were answered.", ("endpoint", "status"), registry=registry
        )
        Gauge("brigade_gateway_requests_open", "Requests that are being answered.", registry=registry).set_function(
            lambda: gate.n_inside
        )
        self._failovers = Counter(
            "brigade_gateway_failovers",
            "How often a route failed and an answer went on by another.",
            ("model",),
            registry=registry,
        )
        self._cached = Counter(
            "brigade_gateway_cached_tokens",
            "Tokens of prompts that weren't run, as workers had them from before.",
            ("model",),
            registry=registry,
        )
        self._times = TokenTimes.of(
            registry,
            whole=(
                "gen_ai_client_operation_duration_seconds",
                "From the beginning of an answer to its end, routes and failovers included.",
            ),
            first=(
                "gen_ai_client_operation_time_to_first_chunk_seconds",
                "From the beginning of an answer to its first token.",
            ),
            per_token=(
                "gen_ai_client_operation_time_per_output_chunk_seconds",
                "Of the tokens after the first: the mean of each answer.",
            ),
        )
        self._tokens = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of one answer: its prompt (input) and itself (output).",
            (OPERATION, MODEL, USAGE_TYPE),
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )

    def answered(self, request: web.Request, status: int) -> None:
        """A request is over."""
        resource = request.match_info.route.resource
        endpoint = resource.canonical if resource is not None else "other"
        self._requests.labels(endpoint, str(status)).inc()

    async def observed(
        self, operation: Operation, model: ModelInfo, events: AsyncGenerator[TurnEvent, None]
    ) -> AsyncGenerator[TurnEvent, None]:
        """The same events; what their end says is counted."""
        with self.timed(operation, model):
            async with aclosing(events):
                async for event in events:
                    if isinstance(event, TurnEnd):
                        self._ended(operation, model, event.result)
                    yield event

    @contextmanager
    def timed(self, operation: Operation, model: ModelInfo) -> Iterator[None]:
        """Around one answer."""
        began_s, error = time.perf_counter(), BROKEN_OFF
        try:
            yield
            error = ""
        except BrigadeError as exc:
            error = exc.code
            raise
        finally:
            self._times.whole.labels(operation, model.name, error).observe(time.perf_counter() - began_s)

    def used(self, operation: Operation, model: ModelInfo, *, n_prompt_tokens: int) -> None:
        """Count a prompt."""
        self._tokens.labels(operation, model.name, "input").observe(n_prompt_tokens)

    def _ended(self, operation: Operation, model: ModelInfo, result: Generation) -> None:
        self.used(operation, model, n_prompt_tokens=result.prompt_tokens)
        self._tokens.labels(operation, model.name, "output").observe(result.completion_tokens)
        self._failovers.labels(model.name).inc(result.failovers)
        self._cached.labels(model.name).inc(result.cached_tokens)
        if result.completion_tokens:
            self._times.first.labels(operation, model.name).observe(result.ttft_s)
        if result.tokens_per_s > 0.0:
            self._times.per_token.labels(operation, model.name).observe(1.0 / result.tokens_per_s)
