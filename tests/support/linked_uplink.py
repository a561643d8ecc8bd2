"""A worker's uplink to a real coordinator, without the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from coordinator.app import RunningCoordinator, utc_now_s
from protocol.control_messages import Announce, EndSessions, Heartbeat
from protocol.ids import ModelName, SessionId
from tests.support.coordinators import join_secret_of
from tests.support.scripted_worker import announcement
from worker.enrolment import Credentials, CredentialsHolder, enrol
from worker.holdings import Holdings
from worker.identity import load_identity
from worker.uplink import Uplink
from worker.uplink_hooks import UplinkHooks


class Linked:
    """An uplink to a real coordinator, and what it told."""

    def __init__(self, coordinator: RunningCoordinator, tmp_path: Path, clock: Callable[[], float]) -> None:
        self.identity = load_identity(tmp_path)
        self.coordinator = coordinator
        self.urls: tuple[str, ...] = ()
        """At which to reach it, if not at its own."""
        self.clock = clock
        self.holdings = Holdings()
        self.announce: dict[str, Any] = {}
        self.drains: list[str] = []
        self.ends: list[EndSessions] = []
        self.begun: set[SessionId] = set()
        self.secret = lambda: join_secret_of(coordinator)
        self.lines: list[str] = []
        self.n_renewals = 0
        self.longest_sessions: dict[ModelName, int] = {}

    async def renew(self) -> Credentials:
        self.n_renewals += 1
        return await self.enrol()

    async def enrol(self) -> Credentials:
        urls = self.urls or (self.coordinator.url,)
        return await enrol(self.identity, urls, self.secret(), self.clock)

    async def uplink(self) -> Uplink:
        self.credentials = CredentialsHolder(await self.enrol())
        hooks = UplinkHooks(
            announce=self._announce,
            heartbeat=lambda: Heartbeat(
                n_sessions=3,
                n_queued=0,
                free_kv_bytes=7,
                decode_s_per_block=0.0,
                prefill_s_per_token_block=0.0,
                longest_sessions=self.longest_sessions,
            ),
            sessions_begun=lambda: frozenset(self.begun),
            renew=self.renew,
            on_drain=self.drains.append,
            on_end_sessions=self.ends.append,
            tell=self.lines.append,
        )
        return Uplink(credentials=self.credentials, holdings=self.holdings, hooks=hooks, clock=self.clock)

    def _announce(self) -> Announce:
        return announcement(epoch=self.holdings.epoch, spans=self.holdings.statuses, **self.announce)

    @property
    def record(self) -> Any:
        return self.coordinator.cluster.state.workers.get(self.identity.worker_id)


@asynccontextmanager
async def linked(
    coordinator: RunningCoordinator, tmp_path: Path, clock: Callable[[], float] = utc_now_s
) -> AsyncIterator[tuple[Linked, Uplink]]:
    link = Linked(coordinator, tmp_path, clock)
    uplink = await link.uplink()
    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        running = tasks.create_task(uplink.run())
        try:
            yield link, uplink
        finally:
            running.cancel()
