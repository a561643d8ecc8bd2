"""Somebody between a worker and its coordinator: ends TLS itself, passes requests on, and may change them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

from coordinator.app import RunningCoordinator
from protocol.handshake import PROOF_HEADER
from protocol.tls import server_context
from tests.support.coordinators import http_session
from tests.support.pki import TestAuthority


class Meddler:
    """Passes everything on as it is; subclasses change requests or answers."""

    def __init__(self) -> None:
        self.url = ""
        self.statuses: dict[str, int] = {}
        """Of the coordinator's last answer, by path."""

    def request(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        """What the coordinator gets."""
        return body, proof

    def answer(self, path: str, body: bytes, proof: str) -> tuple[bytes, str]:
        """What the worker gets."""
        return body, proof


@asynccontextmanager
async def meddling(
    coordinator: RunningCoordinator, meddler: Meddler, folder: Path, *, has_stolen_key: bool = False
) -> AsyncIterator[Meddler]:
    """Run the meddler; with a stolen key it shows the coordinator's own certificate, else one of its own."""

    async def pass_on(request: web.Request) -> web.Response:
        body, proof = meddler.request(request.path, await request.read(), request.headers.get(PROOF_HEADER, ""))
        headers = {PROOF_HEADER: proof} if proof else {}
        answer = await http.ask(request.method, request.path, body or None, headers=headers)
        meddler.statuses[request.path] = answer.status
        body, proof = meddler.answer(request.path, answer.body, answer.headers.get(PROOF_HEADER, ""))
        headers = {PROOF_HEADER: proof} if proof else {}
        return web.Response(body=body, status=answer.status, content_type="application/json", headers=headers)

    if has_stolen_key:
        state = coordinator.state_folder
        context = server_context(state.path("server.pem"), state.path("server.key"))
    else:
        files = TestAuthority().worker(folder)
        context = server_context(files.certificate, files.key)
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pass_on)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    meddler.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with http_session(coordinator) as http:
            yield meddler
    finally:
        await runner.cleanup()
