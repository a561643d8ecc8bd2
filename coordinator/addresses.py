"""Which names and addresses are believed: what a caller may call us, and what a worker may have others dial."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from yarl import URL

from coordinator.config import CoordinatorConfig
from protocol.errors import ForbiddenError, InvalidRequestError
from protocol.tls import COORDINATOR_NAME

RESOLVE_TIMEOUT_S = 5.0
MAX_URL_CHARS = 300

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def known_names(config: CoordinatorConfig) -> frozenset[str]:
    """The names that this coordinator answers to, beside every address."""
    machine = socket.gethostname().lower()
    names = {"localhost", COORDINATOR_NAME, config.listen_host.lower(), machine, f"{machine}.local"}
    names.add(machine.split(".")[0])
    if config.public_url is not None and (host := URL(config.public_url).host):
        names.add(host.lower())
    return frozenset(names)


def check_host(header: str, names: frozenset[str]) -> None:
    """Refuse a Host header with a name that isn't ours: a page whose name was pointed at us (DNS rebinding).

    An address is let through, whichever it is: such a page has its own name there, never an address.

    Raises:
        ForbiddenError: another name; the message says how to make it known.
    """
    try:
        host = (URL(f"https://{header}").host or "").lower().rstrip(".")
    except ValueError:
        host = ""
    if host in names or _literal(host) is not None:
        return
    raise ForbiddenError(
        f"this coordinator doesn't go by the name {host[:100]!r}; use its address, or start it with that name in "
        "--public-url"
    )


async def check_advertised_url(url: str, connects_from: str) -> None:
    """Refuse a data plane's address that others shouldn't or couldn't dial.

    `connects_from` is the address that the worker's control socket comes from. Names are resolved, and every
    address that they stand for is checked.

    Raises:
        InvalidRequestError: not https://host:port, or an address that is refused; the message says which and why.
    """
    host, port = _host_and_port(url)
    caller = _literal(connects_from)
    is_caller_local = caller is not None and caller.is_loopback
    for address in await _addresses(host, port):
        if why := refusal(address, is_caller_local=is_caller_local):
            raise InvalidRequestError(
                f"the advertised address {url} is refused: {address} is {why}; give the worker an address where "
                "other machines reach it (--advertise)"
            )


def refusal(address: Address, *, is_caller_local: bool) -> str | None:
    """Why others must not be sent to `address`; None if they may."""
    if address.is_unspecified:
        return "no machine's address"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "a group's address"
    if address.is_link_local:
        return "link-local"
    if address.is_loopback and not is_caller_local:
        return "loopback, and the worker is on another machine than the coordinator"
    return None


def rate_key(address: str) -> str:
    """What limits are counted by: the address, of IPv6 its network, since one machine has a whole /64."""
    literal = _literal(address)
    if isinstance(literal, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((literal, 64), strict=False))
    return str(literal) if literal is not None else address


def _literal(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]").split("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _host_and_port(url: str) -> tuple[str, int]:
    wrong = InvalidRequestError(f"the advertised address {url[:MAX_URL_CHARS]!r} is not https://host:port")
    if len(url) > MAX_URL_CHARS:
        raise wrong
    try:
        parsed = URL(url)
        host, port = parsed.host, parsed.explicit_port
    except ValueError as exc:
        raise wrong from exc
    has_more = bool(parsed.user or parsed.password or parsed.path.strip("/") or parsed.query_string)
    if parsed.scheme != "https" or not host or not port or has_more or parsed.fragment:
        raise wrong
    return host, port


async def _addresses(host: str, port: int) -> list[Address]:
    """Every address that `host` stands for; odd spellings of an address (0x7f.1) come out in full."""
    literal = _literal(host)
    if literal is not None:
        return [literal]
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(RESOLVE_TIMEOUT_S):
            infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as exc:  # TimeoutError among them
        raise InvalidRequestError(
            f"the advertised name {host[:100]!r} can't be resolved by the coordinator ({exc}); advertise an address"
        ) from exc
    found = [_literal(str(info[4][0])) for info in infos]
    return [address for address in found if address is not None]
