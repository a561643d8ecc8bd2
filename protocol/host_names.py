"""The Host header: whether a request was meant for us, or for a name that somebody pointed at us (DNS rebinding).

A page in a browser sends its own name there, and never an address of its choice; so addresses are let through, and
names only if they are ours. The port isn't looked at: behind a forwarded port it is another one than ours.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from yarl import URL

from protocol.errors import ForbiddenError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::[0-9]{1,5})?")
"""All that a Host header can be (RFC 9110, 7.2): no user, no path, no blanks."""


def own_names(hosts: Iterable[str], urls: Iterable[str | None]) -> frozenset[str]:
    """The names of this machine, of `hosts`, and of those `urls` that are known."""
    machine = socket.gethostname().lower()
    names = {"localhost", machine, machine.split(".")[0], f"{machine}.local"}
    names |= {host.lower() for host in hosts}
    names |= {host.lower() for url in urls if url is not None and (host := URL(url).host)}
    return frozenset(names)


def check_host(header: str, names: frozenset[str], *, who: str, option: str) -> None:
    """Refuse a Host header with a name that isn't ours. `who` answers here; `option` makes names known to it.

    Raises:
        ForbiddenError: another name, or no host at all; the message says how to make it known.
    """
    found = _HOST.fullmatch(header.lower())
    host = found[1].rstrip(".") if found is not None else ""
    if host in names or literal_address(host) is not None:
        return
    raise ForbiddenError(
        f"this {who} doesn't go by the name {host[:100]!r}; use its address, or start it with that name in {option}"
    )


def literal_address(text: str) -> Address | None:
    """The address that `text` is, an IPv4 one in IPv6's clothes as itself; None for a name."""
    try:
        address = ipaddress.ip_address(text.strip("[]").split("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def rate_key(address: str) -> str:
    """What limits are counted by: the address, of IPv6 its network, since one machine has a whole /64."""
    literal = literal_address(address)
    if isinstance(literal, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((literal, 64), strict=False))
    return str(literal) if literal is not None else address
