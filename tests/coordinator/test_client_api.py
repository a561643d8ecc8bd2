"""What clients get: hello, the CA, models, manifests, files by range, routes with tickets."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from coordinator.app import RunningCoordinator
from protocol.api_key import api_key_from_text
from protocol.client_legs import ClientLeg
from protocol.control_messages import Assign
from protocol.ids import BlockRange, ModelName, SessionId, WorkerId
from protocol.messages import SharedPrefix
from protocol.pinned_http import pinned_session
from protocol.rest import ErrorAnswer, Hello, ModelInfo, ModelList, RouteGrant, RouteRequest
from protocol.tickets import AttachTicket, Ticket, verified_claims
from protocol.tls import fingerprint
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import ScriptedWorker, announcement, joined_worker
from tests.support.stored_model import add_model
from tests.support.waiting import eventually

TINY = ModelName("tiny")


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "client")) as session:
        yield session


async def ready(worker: ScriptedWorker) -> None:
    """Take the first assignment that has blocks, and say that they are ready."""
    assign = await worker.receive(Assign)
    while not assign.spans:
        assign = await worker.receive(Assign)
    await worker.hold(assign)


@asynccontextmanager
async def pinned_workers(
    coordinator: RunningCoordinator, *ranges: tuple[int, int]
) -> AsyncIterator[list[ScriptedWorker]]:
    """Workers with fixed blocks, all ready."""
    async with AsyncExitStack() as stack:
        workers = []
        for i, (start, end) in enumerate(ranges):
            said = announcement(
                f"https://127.0.0.1:{7900 + i}", pinned_model=TINY, pinned_blocks=BlockRange(start, end)
            )
            workers.append(await stack.enter_async_context(joined_worker(coordinator, announce=said)))
        for worker in workers:
            await ready(worker)
        await eventually(lambda: all(w.reported for w in coordinator.cluster.state.workers.values()))
        yield workers


def route_request(n_prompt_tokens: int = 3, max_tokens: int = 5, **changes: object) -> RouteRequest:
    return RouteRequest(
        **({"model": TINY, "n_prompt_tokens": n_prompt_tokens, "max_tokens": max_tokens} | changes)  # type: ignore[arg-type]
    )


async def test_anybody_may_say_hello_and_fetch_the_ca(coordinator: RunningCoordinator) -> None:
    async with http_session(coordinator) as stranger:
        hello = (await stranger.ask("GET", "/v1/hello")).read(Hello)
        assert hello.coordinator_id == coordinator.authority.coordinator_id
        ca = await stranger.ask("GET", "/v1/ca")
        der = ssl.PEM_cert_to_DER_cert(ca.body.decode())
        assert fingerprint(der).hex() == coordinator.authority.ca_fingerprint


async def test_a_client_with_only_its_key_gets_through(coordinator: RunningCoordinator) -> None:
    key = api_key_from_text(key_of(coordinator, "client"))
    async with pinned_session(coordinator.url, key) as session:
        assert (await session.get("/v1/models", ModelList)).models == ()


async def test_models_are_listed_and_shown_with_the_reason_they_wait(
    coordinator: RunningCoordinator, http: Http
) -> None:
    model = await add_model(coordinator)
    (listed,) = (await http.ask("GET", "/v1/models")).read(ModelList).models
    shown = (await http.ask("GET", "/v1/models/tiny")).read(ModelInfo)
    assert listed == shown
    assert (shown.revision, shown.n_blocks, shown.state) == (model.revision, 4, "incomplete")
    assert "worker join" in shown.reason


async def test_an_unknown_model_is_answered_with_those_there_are(
    coordinator: RunningCoordinator, http: Http
) -> None:
    answer = await http.ask("POST", "/v1/routes", route_request())
    assert answer.status == 404
    assert "coord model add" in answer.read(ErrorAnswer).error.message
    await add_model(coordinator, "other")
    for answer in (await http.ask("GET", "/v1/models/tiny"), await http.ask("POST", "/v1/routes", route_request())):
        assert answer.status == 404
        assert "other" in answer.read(ErrorAnswer).error.message


async def test_manifest_and_files_come_as_they_are(coordinator: RunningCoordinator, http: Http) -> None:
    model = await add_model(coordinator)
    assert (await http.ask("GET", f"/v1/manifests/{model.revision}")).body == model.manifest_bytes
    for sha256, data in model.contents.items():
        answer = await http.ask("GET", f"/v1/files/{sha256}")
        assert (answer.status, answer.body) == (200, data)
        assert answer.headers["Content-Type"] == "application/octet-stream"


async def test_a_range_of_a_file_is_answered_with_that_range(coordinator: RunningCoordinator, http: Http) -> None:
    model = await add_model(coordinator)
    sha256, data = next(iter(model.contents.items()))
    for range_text, expected in (("bytes=10-19", data[10:20]), ("bytes=10-", data[10:]), ("bytes=-7", data[-7:])):
        answer = await http.ask("GET", f"/v1/files/{sha256}", headers={"Range": range_text})
        assert (answer.status, answer.body) == (206, expected)
        assert answer.headers["Content-Range"].endswith(f"/{len(data)}")
    answer = await http.ask("GET", f"/v1/files/{sha256}", headers={"Range": f"bytes={len(data)}-"})
    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{len(data)}"


@pytest.mark.parametrize("name", ["0" * 64, "..%2f..%2fca.key", "admin.key", "%00"])
async def test_other_files_are_not_found(coordinator: RunningCoordinator, http: Http, name: str) -> None:
    await add_model(coordinator)
    for folder in ("files", "manifests"):
        answer = await http.ask("GET", f"/v1/{folder}/{name}")
        assert answer.status in (400, 404)
        assert b"PRIVATE" not in answer.body


async def test_a_route_covers_the_model_and_its_tickets_fit_together(
    coordinator: RunningCoordinator, http: Http
) -> None:
    model = await add_model(coordinator)
    async with pinned_workers(coordinator, (0, 1), (1, 3), (3, 4)) as workers:
        answer = await http.ask("POST", "/v1/routes", route_request())
        assert answer.status == 200, answer.body
        grant = answer.read(RouteGrant)
        assert grant.revision == model.revision
        assert len(grant.session_id) == 32
        assert [hop.blocks for hop in grant.hops] == [BlockRange(0, 1), BlockRange(1, 3), BlockRange(3, 4)]
        assert [hop.worker_id for hop in grant.hops] == [worker.worker_id for worker in workers]
        ids: list[WorkerId | None] = [None, *(hop.worker_id for hop in grant.hops), None]
        for i, (hop, worker) in enumerate(zip(grant.hops, workers, strict=True)):
            key = bytes.fromhex(worker.grant.ticket_key)
            ticket = verified_claims(hop.ticket, Ticket, (key,), now_s=0.0)
            assert (ticket.previous, ticket.worker_id, ticket.next) == tuple(ids[i : i + 3])
            assert (ticket.head, ticket.tail) == (ids[1], ids[-2])
            assert ticket.head_url == grant.hops[0].url
            assert ticket.next_url == (grant.hops[i + 1].url if i < 2 else None)
            assert ticket.max_positions == 8
            assert ticket.session_id == grant.session_id
        tails_key = bytes.fromhex(workers[-1].grant.ticket_key)
        to_attach = verified_claims(grant.attach_ticket, AttachTicket, (tails_key,), now_s=0.0)
        assert (to_attach.worker_id, to_attach.session_id, to_attach.max_positions) == (
            grant.hops[-1].worker_id,
            grant.session_id,
            8,
        )
        stored = await coordinator.repository.generation(grant.session_id)
        assert stored is not None
        assert stored.route == tuple((h.worker_id, h.blocks.start, h.blocks.end) for h in grant.hops)


async def test_twenty_routes_at_once_are_twenty_sessions(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    async with pinned_workers(coordinator, (0, 4)):
        answers = await asyncio.gather(*(http.ask("POST", "/v1/routes", route_request()) for _ in range(20)))
        assert len({answer.read(RouteGrant).session_id for answer in answers}) == 20


async def test_missing_blocks_are_named_with_a_time_to_come_back(
    coordinator: RunningCoordinator, http: Http
) -> None:
    await add_model(coordinator)
    answer = await http.ask("POST", "/v1/routes", route_request())
    assert answer.status == 503
    assert "no worker is connected" in answer.read(ErrorAnswer).error.message
    async with pinned_workers(coordinator, (0, 3)):
        await eventually(lambda: coordinator.cluster.state.changed_s is None)
        answer = await http.ask("POST", "/v1/routes", route_request())
        error = answer.read(ErrorAnswer).error
        assert (answer.status, error.code) == (503, "model_unavailable")
        assert "3:4" in error.message
        assert "worker join" in error.message
        assert int(answer.headers["Retry-After"]) >= 1


async def test_an_excluded_worker_is_not_used(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        for avoided, other in (workers, workers[::-1]):
            answer = await http.ask("POST", "/v1/routes", route_request(exclude=(avoided.worker_id,)))
            assert [hop.worker_id for hop in answer.read(RouteGrant).hops] == [other.worker_id]
        both = tuple(worker.worker_id for worker in workers)
        assert (await http.ask("POST", "/v1/routes", route_request(exclude=both))).status == 503
    many = tuple(WorkerId(str(i)) for i in range(1001))
    assert (await http.ask("POST", "/v1/routes", route_request(exclude=many))).status == 400


async def test_who_is_far_from_the_client_gives_way_and_unknown_workers_are_passed_over(
    coordinator: RunningCoordinator, http: Http
) -> None:
    await add_model(coordinator)
    async with pinned_workers(coordinator, (0, 4), (0, 4)) as workers:
        for far, near in (workers, workers[::-1]):
            legs = (
                ClientLeg(worker_id=far.worker_id, round_trip_s=0.05, is_connected=True),
                ClientLeg(worker_id=WorkerId("w-gone"), round_trip_s=0.0),
            )
            for private_blocks in (None, 1):
                wanted = route_request(client_legs=legs, private_blocks=private_blocks)
                grant = (await http.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
                assert [hop.worker_id for hop in grant.hops] == [near.worker_id]
    body = {"model": "tiny", "n_prompt_tokens": 1, "max_tokens": 1}
    for bad in (-1.0, 61.0):
        legs_said = [{"worker_id": "w", "round_trip_s": bad}]
        answer = await http.ask("POST", "/v1/routes", msgspec.json.encode(body | {"client_legs": legs_said}))
        assert answer.status == 400
        assert f"round_trip_s is {bad}; it must be between 0 and 60" in answer.read(ErrorAnswer).error.message


async def test_more_than_the_context_is_refused_with_the_numbers(
    coordinator: RunningCoordinator, http: Http
) -> None:
    await add_model(coordinator)
    answer = await http.ask("POST", "/v1/routes", route_request(100, 29))
    error = answer.read(ErrorAnswer).error
    assert (answer.status, error.code) == (400, "context_exceeded")
    for number in ("100", "29", "129", "128", "28"):
        assert number in error.message
    async with pinned_workers(coordinator, (0, 4)):
        assert (await http.ask("POST", "/v1/routes", route_request(100, 28))).status == 200


@pytest.mark.parametrize(
    ("n_prompt_tokens", "max_tokens"),
    [("0", "5"), ("-1", "5"), ("1", "0"), ("1", "-5"), ("1.5", "5"), ("1", "1e99")],
)
async def test_counts_that_no_generation_has_are_refused(http: Http, n_prompt_tokens: str, max_tokens: str) -> None:
    body = f'{{"model":"tiny","n_prompt_tokens":{n_prompt_tokens},"max_tokens":{max_tokens}}}'.encode()
    assert (await http.ask("POST", "/v1/routes", body)).status == 400


@pytest.mark.parametrize("asked", ["continues", "prefix"])
async def test_whatever_a_route_s_request_has_looked_up_a_database_that_is_away_is_said_so(
    coordinator: RunningCoordinator, http: Http, tmp_path: Path, asked: str
) -> None:
    await add_model(coordinator)
    session = SessionId("abc")
    named = session if asked == "continues" else SharedPrefix(session_id=session, n_positions=2)
    request = route_request(**{asked: named})
    assert (await http.ask("POST", "/v1/routes", request)).status in (404, 503)
    (tmp_path / "state" / "brigade.db").rename(tmp_path / "away.db")
    answer = await http.ask("POST", "/v1/routes", request)
    assert (answer.status, answer.read(ErrorAnswer).error.code) == (503, "database_away")
    assert int(answer.headers["Retry-After"]) >= 1
