"""Pongs that answer nothing, or come again, are no round trips."""

from __future__ import annotations

import asyncio
from typing import cast

from aiohttp import ClientConnectionResetError, ClientWebSocketResponse

from client.legs import Legs
from client.pings import N_PINGS, Pings
from protocol.ids import WorkerId


class Socket:
    """Takes pings, unless it is broken."""

    def __init__(self, *, is_broken: bool = False) -> None:
        self.is_broken = is_broken
        self.sent: list[bytes] = []

    async def ping(self, data: bytes) -> None:
        if self.is_broken:
            raise ClientConnectionResetError("gone")
        self.sent.append(data)


def pings_on(socket: Socket, legs: Legs) -> Pings:
    return Pings(WorkerId("w"), cast(ClientWebSocketResponse, socket), legs)


def n_known(legs: Legs) -> int:
    return len(legs.said((), asyncio.get_running_loop().time()))


async def test_a_few_are_sent_each_after_the_answer_to_the_one_before() -> None:
    socket, legs = Socket(), Legs()
    pings = pings_on(socket, legs)
    await pings.begin()
    await pings.begin()
    assert len(socket.sent) == 1, "one is on its way"
    for _ in range(N_PINGS + 2):
        await pings.take_pong(socket.sent[-1])
    assert len(set(socket.sent)) == N_PINGS
    await pings.begin()
    assert len(socket.sent) == N_PINGS + 1


async def test_a_pong_that_answers_none_of_ours_says_nothing() -> None:
    socket, legs = Socket(), Legs()
    pings = pings_on(socket, legs)
    await pings.take_pong(b"")
    await pings.begin()
    await pings.take_pong(b"12345678")  # sent before our ping could come
    assert n_known(legs) == 0
    await pings.take_pong(socket.sent[0])
    assert n_known(legs) == 1


async def test_a_connection_that_breaks_meanwhile_is_left_to_its_reader() -> None:
    legs = Legs()
    await pings_on(Socket(is_broken=True), legs).begin()
    assert n_known(legs) == 0
