"""What operators see and decide of trust, over HTTP: bad input is refused, bans shut the door, floors count."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from coordinator.app import RunningCoordinator
from protocol.assignment_rest import AssignmentList
from protocol.cluster_rest import ChangeModelRequest, ClusterStatus
from protocol.control_messages import Assign, Dismiss
from protocol.ids import ModelName, WorkerId
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from protocol.trust_rest import TrustHistory, TrustInfo, TrustList, TrustRequest
from protocol.worker_rest import SourcesRequest
from tests.coordinator.test_client_api import pinned_workers
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled, proven_join
from tests.support.scripted_worker import connected_worker, joined_worker
from tests.support.stored_model import add_model


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


def path(worker_id: WorkerId | str) -> str:
    return f"/admin/v1/workers/{worker_id}/trust"


async def decided(admin: Http, worker_id: WorkerId, **wanted: object) -> TrustInfo:
    answer = await admin.ask("POST", path(worker_id), TrustRequest(**wanted))  # type: ignore[arg-type]
    assert answer.status == 200, answer.body
    return answer.read(TrustInfo)


async def test_a_banned_worker_is_told_so_and_neither_connects_nor_joins_until_pardoned(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    key = WorkerKey()
    grant = await enrolled(coordinator, key)
    async with connected_worker(coordinator, key, grant) as worker:
        await worker.receive(Assign)
        banned = await decided(admin, worker.worker_id, action="ban", reason="it lies")
        assert (banned.level, banned.score, banned.banned_reason) == ("banned", 0.0, "it lies")
        assert (await decided(admin, worker.worker_id, action="ban")).banned_reason == "it lies", "as it was"
        told = await worker.receive(Dismiss)
        assert (told.error.code, "it lies" in told.error.message) == ("forbidden", True)
        assert await worker.closed() == aiohttp.WSCloseCode.POLICY_VIOLATION
    async with http_session(coordinator, grant.session_token) as http:
        for path_ in ("/v1/manifests/" + "0" * 64, "/v1/files/" + "0" * 64):
            assert (await http.ask("GET", path_)).status == 403
        assert (await http.ask("POST", "/v1/worker/sources", SourcesRequest(files=()))).status == 403
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected_worker(coordinator, key, grant):
            pass
    assert refused.value.status == 403
    async with http_session(coordinator) as stranger:
        proven = await proven_join(stranger, coordinator, key)
        answer = await stranger.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert (answer.status, answer.read(ErrorAnswer).error.code) == (403, "forbidden")
        assert "coord trust pardon" in answer.read(ErrorAnswer).error.message
        other = await proven_join(stranger, coordinator, key, secret="x" * 64)
        refusal = await stranger.ask("POST", "/v1/join", other.body, headers=other.headers())
        assert refusal.read(ErrorAnswer).error.code == "wrong_secret", "strangers learn nothing"
    assert (await decided(admin, key.worker_id[:12], action="pardon")).level == "probation"
    (held,) = (await admin.ask("GET", "/admin/v1/assignments")).read(AssignmentList).assignments
    assert (held.state, held.reason.split(";")[0]) == ("gone", "it was banned, and is pardoned")
    async with joined_worker(coordinator, key=key) as back:
        await back.receive(Assign)
    actions = [line.action for line in await coordinator.repository.audit_lines()]
    assert {"worker_banned", "worker_pardoned"} <= set(actions)


async def test_pins_route_and_a_request_may_ask_for_more_trust(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    await add_model(coordinator)
    async with (
        pinned_workers(coordinator, (0, 4), (0, 4)) as workers,
        http_session(coordinator, key_of(coordinator, "client")) as client,
    ):

        async def asked(min_trust: float) -> list[WorkerId] | str:
            request = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=5, min_trust=min_trust)
            answer = await client.ask("POST", "/v1/routes", request)
            if answer.status == 200:
                return [hop.worker_id for hop in answer.read(RouteGrant).hops]
            assert answer.status == 503
            return answer.read(ErrorAnswer).error.message

        first, second = sorted(worker.worker_id for worker in workers)
        message = await asked(0.8)
        assert "0.80" in message
        assert "coord trust pin" in message
        pinned = await decided(admin, second, action="pin", score=0.9, reason="mine")
        assert (pinned.level, pinned.pinned) == ("trusted", 0.9)
        assert await asked(0.8) == [second]
        assert await asked(0.0) == [first]
        assert (await decided(admin, first, action="pin", score=0.1)).level == "quarantined"
        assert await asked(0.0) == [second]
        listed = (await admin.ask("GET", "/admin/v1/trust")).read(TrustList).workers
        assert [(info.worker_id, info.score) for info in listed] == [(first, 0.1), (second, 0.9)]
        status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
        states = {worker.worker_id: (worker.state, worker.trust) for worker in status.workers}
        assert states[first] == ("quarantined", 0.1)
        assert (await decided(admin, first, action="pin", score=0.3)).level == "weak"
        status = (await admin.ask("GET", "/admin/v1/status")).read(ClusterStatus)
        assert any("trust 0.30 is weak" in worker.reason for worker in status.workers)
        await decided(admin, first, action="unpin")
        history = (await admin.ask("GET", path(first))).read(TrustHistory)
        assert [event.kind for event in history.events] == [
            "unpinned",
            "released",
            "pinned",
            "quarantined",
            "pinned",
        ]
        assert history.events[0].score_after == 0.5


async def test_pinned_ends_by_request_by_key_and_by_model(coordinator: RunningCoordinator, admin: Http) -> None:
    """A pin that changes no score counts at once, for those too who were told no a moment before."""
    await add_model(coordinator)
    limited = CreateKeyRequest(name="limited", limits=KeyLimits(pinned_ends=True))
    key = (await admin.ask("POST", "/admin/v1/keys", limited)).read(CreatedKey).key
    async with (
        pinned_workers(coordinator, (0, 4), (0, 2), (2, 4)) as workers,
        http_session(coordinator, key_of(coordinator, "client")) as client,
        http_session(coordinator, key) as sensitive,
    ):
        whole, first, last = (worker.worker_id for worker in workers)

        async def asked(session: Http, *, pinned_ends: bool = False) -> list[WorkerId] | str:
            request = RouteRequest(
                model=ModelName("tiny"), n_prompt_tokens=3, max_tokens=5, pinned_ends=pinned_ends
            )
            answer = await session.ask("POST", "/v1/routes", request)
            if answer.status == 200:
                return [hop.worker_id for hop in answer.read(RouteGrant).hops]
            assert answer.status == 503
            return answer.read(ErrorAnswer).error.message

        assert await asked(client) == [whole]
        for refused in (await asked(client, pinned_ends=True), await asked(sensitive)):
            assert "coord trust pin" in refused
        await decided(admin, first, action="pin", score=1.0)
        assert f"{first} (" in await asked(client, pinned_ends=True)
        await decided(admin, last, action="pin", score=1.0)
        assert await asked(client, pinned_ends=True) == await asked(sensitive) == [first, last]
        assert await asked(client) == [whole]
        change = ChangeModelRequest(pinned_ends=True)
        assert (await admin.ask("PATCH", "/admin/v1/models/tiny", change)).status == 200
        assert await asked(client) == [first, last]


@pytest.mark.parametrize(
    "body",
    [
        b'{"action": "pin"}',
        b'{"action": "pin", "score": 1.5}',
        b'{"action": "pin", "score": -0.1}',
        b'{"action": "ban", "score": 0.5}',
        b'{"action": "forgive"}',
        b'{"action": "ban", "why": "a slip"}',
        b'{"action": "ban", "reason": "' + b"x" * 501 + b'"}',
    ],
)
async def test_what_can_not_be_meant_is_refused(coordinator: RunningCoordinator, admin: Http, body: bytes) -> None:
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        assert (await admin.ask("POST", path(worker.worker_id), body)).status == 400
    assert coordinator.cluster.state.trust == {}


async def test_only_operators_decide_and_only_of_workers_that_there_are(
    coordinator: RunningCoordinator, admin: Http
) -> None:
    assert (await admin.ask("GET", path("w-nobody"))).status == 404
    assert (await admin.ask("POST", path("w-nobody"), TrustRequest(action="ban"))).status == 404
    async with http_session(coordinator, key_of(coordinator, "client")) as client:
        assert (await client.ask("GET", "/admin/v1/trust")).status == 403
        assert (await client.ask("POST", path("w-nobody"), TrustRequest(action="ban"))).status == 403
