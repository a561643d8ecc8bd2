"""Reservations in a database that fails at every step: never lost, never doubled."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection, Engine, event, func, make_url, select, update

from coordinator.database import create_engine
from coordinator.policy.quota import MAX_CONTINUATIONS
from coordinator.repository import Repository
from coordinator.tables import QuotaRow, ReservationRow
from protocol.errors import QuotaExceededError, StorageError
from protocol.ids import SessionId
from protocol.key_limits import KeyLimits
from tests.support.migrated_once import migrated_database
from tests.support.quota_ledger import KEY, NOW, ROUTE, Outcome, add_key, begin, end

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
        shutil.copy(migrated_database(), path)
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
