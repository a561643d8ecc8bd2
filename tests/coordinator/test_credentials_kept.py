"""Keys that are kept in memory: read again in time, forgotten, and what becomes of them while a database hangs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from coordinator.credentials import KEY_CACHE_S, REFRESHED_TOGETHER, Authenticator
from coordinator.database import opened
from coordinator.repository import Repository
from coordinator.stored_rows import StoredKey
from protocol.api_key import api_key_from_text, new_api_key, secret_hash
from protocol.errors import StorageError, UnauthenticatedError
from protocol.ids import KeyId
from tests.support.coordinators import key_of, running_coordinator


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


def bearer(text: str) -> list[str]:
    return [f"Bearer {text}"]


class HangingRepository(Repository):
    """Answers as the real one does until it `hangs`; then each question for one key fails once it is told to."""

    hangs = False
    n_read_together = n_keys_read = most_together = 0
    once_read: Callable[[], Awaitable[None]] | None = None

    async def api_key(self, key_id: KeyId, within_s: float | None = None) -> StoredKey | None:
        if not self.hangs:
            return await super().api_key(key_id, within_s)
        self.n_asked += 1
        self.is_asked.set()
        await self.may_fail.wait()
        raise StorageError("the database doesn't answer")

    async def api_keys_of(self, key_ids: Collection[KeyId]) -> tuple[StoredKey, ...]:
        self.n_read_together += 1
        self.n_keys_read += len(key_ids)
        self.most_together = max(self.most_together, len(key_ids))
        found = await super().api_keys_of(key_ids)
        if self.once_read is not None:
            await self.once_read()
        return found

    def hang(self) -> None:
        """From now on."""
        self.hangs, self.n_asked = True, 0
        self.is_asked, self.may_fail = asyncio.Event(), asyncio.Event()


@pytest.fixture
async def hanging(coordinator: RunningCoordinator, tmp_path: Path) -> AsyncIterator[HangingRepository]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'other.db'}") as engine:
        repository = HangingRepository(engine)
        for kind in ("client", "admin"):
            key = api_key_from_text(key_of(coordinator, kind))
            stored = await coordinator.repository.api_key(key.key_id)
            assert stored is not None
            await repository.add_api_key(key.key_id, kind, key.kind, stored.secret_hash, datetime.now(UTC))
        yield repository


async def test_a_key_that_is_shown_again_and_again_is_read_before_anybody_waits_for_it(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    now = [1000.0]
    authenticator = Authenticator(coordinator.authority, hanging, lambda: now[0])
    shown = bearer(key_of(coordinator, "client"))
    await authenticator.caller("client", shown)
    hanging.hang()  # whoever asks for one key alone would wait for ever
    async with asyncio.timeout(10.0):
        for _ in range(4):
            now[0] += KEY_CACHE_S - 0.5
            await authenticator.caller("client", shown)
            await authenticator.refresh()
    await hanging.revoke_api_key(api_key_from_text(key_of(coordinator, "client")).key_id, datetime.now(UTC))
    await authenticator.caller("client", shown)
    await authenticator.refresh()
    with pytest.raises(UnauthenticatedError):
        await authenticator.caller("client", shown)
    assert hanging.n_asked == 0


async def test_a_key_that_nobody_shows_any_more_is_not_read_for_ever(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    authenticator = Authenticator(coordinator.authority, hanging, lambda: 1000.0)
    shown = bearer(key_of(coordinator, "client"))
    for _ in range(2):
        await authenticator.caller("client", shown)
    for _ in range(3):
        await authenticator.refresh()
    assert hanging.n_read_together == 1


async def test_many_keys_are_read_again_some_at_a_time(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    """A thousand at once would hold the event loop for a tenth of a second, every second."""
    authenticator, n_keys = Authenticator(coordinator.authority, hanging, lambda: 1000.0), 150
    admin = api_key_from_text(key_of(coordinator, "admin"))
    for i in range(n_keys):
        key = admin.of_id(KeyId(f"{i:08}"))
        await hanging.add_api_key(key.key_id, "n", key.kind, secret_hash(key.secret), datetime.now(UTC))
        for _ in range(2):
            await authenticator.caller("admin", bearer(key.text()))
    await authenticator.refresh()
    assert hanging.most_together <= REFRESHED_TOGETHER < n_keys <= hanging.n_keys_read


async def test_a_key_that_is_changed_while_it_is_read_again_is_not_believed_as_it_was(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    authenticator = Authenticator(coordinator.authority, hanging, lambda: 1000.0)
    shown, key_id = bearer(key_of(coordinator, "client")), api_key_from_text(key_of(coordinator, "client")).key_id
    for _ in range(2):
        await authenticator.caller("client", shown)

    async def change_it() -> None:
        await hanging.revoke_api_key(key_id, datetime.now(UTC))
        authenticator.forget(key_id)

    hanging.once_read = change_it
    await authenticator.refresh()
    with pytest.raises(UnauthenticatedError):
        await authenticator.caller("client", shown)


async def test_a_refresh_that_the_database_does_not_answer_makes_no_key_any_younger(
    coordinator: RunningCoordinator, tmp_path: Path
) -> None:
    now = [1000.0]
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'gone.db'}") as engine:
        repository, key = Repository(engine), api_key_from_text(key_of(coordinator, "client"))
        stored = await coordinator.repository.api_key(key.key_id)
        assert stored is not None
        await repository.add_api_key(key.key_id, "n", key.kind, stored.secret_hash, datetime.now(UTC))
        authenticator = Authenticator(coordinator.authority, repository, lambda: now[0])
        for _ in range(2):
            await authenticator.caller("client", bearer(key.text()))
        (tmp_path / "gone.db").rename(tmp_path / "moved.db")
        now[0] += KEY_CACHE_S / 2
        with pytest.raises(StorageError):
            await authenticator.refresh()
        (tmp_path / "moved.db").rename(tmp_path / "gone.db")
        await repository.revoke_api_key(key.key_id, datetime.now(UTC))
        now[0] += KEY_CACHE_S / 2
        with pytest.raises(UnauthenticatedError):
            await authenticator.caller("client", bearer(key.text()))


async def test_forgetting_a_key_asks_the_database(coordinator: RunningCoordinator) -> None:
    authenticator = Authenticator(coordinator.authority, coordinator.repository, lambda: 1000.0)
    key = api_key_from_text(key_of(coordinator, "client"))
    await authenticator.caller("client", bearer(key.text()))
    await coordinator.repository.revoke_api_key(key.key_id, datetime.now(UTC))
    authenticator.forget(key.key_id)
    with pytest.raises(UnauthenticatedError):
        await authenticator.caller("client", bearer(key.text()))
    authenticator.forget(KeyId("unknown"))


async def test_all_who_show_one_key_wait_once_for_a_database_that_hangs(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    now = [1000.0]
    authenticator = Authenticator(coordinator.authority, hanging, lambda: now[0])
    shown = bearer(key_of(coordinator, "client"))
    await authenticator.caller("client", shown)
    hanging.hang()
    now[0] += KEY_CACHE_S
    async with asyncio.timeout(10.0), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(authenticator.caller("client", shown))
        await hanging.is_asked.wait()
        hanging.is_asked.clear()
        for _ in range(5):
            tasks.create_task(authenticator.caller("client", shown))
        await asyncio.sleep(0)
        first.cancel()  # another one asks, and the rest wait for that
        await hanging.is_asked.wait()
        hanging.may_fail.set()
    assert hanging.n_asked == 2
    await authenticator.caller("client", shown)
    assert hanging.n_asked == 2, "it isn't asked again for a while"
    now[0] += KEY_CACHE_S
    await authenticator.caller("client", shown)
    assert hanging.n_asked == 3


async def test_a_key_does_not_wait_for_another_one(
    coordinator: RunningCoordinator, hanging: HangingRepository
) -> None:
    authenticator = Authenticator(coordinator.authority, hanging, lambda: 1000.0)
    client = bearer(key_of(coordinator, "client"))
    unknown = bearer(new_api_key("client", api_key_from_text(key_of(coordinator, "client")).ca_fingerprint).text())
    hanging.hang()
    async with asyncio.timeout(10.0), asyncio.TaskGroup() as tasks:
        strange = tasks.create_task(_fails(authenticator, unknown))
        await hanging.is_asked.wait()
        hanging.hangs = False
        await authenticator.caller("client", client)
        assert not strange.done()
        hanging.may_fail.set()


async def _fails(authenticator: Authenticator, shown: list[str]) -> None:
    with pytest.raises(StorageError):
        await authenticator.caller("client", shown)
