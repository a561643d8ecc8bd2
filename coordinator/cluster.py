"""The sole owner of the cluster's state: events go in one by one, are decided, saved, published, told.

It decides nothing (`policy` does) and knows neither sockets nor tables: messages go into bounded outboxes, which
whoever holds the socket empties, and the repository saves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import structlog

from coordinator.policy.effects import (
    DeleteAuthor,
    DeleteModel,
    DeletePin,
    DeleteSetting,
    DeleteTrust,
    DeleteWorker,
    Effect,
    Persistent,
    SaveAssignment,
    SaveAuthor,
    SaveModel,
    SaveMoveAsked,
    SaveMoving,
    SavePin,
    SaveSetting,
    SaveTrust,
    SaveWorker,
    SendToWorker,
    SumUpTrustEvents,
    WriteAudit,
    WriteTrustEvent,
)
from coordinator.policy.events import Event
from coordinator.policy.measured import unmeasured
from coordinator.policy.settings import with_stored
from coordinator.policy.state import ClusterState, PolicySettings
from coordinator.policy.stored import StoredState, restored
from coordinator.policy.transition import apply
from coordinator.policy.trust import NO_RECORD
from coordinator.policy.trust_changes import why_refused
from protocol.background import uninterrupted
from protocol.control_messages import CoordinatorToWorker, Dismiss
from protocol.errors import BrigadeError, ConflictError, ForbiddenError, OverloadedError
from protocol.ids import WorkerId

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

    def __init__(
        self, repository: Storage, settings: PolicySettings, clock: Clock, given: Collection[str] = ()
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._given = given
        """Names of settings that are as they were given at the start, whatever was stored."""
        self._clock = clock
        self._state = ClusterState(settings=settings)
        self._outboxes: dict[WorkerId, Outbox] = {}
        self._lock = asyncio.Lock()
        self._routes_changed = asyncio.Event()

    @property
    def state(self) -> ClusterState:
        """The newest saved state; a snapshot that nobody changes."""
        return self._state

    @property
    def routes_changed(self) -> asyncio.Event:
        """Set when the state is replaced by one in which there may be other routes; then there is a new event.

        Take it before looking at the state: what happens meanwhile sets it.
        """
        return self._routes_changed

    def now_s(self) -> float:
        """What time it is for the cluster."""
        return self._clock()

    def hostname(self, worker_id: WorkerId) -> str:
        """The name of a worker's machine; empty if the worker isn't known any more."""
        worker = self._state.workers.get(worker_id)
        return worker.hostname if worker is not None else ""

    def check_admitted(self, worker_id: WorkerId) -> None:
        """See that the worker isn't banned.

        Raises:
            ForbiddenError: it is.
        """
        why = why_refused(self._state.trust.get(worker_id, NO_RECORD))
        if why is not None:
            raise ForbiddenError(why)

    async def restore(self) -> None:
        """Take up what was saved.

        Raises:
            StorageError: it can't be read.
        """
        async with self._lock:
            stored = await self._repository.load_state()
            settings, unusable = with_stored(self._settings, stored.settings, self._given)
            for why in unusable:
                log.warning("stored_setting_unusable", reason=why)
            now_s = self._clock()
            if stored.moving_damage:
                await self._drop_move(stored.moving_damage, now_s)
            self._state = restored(stored, settings, now_s)

    async def _drop_move(self, damage: str, now_s: float) -> None:
        """Forget what was being moved, which can't be read: what to move is decided anew anyway."""
        log.warning("stored_move_unreadable", reason=damage, next_step="blocks stay; what to move is decided anew")
        details = f"what was being moved can't be read and is forgotten: {damage}; it is decided anew"
        told = WriteAudit(at_s=now_s, action="moving_ended", subject="cluster", details=details)
        await self._repository.apply([SaveMoving(moving=None), told])

    async def handle(self, event: Event) -> None:
        """Decide, save, publish, tell; one event at a time. On return all of it is done.

        Raises:
            StorageError: it couldn't be saved; the state is as before and nobody was told anything.
        """
        # When it happened, not when its turn came: a slow database makes nobody silent.
        now_s = self._clock()
        async with self._lock:
            state, effects = apply(self._state, event, now_s)
            if all(isinstance(effect, SendToWorker) for effect in effects):
                self._publish(state)
                self._tell(effects)
            else:
                # What is saved must be published too, even if whoever brought the event is cancelled meanwhile.
                await uninterrupted(self._save(state, effects))

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

    def tell(self, worker_id: WorkerId, message: CoordinatorToWorker) -> None:
        """Have a message sent that follows from no event; to nobody if the worker isn't here."""
        self._put(worker_id, message)

    def is_current(self, worker_id: WorkerId, outbox: Outbox) -> bool:
        """Whether no newer socket of the worker has taken this outbox's place."""
        # one that was dismissed because it was full has no successor, and its end is the worker's
        return self._outboxes.get(worker_id, outbox) is outbox

    async def _save(self, state: ClusterState, effects: Sequence[Effect]) -> None:
        await self._repository.apply([effect for effect in effects if not isinstance(effect, SendToWorker)])
        self._publish(state)
        self._tell(effects)

    def _publish(self, state: ClusterState) -> None:
        before, self._state = self._state, state
        if _may_route_otherwise(before, state):
            self._routes_changed.set()
            self._routes_changed = asyncio.Event()

    def _tell(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            match effect:
                case SendToWorker():
                    self._put(effect.worker_id, effect.message)
                case SaveWorker() | SaveAssignment() | SaveModel() | DeleteModel() | SaveTrust() | DeleteTrust():
                    pass  # saved already
                case SavePin() | DeletePin() | SaveSetting() | DeleteSetting() | SaveMoveAsked() | SaveMoving():
                    pass
                case DeleteWorker():
                    pass
                case WriteTrustEvent() | SumUpTrustEvents() | SaveAuthor() | DeleteAuthor():
                    pass
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


def _may_route_otherwise(before: ClusterState, after: ClusterState) -> bool:
    """Whether more changed than what heartbeats do: they come by the hundred a second, and wake nobody."""
    if before.settings != after.settings or before.models != after.models:
        return True
    if before.workers.keys() != after.workers.keys():
        return True
    if (before.changed_s is None) != (after.changed_s is None):  # whether blocks are about to be given out
        return True
    pairs = ((before.workers[worker_id], worker) for worker_id, worker in after.workers.items())
    return any(old is not new and unmeasured(old) != unmeasured(new) for old, new in pairs)
