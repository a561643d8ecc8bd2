from __future__ import annotations

import errno
import socket
import sys

import pytest

from benchmarks.held_ports import held_port


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is held")
def test_who_names_the_port_listens_as_often_as_he_likes_and_nobody_else_gets_it() -> None:
    with held_port() as port:
        for _ in range(2):
            with socket.create_server(("127.0.0.1", port)) as server, socket.create_connection(("127.0.0.1", port)):
                server.accept()[0].close()
            with socket.socket() as other, pytest.raises(OSError) as refused:  # noqa: PT011 - the number says which
                other.bind(("127.0.0.1", port))
            assert refused.value.errno == errno.EADDRINUSE
