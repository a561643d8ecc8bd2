"""Turn time into events: silence, and the end of settling, are noticed because somebody looks every second."""

from __future__ import annotations

import asyncio

import structlog

from coordinator.cluster import Cluster
from coordinator.policy.events import TimePassed
from protocol.errors import StorageError

log = structlog.get_logger(__name__)

SWEEP_S = 1.0
"""Well under every limit that policy measures in seconds."""


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
