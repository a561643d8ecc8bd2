"""Machines, networks and programs that don't fit: one line, with what to do, and the right exit code."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiohttp import web

from coordinator.app import utc_now_s
from demo.local_cluster import BIN, LocalCluster
from protocol import exit_codes
from protocol.api_key import new_api_key
from protocol.tls import COORDINATOR_NAME, server_context
from tests.support.coordinators import join_secret_of, running_coordinator
from tests.support.forked_program import forked_done
from tests.support.pki import TestAuthority
from tests.support.tiny_cluster import (
    Done,
    cluster_without_workers,
    error_line,
    reason_of,
    until,
    worker,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with cluster_without_workers(tmp_path_factory.mktemp("bad")) as running:
        yield running


# ------------------------------------------------------------------ the machine's fault


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_the_spans_reason_and_the_worker_goes_on_when_there_is_room(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk, worker(cluster, state=disk / "worker"):
        shown = until(cluster, lambda one: "free some space" in reason_of(one))
        assert str(disk) in reason_of(shown)
        assert not list((disk / "worker" / "cache").glob("files/??/*.safetensors"))
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        until(cluster, lambda one: one["state"] == "ready")
        assert not list((disk / "worker" / "cache" / "parts").iterdir())


def test_a_workers_port_in_use(cluster: LocalCluster, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = join(cluster, tmp_path / "worker", "--listen", f"127.0.0.1:{port}")
    error_line(done, exit_codes.EXIT_PORT, str(port), "--listen")


def join(cluster: LocalCluster, state: Path, *arguments: str, url: str | None = None) -> Done:
    """`worker join` that is expected to end."""
    secret = ("--secret-file", str(cluster.state / "join-secret"))
    return cluster.run("worker", "join", url or cluster.url, *secret, "--state", str(state), *arguments)


def without_privileges(command: list[str], environment: dict[str, str]) -> Done:
    """Run a command as somebody whom file permissions bind; root keeps its name but not its power over them."""
    if os.geteuid() == 0:
        powers = "-dac_override,-dac_read_search,-fowner,-chown"
        command = ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", "--", *command]
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv for this")
@pytest.mark.parametrize(("program", "mode"), [("coord", 0o500), ("coord", 0o000), ("worker", 0o500)])
def test_a_state_folder_without_permission(cluster: LocalCluster, tmp_path: Path, program: str, mode: int) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(mode)
    command = {
        "coord": ["serve", "--listen", "127.0.0.1:0"],
        "worker": ["join", cluster.url, "--secret-file", str(cluster.state / "join-secret")],
    }[program]
    state = ("--state", str(closed / "state"))
    done = without_privileges([str(BIN / program), *command, *state], cluster.environment)
    closed.chmod(0o700)
    error_line(done, exit_codes.EXIT_STORAGE, str(closed), "state")
    assert not list(closed.iterdir())


def test_a_database_of_a_newer_version(cluster: LocalCluster, tmp_path: Path) -> None:
    shutil.copytree(cluster.state, tmp_path / "state")
    with sqlite3.connect(tmp_path / "state" / "brigade.db") as database:
        database.execute("UPDATE alembic_version SET version_num = '9999'")
    database.close()
    before = (tmp_path / "state" / "brigade.db").read_bytes()
    done = cluster.run("coord", "serve", "--listen", "127.0.0.1:0", "--state", str(tmp_path / "state"))
    error_line(done, exit_codes.EXIT_STORAGE, "newer", "9999")
    assert (tmp_path / "state" / "brigade.db").read_bytes() == before


# ------------------------------------------------------------------ who doesn't fit together


def test_an_unreachable_coordinator(cluster: LocalCluster, tmp_path: Path) -> None:
    nowhere = "https://127.0.0.1:9"
    done = join(cluster, tmp_path / "worker", "--join-timeout", "0", url=nowhere)
    error_line(done, exit_codes.EXIT_UNREACHABLE, nowhere, "coord serve")
    done = cluster.run("coord", "status", "--url", nowhere)
    error_line(done, exit_codes.EXIT_UNREACHABLE, nowhere, "coord serve")
    done = cluster.run("client", "generate", "x", "--url", nowhere, "--connect-timeout", "0")
    error_line(done, exit_codes.EXIT_UNREACHABLE, nowhere, "coord serve")


def test_a_wrong_secret(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOP")
    done = cluster.run(
        "worker", "join", cluster.url, "--secret-file", str(tmp_path / "other"), "--state", str(tmp_path / "worker")
    )
    error_line(done, exit_codes.EXIT_AUTH, "join secret", "coord secret show")
    assert not (tmp_path / "worker" / "certificate.pem").exists()


async def test_another_protocol_version(cluster: LocalCluster, tmp_path: Path) -> None:
    authority = TestAuthority()
    shown = authority.worker(tmp_path / "authority", COORDINATOR_NAME)

    async def hello(_request: web.Request) -> web.Response:
        return web.json_response(
            {
                "program": "brigade-coordinator",
                "protocol_version": "2.0",
                "coordinator_id": "c-other",
                "time_s": utc_now_s(),
            }
        )

    async def ca(_request: web.Request) -> web.Response:
        return web.Response(text=authority.ca_pem)

    app = web.Application()
    app.router.add_get("/v1/hello", hello)
    app.router.add_get("/v1/ca", ca)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(shown.certificate, shown.key))
        await site.start()
        url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        (tmp_path / "client.key").write_text(new_api_key("client", authority.fingerprint).text())
        key = ("--url", url, "--api-key-file", str(tmp_path / "client.key"))
        joined = await asyncio.to_thread(join, cluster, tmp_path / "worker", url=url)
        generated = await asyncio.to_thread(cluster.run, "client", "generate", "x", *key)
    finally:
        await runner.cleanup()
    error_line(joined, exit_codes.EXIT_VERSION, "2.0", "same major version")
    error_line(generated, exit_codes.EXIT_VERSION, "2.0", "same major version")


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
async def test_a_clock_off_by_an_hour(tmp_path: Path, off_s: float) -> None:
    """The coordinator's is the one that is off here; the worker can't know, and names both."""
    async with running_coordinator(tmp_path, clock=lambda: utc_now_s() + off_s) as coordinator:
        environment = os.environ | {"BRIGADE_SECRET": join_secret_of(coordinator)}
        arguments = ("join", coordinator.url, "--state", str(tmp_path / "worker"))
        done = await asyncio.to_thread(forked_done, "worker", arguments, environment)
    line = error_line(done, exit_codes.EXIT_CLOCK, "clock", "300 s", "set the one that is wrong")
    assert line.count("UTC") == 2
