from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from protocol.errors import UnreachableError
from protocol.http_connector import ClosingConnector
from protocol.tls import server_context
from tests.support.coordinators import running_coordinator
from tests.support.fleet import fleet_of
from worker.control_socket import opened_socket
from worker.enrolment import Credentials


async def test_a_port_that_cuts_connections_is_said_to_do_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.http_connector._LONGEST_DELAY_S", 0.0)

    async def cut(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        credentials = Credentials(
            coordinator_url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}",
            coordinator_id="c",
            certificate=tmp_path / "certificate",
            key=tmp_path / "key",
            ca_pem="",
            session_token="t",
            ticket_key=b"k" * 32,
            renew_at_s=0.0,
            expires_at_s=0.0,
        )
        async with aiohttp.ClientSession(connector=ClosingConnector()) as session:
            with pytest.raises(UnreachableError, match="cut before TLS was agreed on"):
                await opened_socket(session, credentials)


async def test_a_socket_that_breaks_as_it_is_pinged_is_opened_again(tmp_path: Path) -> None:
    """The pong that can't be sent any more is no fault of this program."""
    n_sockets = 0
    is_back = asyncio.Event()

    async def control(request: web.Request) -> web.WebSocketResponse:
        nonlocal n_sockets
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.receive()
        n_sockets += 1
        if n_sockets == 1:
            assert request.transport is not None
            await socket.ping()
            request.transport.close()
        else:
            is_back.set()
            async for _ in socket:
                pass
        return socket

    async with running_coordinator(tmp_path) as coordinator:
        state = coordinator.state_folder
    context = server_context(state.path("server.pem"), state.path("server.key"))
    app = web.Application()
    app.router.add_get("/v1/worker/control", control)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    try:
        async with fleet_of(1, state.root, [f"https://127.0.0.1:{runner.addresses[0][1]}"]):
            await asyncio.wait_for(is_back.wait(), 20)
    finally:
        await runner.cleanup()
