"""Invites in the database, on SQLite and PostgreSQL alike."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from coordinator.database import opened
from coordinator.invite_store import InviteStore, StoredInvite
from coordinator.repository import Repository
from protocol.errors import ForbiddenError, NotFoundError
from protocol.ids import InviteId, KeyId, WorkerId

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def invite(number: int = 0, *, n_uses: int = 1, created_at: datetime = NOW) -> StoredInvite:
    return StoredInvite(
        invite_id=InviteId(f"{number:08x}"),
        name=f"number {number}",
        created_at=created_at,
        created_by=KeyId("k"),
        expires_at=created_at + DAY,
        n_uses=n_uses,
    )


def worker(number: int) -> WorkerId:
    return WorkerId(f"w-{number}")


async def test_of_many_who_come_at_once_as_many_get_in_as_it_is_for(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        store = InviteStore(repository.transactions)
        await store.add(invite(n_uses=3))
        tries = [store.use(InviteId("00000000"), worker(number % 6), NOW) for number in range(12)]
        results = await asyncio.gather(*tries, return_exceptions=True)
        let_in = {number % 6 for number, result in enumerate(results) if result is None}
        assert len(let_in) == 3
        refused = {str(result) for result in results if result is not None}
        assert len(refused) == 1
        assert "used up: it was for 3 workers" in refused.pop()
        stored = await store.invite(InviteId("00000000"))
        assert set(stored.workers) == {worker(number) for number in let_in}
        assert stored.state(NOW) == "used_up"
        lines = [line for line in await repository.audit_lines() if line.action == "invite_used"]
        assert sorted(line.details[-6:] for line in lines) == ["1 of 3", "2 of 3", "3 of 3"]


async def test_who_came_by_it_comes_again_until_it_is_revoked(database_url: str) -> None:
    async with opened(database_url) as engine:
        store = InviteStore(Repository(engine).transactions)
        await store.add(invite(n_uses=2))
        invite_id = InviteId("00000000")
        await store.use(invite_id, worker(1), NOW)
        late = NOW + 2 * DAY
        await store.use(invite_id, worker(1), late)
        with pytest.raises(ForbiddenError, match=r"was good until 2026-06-02 00:00 UTC; ask .*`coord invite`"):
            await store.use(invite_id, worker(2), late)
        assert (await store.revoke(invite_id, late)).revoked_at == late
        assert (await store.revoke(invite_id, late + DAY)).revoked_at == late
        with pytest.raises(ForbiddenError, match="was revoked on 2026-06-03"):
            await store.use(invite_id, worker(1), late)
        with pytest.raises(ForbiddenError, match="isn't known here"):
            await store.use(InviteId("ffffffff"), worker(1), NOW)
        with pytest.raises(NotFoundError, match="coord invite list"):
            await store.revoke(InviteId("ffffffff"), NOW)


async def test_they_are_listed_newest_first_by_state_and_in_parts(database_url: str) -> None:
    async with opened(database_url) as engine:
        store = InviteStore(Repository(engine).transactions)
        for number in range(7):
            at = NOW - timedelta(hours=12 * (number // 2))  # two of each moment; the last three are over
            await store.add(invite(number, created_at=at))
        await store.use(InviteId("00000001"), worker(1), NOW)
        await store.revoke(InviteId("00000002"), NOW)
        states = [each.state(NOW) for each in await store.invites(NOW, None, after=None, n_invites=99)]
        assert states == ["open", "used_up", "revoked", "open", "expired", "expired", "expired"]
        assert await store.n_open(NOW) == 2
        first = await store.invites(NOW, "expired", after=None, n_invites=2)
        assert [each.name for each in first] == ["number 4", "number 5"]
        rest = await store.invites(NOW, "expired", after=(first[-1].created_at, first[-1].invite_id), n_invites=2)
        assert [each.name for each in rest] == ["number 6"]


async def test_two_who_revoke_at_once_revoke_once(database_url: str) -> None:
    """Two programs, which don't wait for each other but in the database."""
    async with opened(database_url) as engine, opened(database_url) as another:
        repository = Repository(engine)
        stores = [InviteStore(each.transactions) for each in (repository, Repository(another))]
        for number in range(5):
            await stores[0].add(invite(number))
            ends = [store.revoke(InviteId(f"{number:08x}"), NOW + DAY * n) for n, store in enumerate(stores)]
            first, second = await asyncio.gather(*ends)
            assert first.revoked_at == second.revoked_at
        lines = [line for line in await repository.audit_lines() if line.action == "invite_revoked"]
        assert len(lines) == 5


async def test_what_no_invite_is_called_is_not_found_and_no_trouble_of_the_database(database_url: str) -> None:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        for text in ("\x00", "x" * 9999, "\N{SNOWMAN}"):
            with pytest.raises(NotFoundError, match="there is no invite"):
                await InviteStore(repository.transactions).invite(InviteId(text))
        assert repository.transactions.problem == ""
