from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, PortInUseError
from protocol.listening import check_can_listen, listen_address_from_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7400", ("127.0.0.1", 7400)),
        ("box.example:1", ("box.example", 1)),
        ("box.example", ("box.example", 7400)),
        (":8000", ("127.0.0.1", 8000)),
        ("[::1]:80", ("::1", 80)),
        ("[::]", ("::", 7400)),
        (" 0.0.0.0:0 ", ("0.0.0.0", 0)),
    ],
)
def test_listen_addresses(text: str, expected: tuple[str, int]) -> None:
    assert listen_address_from_text(text, default_port=7400) == expected


@pytest.mark.parametrize(
    "text", ["a:b", "a:70000", "::1", "1:2:3", "[::1", "[::1]x", "https://a:1", "a b:1", "a:-1", "a:٣"]
)
def test_bad_listen_addresses(text: str) -> None:
    with pytest.raises(ConfigError, match="--listen"):
        listen_address_from_text(text, default_port=7400)


@given(st.text(max_size=40))
def test_any_listen_text_is_an_address_or_an_error(text: str) -> None:
    try:
        host, port = listen_address_from_text(text, default_port=7400)
    except ConfigError:
        return
    assert host
    assert 0 <= port <= 65535


def test_where_one_cannot_listen_is_known_before_and_said_with_the_option() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=rf"another program listens on 127.0.0.1:{port}: .* \(--metrics"):
            check_can_listen("127.0.0.1", port, option="--metrics-listen")
    check_can_listen("127.0.0.1", port, option="--metrics-listen")
    with pytest.raises(ConfigError, match=r"can't listen on 192.0.2.1:1 .* \(--metrics-listen\)"):
        check_can_listen("192.0.2.1", 1, option="--metrics-listen")
    with pytest.raises(ConfigError, match=r"--metrics-listen: 'nowhere.invalid' is no address"):
        check_can_listen("nowhere.invalid", 1, option="--metrics-listen")
