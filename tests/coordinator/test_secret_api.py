"""Rotation in a coordinator that runs: nobody who knows a valid secret is kept out, nobody else gets in."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.cut_rotations import tell_untold_forever
from coordinator.keys import AUTHORITY, CONTROL_SOCKETS, REPOSITORY, ROTATING
from protocol.admin_rest import AuditPage
from protocol.cluster_rest import ClusterStatus
from protocol.rest import ErrorAnswer
from protocol.running_beside import running_beside
from protocol.secret_rest import RotatedSecret, RotateSecretRequest, SecretsInfo
from protocol.worker_rest import JoinGrant, SourcesAnswer, SourcesRequest
from tests.support.coordinators import Http, bearer, http_session, join_secret_of, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled, proven_join
from tests.support.scripted_worker import connected_worker, joined_worker
from tests.support.waiting import eventually

SECRETS = "/admin/v1/secrets"


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def rotated(admin: Http, grace_s: int) -> str:
    answer = await admin.ask("POST", f"{SECRETS}/join/rotate", RotateSecretRequest(grace_s=grace_s))
    assert answer.status == 200, answer.body
    return answer.read(RotatedSecret).secret


async def join_answer(coordinator: RunningCoordinator, secret: str) -> tuple[int, bytes]:
    async with http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey(), secret=secret)
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        return answer.status, answer.body


async def test_workers_that_join_while_the_secret_rotates_all_get_in_whole(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    old, keys = join_secret_of(coordinator), [WorkerKey() for _ in range(10)]
    shown: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def join(i: int) -> JoinGrant:
        # half of them know the old one only, half wait for the new one
        secret = old if i % 2 else await shown
        return await enrolled(coordinator, keys[i], secret=secret)

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        joins = [tasks.create_task(join(i)) for i in range(len(keys))]
        shown.set_result(await rotated(admin, 3600))
    workers = coordinator.cluster.state.workers
    assert {key.worker_id for key in keys} <= workers.keys()
    for task in joins:
        headers = bearer(task.result().session_token)
        async with http_session(coordinator) as http:
            answer = await http.ask("POST", "/v1/worker/sources", SourcesRequest(files=()), headers=headers)
        assert answer.read(SourcesAnswer).sources == {}
    info = (await admin.ask("GET", SECRETS)).read(SecretsInfo)
    assert {join.worker_id for join in info.joins} == {key.worker_id for key in keys}
    assert {join.worker_id for join in info.joins if join.is_current} >= {key.worker_id for key in keys[::2]}


async def test_without_grace_the_old_secret_is_refused_as_any_wrong_one(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    old = join_secret_of(coordinator)
    async with joined_worker(coordinator) as worker:
        new = await rotated(admin, 0)
        retired, wrong = await join_answer(coordinator, old), await join_answer(coordinator, new + "x")
        assert retired == wrong, "it says nothing of which secrets there were"
        assert retired[0] == 401
        assert (await join_answer(coordinator, new))[0] == 200
        joining = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus).joining
        said = joining.partition("that was replaced since: ")[2]
        assert said.startswith(worker.worker_id)
        assert "new one" in said
        assert "," not in said, "who joined with the new one isn't named"
        await worker.beat()
        answer = await worker.http.ask("POST", "/v1/worker/sources", SourcesRequest(files=()))
        assert answer.status == 200, "who is in stays in"


async def test_a_signing_key_without_grace_has_workers_join_anew_and_at_once(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    async with joined_worker(coordinator) as worker:
        await asyncio.wait_for(worker.receive(object), 10)
        path = f"{SECRETS}/signing-key/rotate"
        gently = (await admin.ask("POST", path, RotateSecretRequest())).read(SecretsInfo)
        assert [key.until is None for key in gently.signing_keys] == [True, False]
        assert (await worker.http.ask("POST", "/v1/worker/sources", SourcesRequest(files=()))).status == 200
        at_once, code = await asyncio.gather(
            admin.ask("POST", path, RotateSecretRequest(grace_s=0)), worker.closed()
        )
        assert len(at_once.read(SecretsInfo).signing_keys) == 1
        assert code == aiohttp.WSCloseCode.GOING_AWAY
        assert (await worker.http.ask("POST", "/v1/worker/sources", SourcesRequest(files=()))).status == 401
        grant = await enrolled(coordinator, worker.key)
        assert grant.ticket_key != worker.grant.ticket_key
        async with connected_worker(coordinator, worker.key, grant) as again:
            await asyncio.wait_for(again.receive(object), 10)


async def test_dates_are_shown_and_values_are_not_also_not_in_the_audit_log(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    values = [join_secret_of(coordinator), await rotated(admin, 60), await rotated(admin, 3600)]
    values += [key.hex() for key in coordinator.authority.signing_keys]
    answer = await admin.ask("GET", SECRETS)
    info = answer.read(SecretsInfo)
    assert len(info.previous_join_secrets) == 2
    assert info.join_secret_since is not None
    lines = await coordinator.repository.audit_lines()
    assert [line.action for line in lines][:2] == 2 * ["join_secret_rotated"]
    seen = answer.body.decode() + repr(lines)
    assert not [value for value in values if value in seen]


@pytest.mark.parametrize("grace_s", [-1, 8 * 86_400 + 1, 0.5])
async def test_a_grace_that_makes_no_sense_changes_nothing(
    coordinator: RunningCoordinator, admin: Http, grace_s: float
) -> None:
    before = join_secret_of(coordinator)
    answer = await admin.ask("POST", f"{SECRETS}/join/rotate", json={"grace_s": grace_s})
    assert answer.status == 400
    assert "grace_s" in answer.read(ErrorAnswer).error.message
    assert join_secret_of(coordinator) == before


async def test_a_signing_key_whose_grace_is_over_has_workers_join_anew(tmp_path: Path) -> None:
    now_s = [utc_now_s()]
    async with (
        running_coordinator(tmp_path, clock=lambda: now_s[0]) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
        joined_worker(coordinator) as worker,
    ):
        await asyncio.wait_for(worker.receive(object), 10)
        await admin.ask("POST", f"{SECRETS}/signing-key/rotate", RotateSecretRequest(grace_s=3600))
        async with connected_worker(coordinator, key := WorkerKey(), await enrolled(coordinator, key)) as newer:
            await asyncio.wait_for(newer.receive(object), 10)
            now_s[0] += 3600.0
            assert await asyncio.wait_for(worker.closed(), 30) == aiohttp.WSCloseCode.GOING_AWAY
            await eventually(lambda: len(coordinator.application[CONTROL_SOCKETS]) == 1)
            assert not newer.socket.closed, "who has a token of the new key stays"


async def test_a_rotation_that_failed_is_said_so_once_the_database_takes_it(tmp_path: Path) -> None:
    """A disk with room for the line, and then neither for the file nor for the line that says so."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as admin,
    ):
        before, in_the_way = join_secret_of(coordinator), coordinator.state_folder.path("join-secret.new")
        in_the_way.mkdir()
        await in_database(
            coordinator,
            "CREATE TRIGGER full BEFORE INSERT ON audit_log WHEN NEW.action = 'rotation_failed' "
            "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
        )
        answer = await admin.ask("POST", f"{SECRETS}/join/rotate", RotateSecretRequest(grace_s=3600))
        assert (answer.status, join_secret_of(coordinator)) == (507, before)
        assert "join-secret" in answer.read(ErrorAnswer).error.message, (
            "what went wrong first is what is to be mended"
        )
        assert await rotations(admin) == ["join_secret_rotated"]
        await in_database(coordinator, "DROP TRIGGER full")
        in_the_way.rmdir()
        app = coordinator.application
        telling = tell_untold_forever(
            app[ROTATING], app[REPOSITORY], app[AUTHORITY].secrets, utc_now_s, every_s=0.01
        )
        async with asyncio.timeout(10), running_beside(telling=telling):
            while len(await rotations(admin)) == 1:
                pass
        await rotated(admin, 3600)
        assert await rotations(admin) == ["join_secret_rotated", "rotation_failed", "join_secret_rotated"]


async def rotations(admin: Http) -> list[str]:
    """What the audit log says of rotations, oldest first."""
    found = (await admin.ask("GET", "/admin/v1/audit?subject=cluster")).read(AuditPage)
    return [line.action for line in reversed(found.entries) if "rotat" in line.action]


async def in_database(coordinator: RunningCoordinator, statement: str) -> None:
    def step() -> None:
        with closing(sqlite3.connect(coordinator.state_folder.path("brigade.db"), timeout=10)) as connection:
            connection.execute(statement)
            connection.commit()

    await asyncio.to_thread(step)  # the coordinator of this loop may be writing
