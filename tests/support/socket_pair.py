"""A WebSocket with a `Connection` at its listening end, and nobody in particular at the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from protocol.frames import Frame, decode_frames
from protocol.messages import PROTOCOL_VERSION
from tests.support.waiting import eventually
from worker.connections import Connection


class Side:
    """The listening side: a `Connection`, and what it took."""

    def __init__(self, version: str) -> None:
        self.version = version
        self.connection: Connection | None = None
        self.frames: list[Frame] = []
        self.on_frame: Callable[[], None] = lambda: None
        self.ended = asyncio.Event()

    def take(self, frame: Frame) -> None:
        if frame.payload == b"bug":
            raise RuntimeError("a defect")
        self.frames.append(frame)
        self.on_frame()

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(timeout=0.2)
        await socket.prepare(request)
        self.connection = Connection(socket, peer=None, label="the other", version=self.version)
        try:
            await self.connection.run(self.take)
        finally:
            self.ended.set()
        return socket


@asynccontextmanager
async def connected(
    version: str = PROTOCOL_VERSION,
) -> AsyncIterator[tuple[Side, aiohttp.ClientWebSocketResponse, Connection]]:
    """`version`: that the one at the other end speaks."""
    side = Side(version)
    app = web.Application()
    app.router.add_get("/", side.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"http://127.0.0.1:{runner.addresses[0][1]}/") as socket,
        ):
            await eventually(lambda: side.connection is not None and side.connection._reader is not None)
            assert side.connection is not None
            yield side, socket, side.connection
    finally:
        await runner.cleanup()


async def frames_from(socket: aiohttp.ClientWebSocketResponse, n_frames: int) -> list[Frame]:
    """The next frames, however they are joined. The caller has the deadline."""
    frames: list[Frame] = []
    while len(frames) < n_frames:
        frames += decode_frames(await socket.receive_bytes())
    return frames
