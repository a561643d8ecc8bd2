"""Says on the local network where this coordinator is (mDNS), so that `worker join` finds it without an address.

Nothing secret is said, and nothing hangs on it: where there is no multicast, addresses are given by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import psutil
import structlog
import zeroconf
from zeroconf.asyncio import AsyncZeroconf

from coordinator.own_addresses import addresses_of
from protocol.ids import CoordinatorId
from protocol.lan import MAX_ADDRESSES, SHOWN_CA_CHARS, Announced, service_info
from protocol.listening import is_loopback
from protocol.version import program_version

log = structlog.get_logger(__name__)

LOOK_S = 15.0
"""Between two looks at this machine's addresses, and two tries where it can't be done."""


class Announcer:
    """Announces one coordinator, unless it isn't to be, or others couldn't reach it.

    Args:
        listen_host: what it listens on.
        is_wanted: whether the operator wants it announced.
        addresses: where others reach it; None: this machine's addresses, as they come and go. Blocks.
    """

    def __init__(
        self,
        coordinator_id: CoordinatorId,
        ca_fingerprint: str,
        *,
        listen_host: str,
        is_wanted: bool,
        addresses: Callable[[], Sequence[str]] | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._coordinator_id = coordinator_id
        self._ca_fingerprint = ca_fingerprint
        self._addresses = addresses or partial(_addresses_for_others, listen_host)
        self._look_s = look_s
        self._is_on = is_wanted and not is_loopback(listen_host)
        self.words = _why_off(listen_host, is_wanted=is_wanted)
        """How it stands, for operators."""

    async def announce_forever(self, port: int) -> None:
        """Keep it announced until cancelled, and then take it back; returns at once where it isn't to be."""
        if not self._is_on:
            return
        while True:
            try:
                if addresses := await self._current():
                    await self._announce(port, addresses)
                    continue
                problem = "this machine has no address that others know"
            # RuntimeError: there are no interfaces
            except (OSError, RuntimeError, psutil.Error, zeroconf.Error) as exc:
                problem = str(exc) or type(exc).__name__
            if (words := f"not announced on the local network: {problem}") != self.words:
                self.words = words
                log.warning("not_announced", reason=problem)
            await asyncio.sleep(self._look_s)

    async def _announce(self, port: int, addresses: tuple[str, ...]) -> None:
        """Announce these addresses for as long as they are the right ones."""
        announced = Announced(
            coordinator_id=self._coordinator_id,
            ca_fingerprint=self._ca_fingerprint[:SHOWN_CA_CHARS],
            version=program_version(),
            addresses=addresses,
            port=port,
        )
        by_ipv4 = [address for address in addresses if ":" not in address]
        async with AsyncZeroconf(interfaces=by_ipv4 or zeroconf.InterfaceChoice.All) as responder:
            # who took this name before we came doesn't keep us from being found: another one will do
            said: Awaitable[None] = await responder.async_register_service(
                service_info(announced), allow_name_change=True
            )
            await said
            self.words = f"announced on the local network: {', '.join(announced.urls)}"
            log.info("announced", urls=announced.urls)
            while await self._current() == addresses:  # noqa: ASYNC110 - the system tells nobody when they change
                await asyncio.sleep(self._look_s)

    async def _current(self) -> tuple[str, ...]:
        found = await asyncio.to_thread(self._addresses)
        return tuple(found[:MAX_ADDRESSES])


def _addresses_for_others(listen_host: str) -> tuple[str, ...]:
    # a host's own name is often an address of the loopback interface (127.0.1.1 on Debian)
    return tuple(address for address in addresses_of(listen_host) if not is_loopback(address))


def _why_off(listen_host: str, *, is_wanted: bool) -> str:
    if is_loopback(listen_host):
        return f"not announced on the local network: it listens on {listen_host} only"
    return "not announced on the local network" + (" yet" if is_wanted else ": --no-mdns")
