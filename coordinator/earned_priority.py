"""Which keys have earned priority, looked up every minute while the setting `earned_priority` is on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import structlog

from coordinator.cluster import Cluster
from coordinator.policy.earned import LOOKED_BACK_DAYS, given_lately, raised, raised_owners
from coordinator.quota_usage import UsageBook
from protocol.errors import StorageError
from protocol.ids import KeyId
from protocol.key_limits import Priority

log = structlog.get_logger(__name__)

LOOK_S = 60.0


class EarnedPriority:
    """Knows it by heart, so that a route needn't ask."""

    def __init__(self, cluster: Cluster, usage: UsageBook, clock: Callable[[], float]) -> None:
        self._cluster = cluster
        self._usage = usage
        self._clock = clock
        self._keys: frozenset[KeyId] = frozenset()
        self._owners: frozenset[str] = frozenset()

    @property
    def raised_owners(self) -> tuple[str, ...]:
        """Whose keys are served as one class higher now."""
        return tuple(sorted(self._owners)) if self._cluster.state.settings.earned_priority else ()

    def of(self, key_id: KeyId, own: Priority) -> Priority:
        """The class that a key whose own is `own` is served as now."""
        is_raised = self._cluster.state.settings.earned_priority and key_id in self._keys
        return raised(own) if is_raised else own

    async def look(self) -> None:
        """Find out anew; while the database can't be used all stays as it was."""
        if not self._cluster.state.settings.earned_priority:
            return
        today = datetime.fromtimestamp(self._clock(), UTC).date()
        try:
            given = await self._usage.contributions(today - timedelta(days=LOOKED_BACK_DAYS), today)
            owners = raised_owners(given_lately(given, today))
            self._keys, self._owners = await self._usage.keys_of(owners), owners
        except StorageError as error:
            log.warning("earned_priority_not_looked_up", error_message=error.message)

    async def look_forever(self, *, every_s: float = LOOK_S) -> None:
        """Look every `every_s` seconds until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)
