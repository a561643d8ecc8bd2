"""A whole worker as one async context manager: started in order, stopped in the reverse order, the same in tests.

Start: state folder, identity, socket, device, enrolment, engine, data plane and files on one TLS port, then the
loops (duties, uplink). Stop: say so, let sessions end, end the loops, close.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

from protocol.waits import until_set
from worker.assembly import Parts, Surroundings, assembled
from worker.config import WorkerConfig
from worker.enrolment import Credentials, utc_now_s
from worker.error_groups import most_telling

_FLUSH_S = 2.0
"""For the last reports of generations."""


class RunningWorker:
    """A worker that has enrolled and serves. Made by `running`."""

    def __init__(self, parts: Parts, departure: Departure, config: WorkerConfig) -> None:
        self.worker_id = parts.identity.worker_id
        self.url = parts.address.url
        self.metrics_url = parts.metrics_url
        self.port = int(parts.address.bound.getsockname()[1])
        self.engine = parts.engine
        self.holdings = parts.holdings
        self.data_plane = parts.data_plane
        self.uplink = parts.uplink
        self.departure = departure
        """Whoever owns the worker waits for `departure.asked` and then ends `running`."""
        self._drain_s = config.drain_s
        self._handover_s = config.handover_s
        self._is_drained = False

    async def drain(self) -> None:
        """Say that the worker leaves; once others can stand in, refuse new sessions, wait for the running ones.

        Idempotent.
        """
        if self._is_drained:
            return
        self._is_drained = True
        serves_on_s = 0.0 if self.departure.is_released.is_set() else self._handover_s
        if await self.uplink.leave(self.departure.reason, serves_on_s):
            await self._handed_over()
        await self._end_sessions()
        await self.uplink.flush(_FLUSH_S)

    async def _handed_over(self) -> None:
        """Serve on until the coordinator says that others do, is gone, or there is a hurry; for a while at most."""
        enough = (self.departure.is_released, self.departure.is_urgent, self.uplink.disconnected)
        await until_set(*enough, timeout_s=self._handover_s)

    async def _end_sessions(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            draining = tasks.create_task(self._drained(self._drain_s), name="drain")
            hurrying = tasks.create_task(self.departure.is_urgent.wait(), name="hurry")
            await asyncio.wait([draining, hurrying], return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            hurrying.cancel()
        if self.departure.is_urgent.is_set():
            await self._drained(0.0)

    async def _drained(self, deadline_s: float) -> None:
        with suppress(TimeoutError):  # the data plane ends what is left when it closes
            await self.data_plane.drain(deadline_s)


class Departure:
    """That a worker is to leave, and why: the coordinator may ask for it, and the worker's owner."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.is_urgent = asyncio.Event()
        """Set: sessions are ended instead of waited for."""
        self.is_released = asyncio.Event()
        """Set: the coordinator sends nobody here any more."""
        self.reason = "the worker was stopped"

    def ask(self, reason: str) -> None:
        """Ask for it. Only the first reason counts."""
        if not self.asked.is_set():
            self.reason = reason
            self.asked.set()

    def release(self, reason: str) -> None:
        """The coordinator's word: leave, if that wasn't asked for yet, and take nothing new."""
        self.ask(reason)
        self.is_released.set()

    def hurry(self) -> None:
        """Let it be at once."""
        self.is_urgent.set()


@asynccontextmanager
async def running(
    config: WorkerConfig,
    *,
    tell: Callable[[str], None] = lambda _line: None,
    clock: Callable[[], float] = utc_now_s,
    credentials: Credentials | None = None,
    has_state: bool = False,
) -> AsyncIterator[RunningWorker]:
    """Run a worker; `tell` gets a line for people on every change. When the block ends, it drains and stops.

    A block that ends with an error ends sessions at once. `credentials`: those of an enrolment a moment ago; None:
    it enrols. `has_state`: the caller holds the state folder for it (`identity.opened_state`).

    Raises:
        ConfigError: a setting can't be used, or another worker uses the state folder.
        StorageError: the state folder can't be used.
        UnreachableError, WrongSecretError, ProtocolVersionError, ClockSkewError: it can't enrol.
        BrigadeError: later, what made the worker end: the coordinator's dismissal, the engine's death.
    """
    departure = Departure()
    around = Surroundings(
        config=config,
        tell=tell,
        clock=clock,
        on_drain=departure.release,
        enrolled=credentials,
        has_state=has_state,
    )
    try:
        async with AsyncExitStack() as stack:
            parts = await assembled(around, stack)
            worker = RunningWorker(parts, departure, config)
            async with asyncio.TaskGroup() as tasks:
                loops = [
                    tasks.create_task(parts.engine.watch(), name="engine-watch"),
                    tasks.create_task(parts.keep(), name="keeper"),
                    tasks.create_task(parts.uplink.run(), name="uplink"),
                ]
                try:
                    yield worker
                    await worker.drain()
                finally:
                    for loop in loops:
                        loop.cancel()
    except BaseExceptionGroup as group:
        raise most_telling(group) from group
