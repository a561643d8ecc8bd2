from __future__ import annotations

import asyncio
import resource
import signal
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ConfigError, PortInUseError
from protocol.listening import (
    check_can_listen,
    listen_address_from_text,
    raise_open_files_limit,
    stop_signals,
)


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


def test_where_one_cannot_listen_is_known_before_and_said_with_the_option(own_port: int) -> None:
    with (
        socket.create_server(("127.0.0.1", own_port)),
        pytest.raises(PortInUseError, match=rf"another program listens on 127.0.0.1:{own_port}: .* \(--metrics"),
    ):
        check_can_listen("127.0.0.1", own_port, option="--metrics-listen")
    check_can_listen("127.0.0.1", own_port, option="--metrics-listen")
    with pytest.raises(ConfigError, match=r"can't listen on 192.0.2.1:1 .* \(--metrics-listen\)"):
        check_can_listen("192.0.2.1", 1, option="--metrics-listen")
    with pytest.raises(ConfigError, match=r"--metrics-listen: 'nowhere.invalid' is no address"):
        check_can_listen("nowhere.invalid", 1, option="--metrics-listen")


async def test_a_start_is_given_up_when_told_to_stop() -> None:
    async with asyncio.timeout(30.0):
        with stop_signals():
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()


async def test_what_runs_is_told_to_stop_and_ends_in_order() -> None:
    steps = []
    async with asyncio.timeout(30.0):
        with stop_signals() as stop:
            asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
            await stop.wait()
            await asyncio.sleep(0)
            steps.append("ended")
    assert steps == ["ended"]


async def test_a_cancellation_that_no_signal_asked_for_goes_on() -> None:
    with pytest.raises(asyncio.CancelledError), stop_signals():
        raise asyncio.CancelledError


def test_as_many_files_may_be_open_as_the_user_may_have() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, before[1]), before[1]))
    try:
        raise_open_files_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
