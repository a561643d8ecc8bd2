"""By real sockets: the operating system's answer is the address that connections have."""

from __future__ import annotations

import asyncio

from client.own_address import own_address


async def test_it_is_the_address_that_a_connection_has() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        own = writer.get_extra_info("sockname")[0]
        writer.close()
    assert own_address("127.0.0.1") == own == "127.0.0.1"


def test_where_no_way_leads_there_is_none() -> None:
    assert own_address("not an address") is None
    assert own_address("::ffff:0:not") is None
