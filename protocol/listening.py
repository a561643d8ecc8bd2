"""How a program that serves people and programs listens: the address as people write it, the start, the signals."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from protocol.errors import ConfigError, PortInUseError
from protocol.exit_codes import EXIT_CANCELLED

if sys.platform != "win32":
    import resource
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


def raise_open_files_limit() -> None:
    """Take as many open files as this user may have; a stranger's silent connections fill a shell's 1,024.

    One address has 128 before TLS is done and 256 after it (`guarded_site`): a few are enough for 1,024.
    """
    if sys.platform != "win32":  # which has no such limit
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        with suppress(OSError, ValueError):  # macOS: "unlimited", and no more than a number that it doesn't tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _unusable(exc: OSError, host: str, port: int, option: str) -> ConfigError | PortInUseError:
    if isinstance(exc, socket.gaierror):
        return ConfigError(f"{option}: {host!r} is no address of this machine ({exc.strerror})")
    address = f"{host}:{port}"
    if exc.errno == errno.EADDRINUSE:
        return PortInUseError(f"another program listens on {address}: stop it, or choose another port ({option})")
    why = os.strerror(exc.errno) if exc.errno else exc
    return ConfigError(f"can't listen on {address} ({why}); choose another address or port ({option})")


class Stop:
    """What SIGINT or SIGTERM asks for. A start is given up: it may be waiting for others, and for how long."""

    def __init__(self) -> None:
        self._starting = asyncio.current_task()
        self._asked = asyncio.Event()

    def ask(self) -> None:
        """Cancel the task that starts; one that runs already is told by the end of `wait`."""
        self._asked.set()
        if self._starting is not None:
            self._starting.cancel()

    async def wait(self) -> None:
        """For what was started: run until this returns."""
        self._starting = None
        await self._asked.wait()


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """Ask to stop at the first SIGINT or SIGTERM; end the process at the second, which means "I won't wait".

    A start that was given up for it ends the context, and no error.
    """
    loop, stop, is_stopping = asyncio.get_running_loop(), Stop(), False

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        nonlocal is_stopping
        if is_stopping:
            os._exit(EXIT_CANCELLED)
        is_stopping = True
        loop.call_soon_threadsafe(stop.ask)

    previous: dict[signal.Signals, Any] = {
        number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    except asyncio.CancelledError:
        if not is_stopping:
            raise
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
