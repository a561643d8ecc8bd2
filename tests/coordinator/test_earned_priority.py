"""Keys of a generous owner are served as one class higher, once operators want that, and not before."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import insert

from coordinator.cluster import Cluster
from coordinator.database import opened
from coordinator.earned_priority import EarnedPriority
from coordinator.policy.state import PolicySettings
from coordinator.repository import Repository
from coordinator.tables import ContributionRow
from protocol.ids import KeyId

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


async def test_it_is_off_until_it_is_wanted_and_then_goes_by_what_owners_workers_gave(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        for key_id, owner in (("k1", "alice"), ("k2", "bob"), ("k3", "")):
            await repository.add_api_key(KeyId(key_id), "n", "client", "h", NOW, owner=owner)
        gifts = {"alice": 50_000, "bob": 2_000, "": 10**9}
        rows = [
            {"worker_id": f"w-{owner}", "owner": owner, "day": NOW.date(), "n_token_blocks": n}
            for owner, n in gifts.items()
        ]
        async with repository.transactions.writing() as session:
            await session.execute(insert(ContributionRow), rows)
        off, on = (
            EarnedPriority(
                Cluster(repository, PolicySettings(earned_priority=is_on), NOW.timestamp),
                repository.usage,
                NOW.timestamp,
            )
            for is_on in (False, True)
        )
        for earned in (off, on):
            await earned.look()
        assert [off.of(KeyId(f"k{i}"), "normal") for i in (1, 2, 3)] == ["normal"] * 3
        assert [on.of(KeyId(f"k{i}"), "normal") for i in (1, 2, 3)] == ["high", "normal", "normal"]
        assert on.of(KeyId("k1"), "low") == "normal"
        assert (off.raised_owners, on.raised_owners) == ((), ("alice",))
        await repository.keys.set_owner(KeyId("k2"), "alice", NOW)
        await on.look()
        assert on.of(KeyId("k2"), "normal") == "high"
