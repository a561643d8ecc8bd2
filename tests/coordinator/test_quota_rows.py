"""Reservations in a real database: atomic, never lost, never doubled, whatever fails and whenever."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection, Engine, event, func, make_url, select, update

from coordinator import transactions
from coordinator.database import create_engine, migrate, opened
from coordinator.policy.quota import MAX_CONTINUATIONS
from coordinator.quota_rows import GOES_ON_WITHIN, LONGEST_GENERATION, OPENS_WITHIN, REPORTED_WITHIN
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration, ReportedEnd
from coordinator.tables import GenerationRow, QuotaRow, ReservationRow
from protocol.control_messages import GenerationReport
from protocol.errors import QuotaExceededError, StorageError
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import KeyLimits, LimitsChange

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEY, TAIL = KeyId("k1"), WorkerId("w-b")
ROUTE = ((WorkerId("w-a"), 0, 3), (TAIL, 3, 4))
Outcome = Literal["stop", "cancelled", "failed"]


@pytest.fixture
async def repository(database_url: str) -> AsyncIterator[Repository]:
    async with opened(database_url) as engine:
        yield Repository(engine)


async def add_key(repository: Repository, limits: KeyLimits, key_id: KeyId = KEY) -> None:
    await repository.add_api_key(key_id, "n", "client", "h", NOW, limits=limits)


async def begin(
    repository: Repository,
    session: str,
    n_prompt: int,
    max_tokens: int,
    *,
    now: datetime = NOW,
    continues: str | None = None,
    replaces: str | None = None,
    key_id: KeyId = KEY,
    is_opening_told: bool = False,
) -> None:
    new = NewGeneration(
        session_id=SessionId(session),
        key_id=key_id,
        model=ModelName("m"),
        revision=Revision("r"),
        route=ROUTE,
        n_prompt_tokens=n_prompt,
        max_tokens=max_tokens,
        at=now,
        continues=None if continues is None else SessionId(continues),
        replaces=None if replaces is None else SessionId(replaces),
        is_opening_told=is_opening_told,
    )
    await repository.record_generation(new)


async def end(
    repository: Repository,
    session: str,
    n_prompt: int,
    n_tokens: int,
    outcome: Outcome = "stop",
    *,
    now: datetime = NOW,
) -> bool:
    report = GenerationReport(
        session_id=SessionId(session), n_prompt_tokens=n_prompt, n_completion_tokens=n_tokens, outcome=outcome
    )
    return await repository.finish_generation(report, now, reported_by=TAIL) is not None


async def used(repository: Repository, now: datetime = NOW) -> tuple[list[int], int]:
    """Of every rate, and how many run."""
    found = await repository.quotas.quota(KEY, now)
    return [rate.used for rate in found.rates], found.n_running


# ------------------------------------------------------------------ many at once


async def test_of_a_hundred_at_once_for_the_last_unit_exactly_one_passes(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "BUSY_TIMEOUT_MS", 120_000)  # a hundred take their turns on a slow machine
    for name, limits in {
        "requests": KeyLimits(requests_per_min=1),
        "tokens": KeyLimits(tokens_per_min=15, tokens_per_day=10**6),
        "running": KeyLimits(max_concurrent=1),
    }.items():
        key_id = KeyId(name)
        await add_key(repository, limits, key_id)
        results = await asyncio.gather(
            *(begin(repository, f"{name}{i}", 10, 5, key_id=key_id) for i in range(100)), return_exceptions=True
        )
        refused = [result for result in results if isinstance(result, QuotaExceededError)]
        assert (len(refused), results.count(None)) == (99, 1), [r for r in results if r is not None][:3]
        recorded = [await repository.generation(SessionId(f"{name}{i}")) for i in range(100)]
        assert sum(generation is not None for generation in recorded) == 1


# ------------------------------------------------------------------ one after the other


async def test_what_is_not_used_comes_back_and_one_that_failed_goes_on_for_the_same(repository: Repository) -> None:
    await add_key(
        repository, KeyLimits(requests_per_min=5, tokens_per_min=1000, tokens_per_day=2000, max_concurrent=1)
    )
    await begin(repository, "s1", 10, 90)
    assert await used(repository) == ([1, 100, 100], 1)
    with pytest.raises(QuotaExceededError, match="concurrent"):
        await begin(repository, "s2", 10, 90)
    assert await end(repository, "s1", 10, 4, "failed")
    assert await used(repository) == ([1, 100, 100], 1)
    await begin(repository, "s3", 14, 86, continues="s1")
    assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "s3", 14, 6)
    assert await end(repository, "s3", 14, 6), "the same again, since its answer was lost, counts once"
    assert not await end(repository, "s3", 14, 7)
    assert await used(repository) == ([1, 20, 20], 0)
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (1, 10, 10)
    given = await repository.usage.contributions(NOW.date(), NOW.date())
    assert [(c.worker_id, c.n_token_blocks) for c in given] == [("w-a", (14 + 20) * 3), ("w-b", 14 + 20)]


async def test_what_nobody_reports_comes_back_in_time_and_is_counted_if_it_is_reported_after_all(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_day=10**9))
    await begin(repository, "leaks", 10, 90)
    await begin(repository, "fails", 10, 90)
    await end(repository, "fails", 10, 0, "failed")
    assert await repository.quotas.expire(NOW + GOES_ON_WITHIN - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(NOW + GOES_ON_WITHIN) == 1
    assert (await used(repository))[1] == 1
    late = NOW + LONGEST_GENERATION
    assert await repository.quotas.expire(late) == 1
    assert await used(repository, late) == ([0], 0)
    await end(repository, "leaks", 10, 5, now=late)
    assert await used(repository, late) == ([15], 0)
    assert await repository.quotas.expire(late + LONGEST_GENERATION) == 2
    assert await repository.quotas.expire(late + LONGEST_GENERATION) == 0


async def test_what_is_over_and_goes_on_is_a_new_request(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_day=1000))
    await begin(repository, "s1", 10, 90)
    await begin(repository, "s2", 10, 90)
    await end(repository, "s1", 10, 4, "failed")
    await repository.quotas.expire(NOW + GOES_ON_WITHIN)
    await begin(repository, "s3", 14, 186, continues="s1")
    assert await used(repository) == ([14 + 100 + 200], 2)
    await end(repository, "s2", 10, 90)
    await end(repository, "s3", 14, 6)
    assert await used(repository) == ([14 + 100 + 20], 0)


async def test_reports_and_routes_that_waited_for_the_database_go_by_the_time_when_they_have_it(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=600))
    await begin(repository, "s1", 100, 200)
    await begin(repository, "s2", 100, 200, now=NOW + timedelta(seconds=30))
    await end(repository, "s1", 100, 200, now=NOW - timedelta(minutes=5))
    assert await used(repository, NOW + timedelta(seconds=30)) == ([300], 1)
    report = GenerationReport(
        session_id=SessionId("s2"), n_prompt_tokens=100, n_completion_tokens=200, outcome="stop"
    )
    clock = iter([(NOW + timedelta(seconds=40)).timestamp()])
    await repository.finish_generations([ReportedEnd(report=report, at=NOW)], lambda: next(clock))
    async with repository.transactions.reading() as session:
        row = await session.get_one(QuotaRow, KEY)
        assert (row.updated_at, row.minute_used) == (NOW + timedelta(seconds=40), 200)


async def test_a_clock_that_went_back_delays_no_longer_than_the_rate_takes(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=100))
    await begin(repository, "s1", 10, 90)
    back = NOW - timedelta(days=1)
    with pytest.raises(QuotaExceededError, match="60 s until"):
        await begin(repository, "s2", 10, 90, now=back)
    await begin(repository, "s3", 10, 90, now=back + timedelta(seconds=60))


async def test_owners_are_those_of_the_day_when_it_was_given(repository: Repository) -> None:
    await add_key(repository, KeyLimits())
    for session, owner in (("s1", "ann"), ("s2", "bob")):
        await repository.usage.set_owner(TAIL, owner, NOW)
        await begin(repository, session, 1, 9)
        await end(repository, session, 1, 9)
    given = await repository.usage.contributions(NOW.date(), NOW.date())
    assert {(c.owner, c.worker_id): c.n_token_blocks for c in given} == {
        ("", "w-a"): 60,
        ("ann", TAIL): 10,
        ("bob", TAIL): 10,
    }


async def test_limits_that_change_keep_what_was_used_and_go_away_with_all_that_is_held(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000))
    await begin(repository, "s1", 10, 690)
    lowered = await repository.quotas.change(KEY, LimitsChange(tokens_per_min=200, priority="low"), NOW)
    assert lowered == KeyLimits(tokens_per_min=200, priority="low")
    with pytest.raises(QuotaExceededError, match="tokens/min: 701 of 200") as caught:
        await begin(repository, "s2", 1, 0)
    assert caught.value.retry_after_s == pytest.approx(501 / 200 * 60)
    unlimited = await repository.quotas.change(KEY, LimitsChange(tokens_per_min=None, priority=None), NOW)
    assert unlimited == KeyLimits()
    assert await end(repository, "s1", 10, 5)
    assert await used(repository) == ([], 0)
    assert [line.action for line in await repository.audit_lines(2)] == ["key_limits_changed"] * 2


async def test_limits_that_change_leave_what_came_back_by_then_and_forget_what_was_unlimited(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000, priority="low"))
    await begin(repository, "s1", 10, 990)
    later = NOW + timedelta(seconds=60)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=100), later)
    assert await used(repository, later) == ([0], 1)
    await begin(repository, "s2", 10, 90, now=later)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=None), later)
    await repository.quotas.change(KEY, LimitsChange(tokens_per_min=10), later + timedelta(seconds=1))
    assert await used(repository, later + timedelta(seconds=1)) == ([0], 2)


async def test_a_late_report_of_who_was_thought_dead_counts_what_nobody_counted(repository: Repository) -> None:
    await add_key(repository, KeyLimits(tokens_per_min=1000, tokens_per_day=10**6))
    await begin(repository, "s1", 10, 20)
    await begin(repository, "s2", 15, 15, continues="s1")
    assert await end(repository, "s2", 15, 15)
    assert (await used(repository))[0] == [30, 30]
    assert await end(repository, "s1", 10, 7, "failed")
    assert (await used(repository))[0] == [32, 32], "two tokens that never reached the client"
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (1, 15, 17)


async def test_a_clock_that_was_ahead_holds_nothing_for_longer_than_a_generation_may_take(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1))
    await begin(repository, "s1", 10, 20, now=NOW + timedelta(days=30))
    await repository.quotas.begin_anew(NOW)
    assert await repository.quotas.expire(NOW + LONGEST_GENERATION - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(NOW + LONGEST_GENERATION) == 1


async def test_what_nobody_opens_is_given_back_after_a_minute_and_what_its_head_says_is_open_is_not(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1, tokens_per_day=1000))
    await begin(repository, "s1", 10, 20, is_opening_told=True)
    in_time, late = NOW + OPENS_WITHIN - timedelta(seconds=1), NOW + OPENS_WITHIN
    assert await repository.quotas.expire(in_time) == 0
    assert await opened_at(repository, {"s1": "w-b"}, in_time) == [], "not the head"
    assert await repository.quotas.expire(late) == 1
    assert (await used(repository, late))[1] == 0
    assert await opened_at(repository, {"s1": "w-a", "unknown": "w-a"}, late) == ["s1"]
    await begin(repository, "s2", 10, 20, now=late, is_opening_told=True)
    assert await opened_at(repository, {"s2": "w-a"}, late) == []
    assert await repository.quotas.expire(late + LONGEST_GENERATION - timedelta(seconds=1)) == 0
    assert await end(repository, "s2", 10, 5, now=late)
    assert await opened_at(repository, {"s2": "w-a"}, late) == [], "it is over, as it should be"
    assert await end(repository, "s1", 10, 5, now=late), "its tokens count all the same"
    (day,) = await repository.usage.usage(NOW.date(), NOW.date())
    assert (day.n_generations, day.n_prompt_tokens, day.n_completion_tokens) == (2, 20, 10)


async def test_what_is_over_at_its_head_and_never_reached_its_tail_is_given_back_soon(
    repository: Repository,
) -> None:
    await add_key(repository, KeyLimits(max_concurrent=3))
    for session in ("s1", "s2", "s3"):
        await begin(repository, session, 10, 20, is_opening_told=True)
    assert await opened_at(repository, {"s1": "w-a", "s2": "w-a", "s3": "w-a"}, NOW) == []
    await begin(repository, "s4", 10, 20, continues="s3")
    assert await opened_at(repository, dict.fromkeys(("s1", "s3"), "w-a"), NOW, is_over=True) == []
    assert await opened_at(repository, {"s2": "w-b"}, NOW, is_over=True) == [], "not the head"
    late = NOW + REPORTED_WITHIN
    assert await repository.quotas.expire(late - timedelta(seconds=1)) == 0
    assert await repository.quotas.expire(late) == 1
    assert (await used(repository, late))[1] == 2
    assert await end(repository, "s1", 10, 5, now=late), "a tail that was away reports it all the same"


async def opened_at(
    repository: Repository, heads: dict[str, str], now: datetime, *, is_over: bool = False
) -> list[str]:
    """Have these heads say so; the sessions for which it is too late."""
    told = {SessionId(session): WorkerId(head) for session, head in heads.items()}
    late = await repository.hold_begun(told, now.timestamp, told if is_over else ())
    return [one.session_id for one in late]


async def test_a_start_gives_workers_a_minute_to_say_again_what_is_open(repository: Repository) -> None:
    await add_key(repository, KeyLimits(max_concurrent=1))
    await begin(repository, "s1", 10, 20, is_opening_told=True)
    back = NOW + timedelta(minutes=10)
    await repository.quotas.begin_anew(back)
    assert await repository.quotas.expire(back + OPENS_WITHIN - timedelta(seconds=1)) == 0
    assert await opened_at(repository, {"s1": "w-a"}, back) == []
    assert await repository.quotas.expire(back + OPENS_WITHIN) == 0


async def test_a_report_and_the_route_by_which_its_generation_goes_on_dont_wait_for_each_other(
    repository: Repository,
) -> None:
    """On PostgreSQL, where both run at once: who locked the other way round was refused after a second."""
    await add_key(repository, KeyLimits(tokens_per_day=1000))
    await begin(repository, "s1", 10, 20)
    if repository.transactions.database == "sqlite":
        return
    async with asyncio.TaskGroup() as tasks:
        async with repository.transactions.writing() as session:
            await session.get(GenerationRow, "s1", with_for_update=True)  # as a report begins
            going_on = tasks.create_task(begin(repository, "s2", 10, 20, continues="s1"), name="goes on")
            await asyncio.wait([going_on], timeout=0.3)
            await session.get(QuotaRow, KEY, with_for_update=True)  # as it goes on
        await going_on


async def test_many_reported_at_once_leave_what_they_leave_one_by_one(repository: Repository) -> None:
    """Whatever the rate has forgotten by then, and however many stand behind them in the queue."""
    keys = [KeyId("k1"), KeyId("k2")]
    for key_id in keys:
        await add_key(repository, KeyLimits(tokens_per_min=400, tokens_per_day=86_400), key_id)
        for i in range(9):
            at = NOW + timedelta(seconds=8 * i)
            await begin(repository, f"{key_id}-{i}", 10, 40 + i, now=at, key_id=key_id)
    ended = [0, 2, 3, 7, 8]
    late = NOW + timedelta(seconds=75)

    def report(key_id: KeyId, i: int) -> ReportedEnd:
        session = SessionId(f"{key_id}-{i}")
        said = GenerationReport(session_id=session, n_prompt_tokens=10, n_completion_tokens=i, outcome="stop")
        return ReportedEnd(report=said, at=late, reported_by=TAIL)

    together = [report(keys[0], i) for i in ended]
    again = replace(together[0], at=late + timedelta(seconds=1))
    finished = await repository.finish_generations([*together, again], late.timestamp)
    assert finished[5] == finished[0] != None, "the first report counts"  # noqa: E711 - a chain
    for i in ended:
        assert await repository.finish_generations([report(keys[1], i)], late.timestamp) != [None]
    (one_by_one, has_moved), (at_once, _) = await left(repository, keys[1]), await left(repository, keys[0])
    assert at_once == pytest.approx(one_by_one)
    assert has_moved, "else nothing stood behind"


async def left(repository: Repository, key_id: KeyId) -> tuple[list[float], bool]:
    """All numbers that are kept of a key, and whether what is open moved up."""
    async with repository.transactions.reading() as session:
        quota = await session.get_one(QuotaRow, key_id)
        query = select(ReservationRow).where(ReservationRow.key_id == key_id).order_by(ReservationRow.id)
        rows = (await session.scalars(query)).all()
    numbers = [[row.n_reserved, row.minute_mark, row.day_mark] for row in rows]
    meters = [quota.minute_used, quota.minute_entered, quota.day_used, quota.day_entered]
    starts = [sum(50 + k for k in range(i + 1)) for i in range(len(rows))]
    moved = any(row.day_mark < start for row, start in zip(rows, starts, strict=True) if row.is_open)
    return [*meters, *(number for some in numbers for number in some)], moved


# ------------------------------------------------------------------ a database that fails at every step


LOST_ANSWER = 0
"""Instead of a step that fails: all are done, and it is the answer to the commit that never comes."""


@contextmanager
def failing(engine: Engine, at_step: int | None) -> Iterator[None]:
    """Have statement number `at_step` fail, the commit being the last."""
    n_steps = 0

    def count(*_: Any) -> None:
        nonlocal n_steps
        n_steps += 1
        if n_steps == at_step:
            raise OSError("disk I/O error")

    def lose(connection: Connection) -> None:
        count()
        if at_step == LOST_ANSWER:
            connection.connection.driver_connection.commit()  # type: ignore[union-attr]
            raise OSError("the connection broke")

    event.listen(engine, "before_cursor_execute", count)
    event.listen(engine, "commit", lose)
    try:
        yield
    finally:
        event.remove(engine, "before_cursor_execute", count)
        event.remove(engine, "commit", lose)


@dataclass
class Generation:
    """What the model knows of one."""

    n_prompt: int
    max_tokens: int
    session: str
    n_delivered: int = 0
    is_over: bool = False
    failed: bool = False
    n_continuations: int = 0
    """At most; one whose answer is lost counts too."""

    @property
    def may_go_on(self) -> bool:
        return not self.is_over and self.n_continuations + 2 * MOST_UNHEARD <= MAX_CONTINUATIONS

    @property
    def n_held(self) -> int:
        return self.n_used if self.is_over else self.n_prompt + self.max_tokens

    @property
    def n_used(self) -> int:
        return self.n_prompt + self.n_delivered if self.n_delivered or not self.failed else 0


LIMIT = 500
MOST_UNHEARD = 4
STEPS = st.one_of(st.none(), st.none(), st.integers(1, 14), st.just(LOST_ANSWER))


async def test_a_session_and_attempts_after_it_of_which_nobody_hears_hold_and_give_back_once(
    repository: Repository,
) -> None:
    await add_key(
        repository, KeyLimits(requests_per_min=5, tokens_per_min=1000, tokens_per_day=2000, max_concurrent=1)
    )
    await begin(repository, "heard", 10, 90, is_opening_told=True)
    for before, session in ((None, "s2"), ("s2", "s3"), ("s3", "s4")):
        await begin(repository, session, 14, 86, continues="heard", replaces=before, is_opening_told=True)
        assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "heard", 10, 4, "failed"), "its tail reports late"
    assert await used(repository) == ([1, 100, 100], 1)
    assert await end(repository, "s4", 14, 6)
    later = NOW + OPENS_WITHIN + timedelta(seconds=1)
    before = await used(repository, later)
    await repository.quotas.expire(later)
    assert await used(repository) == ([1, 20, 20], 0)
    assert await used(repository, later) == before, "nothing of the attempts is left to be given back"
    replaced = [await repository.generation(SessionId(session)) for session in ("heard", "s2", "s3", "s4")]
    assert [one.continued_by for one in replaced if one is not None] == ["s4", "s3", "s4", None]


async def test_only_an_attempt_from_the_same_session_and_of_the_same_key_is_replaced(
    repository: Repository,
) -> None:
    other = KeyId("k2")
    await add_key(repository, KeyLimits())
    await add_key(repository, KeyLimits(), other)
    await begin(repository, "theirs", 10, 90, key_id=other)
    await begin(repository, "mine", 10, 90)
    await begin(repository, "beside", 10, 90)
    for replaced in ("theirs", "beside"):
        await begin(repository, f"after {replaced}", 14, 86, continues="mine", replaces=replaced)
        found = await repository.generation(SessionId(replaced))
        assert found is not None
        assert found.continued_by is None


@functools.cache
def _migrated() -> Path:
    """A new database, made once."""
    path = Path(tempfile.mkdtemp()) / "new.db"
    atexit.register(shutil.rmtree, path.parent)
    migrate(f"sqlite+aiosqlite:///{path}")
    return path


def _wait_for_no_disk(connection: Any, _record: Any) -> None:
    """Each example has a database of its own, and what is tested isn't what a disk keeps."""
    connection.cursor().execute("PRAGMA synchronous = OFF")


