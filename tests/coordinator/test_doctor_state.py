from __future__ import annotations

import os
import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from coordinator import state_folder as names
from coordinator.config import CoordinatorConfig
from coordinator.database import migrate
from coordinator.doctor_state import (
    certificates_finding,
    clock_finding,
    database_url_of,
    disk_finding,
    folder_finding,
    port_finding,
    postgresql_finding,
    secrets_finding,
    sqlite_finding,
)
from coordinator.opening import opened_state
from protocol.checks import Finding
from protocol.errors import StorageError

posix_only = pytest.mark.skipif(os.name != "posix", reason="no such modes")


def now() -> datetime:
    return datetime.now(UTC)


async def used_state(tmp_path: Path) -> Path:
    """A folder that a coordinator has started on."""
    async with opened_state(CoordinatorConfig(state=tmp_path / "state"), now()):
        pass
    return tmp_path / "state"


def database_of(root: Path) -> Finding:
    return sqlite_finding(database_url_of(root, None))


async def test_a_folder_that_a_coordinator_has_used_is_well(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    for found in (
        folder_finding(root),
        secrets_finding(root),
        database_of(root),
        certificates_finding(root, now()),
        clock_finding(root, now()),
    ):
        assert found.status == "ok", found
    assert "schema" in database_of(root).seen


def test_a_folder_that_is_not_there_yet_is_no_failure(tmp_path: Path) -> None:
    root = tmp_path / "new"
    for found in (
        folder_finding(root),
        secrets_finding(root),
        database_of(root),
        certificates_finding(root, now()),
    ):
        assert found.status == "warn"
        assert "coord serve" in found.mend
    assert clock_finding(root, now()).status == "ok"
    assert disk_finding(root).seen
    assert not root.exists()


def test_a_file_in_the_folder_s_place_fails(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert folder_finding(tmp_path / "state").status == "fail"


def test_a_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    folder = Path("/proc/self")  # not even root can write there
    if os.geteuid() != 0:
        folder = tmp_path / "read-only"
        folder.mkdir(mode=0o500)
    found = folder_finding(folder)
    assert found.status == "fail"
    assert "can't be written" in found.seen


@posix_only
def test_a_folder_that_others_may_look_into_fails(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    found = folder_finding(tmp_path)
    assert (found.status, found.mend) == ("fail", f"chmod 700 {tmp_path}")


@posix_only
async def test_a_secret_that_others_may_read_fails_and_is_not_shown(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    (root / names.JOIN_SECRET).chmod(0o644)
    found = secrets_finding(root)
    assert found.status == "fail"
    assert names.JOIN_SECRET in found.seen
    assert "chmod 600" in found.mend
    assert (root / names.JOIN_SECRET).read_text().strip() not in found.seen + found.mend


async def test_a_lost_key_fails(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    (root / names.CA_KEY).unlink()
    found = secrets_finding(root)
    assert found.status == "fail"
    assert "ca.key missing" in found.seen
    assert "backup" in found.mend


async def test_a_damaged_database_fails(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    path = root / "brigade.db"
    data = bytearray(path.read_bytes())
    data[4096 : len(data) - 4096] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    found = database_of(root)
    assert found.status == "fail"
    assert "backup" in found.mend


def test_a_file_that_is_no_database_fails(tmp_path: Path) -> None:
    (tmp_path / "brigade.db").write_text("something else, and long enough to be looked at" * 100)
    found = database_of(tmp_path)
    assert found.status == "fail"
    assert "can't be read" in found.seen


def test_a_database_without_tables_will_be_made(tmp_path: Path) -> None:
    (tmp_path / "brigade.db").touch()
    assert database_of(tmp_path).status == "warn"


async def test_a_database_of_a_newer_version_fails(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    with closing(sqlite3.connect(root / "brigade.db")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_of_the_future'")
    found = database_of(root)
    assert found.status == "fail"
    assert "9999_of_the_future" in found.seen
    assert "newer version" in found.mend


def test_a_database_of_an_older_version_is_updated_at_the_start(tmp_path: Path) -> None:
    url = database_url_of(tmp_path, None)
    migrate(url.render_as_string(), "0001")
    found = database_of(tmp_path)
    assert found.status == "warn"
    assert "the next start updates it" in found.mend


async def test_postgresql_is_asked(database_url: str) -> None:
    url = make_url(database_url)
    if url.get_backend_name() == "postgresql":
        found = await postgresql_finding(url)
        assert found.status in ("ok", "warn")
        assert "PostgreSQL" in found.seen


async def test_a_postgresql_server_that_is_away_fails_without_its_password() -> None:
    url = make_url("postgresql+asyncpg://brigade:s3cret@127.0.0.1:1/brigade")
    with pytest.raises(StorageError, match=r"127\.0\.0\.1:1 can't be used") as caught:
        await postgresql_finding(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("free_bytes", "status"), [(2**40, "ok"), (5 * 2**30, "warn"), (2**20, "fail")])
def test_disk_room_is_judged(tmp_path: Path, free_bytes: int, status: str) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_bytes(b"x" * 2048)
    found = disk_finding(tmp_path, free_bytes)
    assert found.status == status
    assert "models take 2.0 KB" in found.seen


async def test_certificates_that_have_ended_or_end_soon_are_named(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    later = certificates_finding(root, now() + timedelta(days=365 * 100))
    assert later.status == "fail"
    assert "ended" in later.seen
    earlier = certificates_finding(root, now() - timedelta(days=365))
    assert earlier.status == "fail"
    assert "clock is behind" in earlier.mend
    (root / names.SERVER_CERTIFICATE).write_text("no certificate")
    assert certificates_finding(root, now()).status == "fail"


async def test_a_certificate_that_ends_soon_is_warned_of(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    day = timedelta(days=1)
    ends = next(n for n in range(1, 365 * 30) if certificates_finding(root, now() + n * day).status == "fail")
    found = certificates_finding(root, now() + (ends - 10) * day)
    assert found.status == "warn"
    assert "restart the coordinator" in found.mend


async def test_a_clock_that_was_set_back_is_noticed(tmp_path: Path) -> None:
    root = await used_state(tmp_path)
    assert clock_finding(root, now() - timedelta(minutes=4)).status == "ok"
    back = clock_finding(root, now() - timedelta(hours=2))
    assert back.status == "fail"
    assert "NTP" in back.mend
    assert clock_finding(root, datetime(1970, 1, 2, tzinfo=UTC)).status == "fail"


def test_a_port_is_free_or_taken(own_port: int) -> None:
    with socket.create_server(("127.0.0.1", own_port)):
        found = port_finding("127.0.0.1", own_port)
        assert found.status == "fail"
        assert "--listen" in found.mend
    assert port_finding("127.0.0.1", own_port).status == "ok"
