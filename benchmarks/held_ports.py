"""Ports of this machine that stay ours, also while nobody listens on them."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_port() -> Iterator[int]:
    """A free TCP port of loopback, for who begins to listen later, or stops for a while and listens again.

    Until the context ends, the system gives it to nobody who takes any port; who names it may listen, as every
    server here does, with `SO_REUSEADDR`. That is Linux' way: elsewhere it is only a port that was free just now.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        port = int(holder.getsockname()[1])
        if sys.platform != "linux":
            holder.close()
        yield port
