"""`/metrics` on the coordinator's own port, for operators: what Prometheus reads, with an admin key."""

from __future__ import annotations

from aiohttp import web

from coordinator.keys import METRICS
from coordinator.middleware import add_route
from coordinator.route_docs import Download, RouteDoc
from protocol.metrics_site import METRICS_PATH, metrics_answer

METRICS_DOC = RouteDoc("Show metrics, for Prometheus.", answer=Download("text/plain"))


def add_metrics_routes(app: web.Application) -> None:
    """Put the route in."""
    add_route(app, "admin", "GET", METRICS_PATH, metrics, METRICS_DOC)


async def metrics(request: web.Request) -> web.Response:
    """-> Prometheus' text, or OpenMetrics for who accepts it."""
    return metrics_answer(request.app[METRICS].registry, request)
