"""Getting the lease on the database, keeping it, and letting go of it: when, and what if not."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog

from coordinator.lease import LEASE_S, NOBODY, Lease, LeaseTable
from coordinator.state_folder import StateFolder
from protocol.background import uninterrupted
from protocol.coordinator_errors import LeaseError
from protocol.errors import StorageError
from protocol.ids import CoordinatorId
from protocol.running_beside import running_beside
from protocol.waits import until_set

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTimes:
    """How long the parts of it last, in seconds of a clock that never steps."""

    renew_s: float = 5.0
    watch_s: float = 7.0
    """A lease that has run out is watched for more than one renewal: if only a clock stepped, its holder shows."""
    stand_by_s: float = LEASE_S
    """A coordinator that stands by takes a lease that wasn't renewed for so long."""
    look_s: float = 0.5
    retry_s: float = 1.0
    """After the database couldn't be used."""


LEASE_TIMES = LeaseTimes()


def holder_of(folder: StateFolder, coordinator_id: CoordinatorId) -> str:
    """Who holds the lease: this folder on this machine, so not a copy of it.

    The folder's lock sees to it that there is one of these at a time; so it has its own lease back at once after
    a `kill -9`.
    """
    found = folder.root.stat()
    return f"{coordinator_id} on {platform.node()[:60]}, folder {found.st_dev:x}-{found.st_ino:x}"[:128]


class LeaseKeeper:
    """One coordinator's hold on the lease."""

    def __init__(self, table: LeaseTable, holder: str, url: str, *, times: LeaseTimes = LEASE_TIMES) -> None:
        self._table = table
        self._holder = holder
        self._times = times
        self._wants_renewal = asyncio.Event()
        self.url = url
        """Where this coordinator answers; shown to those who want the lease."""

    @asynccontextmanager
    async def held(self, *, takes_over: bool) -> AsyncIterator[None]:
        """Hold the lease while the context is open; what is inside is cancelled when it is lost.

        Args:
            takes_over: wait for another holder to be gone, however long that takes.

        Raises:
            LeaseError: another coordinator holds it, or has taken it.
            StorageError: the database can't be used.
        """
        try:
            await self._take(takes_over=takes_over)
            async with running_beside(lease=self._keep()):
                yield
        finally:
            if self._table.is_ours:
                await uninterrupted(self._release())

    def tell_url(self, url: str) -> None:
        """Have the lease say where this coordinator really answers."""
        self.url = url
        self._wants_renewal.set()

    async def _release(self) -> None:
        try:
            await self._table.release()
        except LeaseError:  # gone already
            return
        except StorageError as error:
            log.warning("lease_not_released", lapses_in_s=LEASE_S, error_message=error.message)

    # -------------------------------------------------------------- taking

    async def _take(self, *, takes_over: bool) -> None:
        while True:
            seen = await self._table.read()
            if seen.holder not in (NOBODY, self._holder):
                if seen.is_running and not takes_over:
                    raise _held(seen)
                await self._watch(seen, takes_over=takes_over)
            try:
                is_taken = await uninterrupted(self._table.take(seen, self._holder, self.url))
            except StorageError as error:
                if not takes_over:
                    raise
                # A holder that hangs in the middle of a transaction keeps the database locked.
                log.warning("lease_not_taken", error_message=error.message)
                await asyncio.sleep(self._times.retry_s)
                continue
            if is_taken:
                log.info("lease_taken", holder=self._holder, before=seen.holder)
                return

    async def _watch(self, seen: Lease, *, takes_over: bool) -> None:
        """Come back once the holder has been silent for long enough, or has let go.

        Raises:
            LeaseError: it is alive, and isn't to be waited for.
        """
        loop = asyncio.get_running_loop()
        patience_s = self._times.stand_by_s if takes_over else self._times.watch_s
        log.info("lease_watched", holder=seen.holder, url=seen.url, patience_s=patience_s)
        since_s = loop.time()
        while loop.time() - since_s < patience_s:
            await asyncio.sleep(self._times.look_s)
            try:
                now = await self._table.read()
            except StorageError as error:
                if not takes_over:
                    raise
                # Whoever holds the lease can't renew it then either.
                log.warning("lease_not_read", error_message=error.message)
                since_s = loop.time()
                continue
            if now.is_same(seen):
                continue
            if now.holder == NOBODY:
                return
            if not takes_over:
                raise _held(now)
            seen, since_s = now, loop.time()

    # -------------------------------------------------------------- keeping

    async def _keep(self) -> None:
        """Renew until cancelled. While the database can't be used the lease runs out, and nobody can take it."""
        while True:
            await self._pause(self._times.renew_s)
            while not await uninterrupted(self._is_renewed()):
                await self._pause(self._times.retry_s)

    async def _is_renewed(self) -> bool:
        self._wants_renewal.clear()
        try:
            await self._table.renew(self.url)
        except LeaseError:
            log.warning("lease_lost", holder=self._holder)
            raise
        except StorageError as error:
            log.warning("lease_not_renewed", error_message=error.message)
            return False
        return True

    async def _pause(self, seconds: float) -> None:
        """Sleep, unless a writer finds the lease lost or there is something to tell."""
        await until_set(self._table.lost, self._wants_renewal, timeout_s=seconds)


def _held(lease: Lease) -> LeaseError:
    until = lease.expires_at.strftime("%H:%M:%S UTC")
    return LeaseError(
        f"another coordinator serves this database: {lease.holder}, at {lease.url}. Its lease runs until {until}, "
        f"and is renewed as long as it lives: stop that one first, or start this one with --take-over, and it "
        f"waits until the other has been silent for {LEASE_S:.0f} s"
    )
