from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import web

from coordinator.admin_client import AdminTarget
from coordinator.app import RunningCoordinator
from coordinator.config import CoordinatorConfig
from coordinator.doctor import Patient, address_finding, examine, versions_finding
from protocol.checks import Check
from protocol.control_messages import Assign
from protocol.errors import StorageError
from protocol.tls import server_context
from protocol.version import program_version
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.scripted_worker import announcement, connected_worker, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually


async def examined(coordinator: RunningCoordinator | None, tmp_path: Path) -> dict[str, Check]:
    state = tmp_path / "state"
    patient = Patient(
        settings=lambda: CoordinatorConfig(state=state),
        state=state,
        database_url=None,
        listen_host="127.0.0.1",
        listen_port=0,
        target=lambda: AdminTarget.found(state=state, environ={}),
        now=lambda: datetime.now(UTC),
    )
    checks = await examine(patient)
    assert len({check.name for check in checks}) == len(checks)
    if coordinator is not None:
        for name in ("join-secret", "admin.key", "signing-keys.json"):
            secret = coordinator.state_folder.read(name)
            assert secret not in str(checks)
    return {check.name: check for check in checks}


@asynccontextmanager
async def listening(tmp_path: Path, certificate_pem: str, key: WorkerKey) -> AsyncIterator[str]:
    """A TLS server with a worker's certificate; yields its address."""
    certificate, key_path = tmp_path / "worker.pem", tmp_path / "worker.key"
    certificate.write_text(certificate_pem)
    key_path.write_bytes(key.private_pem())
    runner = web.AppRunner(web.Application(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=server_context(certificate, key_path)).start()
    try:
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_new_coordinator_is_well(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        checks = await examined(coordinator, tmp_path)
        assert [check for check in checks.values() if check.status == "fail"] == []
        assert coordinator.url in checks["port"].seen
        assert checks["models"].status == checks["workers"].status == "warn"
        assert "coord model add" in checks["models"].mend


async def test_a_coordinator_that_is_away_fails_and_the_rest_is_looked_at(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path):
        pass
    checks = await examined(None, tmp_path)
    assert checks["coordinator"].status == "fail"
    assert "coord serve" in checks["coordinator"].mend
    assert checks["workers"].status == "warn"
    assert checks["database"].status == checks["secrets"].status == "ok"


async def test_a_database_that_the_coordinator_can_not_use_fails(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        assert (await examined(coordinator, tmp_path))["database in use"].status == "ok"
        database, away = tmp_path / "state" / "brigade.db", tmp_path / "away.db"
        database.rename(away)
        with pytest.raises(StorageError):
            await coordinator.repository.audit_lines()
        check = (await examined(coordinator, tmp_path))["database in use"]
        assert check.status == "fail"
        assert "was moved" in check.seen
        away.rename(database)


async def test_too_few_replicas_are_a_warning(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        await coordinator.catalogue.change("tiny", n_replicas=2)
        async with pinned_workers(coordinator, (0, 4)):
            check = (await examined(coordinator, tmp_path))["model tiny"]
            assert check.status == "warn"
            assert "2 replicas of tiny wanted" in check.seen


async def test_workers_are_dialled_over_tls(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        well, gone, other = WorkerKey(), WorkerKey(), WorkerKey()
        grant = await enrolled(coordinator, well)
        async with (
            listening(tmp_path, grant.certificate_pem, well) as url,
            connected_worker(
                coordinator, well, grant, announce=announcement(url, version=program_version(), hostname="well")
            ) as first,
            joined_worker(
                coordinator, key=gone, announce=announcement("https://127.0.0.1:1", hostname="gone")
            ) as second,
            joined_worker(coordinator, key=other, announce=announcement(url, hostname="other")) as third,
        ):
            for worker in (first, second, third):
                await worker.receive(Assign)
                await worker.beat()
            checks = {name.split("(")[-1]: check for name, check in (await examined(coordinator, tmp_path)).items()}
            assert checks["well)"].status == "ok"
            assert checks["gone)"].status == "fail"
            assert "Connection refused" in checks["gone)"].seen
            assert "firewall" in checks["gone)"].mend
            assert checks["other)"].status == "fail"
            assert "another program" in checks["other)"].seen
            assert checks["worker versions"].status == "warn"
            assert "2 of 3 workers run 0" in checks["worker versions"].seen


async def test_an_incomplete_model_fails_and_says_why(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        check = (await examined(coordinator, tmp_path))["model tiny"]
        assert check.status == "fail"
        assert check.seen.startswith("incomplete: ")


async def test_files_that_the_store_lacks_are_named_with_what_brings_them_back(tmp_path: Path) -> None:
    """As after a restore: backups have no model files. A worker may hold all blocks and a newcomer find nothing."""
    async with running_coordinator(tmp_path) as coordinator:
        model = await add_model(coordinator)
        coordinator.state_folder.files.rename(tmp_path / "elsewhere")
        n_files = len(model.manifest.all_files())
        check = (await examined(coordinator, tmp_path))["model tiny"]
        assert check.status == "fail"
        assert f"the coordinator's store lacks {n_files} of its files" in check.seen
        assert check.mend.startswith("coord model add tiny SOURCE")
        async with pinned_workers(coordinator, (0, 4)):
            check = (await examined(coordinator, tmp_path))["model tiny"]
            assert check.status == "warn"
            assert f"ready; the coordinator's store lacks {n_files} of its files" in check.seen
            assert check.mend.startswith("coord model add tiny SOURCE")
        (tmp_path / "elsewhere").rename(coordinator.state_folder.files)
        assert "lacks" not in (await examined(coordinator, tmp_path))["model tiny"].seen


async def test_a_model_that_is_held_is_ready(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        async with joined_worker(coordinator) as worker:
            assign = await worker.receive(Assign)
            while not assign.spans:
                assign = await worker.receive(Assign)
            await worker.hold(assign)
            await eventually(lambda: coordinator.cluster.state.workers[worker.worker_id].reported)
            assert (await examined(coordinator, tmp_path))["model tiny"].status == "ok"


@pytest.mark.parametrize(
    ("url", "workers", "status"),
    [
        ("https://10.0.0.1:7400", ["https://10.0.0.2:1"], "ok"),
        ("https://brigade.example.org", [], "ok"),
        ("https://127.0.0.1:7400", ["https://127.0.0.1:1", "https://localhost:2"], "ok"),
        ("https://127.0.0.1:7400", ["https://127.0.0.1:1", "https://10.0.0.2:1"], "fail"),
        ("https://localhost:7400", ["https://worker.example.org:1"], "fail"),
        ("https://[::1]:7400", ["https://[2001:db8::1]:1"], "fail"),
    ],
)
def test_an_advertised_loopback_is_of_no_use_to_remote_workers(url: str, workers: list[str], status: str) -> None:
    found = address_finding(url, workers)
    assert found.status == status
    assert ("--public-url" in found.mend) == (status == "fail")


def test_workers_of_one_version_are_well() -> None:
    assert versions_finding("1.0", []).status == "ok"
