from __future__ import annotations

import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.admin_client import AdminTarget
from protocol.errors import ConfigError
from protocol.exit_codes import EXIT_CANCELLED, EXIT_PORT, EXIT_STORAGE, EXIT_USAGE
from tests.support.coord_process import (
    ROOT,
    START_DEADLINE_S,
    STOP_DEADLINE_S,
    Coord,
    Served,
    environ,
    serve_command,
    served,
)
from tests.support.postgres import PostgresServer

COMMANDS = (
    *("", "serve", "status", "model", "model add", "model list", "model show", "model remove"),
    *("backup", "restore", "key", "key create", "key list", "key revoke", "worker", "worker list", "worker drain"),
)


def test_the_first_start_says_what_to_do_next_and_no_secret(coordinator: Served) -> None:
    state = coordinator.state
    assert f"worker join {coordinator.url} --secret-file {state}/join-secret" in coordinator.said
    assert f"coord model add NAME SOURCE --state {state}" in coordinator.said
    assert "client generate" in coordinator.said
    assert "loopback only" in coordinator.said
    assert "coord serve --listen 0.0.0.0:7400" in coordinator.said
    for name in ("join-secret", "admin.key", "client.key"):
        assert (state / name).read_text().strip() not in coordinator.said
        assert (state / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_when_told_and_starts_again_as_the_same(tmp_path: Path, number: int) -> None:
    with served(tmp_path / "state") as first:
        before = {name: (first.state / name).read_text() for name in ("ca.pem", "coordinator-id", "admin.key")}
        assert first.stop(number) == 0
    with served(tmp_path / "state", is_first=False) as again:
        assert again.said.splitlines() == [f"Brigade coordinator at {again.url}"]
        assert {name: (again.state / name).read_text() for name in before} == before
        assert again.stop() == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert (tmp_path / "state" / "join-secret").read_text().strip() not in log


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with (
        served(tmp_path / "state") as running,
        closing(sqlite3.connect(running.state / "brigade.db", isolation_level=None, timeout=10)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")  # the stop waits for it, to let go of the lease
        running.process.send_signal(signal.SIGTERM)
        until_s = time.monotonic() + STOP_DEADLINE_S
        while running.is_listening():  # else both may come as one
            assert time.monotonic() < until_s
        assert running.stop() == EXIT_CANCELLED


def test_an_interrupted_command_says_so(coord: Coord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AdminTarget, "found", interrupted)
    assert coord("status", "--state", str(tmp_path)) == (EXIT_CANCELLED, "", "interrupted\n")


def test_it_runs_on_postgresql(tmp_path: Path, postgres_server: PostgresServer) -> None:
    with served(tmp_path / "state", "--database-url", postgres_server.new_database()) as running:
        code = running.stop()
    assert code == 0
    assert not (tmp_path / "state" / "brigade.db").exists()


def refused(*arguments: str, secret: str | None = None) -> tuple[int, str]:
    done = subprocess.run(
        arguments,
        cwd=ROOT,
        env=environ() | ({} if secret is None else {"BRIGADE_SECRET": secret}),
        capture_output=True,
        text=True,
        check=False,
        timeout=START_DEADLINE_S,
    )
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return done.returncode, errors[0]


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, error = refused(*serve_command(tmp_path / "state", "--listen", f"127.0.0.1:{port}"))
    assert code == EXIT_PORT
    assert str(port) in error


def test_a_second_coordinator_on_the_same_folder(coordinator: Served) -> None:
    code, error = refused(*serve_command(coordinator.state, "--listen", "127.0.0.1:0"))
    assert code == EXIT_USAGE
    assert "another coordinator runs on" in error


@pytest.mark.parametrize("secret", ["", "short", "password" * 8])
def test_a_weak_secret_keeps_it_from_starting(tmp_path: Path, secret: str) -> None:
    code, error = refused(*serve_command(tmp_path / "state"), secret=secret)
    assert code == EXIT_USAGE
    assert "join secret" in error
    assert not secret or secret not in error
    assert not (tmp_path / "state").exists()


def test_a_state_folder_that_is_a_file(coord: Coord, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, error = coord("serve", "--state", str(tmp_path / "file"))
    assert code == EXIT_STORAGE
    assert "there is a file in its place" in error


def test_a_database_that_does_not_answer(coord: Coord, tmp_path: Path) -> None:
    url = "postgresql://user:hunter2@127.0.0.1:1/brigade"
    code, _, error = coord("serve", "--state", str(tmp_path / "state"), "--database-url", url)
    assert code == EXIT_STORAGE
    assert "127.0.0.1:1" in error
    assert "hunter2" not in error


def test_usage_errors_exit_with_2(coord: Coord) -> None:
    assert coord("serve", "--nonsense")[0] == EXIT_USAGE
    assert coord("nonsense")[0] == EXIT_USAGE


@pytest.mark.parametrize(
    "command",
    COMMANDS,
)
def test_every_command_explains_itself(coord: Coord, command: str) -> None:
    code, out, _ = coord(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out


def test_an_error_inside_a_task_group_is_the_error(
    coord: Coord, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    error = ExceptionGroup("tasks", [ExceptionGroup("inner", [ConfigError("no \x1b[31m colours\nhere")])])

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("coordinator.cli_admin.AdminTarget.found", fail)
    code, _, err = coord("status", "--state", str(tmp_path))
    assert code == EXIT_USAGE
    assert err == "error: no  [31m colours here\n"


def test_interrupting_exits_with_130(coord: Coord, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(**_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("coordinator.cli_admin.AdminTarget.found", interrupt)
    assert coord("status")[0] == 130
