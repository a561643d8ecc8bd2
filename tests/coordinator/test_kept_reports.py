"""Reports that wait for a database that is away, and a coordinator that ends meanwhile: none is lost or doubled."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from coordinator import app as app_module
from coordinator.app import RunningCoordinator
from coordinator.database import opened
from coordinator.generation_reports import GenerationReports
from coordinator.kept_reports import KeptReports, read_reports, write_reports
from coordinator.repository import Repository
from coordinator.state_folder import UNSAVED_REPORTS
from coordinator.stored_rows import ReportedEnd
from protocol.control_messages import GenerationReport
from protocol.errors import StorageError
from protocol.ids import SessionId, WorkerId
from protocol.rest import RouteGrant, RouteRequest
from protocol.running_beside import running_beside
from tests.coordinator.test_client_api import TINY, pinned_workers
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.stored_model import add_model
from tests.support.waiting import eventually, eventually_answered

NOW = datetime(2026, 11, 21, tzinfo=UTC)
WORKER = WorkerId("w-a")


def report(session: str) -> GenerationReport:
    return GenerationReport(session_id=SessionId(session), n_prompt_tokens=3, n_completion_tokens=5, outcome="stop")


def end(session: str) -> ReportedEnd:
    return ReportedEnd(report=report(session), at=NOW, reported_by=WORKER)


@contextmanager
def locked(tmp_path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(tmp_path / "state" / "brigade.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


async def begun_session(coordinator: RunningCoordinator) -> SessionId:
    async with http_session(coordinator, key_of(coordinator, "client")) as http:
        ask = RouteRequest(model=TINY, n_prompt_tokens=3, max_tokens=5)
        return (await http.ask("POST", "/v1/routes", ask)).read(RouteGrant).session_id


@pytest.mark.parametrize("is_killed", [False, True])
async def test_what_is_reported_while_the_database_is_away_outlives_the_coordinator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    monkeypatch.setattr(app_module, "SHUTDOWN_S", 0.1)
    kept = tmp_path / "state" / UNSAVED_REPORTS
    copy = tmp_path / "as-it-was-when-it-was-killed"
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with pinned_workers(coordinator, (0, 4)) as (worker,):
            session_id = await begun_session(coordinator)
            with locked(tmp_path):
                await worker.send(report(session_id))
                if is_killed:
                    await eventually(kept.exists)
                    kept.rename(copy)
                else:
                    await eventually(lambda: coordinator.application[app_module.REPORTS].unsaved)
            if is_killed:  # what this one saves at its end, one that is killed doesn't
                await eventually_answered(lambda: is_finished(coordinator.repository, session_id))
    if is_killed:
        copy.rename(kept)
    async with running_coordinator(tmp_path) as again:
        await eventually_answered(lambda: is_finished(again.repository, session_id))
        await eventually(lambda: not kept.exists())
        (used,) = await again.repository.usage.usage(datetime.now(UTC).date(), datetime.now(UTC).date())
        assert (used.n_generations, used.n_prompt_tokens, used.n_completion_tokens) == (1, 3, 5)


async def is_finished(repository: Repository, session_id: SessionId) -> bool:
    stored = await repository.generation(session_id)
    return stored is not None and stored.n_completion_tokens == 5


async def test_what_waits_at_two_looks_is_kept_until_it_is_saved(tmp_path: Path) -> None:
    path, database, away = tmp_path / "kept", tmp_path / "x.db", tmp_path / "away.db"
    async with opened(f"sqlite+aiosqlite:///{database}") as engine:
        reports = GenerationReports(
            Repository(engine), NOW.timestamp, quota_clock=NOW.timestamp, on_finished=lambda *_: None
        )
        kept = KeptReports(reports, path)
        with capture_logs() as logs:
            database.rename(away)
            async with running_beside(
                reports=reports.save_forever(retry_s=0.01), kept=kept.keep_forever(every_s=0.01)
            ):
                reports.put(end("s1"))
                await eventually(lambda: path.exists() and read_reports(path) == (end("s1"),))
                reports.put(end("s2"))
                await eventually(lambda: read_reports(path) == (end("s1"), end("s2")))
                away.rename(database)
                await eventually(lambda: not path.exists())
        assert [line["event"] for line in logs].count("generation_reports_kept") == 1
        assert not reports.unsaved


async def test_a_folder_that_takes_no_file_is_said_once_and_so_is_what_is_lost(tmp_path: Path) -> None:
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        reports = GenerationReports(
            Repository(engine), NOW.timestamp, quota_clock=NOW.timestamp, on_finished=lambda *_: None
        )
        kept = KeptReports(reports, tmp_path / "nowhere" / "kept")
        reports.put(end("s1"))
        with capture_logs() as logs:
            async with running_beside(kept=kept.keep_forever(every_s=0.001)):
                await eventually(lambda: logs)
                await asyncio.sleep(0.02)
            await kept.finish(0.01)
    assert [line["event"] for line in logs] == ["generation_reports_not_kept", "generation_reports_lost"]


async def test_whoever_keeps_them_at_the_end_waits_for_who_is_at_it(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        reports = GenerationReports(
            Repository(engine), NOW.timestamp, quota_clock=NOW.timestamp, on_finished=lambda *_: None
        )
        for n in range(200):
            reports.put(end(f"s{n}"))
        kept = KeptReports(reports, path)
        with capture_logs() as logs:
            await asyncio.gather(*(kept.finish(0.0) for _ in range(20)))
    assert len(read_reports(path)) == 200
    assert {line["event"] for line in logs} == {"generation_reports_kept", "generation_reports_left"}


async def test_a_file_that_is_none_of_ours_stops_no_start(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}") as engine:
        reports = GenerationReports(
            Repository(engine), NOW.timestamp, quota_clock=NOW.timestamp, on_finished=lambda *_: None
        )
        for text in ("{", '{"at": 3}', "\x00"):
            path.write_text(text)
            with capture_logs() as logs:
                await KeptReports(reports, path).take_up()
            assert [line["event"] for line in logs] == ["kept_reports_not_read"]
            assert "isn't a file of reports" in logs[0]["error_message"]
    assert not reports.unsaved


def test_reports_come_back_as_they_were_and_none_leave_no_file(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    write_reports(path, [end("s1"), end("s2")])
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_reports(path) == (end("s1"), end("s2"))
    write_reports(path, [])
    assert not path.exists()
    assert read_reports(path) == ()
    path.mkdir()
    with pytest.raises(StorageError):
        read_reports(path)
