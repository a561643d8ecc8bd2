"""Generations begun, opened and ended at random: SQLite's statements and PostgreSQL's keep the same rows."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from sqlalchemy import select

from coordinator.database import opened
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration, ReportedEnd
from coordinator.table_base import table_of
from coordinator.tables import ContributionRow, GenerationRow, QuotaRow, ReservationRow, UsageRow
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from tests.support.postgres import PostgresServer

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
HEAD, TAIL = WorkerId("head"), WorkerId("tail")
N_STEPS = 60
Outcome = Literal["stop", "length", "cancelled", "failed"]
KEYS = {
    KeyId("k0"): KeyLimits(requests_per_min=9, tokens_per_day=2000),
    KeyId("k1"): KeyLimits(tokens_per_min=300, max_concurrent=4),
    KeyId("k2"): KeyLimits(tokens_per_min=500, tokens_per_day=5000),
    KeyId("free"): UNLIMITED,
}
OUTCOMES: tuple[Outcome, ...] = ("stop", "length", "cancelled", "failed")
TABLES = [table_of(kind) for kind in (QuotaRow, ReservationRow, GenerationRow, UsageRow, ContributionRow)]


@dataclass
class History:
    """What happens, drawn as it goes on, to two repositories alike."""

    repositories: Sequence[Repository]
    draw: random.Random
    now: datetime = NOW
    begun: list[NewGeneration] = field(default_factory=list)
    n_refused: int = 0
    n_continued: int = 0

    async def step(self) -> None:
        """One transaction more in each of them; both answer the same."""
        self.now += timedelta(seconds=self.draw.choice((0, 0, 1, 7, 40)))
        kind = self.draw.choice(("begin", "begin", "end", "opened", "expire"))
        what = getattr(self, f"_draw_{kind}")()
        said = [await getattr(self, f"_{kind}")(repository, what) for repository in self.repositories]
        assert said[0] == said[1], (kind, self.now)

    def _some(self) -> list[NewGeneration]:
        return self.draw.sample(self.begun, min(len(self.begun), self.draw.randint(1, 6)))

    def _draw_begin(self) -> list[NewGeneration]:
        new = []
        for _ in range(self.draw.randint(1, 5)):
            before = self.draw.choice(self.begun) if self.begun and self.draw.random() < 0.15 else None
            one = NewGeneration(
                session_id=SessionId(f"s{len(self.begun) + len(new)}"),
                key_id=self.draw.choice(list(KEYS)) if before is None else before.key_id,
                model=ModelName("m"),
                revision=Revision("r"),
                route=((HEAD, 0, 3), (TAIL, 3, 4)),
                n_prompt_tokens=self.draw.randint(1, 60),
                max_tokens=self.draw.randint(1, 60),
                at=self.now,
                continues=None if before is None else before.session_id,
                is_opening_told=self.draw.random() < 0.7,
            )
            new.append(one)
        self.begun += new
        self.n_continued += sum(one.continues is not None for one in new)
        return new

    def _draw_end(self) -> list[ReportedEnd]:
        return [
            ReportedEnd(
                report=GenerationReport(
                    session_id=one.session_id,
                    n_prompt_tokens=one.n_prompt_tokens,
                    n_completion_tokens=self.draw.randint(0, one.max_tokens),
                    outcome=self.draw.choice(OUTCOMES),
                ),
                at=self.now,
                reported_by=TAIL,
            )
            for one in self._some()
        ]

    def _draw_opened(self) -> tuple[dict[SessionId, WorkerId], set[SessionId]]:
        some = [one.session_id for one in self._some()]
        return dict.fromkeys(some, HEAD), {one for one in some if self.draw.random() < 0.3}

    def _draw_expire(self) -> None:
        return None

    async def _begin(self, repository: Repository, new: list[NewGeneration]) -> list[str]:
        refusals = await repository.record_generations(new, self.now.timestamp)
        self.n_refused += sum(refusal is not None for refusal in refusals)
        return [str(refusal) for refusal in refusals]

    async def _end(self, repository: Repository, ends: list[ReportedEnd]) -> object:
        return await repository.finish_generations(ends, self.now.timestamp)

    async def _opened(
        self, repository: Repository, told: tuple[dict[SessionId, WorkerId], set[SessionId]]
    ) -> list[str]:
        late = await repository.hold_begun(told[0], self.now.timestamp, told[1])
        return sorted(one.session_id for one in late)

    async def _expire(self, repository: Repository, _nothing: None) -> int:
        return await repository.quotas.expire(self.now)


async def values(repository: Repository) -> list[list[Any]]:
    """Of all rows: what is counted in floats apart, as sums of these may differ in their last digit."""
    async with repository.transactions.reading() as session:
        rows = [
            list(row)
            for table in TABLES
            for row in await session.execute(select(table).order_by(*table.primary_key.columns))
        ]
    numbers = [value for row in rows for value in row if isinstance(value, float)]
    return [[[value for value in row if not isinstance(value, float)] for row in rows], numbers]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_both_databases_keep_the_same_of_whatever_happens(
    seed: int, tmp_path: Path, postgres_server: PostgresServer
) -> None:
    sqlite = f"sqlite+aiosqlite:///{tmp_path / 'x.db'}"
    async with opened(sqlite) as one, opened(postgres_server.new_database()) as other:
        repositories = Repository(one), Repository(other)
        for repository in repositories:
            repository.transactions.fence.epoch = 0  # of a coordinator: PostgreSQL has its shortest ways then
            for key_id, limits in KEYS.items():
                await repository.add_api_key(key_id, "n", "client", "h", NOW, limits=limits)
        history = History(repositories, random.Random(seed))
        for _ in range(N_STEPS):
            await history.step()
        assert history.n_refused > 0
        assert history.n_continued > 0
        (rows, numbers), (other_rows, other_numbers) = [await values(repository) for repository in repositories]
        assert rows == other_rows
        assert numbers == pytest.approx(other_numbers)
