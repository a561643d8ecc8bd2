"""HTTP as bytes, over TLS: what no library lets one send, and readers that don't read."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from coordinator.app import RunningCoordinator
from protocol.tls import COORDINATOR_NAME, client_context

DEADLINE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Where somebody listens, and how to connect."""

    port: int
    context: ssl.SSLContext
    name: str

    async def connect(self, *, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection after its TLS handshake."""
        return await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.context, server_hostname=self.name, limit=limit
        )

    async def say(self, *lines: str, body: bytes = b"") -> bytes:
        """All that comes back until the other side closes."""
        reader, writer = await self.connect()
        writer.write("\r\n".join((*lines, "Connection: close", "", "")).encode("latin-1") + body)
        return await rest(reader, writer)

    @asynccontextmanager
    async def silent(self, begin: bytes = b"") -> AsyncIterator[asyncio.StreamReader]:
        """A connection that sends `begin` and nothing more; reads nothing by itself."""
        reader, writer = await self.connect(limit=2**10)
        writer.write(begin)
        try:
            yield reader
        finally:
            writer.transport.abort()


async def rest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """What comes until the end of the connection, within a deadline."""
    data = b""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while piece := await reader.read(2**16):
                data += piece
    except ConnectionError:
        pass
    finally:
        writer.transport.abort()
    return data


async def end(reader: asyncio.StreamReader) -> int:
    """Wait for the other side to end the connection; how many bytes came before."""
    n_bytes = 0
    async with asyncio.timeout(DEADLINE_S):
        try:
            while piece := await reader.read(2**16):
                n_bytes += len(piece)
        except ConnectionError:
            pass
    return n_bytes


def door_of(coordinator: RunningCoordinator) -> Door:
    """The coordinator's."""
    context = client_context(coordinator.authority.ca_pem)
    return Door(port=coordinator.port, context=context, name=COORDINATOR_NAME)


def status_of(answer: bytes) -> int:
    """The status of an answer; 0 if there was none."""
    words = answer.split(b" ", 2)
    return int(words[1]) if len(words) > 1 else 0
