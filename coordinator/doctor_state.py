"""What `coord doctor` looks at on this machine: state folder, secrets, certificates, database, disk, clock, port.

Nothing is changed, and nothing is opened that a running coordinator would mind: SQLite is read, never migrated.
"""

from __future__ import annotations

import shutil
import socket
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

from alembic.script import ScriptDirectory
from cryptography import x509
from sqlalchemy import make_url, text
from sqlalchemy.engine import URL

from coordinator import state_folder as names
from coordinator.database import alembic_config, create_engine, database_errors
from coordinator.state_folder import read_state_file
from protocol.byte_sizes import human_bytes
from protocol.checks import Finding, broken, doubtful, fine, opened_mode, write_problem

SECRET_FILES = (
    names.JOIN_SECRET,
    names.PREVIOUS_SECRETS,
    names.RETIRED_SECRETS,
    names.SIGNING_KEYS,
    names.CA_KEY,
    names.SERVER_KEY,
    names.ADMIN_KEY,
    names.CLIENT_KEY,
)
_NEEDED = (names.SIGNING_KEYS, names.CA_KEY, names.CA_CERTIFICATE, names.COORDINATOR_ID)
"""Made at the first start; without them every worker and client would have to begin anew."""
_LITTLE_DISK, _NO_DISK = 10 * 2**30, 2**30
_ENDS_SOON = timedelta(days=30)
_FUTURE_S = 300.0
"""A file dated later than that was written by a clock that was ahead, or this one is behind."""
_EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
_RESTORE = "restore the state folder from a backup (`coord restore`)"


def folder_finding(root: Path) -> Finding:
    """Whether the state folder is there, private and can be written."""
    other = f"change the owner or permissions of {root}, or name another folder (--state)"
    if not root.exists():
        return doubtful(f"{root} isn't there: no coordinator has run on it", "start one: coord serve")
    if not root.is_dir():
        return broken(f"{root} is a file, not a folder", "name another folder (--state)")
    if problem := write_problem(root):
        return broken(problem, other)
    if mode := opened_mode(root):
        return broken(f"others may look into {root} (mode {mode:o})", f"chmod 700 {root}")
    return fine(f"{root} is private and can be written")


def secrets_finding(root: Path) -> Finding:
    """Whether what must be kept secret is there, and readable by its owner alone."""
    if not (root / names.COORDINATOR_ID).exists():
        return doubtful("no secrets yet: no coordinator has run on this folder", "start one: coord serve")
    if missing := [name for name in _NEEDED if not (root / name).is_file()]:
        return broken(f"{', '.join(missing)} missing in {root}", _RESTORE)
    present = [root / name for name in SECRET_FILES if (root / name).exists()]
    if open_ones := [path.name for path in present if opened_mode(path)]:
        return broken(
            f"{', '.join(open_ones)} in {root} can be read by others: take what is in them for known",
            f"chmod 600 the files, and replace what others may have read ({root})",
        )
    return fine(f"{len(present)} files, readable by their owner alone")


def disk_finding(root: Path, free_bytes: int | None = None) -> Finding:
    """Room for models and the database."""
    folder = root.expanduser().absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    stored = sum(path.stat().st_size for path in (root / "files").glob("**/*") if path.is_file())
    seen = f"{human_bytes(free)} free in {folder}; models take {human_bytes(stored)}"
    mend = "free some space, remove models that aren't used (coord model remove NAME), or name another --state"
    if free < _NO_DISK:
        return broken(seen, mend)
    return doubtful(seen, mend) if free < _LITTLE_DISK else fine(seen)


def certificates_finding(root: Path, now: datetime) -> Finding:
    """Whether the CA's and the coordinator's certificates are good now and for some time."""
    seen, soon = [], []
    for name in (names.CA_CERTIFICATE, names.SERVER_CERTIFICATE):
        pem = read_state_file(root / name)
        if pem is None:
            return doubtful(f"{name} isn't there yet", "coord serve makes it")
        try:
            certificate = x509.load_pem_x509_certificate(pem.encode())
        except ValueError as exc:
            return broken(f"{name} is no certificate: {exc}", _RESTORE)
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now < start:
            return broken(
                f"{name} is good from {start:%Y-%m-%d %H:%M} UTC on", "this machine's clock is behind: set it"
            )
        if now > end:
            return broken(f"{name} ended on {end:%Y-%m-%d}", _after_end(name))
        seen.append(f"{name} is good until {end:%Y-%m-%d}")
        if end - now < _ENDS_SOON:
            soon.append(_after_end(name))
    return doubtful("; ".join(seen), "; ".join(soon)) if soon else fine("; ".join(seen))


