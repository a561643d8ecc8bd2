"""A WebSocket client that can lie about lengths, which no library lets one do."""

from __future__ import annotations

import asyncio
import ssl
import struct
from pathlib import Path

CLOSED_WITHIN_S = 15.0


class RawSocket:
    """Bytes after the upgrade go out as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def send(self, data: bytes) -> None:
        """As it is."""
        self._writer.write(data)
        await self._writer.drain()

    async def claim(self, n_bytes: int, begin: bytes = b"") -> None:
        """A masked binary message that says it has so many bytes; only `begin` of it is sent."""
        await self.send(b"\x82\xff" + struct.pack(">Q", n_bytes) + b"\0\0\0\0" + begin)

    async def close_code(self) -> int | None:
        """Wait for the end of the connection; the code of the close frame, if there was one."""
        data = b""
        async with asyncio.timeout(CLOSED_WITHIN_S):
            try:
                while piece := await self._reader.read(65536):
                    data += piece
            except (ConnectionError, ssl.SSLError):
                pass
        self._writer.close()
        at = data.rfind(b"\x88")
        return struct.unpack_from(">H", data, at + 2)[0] if at >= 0 and len(data) >= at + 4 else None


async def raw_socket(
    port: int, path: str, context: ssl.SSLContext, server_hostname: str, **headers: str
) -> RawSocket:
    """Connect and upgrade."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=server_hostname)
    fields = {
        "Host": f"127.0.0.1:{port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "MDEyMzQ1Njc4OWFiY2RlZg==",
        "Sec-WebSocket-Version": "13",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    writer.write("\r\n".join(lines).encode())
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101"), head
    except BaseException:
        writer.transport.abort()
        raise
    return RawSocket(reader, writer)


def resident_bytes() -> int:
    """Memory of this process that is really there."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096
