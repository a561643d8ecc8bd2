"""A web application on a loopback port over TLS, which may be away for a while."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from benchmarks.held_ports import held_port
from protocol.tls import server_context
from tests.support.pki import WorkerFiles


class Served:
    """A server that comes back at the same port."""

    def __init__(self, app: Callable[[], web.Application], shown: WorkerFiles, port: int) -> None:
        self._app = app
        self._shown = shown
        self._runner: web.AppRunner | None = None
        self._port = port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._runner = web.AppRunner(self._app(), shutdown_timeout=0.2, access_log=None)
        await self._runner.setup()
        context = server_context(self._shown.certificate, self._shown.key)
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
        self._runner = None


@asynccontextmanager
async def serving(app: Callable[[], web.Application], shown: WorkerFiles) -> AsyncIterator[Served]:
    """The application until the context ends; made anew at each start."""
    with held_port() as port:
        served = Served(app, shown, port)
        try:
            await served.start()
            yield served
        finally:
            await served.stop()
