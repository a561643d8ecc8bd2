from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.relay import Relay
from tests.support.waiting import eventually

DEADLINE_S = 10.0


class Echo:
    """A server that sends back what it gets, and keeps count."""

    def __init__(self) -> None:
        self.port = 0
        self.greetings: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1000):
                self.greetings.append(data)
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[Echo, Relay]]:
    echo = Echo()
    async with asyncio.timeout(DEADLINE_S), await asyncio.start_server(echo.serve, "127.0.0.1", 0) as server:
        echo.port = server.sockets[0].getsockname()[1]
        async with Relay("127.0.0.1", echo.port) as relay:
            yield echo, relay


@asynccontextmanager
async def through(relay: Relay) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_bytes_and_their_end_go_through_both_ways() -> None:
    async with echoing() as (_, relay), through(relay) as (reader, writer):
        data = bytes(range(256)) * 4096
        writer.write(data)
        writer.write_eof()
        assert await reader.read(-1) == data
        assert relay.n_bytes == {"forward": len(data), "backward": len(data)}
        await eventually(lambda: relay.n_connections == 0)


async def test_a_delay_holds_up_both_ways_and_keeps_the_order() -> None:
    async with echoing() as (_, relay), through(relay) as (reader, writer):
        relay.delay_s = 0.2
        began_s = asyncio.get_running_loop().time()
        for letter in (b"a", b"b", b"c"):
            writer.write(letter)
            await writer.drain()
        assert await reader.readexactly(3) == b"abc"
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s >= 0.4


async def test_connections_share_the_links_speed_in_each_direction() -> None:
    async with echoing() as (_, relay), through(relay) as one, through(relay) as two:
        relay.bits_per_s = 8e6
        began_s = asyncio.get_running_loop().time()
        for _reader, writer in (one, two):
            writer.write(bytes(100_000))
        for reader, _writer in (one, two):
            await reader.readexactly(100_000)
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s >= 0.2, "200 kB at 1 MB/s"


async def test_a_held_connection_is_half_open_until_it_is_released() -> None:
    async with echoing() as (echo, relay), through(relay) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        relay.hold()
        writer.write(b"b")
        writer.write_eof()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await reader.read(1)
        assert echo.greetings == [b"a"]
        relay.release()
        assert await reader.read(-1) == b"b"


async def test_a_cut_resets_every_connection() -> None:
    async with echoing() as (_, relay), through(relay) as (reader, writer), through(relay) as (other, _writer):
        writer.write(b"a")
        await reader.readexactly(1)
        await eventually(lambda: relay.n_connections == 2)
        relay.cut()
        for end in (reader, other):
            with pytest.raises(ConnectionError):
                await end.read(1)


@pytest.mark.parametrize("direction", ["forward", "backward"])
async def test_a_connection_is_cut_after_so_many_bytes(direction: str) -> None:
    async with echoing() as (echo, relay), through(relay) as (reader, writer):
        relay.cut_after(3, direction)  # type: ignore[arg-type]
        writer.write(b"abcdef")
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(6)
        assert relay.n_bytes[direction] == 3  # type: ignore[index]
        assert b"".join(echo.greetings) in ((b"abc", b"") if direction == "forward" else (b"abcdef",))


async def test_one_bit_is_flipped_once() -> None:
    async with echoing() as (_, relay), through(relay) as (reader, writer):
        relay.flip_at(2, "backward")
        writer.write(b"a" * 8)
        writer.write_eof()
        assert await reader.read(-1) == b"aa`aaaaa"


async def test_connections_are_refused_on_demand() -> None:
    async with echoing() as (_, relay):
        relay.is_refusing = True
        async with through(relay) as (reader, _):
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
        assert len(relay.accepted_at_s) == 1
        assert relay.n_connections == 0


async def test_a_target_that_is_away_resets_the_connection() -> None:
    async with asyncio.timeout(DEADLINE_S), Relay("127.0.0.1", 1) as relay, through(relay) as (reader, _):
        with pytest.raises(ConnectionError):
            await reader.readexactly(1)


async def test_connections_are_opened_in_reverse_order() -> None:
    async with echoing() as (echo, relay):
        relay.reorder(3)
        async with through(relay) as (_, one), through(relay) as (_, two), through(relay) as (_, three):
            for writer, letter in ((one, b"1"), (two, b"2"), (three, b"3")):
                writer.write(letter)
            await eventually(lambda: len(echo.greetings) == 3)
        assert echo.greetings == [b"3", b"2", b"1"]
