"""The gateway put together: `running(config)` is the whole program, for the command line and for tests.

At the stop: nobody new is let in, answers under way get their time, the port is closed, then the clients behind it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
from aiohttp import web

from client.gateway import anthropic_messages, metrics_page, ollama_routes
from client.gateway.bodies import MAX_REQUEST_BYTES, json_answer
from client.gateway.body_room import BodyRoom
from client.gateway.clients import ClientPool, client_pool
from client.gateway.config import GatewayConfig
from client.gateway.gate import Gate
from client.gateway.keys import BODY_ROOM, CLIENTS, CONFIG, ERROR_SHAPES, GATE, METRICS, NAMES, add_error_shape
from client.gateway.metrics import GatewayMetrics
from client.gateway.middleware import HEALTH_PATH, MIDDLEWARES, add_headers
from client.gateway.openai_chat import chat_completions
from client.gateway.openai_completions import completions
from client.gateway.openai_embeddings import embeddings
from client.gateway.openai_errors import OPENAI_SHAPES
from client.gateway.openai_models import model, models
from client.gateway.openai_responses import responses
from protocol.errors import ConfigError
from protocol.guarded_site import GuardedSite
from protocol.host_names import own_names
from protocol.listening import start_listening
from protocol.metrics import RefusedConnections
from protocol.metrics_site import metrics_served
from protocol.running_beside import running_beside
from protocol.span_export import span_export
from protocol.spans import SpanSink
from protocol.traced_requests import SPANS

log = structlog.get_logger(__name__)

SHUTDOWN_S = 2.0
"""For answers that are still under way when their time is over: they end on the workers, and say why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningGateway:
    """A gateway that answers at `url`."""

    url: str
    port: int
    clients: ClientPool
    gate: Gate
    metrics_url: str | None
    """Where Prometheus reads its metrics without a key."""


@asynccontextmanager
async def running(config: GatewayConfig) -> AsyncIterator[RunningGateway]:
    """Run a gateway for as long as the context is open; it answers once the context is entered.

    Raises:
        ConfigError: a setting can't be used (PortInUseError: the port is taken).
    """
    config.check()
    tls = await asyncio.to_thread(_tls_context, config)
    async with span_export("gateway") as spans, client_pool(config.cluster, spans=spans) as clients:
        app = application(config, clients, spans)
        runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_S, handler_cancellation=True)
        await runner.setup()
        site = GuardedSite(
            runner,
            tls,
            host=config.listen_host or None,
            port=config.listen_port,
            max_connections=config.max_connections,
            max_handshakes=max(1, config.max_connections // 2),
        )
        app[METRICS].registry.register(RefusedConnections(site.n_refused))
        try:
            await start_listening(site, config.listen_host, config.listen_port)
            port = int(runner.addresses[0][1])
            url = _url(config, port)
            log.info("gateway_started", url=url)
            async with (
                metrics_served(app[METRICS].registry, config.metrics_listen) as metrics_url,
                running_beside(lag=app[METRICS].lag.watch_forever()),
            ):
                yield RunningGateway(url=url, port=port, clients=clients, gate=app[GATE], metrics_url=metrics_url)
            log.info("gateway_stopping", n_requests=app[GATE].n_inside)
            await app[GATE].drain(config.stop_s, end_within_s=SHUTDOWN_S)
        finally:
            await site.close()


def application(config: GatewayConfig, clients: ClientPool, spans: SpanSink) -> web.Application:
    """What answers; nothing runs in it yet."""
    app = web.Application(client_max_size=MAX_REQUEST_BYTES, middlewares=MIDDLEWARES)
    app[CONFIG] = config
    app[CLIENTS] = clients
    app[SPANS] = spans
    app[BODY_ROOM] = BodyRoom()
    app[GATE] = Gate()
    app[METRICS] = GatewayMetrics(app[GATE])
    app[NAMES] = own_names((config.listen_host, *config.names), ())
    app[ERROR_SHAPES] = []
    for shape in OPENAI_SHAPES:
        add_error_shape(app, shape)
    app.on_response_prepare.append(add_headers)
    app.router.add_get(HEALTH_PATH, health)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/models/{name}", model)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/embeddings", embeddings)
    app.router.add_post("/v1/responses", responses)
    anthropic_messages.add_routes(app)
    ollama_routes.add_routes(app)
    metrics_page.add_routes(app)
    return app


async def health(request: web.Request) -> web.Response:
    """`GET /health`, open to anybody: whether requests are taken."""
    gate = request.app[GATE]
    answer = json_answer({"status": "stopping" if gate.is_draining else "ok", "requests": gate.n_inside})
    answer.set_status(503 if gate.is_draining else 200)
    return answer


def _tls_context(config: GatewayConfig) -> ssl.SSLContext | None:
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except OSError as exc:  # ssl's errors too
        raise ConfigError(
            f"--tls-cert {config.tls_cert} and --tls-key {config.tls_key} can't be used: {exc.strerror or exc}"
        ) from exc
    return context


def _no_password() -> str:
    """Asked for by OpenSSL, which would otherwise ask whoever sits at the terminal, and wait."""
    raise ConfigError(
        "--tls-key is encrypted with a password: give a file that isn't (openssl pkey -in KEY -out NEW)"
    )


def _url(config: GatewayConfig, port: int) -> str:
    host = "127.0.0.1" if config.listen_host in ("0.0.0.0", "::") else config.listen_host  # noqa: S104 - compared with
    scheme = "http" if config.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
