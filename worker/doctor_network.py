"""The network's part of `worker doctor`: the worker's own door, and each step of the way to a coordinator."""

from __future__ import annotations

import asyncio
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from protocol.checks import Check, Finding, broken, checked, doubtful, fine, reason_of
from protocol.codec import check_version
from protocol.handshake import MAX_CLOCK_SKEW_S
from protocol.invites import Invite
from protocol.lan import Announced
from protocol.messages import PROTOCOL_VERSION
from protocol.rest import Hello
from worker.config import checked_url
from worker.discovery import SEARCH_S, announced_coordinators
from worker.identity import load_identity
from worker.join_exchange import hello_of, prove_secret
from worker.site import bound_socket, facing_address, url_of

_LARGE_SKEW_S = 30.0
_GREETING_BYTES = 16
_FIREWALL = (
    "open the port in the firewall and forward it if there is a router in between; --listen says where the worker "
    "listens, --advertise what others dial"
)
_GIVE_ADDRESS = "give the coordinator's address: worker doctor https://HOST:7400"
_SEARCH_DEADLINE_S = SEARCH_S + 5.0
_CHECK_ADDRESS = "check the address and port, the network and the firewall, and that `coord serve` runs there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Doorway:
    """Where the worker would listen, and what others would dial."""

    listen_host: str | None = None
    listen_port: int = 0
    advertise_url: str | None = None


async def doorway_checks(doorway: Doorway, coordinator_urls: tuple[str, ...]) -> list[Check]:
    """Whether the worker's port can be bound, and the advertised address leads to it."""
    free_port = "stop the other program, or say another port: --listen HOST:PORT"
    return [
        await checked("port", lambda: _port_finding(doorway, coordinator_urls), free_port),
        await checked("reachable", lambda: _reach_finding(doorway, coordinator_urls), _FIREWALL),
    ]


async def announced_urls() -> tuple[Check, tuple[str, ...]]:
    """Which coordinators are announced on the local network, and their addresses."""
    found: list[Announced] = []

    async def look() -> Finding:
        found.extend(await announced_coordinators())
        if not found:
            return broken(f"no coordinator is announced there (searched for {SEARCH_S:.0f} s)", _GIVE_ADDRESS)
        return fine("; ".join(map(str, found)))

    check = await checked("local network", look, _GIVE_ADDRESS, deadline_s=_SEARCH_DEADLINE_S)
    return check, tuple(url for each in found for url in each.urls)


async def coordinator_checks(
    url: str, secret: Callable[[], str | Invite], clock: Callable[[], float]
) -> list[Check]:
    """Name, connection, TLS, version, clock, secret. What comes after a failure can't be looked at, and says so."""
    hellos: list[Hello] = []

    async def greet() -> Finding:
        hellos.append(await hello_of(url))
        return fine(f"a Brigade coordinator, {hellos[0].coordinator_id}, over TLS 1.3")

    steps: tuple[tuple[str, Callable[[], Awaitable[Finding]], str], ...] = (
        ("address", lambda: _address_finding(url), "write it as https://HOST:PORT; check the name"),
        ("connection", lambda: _connection_finding(url), _CHECK_ADDRESS),
        ("TLS", greet, _CHECK_ADDRESS),
        ("version", lambda: _version_finding(hellos[0]), "install the same version of Brigade on both machines"),
        ("clock", lambda: _clock_finding(hellos[0], clock()), "set the clock that is wrong; NTP keeps it right"),
        (
            "secret",
            lambda: _secret_finding(url, secret),
            "use this coordinator's secret or invite: --secret-file FILE",
        ),
    )
    checks: list[Check] = []
    failed: str | None = None
    for name, look, mend in steps:
        label = f"{name} of {url}"
        if failed is not None:
            checks.append(Check(name=label, status="warn", seen=f"not looked at: the {failed} failed", mend=""))
            continue
        checks.append(await checked(label, look, mend))
        if checks[-1].status == "fail" and name in ("address", "connection", "TLS", "version"):
            failed = name
    return checks


