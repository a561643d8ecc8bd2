"""Sockets of connections that come to nothing are closed once, also under uvloop.

uvloop closes the descriptor of a socket that it was given (`create_connection(sock=...)`) where TLS fails or the
caller gives up, and doesn't tell the socket: when that is collected it closes whatever has the number by then,
another connection or a file, and libuv aborts the process (https://github.com/MagicStack/uvloop/issues/738).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_dialled: ContextVar[list[tuple[socket.socket, int | None]] | None] = ContextVar("_dialled", default=None)


def new_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """As aiohttp's `socket_factory`: of an entry of `getaddrinfo`. Remembered within `closed_once`."""
    family, kind, number, *_ = address_info
    made = socket.socket(family, kind, number)
    dialled = _dialled.get()
    if dialled is not None:
        dialled.append((made, _inode(made.fileno())))
    return made


@contextmanager
def closed_once() -> Iterator[None]:
    """One attempt to connect. If it fails, its sockets let go of descriptors that aren't theirs any more."""
    dialled: list[tuple[socket.socket, int | None]] = []
    token = _dialled.set(dialled)
    try:
        yield
    except BaseException:
        for made, inode in dialled:
            if inode is not None and made.fileno() >= 0 and _inode(made.fileno()) != inode:
                made.detach()
        raise
    finally:
        _dialled.reset(token)


def _inode(descriptor: int) -> int | None:
    """None where it is closed, and on systems where a socket is no file (there is no uvloop on them)."""
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return None
