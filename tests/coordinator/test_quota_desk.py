"""Those who wait to be written are few, are answered whatever happens, and aren't written once they have gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from msgspec import structs
from sqlalchemy import text

from coordinator import quota_desk
from coordinator.database import opened
from coordinator.generation_rows import RatesLeft
from coordinator.quota_desk import MAX_LINE, QuotaDesk
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from protocol.coordinator_errors import DatabaseAwayError, LeaseError
from protocol.errors import (
    BrigadeError,
    InternalError,
    OverloadedError,
    QuotaExceededError,
)
from protocol.ids import KeyId, ModelName, Revision, SessionId
from protocol.key_limits import KeyLimits
from protocol.rest import RouteGrant, RouteRequest

KEY = KeyId("k")
WANTED = RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=1)


class SlowRepository(Repository):
    """Writes when it is told to."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.may_write = asyncio.Event()
        self.written: list[str] = []
        self.error: Exception | None = None
        self.refusal: QuotaExceededError | None = None
        self.n_coming = 0

    @contextmanager
    def route_comes(self) -> Iterator[None]:
        self.n_coming += 1
        try:
            with super().route_comes():
                yield
        finally:
            self.n_coming -= 1

    async def record_due(
        self,
        due: Callable[[], Sequence[NewGeneration]],
        quota_clock: Callable[[], float] | None = None,
        left: RatesLeft | None = None,
    ) -> list[BrigadeError | None]:
        await self.may_write.wait()
        if self.error is not None:
            raise self.error
        generations = due()
        self.written += [new.session_id for new in generations]
        return [self.refusal] * len(generations)


@pytest.fixture
async def repository() -> AsyncIterator[SlowRepository]:
    async with opened("sqlite+aiosqlite:///:memory:") as engine:
        yield SlowRepository(engine)


def desk_of(repository: SlowRepository, quota_clock: Callable[[], float] = lambda: 1000.0) -> QuotaDesk:
    return QuotaDesk(repository, lambda: 1000.0, quota_clock)


async def record(desk: QuotaDesk, name: str, *, is_gone: bool = False, key_id: KeyId = KEY) -> None:
    grant = RouteGrant(
        session_id=SessionId(name),
        model=ModelName("m"),
        revision=Revision("r"),
        hops=(),
        attach_ticket="",
        expires_in_s=1.0,
    )
    await desk.record(grant, WANTED, key_id, is_gone=lambda: is_gone)


