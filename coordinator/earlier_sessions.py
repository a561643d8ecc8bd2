"""Earlier sessions of a key, as a new one needs them: to go on where one failed, or to have what one computed."""

from __future__ import annotations

from collections.abc import Callable

from coordinator.cluster import Cluster
from coordinator.policy.prefixes import held_stages
from coordinator.policy.routing import NOTHING_HELD, Held
from coordinator.policy.state import ModelRecord
from coordinator.repository import Repository
from coordinator.stored_rows import StoredGeneration
from coordinator.ticket_desk import TICKET_LIFE_S
from protocol.errors import NotFoundError
from protocol.ids import KeyId, SessionId, WorkerId, is_session_id
from protocol.rest import STALLED, HopFailure, RouteRequest

SILENT_S = 2.5
"""A worker of a stalled route that wasn't heard of for so long (two heartbeats) is taken to be the cause."""


class EarlierSessions:
    """Looks them up; those alone whose tickets may still be good."""

    def __init__(self, cluster: Cluster, repository: Repository, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._repository = repository
        self._clock = clock

    async def continued(self, session_id: SessionId, key_id: KeyId) -> StoredGeneration:
        """The session that a new one is to go on with. NotFoundError: this key has none as that."""
        found = await self._known(session_id, key_id)
        if found is None:
            raise NotFoundError(
                "there is no such session to continue; ask for a route without `continues`, for a new one"
            )
        return found

    async def failed(
        self, continued: StoredGeneration, failure: HopFailure | None, key_id: KeyId
    ) -> StoredGeneration | None:
        """The session that failed so: the continued one, or one that was to go on from it; None: neither."""
        if failure is None or failure.session_id is None:
            return continued
        found = await self._known(failure.session_id, key_id)
        return found if found is not None and found.continues == continued.session_id else None

    async def held(self, model: ModelRecord, wanted: RouteRequest, key_id: KeyId) -> Held:
        """What workers hold of the prompt; nothing if the session isn't known that it shares it with."""
        if wanted.prefix is None:
            return NOTHING_HELD
        found = await self._known(wanted.prefix.session_id, key_id)
        if found is None or found.revision != model.revision:
            return NOTHING_HELD
        return held_stages(
            self._cluster.state,
            model.manifest,
            found.route,
            n_positions=min(wanted.prefix.n_positions, wanted.n_prompt_tokens),
            max_tokens=wanted.max_tokens,
        )

    def silent(self, failed: StoredGeneration | None, failure: HopFailure | None) -> frozenset[WorkerId]:
        """Workers of a route that stood still which may be the cause."""
        now_s, workers = self._clock(), self._cluster.state.workers
        on_route = (workers.get(worker_id) for worker_id in doubted(failed, failure))
        return frozenset(w.worker_id for w in on_route if w is not None and now_s - w.seen_s > SILENT_S)

    async def _known(self, session_id: SessionId, key_id: KeyId) -> StoredGeneration | None:
        """A session of this key whose caches may still be there."""
        found = await self._repository.generation(session_id) if is_session_id(session_id) else None
        if found is None or found.key_id != key_id or self._clock() - found.started_at.timestamp() > TICKET_LIFE_S:
            return None
        return found


def doubted(failed: StoredGeneration | None, failure: HopFailure | None) -> frozenset[WorkerId]:
    """All workers of a route that stood still with nobody to blame: each is the last choice for the next one."""
    if failed is None or failure is None or failure.code != STALLED or failure.worker_id is not None:
        return frozenset()
    return frozenset(worker_id for worker_id, _, _ in failed.route)
