"""Which names and addresses are believed: what a caller may call us, and what a worker may have others dial."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

from yarl import URL

from coordinator.config import CoordinatorConfig
from protocol import host_names
from protocol.errors import InvalidRequestError
from protocol.host_names import Address, literal_address, own_names
from protocol.tls import COORDINATOR_NAME

RESOLVE_TIMEOUT_S = 5.0
MAX_URL_CHARS = 300
METADATA_SERVICES = frozenset(
    map(
        ipaddress.ip_address,
        ("169.254.169.254", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    )
)
"""Where clouds tell a machine its secrets: AWS and most others, Alibaba, Azure, Oracle, AWS and GCP over IPv6."""
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def known_names(config: CoordinatorConfig) -> frozenset[str]:
    """The names that this coordinator answers to, beside every address."""
    return own_names((COORDINATOR_NAME, config.listen_host), (config.public_url,))


def check_host(header: str, names: frozenset[str]) -> None:
    """Refuse a Host header with a name that isn't ours.

    Raises:
        ForbiddenError: another name; the message says how to make it known.
    """
    host_names.check_host(header, names, who="coordinator", option="--public-url")


async def check_advertised_url(url: str, connects_from: str) -> None:
    """Refuse a data plane's address that others shouldn't or couldn't dial.

    `connects_from` is the address that the worker's control socket comes from. Names are resolved, and every
    address that they stand for is checked.

    Raises:
        InvalidRequestError: not https://host:port, or an address that is refused; the message says which and why.
    """
    host, port = _host_and_port(url)
    caller = literal_address(connects_from)
    is_caller_local = caller is not None and caller.is_loopback
    for address in await _addresses(host, port):
        if why := refusal(address, is_caller_local=is_caller_local):
            raise InvalidRequestError(
                f"the advertised address {url} is refused: {address} is {why}; give the worker an address where "
                "other machines reach it (--advertise)"
            )


def refusal(address: Address, *, is_caller_local: bool) -> str | None:
    """Why others must not be sent to `address`; None if they may."""
    if isinstance(address, ipaddress.IPv6Address) and (inner := _inner(address)) is not None:
        return refusal(inner, is_caller_local=False)
    if address in METADATA_SERVICES:
        return "a cloud's metadata service"
    if address.is_unspecified:
        return "no machine's address"
    if address.is_multicast or address == ipaddress.IPv4Address("255.255.255.255"):
        return "a group's address"
    if address.is_link_local:
        return "link-local"
    if address.is_loopback and not is_caller_local:
        return "loopback, and the worker is on another machine than the coordinator"
    return None


def _inner(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that packets to this one end up at (NAT64, 6to4)."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour


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
    literal = literal_address(host)
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
    found = [literal_address(str(info[4][0])) for info in infos]
    return [address for address in found if address is not None]
