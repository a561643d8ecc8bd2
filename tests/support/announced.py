"""Announcements on this machine's loopback interface, as a coordinator on a network makes them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from coordinator.announcing import Announcer
from protocol.ids import CoordinatorId
from protocol.lan import Announced
from protocol.running_beside import running_beside
from tests.support.waiting import eventually
from worker.discovery import announced_coordinators

LISTENS_ON = "192.0.2.7"
"""What the coordinator says that it listens on: not loopback, where it wouldn't announce itself."""


def new_coordinator_id() -> CoordinatorId:
    """Another one than those of tests that run beside."""
    return CoordinatorId(f"c-{secrets.token_hex(8)}")


@asynccontextmanager
async def announced(
    port: int, coordinator_id: CoordinatorId | None = None, address: str = "127.0.0.1"
) -> AsyncIterator[CoordinatorId]:
    """Announce a coordinator at `address`:`port` for as long as the context is open; yields once that is heard."""
    coordinator_id = coordinator_id or new_coordinator_id()
    announcer = Announcer(
        coordinator_id, "ab" * 32, listen_host=LISTENS_ON, is_wanted=True, addresses=lambda: (address,)
    )
    async with running_beside(announcer=announcer.announce_forever(port)):
        await eventually(lambda: announcer.words.startswith("announced"), deadline_s=30.0)
        yield coordinator_id


def only(*coordinator_ids: CoordinatorId) -> Callable[[], Awaitable[tuple[Announced, ...]]]:
    """A search that passes over what other tests announce meanwhile, and finds these in this order."""

    async def search() -> tuple[Announced, ...]:
        async with asyncio.timeout(30):
            while True:
                found = {each.coordinator_id: each for each in await announced_coordinators()}
                if set(coordinator_ids) <= set(found):
                    return tuple(found[coordinator_id] for coordinator_id in coordinator_ids)

    return search
