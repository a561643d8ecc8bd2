"""`/metrics` on the gateway's own port, for operators: what Prometheus reads, with an admin key of the cluster."""

from __future__ import annotations

from aiohttp import web

from client.gateway.callers import caller_key
from client.gateway.keys import CLIENTS, CONFIG, METRICS
from protocol.errors import ForbiddenError
from protocol.metrics_site import METRICS_PATH, metrics_answer


def add_routes(app: web.Application) -> None:
    """Have the application answer Prometheus."""
    app.router.add_get(METRICS_PATH, metrics)


async def metrics(request: web.Request) -> web.Response:
    """`GET /metrics`. The key says what kind it is, and the coordinator, asked each time, that this is true.

    Raises:
        ForbiddenError: a key of clients, or the gateway's own if that is one.
    """
    key = caller_key(request.headers, request.app[CONFIG])
    if key.kind != "admin":
        raise ForbiddenError(
            f"metrics are for keys of kind admin; this request counts as key {key.key_id}, of kind {key.kind}. To "
            "have them read without a key, start the gateway with --metrics-listen"
        )
    async with request.app[CLIENTS].lent(key) as client:
        await client.models()
    return metrics_answer(request.app[METRICS].registry, request)