class Ledger(RuleBasedStateMachine):
    """Generations that begin, fail, go on, end and leak on a database that fails; what must be held of them."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "x.db"
        shutil.copy(_migrated(), path)
        self.engine = create_engine(make_url(f"sqlite+aiosqlite:///{path}"))
        self.repository = Repository(self.engine)
        for engine in (self.engine.sync_engine, self.repository.transactions.blocking):
            event.listen(engine, "connect", _wait_for_no_disk)
        self.all: list[Generation] = []
        self.n_sessions = 0

    @initialize()
    def key(self) -> None:
        self.runner.run(add_key(self.repository, KeyLimits(tokens_per_min=LIMIT, tokens_per_day=10**6)))

    def new_session(self) -> str:
        self.n_sessions += 1
        return f"s{self.n_sessions}"

    def done(self, step: Any, fails_at: int | None) -> bool:
        """Whether it was done; a database that fails leaves nothing half done."""
        with failing(self.repository.transactions.blocking, fails_at):
            try:
                self.runner.run(step)
            except StorageError:
                return False
        return True

    @rule(n_prompt=st.integers(1, 100), max_tokens=st.integers(1, 200), fails_at=STEPS)
    def begins(self, n_prompt: int, max_tokens: int, fails_at: int | None) -> None:
        session = self.new_session()
        n_held = sum(generation.n_held for generation in self.all)
        try:
            fits = n_held + n_prompt + max_tokens <= LIMIT
            is_done = self.done(begin(self.repository, session, n_prompt, max_tokens), fails_at)
            if is_done or (fails_at == LOST_ANSWER and fits):  # then nobody uses what is held, and it leaks
                self.all.append(Generation(n_prompt, max_tokens, session))
                assert fits
        except QuotaExceededError:
            assert n_held + n_prompt + max_tokens > LIMIT

    @precondition(lambda self: any(not one.is_over for one in self.all))
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["stop", "cancelled", "failed"]),
        fails_at=STEPS,
        goes_on=st.booleans(),
    )
    def ends(self, data: st.DataObject, outcome: Outcome, fails_at: int | None, goes_on: bool) -> None:
        one = data.draw(st.sampled_from([one for one in self.all if not one.is_over]))
        n_tokens = data.draw(st.integers(0, one.max_tokens - one.n_delivered))
        if outcome == "failed" and n_tokens == one.max_tokens - one.n_delivered:
            outcome = "stop"
        n_prompt = one.n_prompt + one.n_delivered
        report = end(self.repository, one.session, n_prompt, n_tokens, outcome)
        if not self.done(report, fails_at):
            self.runner.run(end(self.repository, one.session, n_prompt, n_tokens, outcome))
        self.runner.run(
            end(self.repository, one.session, n_prompt, n_tokens, outcome)
        )  # a second time changes nothing
        one.n_delivered += n_tokens
        if outcome != "failed":
            one.is_over, one.failed = True, False
        elif goes_on and one.n_continuations + 2 <= MAX_CONTINUATIONS:
            self.goes_on(one, fails_at)
        else:
            one.is_over = one.failed = True
            self.runner.run(self.let_pass(one.session))
            assert self.done(self.repository.quotas.expire(NOW), None)

    @precondition(lambda self: any(one.may_go_on for one in self.all))
    @rule(
        data=st.data(),
        n_unheard=st.integers(1, MOST_UNHEARD),
        is_first_heard=st.booleans(),
        is_told=st.booleans(),
        fails_at=STEPS,
    )
    def finds_nobody(
        self, data: st.DataObject, n_unheard: int, is_first_heard: bool, is_told: bool, fails_at: int | None
    ) -> None:
        """Attempts of which no worker hears go on from the last one, or all from one that was heard.

        Nobody reports them. The heard one's tail may (`is_told`), while they fail: it is not the latest any more.
        """
        one = data.draw(st.sampled_from([one for one in self.all if one.may_go_on]))
        heard = one.session
        for _ in range(n_unheard):
            self.goes_on(one, fails_at, heard if is_first_heard else one.session)
            if is_told:
                n_prompt = one.n_prompt + one.n_delivered
                self.runner.run(end(self.repository, heard, n_prompt, 0, "failed"))

    def goes_on(self, one: Generation, fails_at: int | None, before: str | None = None) -> None:
        """By another session, asked for until it is granted; from its latest, or from `before`."""
        asked = (one.n_prompt + one.n_delivered, one.max_tokens - one.n_delivered)
        before, one.session = before or one.session, self.new_session()
        one.n_continuations += 2
        if not self.done(begin(self.repository, one.session, *asked, continues=before), fails_at):
            one.session = self.new_session()  # the first may be there, and nobody knows of it
            assert self.done(begin(self.repository, one.session, *asked, continues=before), None)

    @precondition(lambda self: any(not one.is_over for one in self.all))
    @rule(data=st.data(), fails_at=STEPS)
    def leaks(self, data: st.DataObject, fails_at: int | None) -> None:
        """Nobody says any more how one ended: what was reported of it stays."""
        one = data.draw(st.sampled_from([one for one in self.all if not one.is_over]))
        self.runner.run(self.let_pass(one.session))
        if not self.done(self.repository.quotas.expire(NOW), fails_at):
            assert self.done(self.repository.quotas.expire(NOW), None)
        one.is_over = one.failed = True

    @precondition(lambda self: any(not one.is_over for one in self.all))
    @rule(data=st.data(), fails_at=STEPS)
    def is_opened(self, data: st.DataObject, fails_at: int | None) -> None:
        """Its head says so: nothing of what is held changes."""
        one = data.draw(st.sampled_from([one for one in self.all if not one.is_over]))
        told = {SessionId(one.session): ROUTE[0][0]}
        self.done(self.repository.hold_begun(told, NOW.timestamp), fails_at)

    async def let_pass(self, session_id: str) -> None:
        """The time after which it is taken to be over, without any of it coming back to the rates."""
        async with self.repository.transactions.writing() as session:
            await session.execute(
                update(ReservationRow).where(ReservationRow.session_id == session_id).values(expires_at=NOW)
            )

    @invariant()
    def what_is_used_is_what_is_held(self) -> None:
        rows, n_held = self.runner.run(self.rows())
        if rows is not None:
            assert rows.minute_used == rows.day_used == n_held
            assert rows.minute_used <= LIMIT

    async def rows(self) -> tuple[QuotaRow | None, int]:
        async with self.repository.transactions.reading() as session:
            row = await session.get(QuotaRow, KEY)
            held = await session.scalar(select(func.sum(ReservationRow.n_reserved)))
        return row, int(held or 0)

    def teardown(self) -> None:
        self.runner.run(self.engine.dispose())
        self.runner.close()
        self.folder.cleanup()


TestLedger = pytest.mark.timeout(300)(Ledger.TestCase)
TestLedger.settings = settings(max_examples=12, stateful_step_count=15)
