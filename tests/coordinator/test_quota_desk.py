"""Those who wait to be written are few, are answered whatever happens, and aren't written once they have gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest
from msgspec import structs

from coordinator import quota_desk
from coordinator.database import opened
from coordinator.quota_desk import MAX_LINE, QuotaDesk
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration
from protocol.errors import BrigadeError, InternalError, OverloadedError, QuotaExceededError
from protocol.ids import KeyId, ModelName, Revision, SessionId
from protocol.rest import RouteGrant, RouteRequest

WANTED = RouteRequest(model=ModelName("m"), n_prompt_tokens=1, max_tokens=1)


class SlowRepository(Repository):
    """Writes when it is told to."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.may_write = asyncio.Event()
        self.written: list[str] = []
        self.error: Exception | None = None
        self.refusal: QuotaExceededError | None = None

    async def record_generations(
        self, generations: Sequence[NewGeneration], quota_clock: Callable[[], float] | None = None
    ) -> list[BrigadeError | None]:
        await self.may_write.wait()
        if self.error is not None:
            raise self.error
        self.written += [new.session_id for new in generations]
        return [self.refusal] * len(generations)


@pytest.fixture
async def repository() -> AsyncIterator[SlowRepository]:
    async with opened("sqlite+aiosqlite:///:memory:") as engine:
        yield SlowRepository(engine)


def desk_of(repository: SlowRepository, quota_clock: Callable[[], float] = lambda: 1000.0) -> QuotaDesk:
    return QuotaDesk(repository, lambda: 1000.0, quota_clock)


async def record(desk: QuotaDesk, name: str, *, is_gone: bool = False) -> None:
    grant = RouteGrant(
        session_id=SessionId(name),
        model=ModelName("m"),
        revision=Revision("r"),
        hops=(),
        attach_ticket="",
        expires_in_s=1.0,
    )
    await desk.record(grant, WANTED, KeyId("k"), is_gone=lambda: is_gone)


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
        for i in range(MAX_LINE - 2):
            tasks.create_task(record(desk, f"s{i}"))
        for _ in range(3):
            await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match=f"{MAX_LINE}") as caught:
            await record(desk, "too many")
        assert caught.value.retry_after_s
        cancelled.cancel()
        repository.may_write.set()
    assert sorted(repository.written) == sorted(["first", *(f"s{i}" for i in range(MAX_LINE - 2))])


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
