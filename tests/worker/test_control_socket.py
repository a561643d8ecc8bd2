from __future__ import annotations

import asyncio
from pathlib import Path

from aiohttp import web

from protocol.tls import server_context
from tests.support.coordinators import running_coordinator
from tests.support.fleet import fleet_of


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