async def test_an_error_that_nobody_expected_is_everybodys_answer(repository: SlowRepository) -> None:
    desk, repository.error = desk_of(repository), ValueError("unexpected")
    repository.may_write.set()
    async with asyncio.timeout(10.0):
        answers = await asyncio.gather(*(record(desk, f"s{i}") for i in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [InternalError] * 5
    repository.error = None
    await record(desk, "after")
    assert repository.written == ["after"]


async def test_more_than_may_wait_are_sent_away_and_who_is_gone_is_not_written(repository: SlowRepository) -> None:
    desk = desk_of(repository)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(record(desk, "first"))
        await asyncio.sleep(0)
        tasks.create_task(_refused(desk, "gone"))
        cancelled = tasks.create_task(record(desk, "cancelled"))
        for i in range(MAX_LINE - 3):
            tasks.create_task(record(desk, f"s{i}"))
        for _ in range(3):
            await asyncio.sleep(0)
        assert repository.n_coming == MAX_LINE  # so reports let them go first
        with pytest.raises(OverloadedError, match=f"{MAX_LINE}") as caught:
            await record(desk, "too many")
        assert caught.value.retry_after_s
        cancelled.cancel()
        repository.may_write.set()
    assert sorted(repository.written) == sorted(["first", *(f"s{i}" for i in range(MAX_LINE - 3))])
    assert repository.n_coming == 0


async def _refused(desk: QuotaDesk, name: str) -> None:
    with pytest.raises(ConnectionError):
        await record(desk, name, is_gone=True)


async def test_who_stood_in_line_for_too_long_is_sent_away(
    repository: SlowRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = desk_of(repository)
    monkeypatch.setattr(quota_desk, "LONGEST_IN_LINE_S", -1.0)
    repository.may_write.set()
    with pytest.raises(OverloadedError, match="stood in line"):
        await record(desk, "late")
    assert repository.written == []


async def test_who_was_refused_is_refused_again_unless_there_may_be_room(repository: SlowRepository) -> None:
    now_s = 1000.0
    desk = desk_of(repository, lambda: now_s)
    repository.may_write.set()
    repository.refusal = QuotaExceededError("tokens/min: 9 of 8; 31 s until there is room", retry_after_s=30.5)
    desk.check_room(WANTED, KeyId("k"))
    with pytest.raises(QuotaExceededError):
        await record(desk, "s1")
    now_s += 0.75
    desk.check_room(WANTED, KeyId("other"))
    more = structs.replace(WANTED, max_tokens=5)
    with pytest.raises(QuotaExceededError, match="30 s until") as caught:
        desk.check_room(more, KeyId("k"))
    assert caught.value.retry_after_s == 29.75
    desk.forget_refusal(KeyId("k"))
    desk.check_room(more, KeyId("k"))
    with pytest.raises(QuotaExceededError):
        await record(desk, "s2")
    now_s += 1.0
    desk.check_room(WANTED, KeyId("k"))


# ------------------------------------------------------------------ written together


LIMITED, OTHER = KeyId("limited"), KeyId("other")


@pytest.fixture
async def stored(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        repository = Repository(engine)
        now = datetime(2026, 11, 21, tzinfo=UTC)
        await repository.add_api_key(LIMITED, "n", "client", "h", now, limits=KeyLimits(max_concurrent=1))
        await repository.add_api_key(OTHER, "n", "client", "h", now, limits=KeyLimits(max_concurrent=9))
        yield repository


async def recorded_together(
    repository: Repository, before: Callable[[], Awaitable[None]], *, n_cancelled: int = 0
) -> list[object]:
    """What comes of one generation of `OTHER`, three of `LIMITED` and one of `OTHER`, in one transaction.

    `before` happens once all stand in line; the last `n_cancelled` are cancelled then, too.
    """
    desk = QuotaDesk(repository, lambda: 1.8e9, lambda: 1.8e9)
    async with desk._turn:
        asked = [
            asyncio.create_task(record(desk, f"s{i}", key_id=key_id), name=f"s{i}")  # noqa: TID251 - awaited below
            for i, key_id in enumerate((OTHER, LIMITED, LIMITED, LIMITED, OTHER))
        ]
        await asyncio.sleep(0)
        await before()
        for task in asked[len(asked) - n_cancelled :]:
            task.cancel()
    return await asyncio.gather(*asked, return_exceptions=True)


async def nothing() -> None:
    """Nothing happens in between."""


async def test_of_those_written_together_each_is_decided_alone(stored: Repository) -> None:
    results = await recorded_together(stored, nothing, n_cancelled=1)
    assert [type(result) for result in results] == [
        *(type(None), type(None), QuotaExceededError, QuotaExceededError, asyncio.CancelledError)
    ]
    kept = [await stored.generation(SessionId(f"s{i}")) is not None for i in range(5)]
    assert kept == [True, True, False, False, False]


async def test_when_the_database_or_the_lease_is_gone_none_of_them_begins(stored: Repository) -> None:
    async def lose_table() -> None:
        async with stored.transactions.writing() as session:
            await session.execute(text("ALTER TABLE generations RENAME TO hidden"))

    async def back() -> None:
        async with stored.transactions.writing() as session:
            await session.execute(text("ALTER TABLE hidden RENAME TO generations"))

    async def lose_lease() -> None:
        stored.transactions.fence.epoch = 10**6

    results = await recorded_together(stored, lose_table)
    assert [type(result) for result in results] == [DatabaseAwayError] * 5
    await back()
    assert (await stored.quotas.quota(LIMITED, datetime.now(UTC))).n_running == 0, "what was held went with it"
    results = await recorded_together(stored, lose_lease)
    assert [type(result) for result in results] == [LeaseError] * 5
    assert stored.transactions.fence.lost.is_set()
