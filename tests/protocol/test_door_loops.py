"""The door on event loops of other kinds than that of the other tests."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path

import pytest

from protocol.event_loops import event_loop
from tests.support.streets import Echo, Street, ended
from tests.support.waiting import eventually


class LoopOfWindows(asyncio.SelectorEventLoop):
    """One that doesn't say of a socket that somebody waits there, as Windows' own doesn't."""

    def add_reader(self, *_arguments: object) -> None:
        raise NotImplementedError

    def remove_reader(self, *_arguments: object) -> bool:
        raise NotImplementedError


LOOPS = (asyncio.new_event_loop, event_loop, LoopOfWindows)
"""Asyncio's; that of the programs, uvloop; and one like Windows'."""


@pytest.mark.parametrize("loop", LOOPS)
def test_whoever_came_as_it_closed_is_let_in_and_lost_or_neither(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """Uvloop closes what is cancelled as it is let in without a word, and its site would wait for it."""
    heard: list[str] = []

    class Noted(Echo):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            heard.append("made")
            super().connection_made(transport)

        def connection_lost(self, _exc: Exception | None) -> None:
            heard.append("lost")

    async def cut_after(n_turns: int) -> None:
        async with AsyncExitStack() as stack:
            street = Street(tmp_path, stack)
            street.context = None
            async with street.door(Noted):
                guest = stack.enter_context(closing(socket.create_connection(("127.0.0.1", street.port))))
                for _ in range(n_turns):
                    await asyncio.sleep(0)
            guest.close()
            await eventually(lambda: heard.count("made") == heard.count("lost"))

    for n_turns in range(8):
        with asyncio.Runner(loop_factory=loop) as runner:
            runner.run(cut_after(n_turns))
    assert heard


@pytest.mark.parametrize("loop", LOOPS[1:])
def test_it_does_so_on_other_loops_too(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:

    async def crowded() -> None:
        async with AsyncExitStack() as stack:
            street = Street(tmp_path, stack)
            async with street.door():
                assert await street.is_answered()
                crowd = [await street.begun() for _ in range(2)]
                refused, _ = await street.begun()
                assert await ended(refused) == b""
                for _, writer in crowd:
                    writer.transport.abort()
                await street.is_answered_in_the_end()
                stayed = await street.begun()
            assert await ended(stayed[0]) == b""
            assert street.n_refused["handshakes"] >= 1

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(crowded())
