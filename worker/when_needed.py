"""What only some workers do, and what is imported for it alone: then, and in a thread, since it takes its time.

zeroconf takes 4 MB of a worker's memory, prometheus_client 2 MB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

from protocol.invites import Invite
from protocol.metrics_address import MetricsAddress
from worker.identity import Identity

if TYPE_CHECKING:  # torch: a coordinator is searched for before that is loaded
    from worker.discovery import FoundCoordinator
    from worker.engine import Engine
    from worker.holdings import Holdings
    from worker.server import DataPlane
    from worker.site import Site

    _Find = Callable[
        [Identity, str | Invite, Callable[[], float], Callable[[str], None]], Awaitable[FoundCoordinator]
    ]
    _Serve = Callable[[MetricsAddress, Engine, DataPlane, Holdings, Site], AbstractAsyncContextManager[str | None]]


async def coordinator_on_network(
    identity: Identity,
    join_secret: Callable[[], str | Invite],
    clock: Callable[[], float],
    tell: Callable[[str], None],
) -> FoundCoordinator:
    """See `worker.discovery.found_coordinator`; `join_secret` is read each time, and blocks."""
    found_coordinator = await asyncio.to_thread(_discovery)
    return await found_coordinator(identity, await asyncio.to_thread(join_secret), clock, tell)


@asynccontextmanager
async def metrics_at(
    address: MetricsAddress | None, engine: Engine, data_plane: DataPlane, holdings: Holdings, site: Site
) -> AsyncIterator[str | None]:
    """See `worker.metrics.worker_metrics`. None: nothing is counted or read."""
    if address is None:
        yield None
        return
    worker_metrics = await asyncio.to_thread(_metrics)
    async with worker_metrics(address, engine, data_plane, holdings, site) as url:
        yield url


def _discovery() -> _Find:
    from worker.discovery import found_coordinator  # noqa: PLC0415 - see above

    return found_coordinator


def _metrics() -> _Serve:
    from worker.metrics import worker_metrics  # noqa: PLC0415 - see above

    return worker_metrics
