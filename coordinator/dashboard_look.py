"""Everything that the dashboard shows live, gathered from those who know it, at one moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime

import msgspec

from coordinator.cluster import Cluster
from coordinator.policy.live import Look
from coordinator.policy.outlook import moving_words
from coordinator.repository import Repository
from coordinator.route_desk import RouteDesk
from coordinator.running_generations import Running, RunningGenerations
from protocol.dashboard_rest import Entries, Fields
from protocol.errors import StorageError
from protocol.generation_rest import GenerationHop, GenerationInfo
from protocol.ids import KeyId, SessionId

MAX_SHOWN = 500
"""Generations that are shown live; lists have them all."""
NAMES_S = 30.0
"""How long names of keys are believed, and a key that has none isn't asked for again."""


class LiveLook:
    """Looks at one coordinator. `fixed`: what of the cluster never changes; `audits`: whom audits don't reach."""

    def __init__(
        self,
        cluster: Cluster,
        repository: Repository,
        desk: RouteDesk,
        running: RunningGenerations,
        *,
        fixed: Callable[[], Fields],
        audits: Callable[[], Awaitable[str]],
    ) -> None:
        self._cluster = cluster
        self._repository = repository
        self._desk = desk
        self._running = running
        self._fixed = fixed
        self._audits = audits
        self._names: Mapping[KeyId, str] = {}
        self._names_s = -NAMES_S
        self._entries: Entries = {}

    async def __call__(self) -> Look:
        """How everything is now; but for names of keys, which may be half a minute old."""
        await self._look_up_names()
        audits = await self._audits()
        state, repository = self._cluster.state, self._repository
        return Look(
            state=state,
            now_s=self._cluster.now_s(),
            note_of=self._desk.notes(),
            generations=self._generations(),
            cluster={
                **self._fixed(),
                "database": repository.kind,
                "database_problem": repository.problem,
                "moving": moving_words(state),
                "audits": audits,
                "n_generations": len(self._running),
                "n_waiting": self._desk.n_waiting,
                "settings": {"gateway_url": state.settings.gateway_url},
            },
        )

    def _generations(self) -> Entries:
        """Of those that were shown before, the same entries: nothing of a generation changes while it runs."""
        entries: Entries = {}
        for one in self._running.newest(MAX_SHOWN):
            session_id = one.session_id
            known = self._entries.get(session_id)
            if known is None or known["key_name"] != self._names.get(known["key_id"], known["key_name"]):
                known = msgspec.to_builtins(one if isinstance(one, GenerationInfo) else self._info(one))
            entries[session_id] = known
        self._entries = entries
        return entries

    def _info(self, one: Running) -> GenerationInfo:
        hostname = self._cluster.hostname
        return GenerationInfo(
            session_id=one.session_id,
            key_id=one.key_id,
            key_name=self._names.get(one.key_id, ""),
            model=one.model,
            revision=one.revision,
            hops=tuple(
                GenerationHop(worker_id=worker_id, hostname=hostname(worker_id), blocks=blocks)
                for worker_id, blocks in one.hops
            ),
            n_prompt_tokens=one.n_prompt_tokens,
            max_tokens=one.max_tokens,
            state="running",
            started_at=datetime.fromtimestamp(one.since_s, UTC).isoformat(),
            continues=SessionId(one.continues) if one.continues is not None else None,
        )

    async def _look_up_names(self) -> None:
        """While the database is away, names stay as they were."""
        now_s = self._cluster.now_s()
        if 0.0 <= now_s - self._names_s < NAMES_S:
            return
        self._names_s = now_s
        try:
            self._names = {key.key_id: key.name for key in await self._repository.api_keys()}
        except StorageError:
            return
