"""At which addresses others reach what listens on this machine: for invites and announcements."""

from __future__ import annotations

import socket

import psutil

from protocol.host_names import literal_address

_ANY = {"0.0.0.0": (socket.AF_INET,), "::": (socket.AF_INET6,)}  # noqa: S104 - compared with, not listened on
_FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}
"""Addresses of nobody (RFC 5737, RFC 3849): the way to them is the way out of the local network."""


def addresses_of(listen_host: str) -> tuple[str, ...]:
    """The addresses that `listen_host` stands for, the one that faces the outside first. Blocks.

    Of a host that stands for all of the machine's addresses, those that other machines may know; else its own, be
    they loopback. None if there is no such name or address.
    """
    families = _ANY.get(listen_host)
    if families is None:
        return _resolved(listen_host)
    found = [facing for family in families if (facing := _facing_address(family)) is not None]
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, addresses in sorted(psutil.net_if_addrs().items()):
        found += [each.address for each in addresses if name in up and each.family in families]
    return tuple(dict.fromkeys(filter(_is_others_to_know, found)))


def _resolved(host: str) -> tuple[str, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return ()
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


def _facing_address(family: socket.AddressFamily) -> str | None:
    """The address by which this machine speaks to others; no packet is sent to find out."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((_FAR_AWAY[family], 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _is_others_to_know(text: str) -> bool:
    address = literal_address(text)
    return address is not None and not (address.is_loopback or address.is_link_local or address.is_unspecified)