async def _port_finding(doorway: Doorway, coordinator_urls: tuple[str, ...]) -> Finding:
    host = doorway.listen_host or await facing_address(coordinator_urls)
    bound_socket(host, doorway.listen_port).close()
    which = f"port {doorway.listen_port}" if doorway.listen_port else "any free port"
    return fine(f"{which} of {host} can be listened on")


async def _reach_finding(doorway: Doorway, coordinator_urls: tuple[str, ...]) -> Finding:
    """Listen as the worker would, and dial what it would advertise. Others may still find a firewall in between."""
    facing = await facing_address(coordinator_urls)
    if doorway.advertise_url is not None and doorway.listen_port == 0:
        return doubtful(
            f"{doorway.advertise_url} is advertised, but the worker listens on any free port",
            "say which port the advertised address leads to: --listen HOST:PORT",
        )
    bound = bound_socket(doorway.listen_host or facing, doorway.listen_port)
    url = doorway.advertise_url or url_of(bound, facing)
    greeting = secrets.token_bytes(_GREETING_BYTES)

    async def greet(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        writer.close()

    try:
        server = await asyncio.start_server(greet, sock=bound, start_serving=False)
        async with server:  # which closes it, whatever happens from here on
            await server.start_serving()
            came = await _first_bytes(url)
    except OSError as exc:
        return broken(f"{url} can't be reached, not even from this machine: {reason_of(exc)}", _FIREWALL)
    if came != greeting:
        return broken(f"{url} leads to another program than this one", _FIREWALL)
    return fine(
        f"{url} leads here, as dialled from this machine; `coord doctor` dials it from the coordinator once the "
        "worker has joined"
    )


async def _first_bytes(url: str) -> bytes:
    parts = urlsplit(checked_url(url, "--advertise"))
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 443)
    try:
        return await reader.read(_GREETING_BYTES)
    finally:
        writer.transport.abort()


async def _address_finding(url: str) -> Finding:
    parts = urlsplit(checked_url(url, "the coordinator's address"))
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            parts.hostname, parts.port or 443, type=socket.SOCK_STREAM
        )
    except OSError as exc:
        return broken(
            f"the name {parts.hostname} has no address here: {exc.strerror or exc}",
            "check the spelling and this machine's DNS, or write the address itself",
        )
    return fine(", ".join(sorted({str(address[0]) for *_, address in found})))


async def _connection_finding(url: str) -> Finding:
    parts = urlsplit(url)
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    try:
        _, writer = await asyncio.open_connection(parts.hostname, parts.port or 443)
    except OSError as exc:
        return broken(f"nobody takes connections there: {reason_of(exc)}", _CHECK_ADDRESS)
    writer.transport.abort()
    return fine(f"taken within {1000 * (loop.time() - began_s):.0f} ms")


async def _version_finding(hello: Hello) -> Finding:
    check_version(hello.protocol_version)
    return fine(f"the coordinator speaks protocol {hello.protocol_version}, this worker {PROTOCOL_VERSION}")


async def _clock_finding(hello: Hello, now_s: float) -> Finding:
    skew_s = abs(hello.time_s - now_s)
    seen = f"{skew_s:.1f} s from the coordinator's; {MAX_CLOCK_SKEW_S:.0f} s are allowed"
    mend = "set the clock that is wrong; NTP keeps it right"
    if not skew_s <= MAX_CLOCK_SKEW_S:  # also if it is no number
        return broken(seen, mend)
    return doubtful(seen, mend) if skew_s > _LARGE_SKEW_S else fine(seen)


async def _secret_finding(url: str, secret: Callable[[], str | Invite]) -> Finding:
    """With a key of its own, so that nothing happens to the worker's."""
    value = secret()
    with tempfile.TemporaryDirectory() as folder:
        identity = await asyncio.to_thread(load_identity, Path(folder))
        await prove_secret(url, identity, value)
    if isinstance(value, Invite):
        return fine(
            "the invite is genuine (asked without joining: whether it is still good shows when a worker joins)"
        )
    return fine("the coordinator takes the join secret (asked without joining)")
