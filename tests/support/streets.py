"""A door with TLS and those who come to it, for tests of `protocol.door`."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from protocol.door import Door, Refusal, bound_sockets
from protocol.tls import client_context, server_context, worker_name
from tests.support.pki import TestAuthority
from tests.support.waiting import eventually_answered

TLS_BEGINS = b"\x16\x03\x01\x02\x00\x01"


class Echo(asyncio.Protocol):
    """Says back what it hears."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)
        self.transport.close()


class Street:
    """A door with TLS, and those who come to it."""

    def __init__(self, tmp_path: Path, stack: AsyncExitStack) -> None:
        authority = TestAuthority()
        files = authority.worker(tmp_path)
        self._name = worker_name(files.worker_id)
        self._trusting = client_context(authority.ca_pem)
        self.context: ssl.SSLContext | None = server_context(files.certificate, files.key, authority.ca_pem)
        self.n_refused: Counter[Refusal] = Counter()
        self._stack = stack
        self.port = 0

    @asynccontextmanager
    async def door(
        self, connection: Callable[[], asyncio.Protocol] = Echo, *, handshake_s: float = 30.0
    ) -> AsyncIterator[Door]:
        door = Door(
            connection,
            self.context,
            max_handshakes=2,
            handshake_s=handshake_s,
            goodbye_s=1.0,
            n_refused=self.n_refused,
        )
        door.open(await bound_sockets("127.0.0.1", 0))
        self.port = door.sockets[0].getsockname()[1]
        try:
            yield door
        finally:
            door.close()
            await door.wait_closed()

    async def begun(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Somebody who has sent the beginning of TLS, and stays."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._stack.callback(cut, writer)
        writer.write(TLS_BEGINS)
        return reader, writer

    def silent(self) -> socket.socket:
        """Somebody who gets through TLS, and says nothing after it. Blocks."""
        plain = socket.create_connection(("127.0.0.1", self.port))
        return self._trusting.wrap_socket(plain, server_hostname=self._name)

    async def is_answered(self) -> bool:
        """Whether somebody new gets through TLS, and back what he says."""
        try:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", self.port, ssl=self._trusting, server_hostname=self._name
            )
        except OSError:
            return False
        writer.write(b"hello")
        said = await ended(reader)
        writer.transport.abort()
        return said == b"hello"

    async def is_answered_in_the_end(self) -> None:
        """Soon, once the door has seen that others are gone."""
        await eventually_answered(self.is_answered)


def cut(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def ended(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side ends it."""
    async with asyncio.timeout(10):
        try:
            return await reader.read()
        except ConnectionError:
            return b""
