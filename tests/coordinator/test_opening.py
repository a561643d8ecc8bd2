from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import migrations
from coordinator.audit_log import AuditFilter
from coordinator.config import CoordinatorConfig
from coordinator.opening import opened_state
from coordinator.policy.effects import WriteAudit
from coordinator.policy.stored import StoredState
from coordinator.secret_files import Rotation
from coordinator.table_copy import all_rows
from protocol.api_key import api_key_from_text, secret_hash
from protocol.coordinator_errors import LeaseError
from protocol.errors import ConflictError
from tests.support.open_files import WatchedThreads
from tests.support.waiting import eventually

NOW = datetime(2026, 11, 21, tzinfo=UTC)


async def test_the_first_start_makes_a_key_of_each_kind_once(tmp_path: Path) -> None:
    config = CoordinatorConfig(state=tmp_path)
    texts = []
    for day in range(2):
        async with opened_state(config, NOW + timedelta(days=day)) as opened:
            assert opened.authority.secrets.has_new_secret == (day == 0)
            for kind in ("admin", "client"):
                key = api_key_from_text(opened.folder.read(f"{kind}.key") or "")
                stored = await opened.repository.api_key(key.key_id)
                assert stored is not None
                assert (stored.kind, stored.secret_hash) == (kind, secret_hash(key.secret))
                assert key.ca_fingerprint == opened.authority.ca_fingerprint
                texts.append(key.text())
            assert len(await opened.repository.api_keys()) == 2
            assert await opened.repository.load_state() == StoredState()
    assert texts[:2] == texts[2:]


async def test_another_program_that_looks_into_the_database_takes_no_log_away(tmp_path: Path) -> None:
    """SQLite's last reader removes the write-ahead log; who takes himself for it takes what is written after."""
    look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM settings').fetchall()"
    for _ in range(2):  # the file is made at the first start, and there at the second
        async with opened_state(CoordinatorConfig(state=tmp_path), NOW):
            file, log = tmp_path / "brigade.db", tmp_path / "brigade.db-wal"
            before = log.stat().st_ino
            await asyncio.to_thread(subprocess.run, [sys.executable, "-c", look, str(file)], check=True)
            assert log.exists()
            assert log.stat().st_ino == before


async def test_a_revoked_first_key_stays_revoked(tmp_path: Path) -> None:
    config = CoordinatorConfig(state=tmp_path)
    async with opened_state(config, NOW) as opened:
        for key in await opened.repository.api_keys():
            await opened.repository.revoke_api_key(key.key_id, NOW)
    async with opened_state(config, NOW) as opened:
        assert all(key.revoked_at == NOW for key in await opened.repository.api_keys())


@pytest.mark.parametrize("action", ["join_secret_rotated", "signing_key_rotated"])
async def test_a_rotation_that_is_only_in_the_audit_log_is_said_to_have_failed_once(
    tmp_path: Path, action: Rotation
) -> None:
    """As when the coordinator is killed between the line and the files."""
    config, later = CoordinatorConfig(state=tmp_path), NOW + timedelta(days=1)

    async def lines() -> list[str]:
        async with opened_state(config, later) as opened:
            found = await opened.repository.audit_log.entries(AuditFilter(), before_id=None, n_entries=9)
            return [line.action for line in found if line.action != "key_created"]

    line = WriteAudit(at_s=later.timestamp(), action=action, subject="cluster", details="by k")
    async with opened_state(config, NOW) as opened:
        opened.authority.secrets.rotate_join_secret(NOW)
        await opened.repository.apply([line])
    assert await lines() == await lines() == ["rotation_failed", action]
    async with opened_state(config, NOW) as opened:
        again = replace(line, at_s=line.at_s + 60.0)
        await opened.repository.apply([again])
        rotate = {
            "join_secret_rotated": opened.authority.secrets.rotate_join_secret,
            "signing_key_rotated": opened.authority.secrets.rotate_signing_key,
        }
        rotate[action](datetime.fromtimestamp(again.at_s, UTC) - timedelta(milliseconds=5))
    assert await lines() == [action, "rotation_failed", action], "one that was done is let stand"


async def test_a_damaged_key_file_gets_a_new_key(tmp_path: Path) -> None:
    config = CoordinatorConfig(state=tmp_path)
    async with opened_state(config, NOW) as opened:
        old = opened.folder.read("admin.key") or ""
        opened.folder.write("admin.key", old[:40])
    async with opened_state(config, NOW) as opened:
        assert api_key_from_text(opened.folder.read("admin.key") or "").text() != old
        assert len(await opened.repository.api_keys()) == 3


