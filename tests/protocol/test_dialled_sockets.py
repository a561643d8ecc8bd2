"""A connection that comes to nothing under uvloop leaves no socket that would close another's descriptor."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
import uvloop

from protocol.dialled_sockets import new_socket
from protocol.http_connector import ClosingConnector
from protocol.tls import client_context
from tests.support.pki import TestAuthority


def take_one(listener: socket.socket, is_reset: bool, heard: Callable[[], None], may_end: threading.Event) -> None:
    """Reset it at once; or hear the beginning of TLS, and say nothing."""
    taken, _ = listener.accept()
    with taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if not is_reset:
            taken.recv(1)
            heard()
            may_end.wait(20)


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("ending", ["reset", "given up"])
def test_a_socket_whose_descriptor_the_loop_has_closed_holds_it_no_more(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if uvloop's sockets aren't told: once collected, they close what others have opened since."""
    dialled: list[tuple[socket.socket, int]] = []

    def remembered(address_info: tuple[Any, ...]) -> socket.socket:
        made = new_socket(address_info)
        dialled.append((made, made.fileno()))
        return made

    monkeypatch.setattr("protocol.http_connector.new_socket", remembered)
    may_end = threading.Event()

    async def dial(listener: socket.socket) -> None:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        connector = ClosingConnector(ssl=client_context(TestAuthority().ca_pem), max_cuts=1)
        async with aiohttp.ClientSession(connector=connector) as http, asyncio.TaskGroup() as tasks:

            async def fail() -> None:
                with pytest.raises(aiohttp.ClientConnectorError):
                    await http.get(url)

            loop, dialling = asyncio.get_running_loop(), tasks.create_task(fail())

            def give_up() -> None:
                loop.call_soon_threadsafe(dialling.cancel)

            peer = threading.Thread(target=take_one, args=(listener, ending == "reset", give_up, may_end))
            peer.start()
            await asyncio.wait([dialling])
            assert dialling.cancelled() == (ending == "given up")
            ((made, descriptor),) = dialled
            assert made.fileno() == -1
            assert not is_open(descriptor)
            may_end.set()
            peer.join()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        uvloop.run(dial(listener))
