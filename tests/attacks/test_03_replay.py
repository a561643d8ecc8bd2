"""Class 3. Defences: challenges are used once, live 30 s in memory only, bounded and limited; clocks compared."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import aiohttp
import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.joining import CHALLENGE_LIFE_S, JOIN_LIMIT, MAX_CHALLENGES
from protocol.messages import PROTOCOL_VERSION
from protocol.tls import client_context
from protocol.worker_rest import ChallengeRequest
from tests.support.coordinators import Http, http_session, running_coordinator
from tests.support.joining import WorkerKey, proven_join


async def test_a_recorded_join_is_good_once(tmp_path: Path) -> None:
    """Fails if a challenge isn't removed when it is used."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        answers = [await http.ask("POST", "/v1/join", proven.body, headers=proven.headers()) for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 401, 401]


async def test_of_two_copies_sent_at_once_one_gets_in(tmp_path: Path) -> None:
    """Fails if the challenge is removed only after the answer is made."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
        copies = [http.ask("POST", "/v1/join", proven.body, headers=proven.headers()) for _ in range(8)]
        assert sorted(answer.status for answer in await asyncio.gather(*copies)) == [200] + 7 * [401]


async def test_a_join_kept_back_is_worth_nothing_after_a_restart(tmp_path: Path) -> None:
    """Fails if unknown challenges are accepted, as where a nonce store only remembers what was used."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey())
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 401


async def test_a_join_kept_back_too_long_is_worth_nothing(tmp_path: Path) -> None:
    """Fails if challenges don't expire."""
    late_s = 0.0
    async with (
        running_coordinator(tmp_path, clock=lambda: utc_now_s() + late_s) as coordinator,
        http_session(coordinator) as http,
    ):
        proven = await proven_join(http, coordinator, WorkerKey())
        late_s = CHALLENGE_LIFE_S
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 401


async def flood(coordinator: RunningCoordinator, n_requests: int) -> list[int]:
    """Ask for challenges from another address of this machine; the statuses."""
    connector = aiohttp.TCPConnector(
        ssl=client_context(coordinator.authority.ca_pem), local_addr=("127.0.0.2", 0), limit=16
    )
    worker_id = WorkerKey().worker_id
    async with aiohttp.ClientSession(connector=connector) as session:
        http = Http(session=session, url=f"https://127.0.0.1:{coordinator.port}")

        async def ask() -> int:
            body = ChallengeRequest(
                protocol_version=PROTOCOL_VERSION, worker_id=worker_id, client_nonce=secrets.token_hex(32)
            )
            return (await http.ask("POST", "/v1/join/challenge", body)).status

        return list(await asyncio.gather(*(ask() for _ in range(n_requests))))


async def test_filling_the_nonce_store_throws_nobody_out_who_is_joining(tmp_path: Path) -> None:
    """Fails without the limit by address: more challenges than the store holds are asked for."""
    now_s = utc_now_s()
    async with (
        running_coordinator(tmp_path, clock=lambda: now_s) as coordinator,
        http_session(coordinator) as http,
    ):
        proven = await proven_join(http, coordinator, WorkerKey())
        statuses = await flood(coordinator, MAX_CHALLENGES + 1)
        assert statuses.count(200) == JOIN_LIMIT.capacity
        assert statuses.count(503) == len(statuses) - JOIN_LIMIT.capacity
        assert (await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())).status == 200


@pytest.mark.parametrize("off_s", [3600.0, -3600.0, float("1e18")])
async def test_a_clock_that_is_wrong_either_way_is_refused(tmp_path: Path, off_s: float) -> None:
    """Fails if the worker's clock isn't compared; only a proof that verifies is told."""
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, WorkerKey(), time_s=utc_now_s() + off_s)
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 400
        assert b'"clock_skew"' in answer.body
        assert not coordinator.cluster.state.workers
