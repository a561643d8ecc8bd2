"""Pings on one worker's connection: so the client knows how far it is. Nobody waits for their answers."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import aiohttp
from aiohttp import ClientWebSocketResponse

from client.legs import Legs
from protocol.ids import WorkerId

N_PINGS = 3
"""In one go, each after the answer to the one before: the shortest counts."""


class Pings:
    """Those of one connection, which has to leave pongs to its reader (`autoping=False`)."""

    def __init__(self, worker_id: WorkerId, websocket: ClientWebSocketResponse, legs: Legs) -> None:
        """`legs`: told of every answer."""
        self._worker_id = worker_id
        self._websocket = websocket
        self._legs = legs
        self._n_left = 0
        self._sent: tuple[bytes, float] | None = None
        """What the ping carries that is on its way, and since when."""

    async def begin(self) -> None:
        """Send the first, unless some are on their way."""
        if self._sent is None:
            self._n_left = N_PINGS
            await self._send()

    async def take_pong(self, data: bytes) -> None:
        """A pong came, of any ping."""
        if self._sent is None or data != self._sent[0]:
            return
        now_s = asyncio.get_running_loop().time()
        (_, sent_s), self._sent = self._sent, None
        self._legs.add(self._worker_id, now_s - sent_s, now_s)
        if self._n_left > 0:
            await self._send()

    async def _send(self) -> None:
        data = secrets.token_bytes(8)  # so that nobody can answer before it came, and be taken for near
        self._n_left -= 1
        self._sent = (data, asyncio.get_running_loop().time())
        with suppress(aiohttp.ClientError, OSError):  # the connection's reader learns of it, too
            await self._websocket.ping(data)
