"""Class 23. Defences: an id is the hash of a key; of two with one key the newer serves, and the older is told."""

from __future__ import annotations

import shutil
from pathlib import Path

import aiohttp
import pytest

from protocol.control_messages import Assign, Dismiss
from protocol.errors import ConfigError
from protocol.tls import worker_id_of_key
from protocol.trust_rest import TrustRequest
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled, proven_join
from tests.support.scripted_worker import announcement, connected_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually
from worker.identity import load_identity, opened_state


async def test_an_id_without_its_key_is_let_in_by_nobody(tmp_path: Path) -> None:
    """Fails if a join names an id, or a certificate is asked for, whose key the caller hasn't got.

    The thief knows the join secret.
    """
    victim, thief = WorkerKey(), WorkerKey()
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        await enrolled(coordinator, victim)
        claims = WorkerKey()
        claims.private, claims.worker_id = thief.private, victim.worker_id
        for changes in ({}, {"certificate_request_pem": swapped(victim, thief)}):
            proven = await proven_join(http, coordinator, claims, **changes)
            answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
            assert 400 <= answer.status < 500, answer.body
        assert set(coordinator.cluster.state.workers) == {victim.worker_id}


def swapped(victim: WorkerKey, thief: WorkerKey) -> str:
    """The thief's request under the victim's name: the name in it is only a claim."""
    request = WorkerKey()
    request.private, request.worker_id = thief.private, victim.worker_id
    return request.certificate_request_pem()


async def test_of_two_with_one_key_the_newer_serves_and_the_older_is_told(tmp_path: Path) -> None:
    """Fails if both are served (blocks would seem to be held twice), or the older isn't told why it ends."""
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator:
        await add_model(coordinator)
        grants = [await enrolled(coordinator, key) for _ in range(2)]
        first_said, second_said = (announcement(f"https://127.0.0.1:{port}") for port in (7001, 7002))
        async with connected_worker(coordinator, key, grants[0], announce=first_said) as first:
            await first.receive(Assign)
            async with connected_worker(coordinator, key, grants[1], announce=second_said) as second:
                dismissed = await first.receive(Dismiss)
                assert (dismissed.error.code, "connected again" in dismissed.error.message) == ("conflict", True)
                assert await first.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
                workers = coordinator.cluster.state.workers
                assert list(workers) == [key.worker_id]
                await eventually(lambda: coordinator.cluster.state.workers[key.worker_id].url.endswith(":7002"))
                await second.beat()
                assert coordinator.cluster.state.workers[key.worker_id].is_connected


async def test_a_worker_that_was_banned_stays_out_with_a_copy_of_its_folder(tmp_path: Path) -> None:
    """Fails if a ban is of a connection, or an address, instead of the key."""
    key = WorkerKey()
    async with running_coordinator(tmp_path) as coordinator:
        await enrolled(coordinator, key)
        async with http_session(coordinator, key_of(coordinator, "admin")) as admin:
            ban = TrustRequest(action="ban", reason="its folder was copied")
            answer = await admin.ask("POST", f"/admin/v1/workers/{key.worker_id}/trust", ban)
            assert answer.status == 200, answer.body
        async with http_session(coordinator) as http:
            proven = await proven_join(http, coordinator, key)
            assert (await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())).status == 403


def test_a_copied_folder_is_the_same_worker_and_one_folder_serves_once(tmp_path: Path) -> None:
    """Fails if a copy gets an id of its own (a clean history), or two workers share a folder."""
    folder, copy = tmp_path / "worker", tmp_path / "copy"
    with opened_state(folder):
        mine = load_identity(folder)
        with pytest.raises(ConfigError, match="another worker"), opened_state(folder):
            pass
    shutil.copytree(folder, copy)
    with opened_state(copy):
        assert load_identity(copy).worker_id == mine.worker_id
    assert mine.worker_id != worker_id_of_key(b"another key")
