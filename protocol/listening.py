"""How a program that serves people and programs listens: the address as people write it, the start, the signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError, PortInUseError
from protocol.exit_codes import EXIT_CANCELLED

if TYPE_CHECKING:  # who only reads an address needs no server
    from protocol.guarded_site import GuardedSite


def listen_address_from_text(text: str, *, default_port: int, option: str = "--listen") -> tuple[str, int]:
    """Read `host:port`, `host`, `:port` or `[::1]:port`; what is missing is loopback and the default port.

    `option` is what gave it.

    Raises:
        ConfigError: not such an address; the message says how to write one.
    """
    text = text.strip()
    wrong = ConfigError(
        f"{option} {text[:200]!r} is not host:port, such as 127.0.0.1:{default_port} or [::1]:{default_port}"
    )
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise wrong
        port_text = rest[1:]
    elif text.count(":") > 1:
        raise wrong
    else:
        host, _, port_text = text.partition(":")
    if any(character.isspace() or character in "/@?#" for character in host):
        raise wrong
    return host or "127.0.0.1", _port(port_text, default_port, wrong, option)


def _port(text: str, default_port: int, wrong: ConfigError, option: str) -> int:
    if not text:
        return default_port
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        raise wrong
    port = int(text)
    if port > 65535:
        raise ConfigError(f"{option}: port {port} is not 0 to 65535")
    return port


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


async def start_listening(site: GuardedSite, host: str, port: int, *, option: str = "--listen") -> None:
    """Have the site listen where it was told to, by `option`.

    Raises:
        PortInUseError: another program listens there.
        ConfigError: not an address of this machine.
    """
    try:
        await site.start()
    except OSError as exc:
        raise _unusable(exc, host, port, option) from exc


def check_can_listen(host: str, port: int, *, option: str) -> None:
    """See that one can listen there, before much is done for it. Blocks: it may look up a name.

    Raises:
        PortInUseError: another program listens there.
        ConfigError: not an address of this machine.
    """
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as exc:
        raise _unusable(exc, host, port, option) from exc


def _unusable(exc: OSError, host: str, port: int, option: str) -> ConfigError | PortInUseError:
    if isinstance(exc, socket.gaierror):
        return ConfigError(f"{option}: {host!r} is no address of this machine ({exc.strerror})")
    address = f"{host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return PortInUseError(f"another program listens on {address}: stop it, or choose another port ({option})")
    why = os.strerror(exc.errno) if exc.errno else exc
    return ConfigError(f"can't listen on {address} ({why}); choose another address or port ({option})")


@contextmanager
def stop_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> Iterator[None]:
    """Set `stop` at the first SIGINT or SIGTERM; end the process at the second, which means "I won't wait"."""
    is_stopping = False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(EXIT_CANCELLED)
        is_stopping = True
        loop.call_soon_threadsafe(stop.set)

    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
