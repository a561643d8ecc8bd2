"""Many workers that are nothing but their uplinks: real control sockets, but no models and engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from coordinator.app import utc_now_s
from coordinator.authority import Authority
from coordinator.state_folder import StateFolder
from protocol.control_messages import Announce, Heartbeat
from protocol.ids import WorkerId
from protocol.tickets import SessionToken, sign_claims, ticket_key
from tests.support.joining import WorkerKey
from tests.support.scripted_worker import announcement
from tests.support.waiting import eventually
from worker.enrolment import Credentials, CredentialsHolder
from worker.holdings import Holdings
from worker.uplink import Uplink
from worker.uplink_hooks import UplinkHooks

LIFE_S = 3600.0


@dataclass(slots=True)
class Fleet:
    """The workers' ids and uplinks, and how often one of them has enrolled again."""

    uplinks: dict[WorkerId, Uplink] = field(default_factory=dict)
    n_enrolments: int = 0

    @property
    def n_connected(self) -> int:
        return sum(uplink.connected.is_set() for uplink in self.uplinks.values())

    async def all_connected(self, deadline_s: float) -> None:
        async with asyncio.timeout(deadline_s):
            for uplink in self.uplinks.values():
                await uplink.connected.wait()

    async def none_connected(self, deadline_s: float) -> None:
        await eventually(lambda: self.n_connected == 0, deadline_s)


@asynccontextmanager
async def fleet_of(n_workers: int, state: Path, urls: Sequence[str]) -> AsyncIterator[Fleet]:
    """So many enrolled workers of the coordinator whose state folder this is; all are connected.

    Their credentials are signed here with the folder's keys: joining has a limit for each address.
    """
    authority = await asyncio.to_thread(lambda: Authority(StateFolder(state), now=datetime.now(UTC)))
    fleet = Fleet()
    for _ in range(n_workers):
        worker_id = WorkerKey().worker_id
        fleet.uplinks[worker_id] = _uplink(fleet, _credentials(authority, worker_id, urls), urls)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(uplink.run()) for uplink in fleet.uplinks.values()]
        try:
            await fleet.all_connected(30.0)
            yield fleet
        finally:
            for task in running:
                task.cancel()


def _credentials(authority: Authority, worker_id: WorkerId, urls: Sequence[str]) -> Credentials:
    now_s = utc_now_s()
    token = SessionToken(worker_id=worker_id, expires_at_s=now_s + LIFE_S)
    return Credentials(
        coordinator_url=urls[0],
        coordinator_id=authority.coordinator_id,
        certificate=Path("unused"),
        key=Path("unused"),
        ca_pem=authority.ca_pem,
        session_token=sign_claims(token, authority.signing_keys),
        ticket_key=ticket_key(authority.signing_keys[-1], worker_id),
        renew_at_s=now_s + LIFE_S / 2,
        expires_at_s=now_s + LIFE_S,
    )


def _uplink(fleet: Fleet, credentials: Credentials, urls: Sequence[str]) -> Uplink:
    async def renew() -> Credentials:
        fleet.n_enrolments += 1
        return credentials

    def announce() -> Announce:
        return announcement(epoch=holdings.epoch, spans=holdings.statuses)

    holdings = Holdings()
    hooks = UplinkHooks(
        announce=announce,
        heartbeat=lambda: Heartbeat(
            n_sessions=0, n_queued=0, free_kv_bytes=1, decode_s_per_block=0.0, prefill_s_per_token_block=0.0
        ),
        sessions_begun=frozenset,
        renew=renew,
        on_drain=lambda reason: None,
        on_end_sessions=lambda order: None,
        tell=lambda line: None,
    )
    holder = CredentialsHolder(credentials, urls)
    return Uplink(credentials=holder, holdings=holdings, hooks=hooks, clock=utc_now_s)
