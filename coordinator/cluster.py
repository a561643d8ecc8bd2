"""The sole owner of the cluster's state: events go in one by one, are decided, saved, published, told.

It decides nothing (`policy` does) and knows neither sockets nor tables: messages go into bounded outboxes, which
whoever holds the socket empties, and the repository saves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog

from coordinator.policy.effects import (
    DeleteModel,
    Effect,
    Persistent,
    SaveAssignment,
    SaveModel,
    SaveWorker,
    SendToWorker,
    WriteAudit,
)
from coordinator.policy.events import Event
from coordinator.policy.state import ClusterState, PolicySettings, StoredState, restored
from coordinator.policy.transition import apply
from protocol.errors import BrigadeError, ConflictError, OverloadedError
from protocol.ids import WorkerId
from protocol.messages import CoordinatorToWorker, Dismiss

log = structlog.get_logger(__name__)

OUTBOX_SIZE = 64
"""Messages that may wait for one worker. They are rare (an assignment, a drain): a full outbox is a stuck
socket."""

Clock = Callable[[], float]
"""Seconds since 1970, UTC."""
Outbox = asyncio.Queue[CoordinatorToWorker]


class Storage(Protocol):
    """What the cluster needs of the repository."""

    async def load_state(self) -> StoredState:
        """Everything that was saved."""

    async def apply(self, effects: Sequence[Persistent]) -> None:
        """Save all of `effects` in order in one transaction, or raise and save none."""


class Cluster:
    """The state and the outboxes. Call `restore` once, before anything else."""

    def __init__(self, repository: Storage, settings: PolicySettings, clock: Clock) -> None:
        self._repository = repository
        self._settings = settings
        self._clock = clock
        self._state = ClusterState(settings=settings)
        self._outboxes: dict[WorkerId, Outbox] = {}
        self._lock = asyncio.Lock()

    @property
    def state(self) -> ClusterState:
        """The newest saved state; a snapshot that nobody changes."""
        return self._state

    async def restore(self) -> None:
        """Take up what was saved.

        Raises:
            StorageError: it can't be read.
        """
        async with self._lock:
            self._state = restored(await self._repository.load_state(), self._settings, self._clock())

    async def handle(self, event: Event) -> None:
        """Decide, save, publish, tell; one event at a time. On return all of it is done.

        Raises:
            StorageError: it couldn't be saved; the state is as before and nobody was told anything.
        """
        # When it happened, not when its turn came: a slow database makes nobody silent.
        now_s = self._clock()
        async with self._lock:
            state, effects = apply(self._state, event, now_s)
            to_save = [effect for effect in effects if not isinstance(effect, SendToWorker)]
            if to_save:
                await self._repository.apply(to_save)
            self._state = state
            self._tell(effects)

    @contextmanager
    def connected(self, worker_id: WorkerId) -> Iterator[Outbox]:
        """The outbox of a worker's newest control socket, for as long as the socket is served.

        A second connection of the same worker dismisses the first. The caller hands `WorkerConnected` in while it
        holds this, sends what comes out of the outbox, closes the socket after a `Dismiss`, and hands in
        `SocketLost` at the end if `is_current` says that no newer socket has taken over.
        """
        outbox: Outbox = asyncio.Queue(OUTBOX_SIZE)
        if worker_id in self._outboxes:
            self._dismiss(worker_id, ConflictError("the same worker connected again; this is its older socket"))
        self._outboxes[worker_id] = outbox
        try:
            yield outbox
        finally:
            if self._outboxes.get(worker_id) is outbox:
                del self._outboxes[worker_id]

    def is_current(self, worker_id: WorkerId, outbox: Outbox) -> bool:
        """Whether no newer socket of the worker has taken this outbox's place."""
        # one that was dismissed because it was full has no successor, and its end is the worker's
        return self._outboxes.get(worker_id, outbox) is outbox

    def _tell(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendToWorker():
                    self._put(effect.worker_id, effect.message)
                case SaveWorker() | SaveAssignment() | SaveModel() | DeleteModel():
                    pass  # saved already
                case WriteAudit():
                    log.info(effect.action, subject=effect.subject, details=effect.details)

    def _put(self, worker_id: WorkerId, message: CoordinatorToWorker) -> None:
        outbox = self._outboxes.get(worker_id)
        if outbox is None:
            return  # told on its next connection: the assignment is always sent then
        try:
            outbox.put_nowait(message)
        except asyncio.QueueFull:
            self._dismiss(
                worker_id,
                OverloadedError(
                    f"{OUTBOX_SIZE} messages wait for this worker and it reads none; connect again",
                    retry_after_s=1.0,
                ),
            )

    def _dismiss(self, worker_id: WorkerId, error: BrigadeError) -> None:
        """Let the outbox say nothing but goodbye; from here on it isn't the worker's any more."""
        outbox = self._outboxes.pop(worker_id)
        while not outbox.empty():
            outbox.get_nowait()
        outbox.put_nowait(Dismiss(error=error.body()))
        log.info("worker_dismissed", worker_id=worker_id, error_code=error.code)