async def test_a_new_database_learns_the_keys_and_anothers_is_refused(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'one.db'}"
    async with opened_state(CoordinatorConfig(state=tmp_path / "a"), NOW) as opened:
        key = api_key_from_text(opened.folder.read("admin.key") or "")
    async with opened_state(CoordinatorConfig(state=tmp_path / "a", database_url=url), NOW) as opened:
        assert await opened.repository.api_key(key.key_id) is not None
    with pytest.raises(ConflictError, match="the database belongs to"):
        async with opened_state(CoordinatorConfig(state=tmp_path / "b", database_url=url), NOW):
            pass


async def test_the_folder_is_let_go_when_opening_fails(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"nonsense" * 1000)
    broken = CoordinatorConfig(state=tmp_path / "s", database_url=f"sqlite+aiosqlite:///{tmp_path / 'x.db'}")
    with pytest.raises(Exception, match="not a database"):
        async with opened_state(broken, NOW):
            pass
    async with opened_state(CoordinatorConfig(state=tmp_path / "s"), NOW):
        with pytest.raises(ConflictError, match="another coordinator"):
            async with opened_state(CoordinatorConfig(state=tmp_path / "s"), NOW):
                pass


async def test_who_stands_by_reads_its_folder_again_when_it_takes_over(tmp_path: Path, database_url: str) -> None:
    ours = CoordinatorConfig(state=tmp_path / "a", database_url=database_url)
    theirs = CoordinatorConfig(state=tmp_path / "b", database_url=database_url, take_over=True)

    async def stand_by() -> tuple[str, tuple[bytes, ...]]:
        async with opened_state(theirs, NOW) as opened:
            return opened.folder.read("join-secret") or "", opened.authority.signing_keys

    async with asyncio.TaskGroup() as tasks, opened_state(ours, NOW) as opened:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        with capture_logs() as logs:
            standing = tasks.create_task(stand_by())
            await eventually(lambda: any(line["event"] == "lease_watched" for line in logs))
        opened.authority.secrets.rotate_join_secret(NOW)
        opened.authority.secrets.rotate_signing_key(NOW)
        rotated = opened.folder.read("join-secret"), opened.authority.signing_keys
        for file in (tmp_path / "a").glob("*.json"):
            shutil.copy(file, tmp_path / "b")
        shutil.copy(tmp_path / "a" / "join-secret", tmp_path / "b")
    assert standing.result() == rotated


NEXT_MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "9999", "{newest}", None, None


def upgrade() -> None:
    op.create_table("newer", sa.Column("id", sa.Integer, primary_key=True))
"""


async def test_a_newer_version_that_does_not_get_the_lease_leaves_the_schema_alone(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = CoordinatorConfig(state=tmp_path / "a", database_url=database_url)
    theirs = CoordinatorConfig(state=tmp_path / "b", database_url=database_url)
    async with opened_state(ours, NOW):
        newest, _ = await all_rows(database_url)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        of_newer = tmp_path / "migrations"
        shutil.copytree(Path(migrations.__file__).parent, of_newer)
        (of_newer / "versions" / "9999_newer.py").write_text(NEXT_MIGRATION.format(newest=newest))
        monkeypatch.setattr(migrations, "__file__", str(of_newer / "__init__.py"))
        with pytest.raises(LeaseError):
            async with opened_state(theirs, NOW):
                pass
        assert (await all_rows(database_url))[0] == newest
    async with opened_state(theirs, NOW):
        assert (await all_rows(database_url))[0] == "9999"
    async with opened_state(theirs, NOW):
        assert (await all_rows(database_url))[0] == "9999", "and again"


async def test_a_start_that_is_cancelled_is_over_when_nothing_of_it_is_at_work_any_more(tmp_path: Path) -> None:
    """Else the next coordinator finds the folder locked, or two write to it."""
    threads = WatchedThreads(1)
    asyncio.get_running_loop().set_default_executor(threads)

    async def started() -> None:
        async with opened_state(CoordinatorConfig(state=tmp_path), NOW):
            pytest.fail("it was cancelled before")

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(started())
        await threads.given[0].wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        is_over = task.done()
        threads.may_begin.set()
    assert not is_over
    assert task.cancelled()
    async with opened_state(CoordinatorConfig(state=tmp_path), NOW):
        pass


async def test_a_stop_that_is_cancelled_anywhere_lets_go_of_the_lease_and_of_the_database(tmp_path: Path) -> None:
    """Else the next coordinator waits until the lease lapses, or finds the database locked."""
    config = CoordinatorConfig(state=tmp_path)

    async def held(is_open: asyncio.Event) -> None:
        async with opened_state(config, NOW):
            is_open.set()
            await asyncio.Event().wait()

    for n_turns in range(16):
        async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
            is_open = asyncio.Event()
            task = tasks.create_task(held(is_open))
            await is_open.wait()
            task.cancel()
            for _ in range(1 + n_turns):
                await asyncio.sleep(0)
            task.cancel()
        assert task.cancelled()
        with closing(sqlite3.connect(tmp_path / "brigade.db")) as database:
            assert database.execute("SELECT holder FROM coordinator_lease").fetchall() == [("",)]