def clock_finding(root: Path, now: datetime) -> Finding:
    """Whether this machine's clock can be right: later than Brigade itself, and than what it has written."""
    if now < _EARLIEST:
        return broken(f"the clock says {now:%Y-%m-%d %H:%M} UTC", "set it; NTP keeps it right")
    dated = [(path.stat().st_mtime, path.name) for path in root.glob("*") if path.is_file()]
    latest_s, name = max(dated, default=(0.0, ""))
    ahead_s = latest_s - now.timestamp()
    if ahead_s > _FUTURE_S:
        return broken(
            f"the clock says {now:%Y-%m-%d %H:%M} UTC, but {name} was written {ahead_s:,.0f} s later",
            "the clock was set back, or was ahead: set it; NTP keeps it right",
        )
    return fine(f"{now:%Y-%m-%d %H:%M:%S} UTC, later than everything that was written here")


def port_finding(host: str, port: int) -> Finding:
    """Whether a coordinator could listen there; to be asked when none answers."""
    address = f"{host}:{port}"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            return broken(
                f"{address} can't be listened on: {exc.strerror or exc}",
                "stop the other program, or choose another address: coord serve --listen HOST:PORT",
            )
    return fine(f"{address} is free: no coordinator runs there now")


async def postgresql_finding(url: URL) -> Finding:
    """Whether the server answers, at which schema, and how large the database is."""
    engine = create_engine(url, is_pooled=False)
    try:
        with database_errors(url):
            async with engine.connect() as connection:
                size = int(await connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)
                table = await connection.scalar(text("SELECT to_regclass('alembic_version')"))
                schema = table and await connection.scalar(text("SELECT version_num FROM alembic_version"))
    finally:
        await engine.dispose()
    where = f"the PostgreSQL database {url.database or ''} at {url.host or 'localhost'}"
    return _schema_finding(str(schema) if schema else None, f"{where}, {human_bytes(size)}")


def sqlite_finding(url: URL) -> Finding:
    """Whether the file can be read, is whole, and at which schema. Blocks."""
    path = Path(url.database or "")
    if not path.exists():
        return doubtful(f"the database {path} isn't there yet", "coord serve makes it")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as connection:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                return broken(f"the database {path} is damaged: {str(verdict)[:200]}", _RESTORE)
            schema = _sqlite_schema(connection)
    except sqlite3.Error as exc:
        return broken(f"the database {path} can't be read: {exc}", f"{_RESTORE}, or end whoever holds it locked")
    return _schema_finding(schema, f"the database {path}, {human_bytes(path.stat().st_size)}, whole")


def _sqlite_schema(connection: sqlite3.Connection) -> str | None:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if "alembic_version" not in tables:
        return None
    (schema,) = connection.execute("SELECT version_num FROM alembic_version").fetchone() or (None,)
    return schema


def database_url_of(root: Path, named: str | None) -> URL:
    """The database that `coord serve` would use."""
    return make_url(named or f"sqlite+aiosqlite:///{root.expanduser().absolute() / 'brigade.db'}")


def _schema_finding(schema: str | None, seen: str) -> Finding:
    script = ScriptDirectory.from_config(alembic_config(make_url("sqlite://")))
    newest = script.get_current_head()
    if schema is None:
        return doubtful(f"{seen}; no tables yet", "coord serve makes them")
    if schema == newest:
        return fine(f"{seen}; schema {schema}, the newest")
    if schema in {entry.revision for entry in script.walk_revisions()}:
        return doubtful(
            f"{seen}; schema {schema}, this version's is {newest}", "back it up; the next start updates it"
        )
    return broken(
        f"{seen}; schema {schema}, which this version doesn't know",
        "a newer version of Brigade wrote it: install that one, or use another database",
    )


def _after_end(name: str) -> str:
    if name == names.SERVER_CERTIFICATE:
        return "restart the coordinator: it makes a new certificate at its start"
    return (
        "begin a new cluster before the CA ends: move the state folder away, start again, and give workers and "
        "clients their new secret and keys"
    )
