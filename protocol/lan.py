"""How a coordinator is announced on the local network (mDNS, DNS-SD), and what is made of an announcement.

Anybody on the network can announce anything: what is read here is bounded, well formed, and believed by nobody. A
worker proves the secret to whoever answers, and has it proven, as with any other address (`protocol.handshake`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from zeroconf.asyncio import AsyncServiceInfo

from protocol.ids import CoordinatorId

SERVICE_TYPE = "_brigade._tcp.local."
MAX_ADDRESSES = 8
"""Of one coordinator: each is tried."""
SHOWN_CA_CHARS = 16
_WORD = re.compile(r"[\w.+-]{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """A coordinator, as somebody on the network announces one."""

    coordinator_id: CoordinatorId
    ca_fingerprint: str
    """The first 16 digits of its CA certificate's SHA-256: for people, who compare; nothing relies on it."""
    version: str
    addresses: tuple[str, ...]
    port: int

    @property
    def urls(self) -> tuple[str, ...]:
        """Its addresses as URLs."""
        return urls_of(self.addresses, self.port)

    def __str__(self) -> str:
        return (
            f"{self.coordinator_id}, version {self.version}, CA {self.ca_fingerprint}..., at {', '.join(self.urls)}"
        )


def urls_of(addresses: Sequence[str], port: int) -> tuple[str, ...]:
    """`https://address:port` of each."""
    return tuple(f"https://[{each}]:{port}" if ":" in each else f"https://{each}:{port}" for each in addresses)


def service_info(announced: Announced) -> AsyncServiceInfo:
    """The records by which it is announced."""
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"Brigade {announced.coordinator_id}.{SERVICE_TYPE}",
        port=announced.port,
        parsed_addresses=list(announced.addresses[:MAX_ADDRESSES]),
        server=f"brigade-{announced.coordinator_id}.local.",
        properties={
            "id": announced.coordinator_id,
            "ca": announced.ca_fingerprint[:SHOWN_CA_CHARS],
            "version": announced.version,
        },
    )


def announced_from(info: AsyncServiceInfo) -> Announced | None:
    """What the records say; None if they don't make sense."""
    said = info.decoded_properties
    words = [said.get(name) or "" for name in ("id", "ca", "version")]
    addresses = [each for each in dict.fromkeys(info.parsed_addresses()) if _can_be_dialled(each)]
    if not all(map(_WORD.fullmatch, words)) or not addresses or not info.port:
        return None
    return Announced(
        coordinator_id=CoordinatorId(words[0]),
        ca_fingerprint=words[1],
        version=words[2],
        addresses=tuple(addresses[:MAX_ADDRESSES]),
        port=info.port,
    )


def _can_be_dialled(text: str) -> bool:
    address = ipaddress.ip_address(text)
    return not (address.is_unspecified or address.is_multicast or address.is_link_local)
