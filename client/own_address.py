"""Which of this machine's addresses the operating system would speak from: another one is another network."""

from __future__ import annotations

import socket


def own_address(peer: str) -> str | None:
    """The IP address that packets to this IP address would leave from now; None if there is no way there.

    Nothing is sent, and nothing waited for: a datagram socket is only bound.
    """
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as unsent:
            unsent.settimeout(0.0)
            unsent.connect((peer, 9))
            return str(unsent.getsockname()[0])
    except OSError:
        return None
