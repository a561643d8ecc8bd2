"""Of two operators who change one thing at once, exactly one wins, and who reads again knows it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from coordinator.app import RunningCoordinator
from coordinator.etags import check_preconditions
from coordinator.keys import ACCESS, ROUTE_DOCS, TURNS
from coordinator.middleware import add_route, json_answer
from coordinator.route_docs import Resource, RouteDoc
from coordinator.turns import Turns
from protocol.admin_rest import ChangeKeyRequest
from protocol.control_messages import Assign
from protocol.errors import StorageError
from protocol.key_limits import LimitsChange
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo
from protocol.quota_rest import OwnerRequest
from protocol.rest import ErrorAnswer
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def new_key(http: Http) -> str:
    created = (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="laptop"))).read(CreatedKey)
    return f"/admin/v1/keys/{created.key_id}"


async def test_of_changes_of_one_state_exactly_one_is_made(tmp_path: Path, database_url: str) -> None:
    async with (
        running_coordinator(tmp_path, database_url=database_url) as running,
        http_session(running, key_of(running, "admin")) as http,
    ):
        await race(http)


async def race(http: Http) -> None:
    path = await new_key(http)
    etag = (await http.ask("GET", path)).headers["ETag"]
    names = [f"name {number}" for number in range(5)]
    answers = await asyncio.gather(
        *(http.ask("PATCH", path, ChangeKeyRequest(name=name), headers={"If-Match": etag}) for name in names),
        http.ask("PATCH", f"{path}/limits", LimitsChange(max_concurrent=3), headers={"If-Match": etag}),
    )
    assert sorted(answer.status for answer in answers) == [200, 412, 412, 412, 412, 412]
    (winner,) = [answer for answer in answers if answer.status == 200]
    now = await http.ask("GET", path)
    assert now.read(KeyInfo) == winner.read(KeyInfo)
    refused = next(answer for answer in answers if answer.status == 412)
    assert refused.read(ErrorAnswer).error.code == "precondition_failed"
    again = await http.ask(
        "PATCH", path, ChangeKeyRequest(name="again"), headers={"If-Match": refused.headers["ETag"]}
    )
    assert again.status == 200


async def test_an_unconditional_change_is_made_and_spoils_older_etags(http: Http) -> None:
    path = await new_key(http)
    etag = (await http.ask("GET", path)).headers["ETag"]
    assert (await http.ask("PATCH", path, ChangeKeyRequest(name="other"))).status == 200
    assert (await http.ask("DELETE", path, headers={"If-Match": etag})).status == 412
    assert (await http.ask("DELETE", path, headers={"If-Match": "*"})).status == 200


async def test_who_has_it_already_gets_nothing_and_a_header_that_is_no_etag_is_named(http: Http) -> None:
    path = await new_key(http)
    etag = (await http.ask("GET", path)).headers["ETag"]
    same = await http.ask("GET", path, headers={"If-None-Match": etag})
    assert (same.status, same.body, same.headers["ETag"]) == (304, b"", etag)
    await http.ask("PATCH", path, ChangeKeyRequest(name="other"))
    assert (await http.ask("GET", path, headers={"If-None-Match": etag})).status == 200
    refused = await http.ask("PATCH", path, ChangeKeyRequest(name="b"), headers={"If-Match": "yesterday"})
    assert refused.status == 400
    assert "If-Match" in refused.read(ErrorAnswer).error.message


async def test_a_condition_that_cannot_be_looked_at_is_refused_not_passed_over(http: Http) -> None:
    body = CreateKeyRequest(name="laptop")
    refused = await http.ask("POST", "/admin/v1/keys", body, headers={"If-Match": '"1a2b"'})
    assert refused.status == 400
    assert "If-Match can't be heeded here: POST '/admin/v1/keys'" in refused.read(ErrorAnswer).error.message
    assert (await http.ask("POST", "/admin/v1/keys", body)).status == 201
    assert (await http.ask("GET", "/admin/v1/keys", headers={"If-Match": '"1a2b"'})).status == 200
    assert (await http.ask("POST", "/admin/v1/nothing", body, headers={"If-Match": '"1a2b"'})).status == 404


async def test_what_a_worker_does_spoils_no_etag_and_what_an_operator_does_does(
    coordinator: RunningCoordinator, http: Http
) -> None:
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        path = f"/admin/v1/workers/{worker.worker_id}"
        etag = (await http.ask("GET", path)).headers["ETag"]
        await worker.beat()
        owner = OwnerRequest(owner="anna")
        assert (await http.ask("PATCH", f"{path}/owner", owner, headers={"If-Match": etag})).status == 200
        drain = await http.ask("POST", f"{path}/drain", headers={"If-Match": etag})
        assert drain.status == 412


class Thing(msgspec.Struct):
    n_changes: int


async def test_a_change_whose_new_state_cannot_be_read_was_made_all_the_same() -> None:
    things = [Thing(0)]

    async def change(_request: web.Request) -> web.Response:
        things.append(Thing(len(things)))
        return json_answer(things[-1])

    async def view(_request: web.Request) -> Thing:
        if len(things) > 1:
            raise StorageError("the database is away")
        return things[-1]

    app = web.Application(middlewares=[check_preconditions])
    app[ACCESS], app[ROUTE_DOCS], app[TURNS] = {}, {}, Turns()
    resource = Resource(name=lambda _request: "thing", view=view)
    add_route(app, "open", "PATCH", "/thing", change, RouteDoc("Change it.", answer=Thing, resource=resource))
    async with TestClient(TestServer(app)) as client:
        answer = await client.patch("/thing")
        assert (answer.status, "ETag" in answer.headers, len(things)) == (200, False, 2)
