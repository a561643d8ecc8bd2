"""The one port of a worker: a listening socket, TLS on it, the web application behind it."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import structlog
from aiohttp import web

from protocol.door import Refusal
from protocol.errors import ConfigError, PortInUseError, UnreachableError
from protocol.guarded_site import IDLE_S, GuardedSite
from protocol.tls import server_context
from worker.enrolment import Credentials, CredentialsHolder

log = structlog.get_logger(__name__)

_SHUTDOWN_S = 2.0
"""For what is being sent when the site stops; sessions were drained before."""


async def facing_address(coordinator_urls: tuple[str, ...]) -> str:
    """The address of this machine that the coordinator sees: loopback if it is on this machine.

    No packet is sent: connecting a UDP socket only asks the system for its route.

    Raises:
        UnreachableError: there is no route, or no such host, for any of the addresses.
    """
    faults = []
    for url in coordinator_urls:
        parts = urlsplit(url)
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                parts.hostname, parts.port or 443, type=socket.SOCK_DGRAM
            )
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as probe:
                    probe.connect(address)
                    return str(probe.getsockname()[0])
        except OSError as exc:
            faults.append(f"{url}: {exc.strerror or exc}")
    raise UnreachableError("no way to the coordinator: " + "; ".join(faults) + "; check the address")


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket bound to the address; `Site` listens on it.

    Raises:
        PortInUseError: another program listens there.
        ConfigError: not an address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as exc:
        bound.close()
        if exc.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"port {port} of {host} is in use by another program: say --listen {host}:0 for any free one"
            ) from exc
        raise ConfigError(
            f"can't listen on {host} port {port}: {exc.strerror or exc}; say --listen HOST:PORT"
        ) from exc
    return bound


def url_of(bound: socket.socket, facing_host: str) -> str:
    """Where others reach the socket; one bound to all addresses goes by the one that faces the coordinator."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = facing_host
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


class Site:
    """Serves an application over TLS on a bound socket, which it closes. Use as an async context manager.

    New connections get the certificate in force: it is reloaded when the credentials are renewed.
    """

    def __init__(
        self, app: web.Application, bound: socket.socket, credentials: CredentialsHolder, *, idle_s: float = IDLE_S
    ) -> None:
        self._runner = web.AppRunner(app, shutdown_timeout=_SHUTDOWN_S)
        self._idle_s = idle_s
        self._socket = bound
        self._credentials = credentials
        self._guarded: GuardedSite | None = None

    @property
    def n_refused(self) -> Mapping[Refusal, int]:
        """Connections, by what their address had too many of; once it was entered."""
        assert self._guarded is not None, "it listens once it was entered"
        return self._guarded.n_refused

    async def __aenter__(self) -> Self:
        current = self._credentials.current
        context = await asyncio.to_thread(server_context, current.certificate, current.key, current.ca_pem)

        def reload(renewed: Credentials) -> None:
            try:
                context.load_cert_chain(renewed.certificate, renewed.key)
                context.load_verify_locations(cadata=renewed.ca_pem)
            except OSError as exc:  # ssl's errors too; the one in force is good for as long again
                log.warning("certificate_not_reloaded", path=str(renewed.certificate), reason=str(exc))

        self._credentials.on_replaced(reload)
        await self._runner.setup()
        self._guarded = GuardedSite(self._runner, context, bound=self._socket, idle_s=self._idle_s)
        try:
            await self._guarded.start()
        except BaseException:
            await self._guarded.close()
            raise
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, _exc: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        assert self._guarded is not None, "exit comes after enter"
        await self._guarded.close()
