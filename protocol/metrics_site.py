"""Where Prometheus reads a program's metrics: over plain HTTP on a port of its own, if the program is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry

from protocol.guarded_application import guarded_application
from protocol.guarded_site import GuardedSite
from protocol.host_names import own_names
from protocol.listening import is_loopback, start_listening
from protocol.metrics import exposition
from protocol.metrics_address import OPTION, MetricsAddress

METRICS_PATH = "/metrics"
STOP_S = 1.0


def metrics_answer(registry: CollectorRegistry, request: web.Request) -> web.Response:
    """All metrics, in the form that is asked for."""
    body, content_type = exposition(registry, request.headers.get(hdrs.ACCEPT, ""))
    return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})


@asynccontextmanager
async def metrics_served(registry: CollectorRegistry, address: MetricsAddress | None) -> AsyncIterator[str | None]:
    """Have the metrics read at `address` until the context closes; yields where that is, None if nowhere.

    On loopback only names of this machine are answered to, or a page in a browser here could read them.

    Raises:
        PortInUseError, ConfigError: the address can't be used.
    """
    if address is None:
        yield None
        return

    async def metrics(request: web.Request) -> web.Response:
        return metrics_answer(registry, request)

    host, port = address
    names = own_names((host,), ()) if is_loopback(host) else None
    app = guarded_application(names, who="program", option=OPTION)
    app.router.add_get(METRICS_PATH, metrics)
    runner = web.AppRunner(app, shutdown_timeout=STOP_S)
    await runner.setup()
    site = GuardedSite(runner, None, host=host or None, port=port)
    try:
        await start_listening(site, host, port, option=OPTION)
        yield _url(host, runner.addresses[0][1])
    finally:
        await site.close()


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}{METRICS_PATH}" if ":" in host else f"http://{host}:{port}{METRICS_PATH}"
