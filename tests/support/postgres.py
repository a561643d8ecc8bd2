"""A PostgreSQL server for the tests: in a temporary folder, on a Unix socket of its own, gone at the end.

PostgreSQL refuses to run as root, so as root it runs as the user `postgres` or `nobody`. Durability is off.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from sqlalchemy import make_url

START_DEADLINE_S = 40.0
SETTINGS = (
    *("listen_addresses=", "shared_buffers=16MB", "max_connections=40", "autovacuum=off"),
    "log_min_messages=fatal",
)
WHEN_TESTS_ARE_OVER = ExitStack()
"""Closed when no test's clock runs any more: a hundred databases are files that take a minute to remove."""
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """A running server."""

    programs: Path
    socket_folder: Path
    _command: list[str]
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.socket_folder / "log").open("ab") as log:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        self._processes.append(process)
        _wait_until_ready(process, self.programs, self.socket_folder)

    def stop(self) -> None:
        """Stop it at once; what was written is there when it is started again."""
        for process in self._processes:
            process.send_signal(signal.SIGQUIT)
            process.wait(timeout=20)
        self._processes.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Have all its processes hang: connections stay, and nothing is answered."""
        own = [psutil.Process(process.pid) for process in self._processes]
        processes = [each for process in own for each in (process, *process.children(recursive=True))]
        for process in processes:
            process.suspend()
        try:
            yield
        finally:
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def new_database(self) -> str:
        """The URL of a database that was just made, empty."""
        name = f"brigade_{next(self._numbers)}"
        _run([self.programs / "createdb", "-h", self.socket_folder, "-U", "postgres", name])
        return f"postgresql+asyncpg://postgres@/{name}?host={self.socket_folder}"

    def drop_database(self, url: str) -> None:
        """Take it away, and the connections to it."""
        name = make_url(url).database or ""
        _run([self.programs / "dropdb", "--force", "-h", self.socket_folder, "-U", "postgres", name])

    def run_sql(self, *statements: str) -> None:
        """Run these, each in a transaction of its own."""
        commands = [part for statement in statements for part in ("-c", statement)]
        _run([self.programs / "psql", "-q", "-h", self.socket_folder, "-U", "postgres", *commands])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One server for all tests; they are skipped where PostgreSQL isn't installed."""
    programs = postgres_programs()
    if programs is None:
        pytest.skip("no PostgreSQL here: neither in /usr/lib/postgresql/*/bin nor on PATH")
    folder = WHEN_TESTS_ARE_OVER.enter_context(_own_folder())
    with _server_in(folder, programs) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    url = server.new_database()
    yield url
    server.drop_database(url)


@contextmanager
def running_postgres(programs: Path, *, is_durable: bool = False) -> Iterator[PostgresServer]:
    """Make a cluster, start its server, stop it and remove it all; `is_durable`: it waits for its disk."""
    with _own_folder() as folder, _server_in(folder, programs, is_durable=is_durable) as server:
        yield server


@contextmanager
def _own_folder() -> Iterator[Path]:
    # Not pytest's folder: that is root's alone. Short: a socket's path has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="brigade-pg-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server_in(folder: Path, programs: Path, *, is_durable: bool = False) -> Iterator[PostgresServer]:
    as_user = _as_other_user(folder)
    data = folder / "data"
    _run([*as_user, programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"])
    settings = [part for setting in (*SETTINGS, *(() if is_durable else NOT_DURABLE)) for part in ("-c", setting)]
    command = [*as_user, str(programs / "postgres"), "-D", str(data), "-k", str(folder), *settings]
    server = PostgresServer(programs, folder, command)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def postgres_programs() -> Path | None:
    """The folder of the newest server programs."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parent.parent.name)
    )
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path and shutil.which("postgres") else None


def _as_other_user(folder: Path) -> list[str]:
    """What to put before a command so that it doesn't run as root, and ends when the tests are killed."""
    setpriv = shutil.which("setpriv")
    ends_with_us = ["--pdeathsig=KILL"] if setpriv else []
    if os.geteuid() != 0:
        return [setpriv, *ends_with_us] if setpriv else []
    if setpriv is None:
        pytest.skip("PostgreSQL refuses to run as root, and setpriv isn't here to become another user")
    user = next(user for user in map(_user, ("postgres", "nobody")) if user is not None)
    os.chown(folder, user.pw_uid, user.pw_gid)
    return [setpriv, f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", *ends_with_us]


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _wait_until_ready(server: subprocess.Popen[bytes], programs: Path, folder: Path) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    while subprocess.run([programs / "pg_isready", "-q", "-h", folder], check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"PostgreSQL didn't start: {(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.05)


def _run(command: list[str | Path]) -> None:
    done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/")
    assert done.returncode == 0, f"{command[-1]}: {done.stdout}{done.stderr}"
