"""Turn time into events: silence is noticed because somebody looks every second, and so is what is to be placed.

What to place is searched for in a thread, from a state that nobody changes: in a large fleet it takes seconds, and
heartbeats and routes don't wait for it.
"""

from __future__ import annotations

import asyncio

import structlog

from coordinator.cluster import Cluster
from coordinator.policy.events import TimePassed
from coordinator.policy.looking import found, sought
from protocol.errors import StorageError

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
"""Well under every limit that policy measures in seconds."""

LOOK_S = 0.2
"""How late placement may begin once all has settled: loading takes longer by far."""


async def sweep_forever(cluster: Cluster, *, every_s: float = SWEEP_S) -> None:
    """Tell the cluster every `every_s` seconds that time passed, until cancelled.

    A database that can't be written is logged and tried again at the next sweep, the state being unchanged;
    anything else ends the task, and with it the program that owns it.
    """
    while True:
        await asyncio.sleep(every_s)
        try:
            await cluster.handle(TimePassed())
        except StorageError as error:
            log.warning("sweep_not_saved", error_message=error.message)


async def look_forever(cluster: Cluster, *, every_s: float = LOOK_S) -> None:
    """Search for a placement whenever one is sought, and tell the cluster what was found, until cancelled.

    Errors are as in `sweep_forever`; after one of the database it waits as long as a sweep does.
    """
    while True:
        await asyncio.sleep(every_s)
        state = cluster.state
        what = sought(state, cluster.now_s())
        if what is None:
            continue
        try:
            await cluster.handle(await asyncio.to_thread(found, state, what))
        except StorageError as error:
            log.warning("placement_not_saved", error_message=error.message)
            await asyncio.sleep(SWEEP_S)
