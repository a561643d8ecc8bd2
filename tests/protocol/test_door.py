"""The door: who is let in, who is counted, and that nothing is left when it closes."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path
from typing import cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

import protocol.door
from protocol.door import Door, bound_sockets
from protocol.metrics import RefusedConnections, exposition
from tests.support.streets import Echo, Street, ended
from tests.support.waiting import eventually


@pytest.fixture
async def street(tmp_path: Path) -> AsyncIterator[Street]:
    async with AsyncExitStack() as stack:
        yield Street(tmp_path, stack)


async def test_handshakes_that_are_done_count_no_more(street: Street) -> None:
    async with street.door():
        for _ in range(5):
            assert await street.is_answered()
    assert not street.n_refused


async def test_who_comes_while_too_many_are_under_way_is_closed_and_counted(street: Street) -> None:
    registry = CollectorRegistry()
    registry.register(RefusedConnections(street.n_refused))
    async with street.door():
        crowd = [await street.begun() for _ in range(2)]
        for _ in range(3):
            refused, _ = await street.begun()
            assert await ended(refused) == b""
        body, _ = exposition(registry, "")
        assert b'brigade_connections_refused_total{reason="handshakes"} 3.0' in body
        assert b'brigade_connections_refused_total{reason="connections"} 0.0' in body
        for _, writer in crowd:
            writer.transport.abort()
        await street.is_answered_in_the_end()


async def test_what_is_no_tls_or_not_in_time_makes_room(street: Street) -> None:
    async with street.door(handshake_s=0.2):
        crowd = [await street.begun() for _ in range(2)]
        crowd[0][1].write(b"GET / HTTP/1.1\r\n\r\n" * 40)
        for reader, _ in crowd:
            await ended(reader)
        await street.is_answered_in_the_end()


async def test_one_connection_that_breaks_leaves_the_others_alone(street: Street) -> None:
    made = 0

    def connection() -> asyncio.Protocol:
        nonlocal made
        made += 1
        if made == 1:
            raise ValueError("broken")
        return Echo()

    async with street.door(connection):
        with capture_logs() as logs:
            assert not await street.is_answered()
            assert await street.is_answered()
    assert [entry["event"] for entry in logs] == ["handshake_broke"]


async def test_closing_ends_handshakes_that_are_under_way_and_whoever_only_just_came(street: Street) -> None:
    async with street.door() as door:
        crowd = [await street.begun() for _ in range(2)]
        just_now = socket.create_connection(("127.0.0.1", street.port))
    assert all(each.fileno() == -1 for each in door.sockets)
    for reader, _ in crowd:
        assert await ended(reader) == b""
    just_now.close()
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection("127.0.0.1", street.port)


async def test_a_door_that_is_closed_at_once_listens_no_more(street: Street) -> None:
    door = Door(Echo, None, max_handshakes=1, handshake_s=1.0, goodbye_s=1.0, n_refused=street.n_refused)
    sockets = await bound_sockets("127.0.0.1", 0)
    door.open(sockets)
    door.close()
    await door.wait_closed()
    assert all(each.fileno() == -1 for each in sockets)


async def test_a_handshake_that_ends_as_the_door_closes_leaves_its_socket_to_its_transport(street: Street) -> None:
    """Closed under it, its number goes to another connection, and that would be cut off with it."""
    made: list[asyncio.Transport] = []

    class Closing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            made.append(cast("asyncio.Transport", transport))
            door.close()

    async with street.door(Closing) as door:
        with closing(await asyncio.to_thread(street.silent)):  # it doesn't answer TLS's own end
            await eventually(lambda: bool(made))
            await door.wait_closed()
            its_socket = made[0].get_extra_info("socket")
            assert its_socket.fileno() != -1
            made[0].abort()
            await eventually(lambda: its_socket.fileno() == -1)


async def test_without_tls_a_crowd_of_one_address_is_let_in(street: Street) -> None:
    """There is no handshake of which there could be too many; connections are counted behind the door."""
    street.context = None
    async with street.door(), AsyncExitStack() as stack:
        crowd = [
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", street.port)))) for _ in range(8)
        ]
        for each in crowd:
            each.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(each, b"hello")
            assert await asyncio.get_running_loop().sock_recv(each, 10) == b"hello"
    assert not street.n_refused


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """The next file or socket of this process is one too many."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    next_one = os.dup(0)
    os.close(next_one)
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_where_the_system_gives_no_more_sockets_it_says_so_and_tries_again(
    street: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol.door, "ACCEPT_AGAIN_S", 0.05)
    async with street.door():
        with closing(socket.socket()) as waiting, capture_logs() as logs:
            waiting.setblocking(False)
            with no_more_descriptors():
                waiting.connect_ex(("127.0.0.1", street.port))
                await eventually(lambda: len(logs) > 1)
        assert logs[0] == {"event": "accept_failed", "reason": "Too many open files", "log_level": "warning"}
        await street.is_answered_in_the_end()


async def test_a_name_is_bound_at_all_of_its_addresses_and_none_is_left_if_one_is_taken(own_port: int) -> None:
    (first,) = await bound_sockets("127.0.0.1", own_port)
    with pytest.raises(OSError, match="use"):
        await bound_sockets("127.0.0.1", own_port)
    first.close()
    (again,) = await bound_sockets("127.0.0.1", own_port)
    again.close()
