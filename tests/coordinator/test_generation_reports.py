from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from coordinator import generation_reports
from coordinator.database import opened
from coordinator.generation_reports import GenerationReports
from coordinator.repository import Repository
from coordinator.stored_rows import NewGeneration, ReportedEnd, StoredGeneration
from protocol.control_messages import GenerationReport
from protocol.ids import KeyId, ModelName, Revision, SessionId, WorkerId
from protocol.running_beside import running_beside
from tests.support.waiting import eventually

NOW = datetime(2026, 11, 21, tzinfo=UTC)
A, B = WorkerId("w-a"), WorkerId("w-b")


class Desk:
    """Reports over a database in which the sessions s1, s2, s3 went from A to B."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.finished: list[StoredGeneration] = []
        self.reports = GenerationReports(
            repository,
            NOW.timestamp,
            quota_clock=NOW.timestamp,
            on_finished=lambda generation, _: self.finished.append(generation),
        )

    async def outcome(self, session: str) -> str | None:
        stored = await self.repository.generation(SessionId(session))
        assert stored is not None
        return stored.outcome


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = Repository(engine)
        await repository.add_api_key(KeyId("k"), "n", "client", "h", NOW)
        for session in ("s1", "s2", "s3"):
            await repository.record_generation(
                NewGeneration(
                    session_id=SessionId(session),
                    key_id=KeyId("k"),
                    model=ModelName("m"),
                    revision=Revision("r"),
                    route=((A, 0, 1), (B, 1, 2)),
                    n_prompt_tokens=3,
                    max_tokens=5,
                    at=NOW,
                )
            )
        yield Desk(repository)


def report(session: str, outcome: str = "stop") -> GenerationReport:
    return GenerationReport(
        session_id=SessionId(session),
        n_prompt_tokens=3,
        n_completion_tokens=5,
        outcome=outcome,  # type: ignore[arg-type]
    )


async def test_reports_are_saved_and_only_what_came_to_its_end_speaks_for_its_route(desk: Desk) -> None:
    async with running_beside(reports=desk.reports.save_forever()):
        desk.reports.take(report("s1"), B)
        desk.reports.take(report("s2", "failed"), B)
        desk.reports.take(report("s3"), A)
        await desk.reports.saved(10.0)
    assert [await desk.outcome(session) for session in ("s1", "s2", "s3")] == ["stop", "failed", None]
    assert [[hop[0] for hop in finished.route] for finished in desk.finished if finished.outcome == "stop"] == [
        [A, B]
    ]


async def test_a_database_that_is_away_loses_no_report(desk: Desk, tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.rename(tmp_path / "away.db")
    with capture_logs() as logs:
        async with running_beside(reports=desk.reports.save_forever(retry_s=0.01)), asyncio.timeout(10):
            desk.reports.take(report("s1"), B)
            desk.reports.take(report("s2"), B)
            await eventually(lambda: any(line["event"] == "generation_report_not_saved" for line in logs))
            (tmp_path / "away.db").rename(path)
            await desk.reports.saved(10.0)
    assert [await desk.outcome(session) for session in ("s1", "s2")] == ["stop", "stop"]


async def test_a_report_whose_commit_lost_its_answer_is_no_other_report(desk: Desk) -> None:
    end = ReportedEnd(report=report("s1"), at=NOW, reported_by=B)
    first, again = [await desk.repository.finish_generations([end], NOW.timestamp) for _ in range(2)]
    assert first == again != [None]
    other = ReportedEnd(report=report("s1", "failed"), at=NOW, reported_by=B)
    assert await desk.repository.finish_generations([other], NOW.timestamp) == [None]
    (used,) = await desk.repository.usage.usage(NOW.date(), NOW.date())
    assert (used.n_generations, used.n_completion_tokens) == (1, 5)


async def test_a_report_that_is_sent_again_is_neither_refused_nor_counted_again(desk: Desk) -> None:
    """A worker sends again, on its next socket, what a coordinator may not have read before it ended."""
    times = iter([NOW.timestamp(), NOW.timestamp() + 5.0, NOW.timestamp() + 6.0])
    reports = GenerationReports(
        desk.repository,
        lambda: next(times),
        quota_clock=NOW.timestamp,
        on_finished=lambda generation, _: desk.finished.append(generation),
    )
    with capture_logs() as logs:
        async with running_beside(reports=reports.save_forever()):
            for outcome in ("stop", "stop", "failed"):
                reports.take(report("s1", outcome), B)
                await reports.saved(10.0)
    assert [(line["event"], line["log_level"]) for line in logs] == [
        ("generation_report_repeated", "info"),
        ("generation_report_refused", "warning"),
    ]
    assert [finished.finished_at for finished in desk.finished] == [NOW]
    (used,) = await desk.repository.usage.usage(NOW.date(), NOW.date())
    assert (used.n_generations, used.n_completion_tokens) == (1, 5)


class CountingRepository(Repository):
    """Notes how many reports each transaction had."""

    n_together: tuple[int, ...] = ()

    async def finish_generations(
        self, ends: Sequence[ReportedEnd], quota_clock: Callable[[], float] | None = None
    ) -> list[StoredGeneration | None]:
        self.n_together = (*self.n_together, len(ends))
        return await super().finish_generations(ends, quota_clock)


@pytest.mark.parametrize(("n_waiting", "n_first"), [(100, 32), (800, 99), (4000, 256)])
async def test_the_more_reports_wait_the_more_are_saved_together(
    tmp_path: Path, n_waiting: int, n_first: int
) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        repository = CountingRepository(engine)
        reports = Desk(repository).reports
        for number in range(n_waiting):
            reports.take(report(f"s{number}"), B)
        with capture_logs():  # nobody knows these
            async with running_beside(reports=reports.save_forever()):
                await reports.saved(30.0)
    assert repository.n_together[0] == max(repository.n_together) == n_first
    assert sum(repository.n_together) == n_waiting


async def test_what_cant_be_saved_in_time_is_known_and_what_is_too_much_is_said(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_reports, "MAX_REPORTS", 1)
    reports = GenerationReports(
        desk.repository, NOW.timestamp, quota_clock=NOW.timestamp, on_finished=lambda *_: None
    )
    with capture_logs() as logs:
        reports.take(report("s1"), B)
        reports.take(report("s2"), B)
        await reports.saved(0.01)
    assert [(line["event"], line["n_waiting"]) for line in logs] == [("generation_report_lost", 1)]
    assert [end.report for end in reports.unsaved] == [report("s1")]


async def test_ids_that_are_none_do_not_get_to_the_database(desk: Desk) -> None:
    with capture_logs() as logs:
        for session in ("", "\x00", "x" * 65, "a b", "\u0661"):
            desk.reports.take(report(session), B)
        await desk.reports.saved(0.1)
    assert [line["event"] for line in logs] == ["generation_report_refused"] * 5
