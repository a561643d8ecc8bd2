"""What operators do: see the cluster, add and remove models, make and revoke keys, drain workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from coordinator.resources import named_worker
from protocol.api_key import api_key_from_text
from protocol.cluster_rest import AddModelRequest, ChangeModelRequest, ClusterStatus, WorkerInfo
from protocol.control_messages import Assign, Drain
from protocol.errors import ConfigError, InvalidRequestError
from protocol.ids import ModelName, Revision, WorkerId
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo, KeyList
from protocol.plan_rest import PlanInfo
from protocol.rest import ErrorAnswer, ModelInfo, ModelList
from tests.support.coordinators import Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker
from tests.support.stored_model import add_model


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def test_the_status_shows_models_and_workers(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        answer = await http.ask("GET", "/admin/v1/status")
        status = answer.read(ClusterStatus)
        assert (status.url, status.database) == (coordinator.url, "sqlite")
        assert [model.name for model in status.models] == ["tiny"]
        assert [(info.worker_id, info.url) for info in status.workers] == [(worker.worker_id, worker.url)]
        assert worker.grant.session_token.encode() not in answer.body
        assert worker.grant.ticket_key.encode() not in answer.body


async def test_a_plan_shows_who_would_hold_what(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        plan = (await http.ask("GET", "/admin/v1/plan?placement=one-stream")).read(PlanInfo)
        assert plan.placement == "one-stream"
        assert [(span.worker_id, str(span.blocks)) for span in plan.models[0].spans] == [(worker.worker_id, "0:4")]
        assert plan.models[0].planned is not None
        assert (await http.ask("GET", "/admin/v1/plan")).read(PlanInfo).placement == "balance"
        refused = await http.ask("GET", "/admin/v1/plan?placement=luck")
        assert refused.status == ConfigError.status
        assert "one-stream" in refused.read(ErrorAnswer).error.message


async def test_a_model_is_added_shown_and_removed(coordinator: RunningCoordinator, http: Http) -> None:
    model = await add_model(coordinator)
    assert [m.name for m in (await http.ask("GET", "/admin/v1/models")).read(ModelList).models] == ["tiny"]
    assert (await http.ask("GET", "/admin/v1/models/tiny")).read(ModelInfo).revision == model.revision
    removed = await http.ask("DELETE", "/admin/v1/models/tiny")
    assert (removed.status, removed.read(ModelInfo).revision) == (200, model.revision)
    assert (await http.ask("DELETE", "/admin/v1/models/tiny")).status == 404
    assert (await http.ask("GET", f"/v1/manifests/{model.revision}")).status == 404
    assert FileStore(coordinator.state_folder.files).hashes() == ()


async def test_workers_drop_the_spans_of_a_removed_model(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    async with joined_worker(coordinator) as worker:
        assign = await worker.receive(Assign)
        while not assign.spans:
            assign = await worker.receive(Assign)
        await worker.hold(assign)
        await http.ask("DELETE", "/admin/v1/models/tiny")
        dropped = await worker.receive(Assign)
        assert dropped.spans == ()
        assert dropped.epoch > assign.epoch


async def test_the_replicas_of_a_model_are_set_and_shown(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    answer = await http.ask("PATCH", "/admin/v1/models/tiny", ChangeModelRequest(n_replicas=2))
    assert (answer.status, answer.read(ModelInfo).n_replicas) == (200, 2)
    shown = (await http.ask("GET", "/admin/v1/models/tiny")).read(ModelInfo)
    assert shown.n_replicas == 2
    assert [model.n_replicas for model in (await coordinator.repository.load_state()).models] == [2]
    missing = await http.ask("PATCH", "/admin/v1/models/other", ChangeModelRequest(n_replicas=2))
    assert missing.status == 404


@pytest.mark.parametrize("body", [b'{"n_replicas": 0}', b'{"n_replicas": 1001}', b"{}"])
async def test_replicas_that_nobody_can_have_are_refused(
    coordinator: RunningCoordinator, http: Http, body: bytes
) -> None:
    await add_model(coordinator)
    answer = await http.ask("PATCH", "/admin/v1/models/tiny", body)
    assert answer.status == 400
    assert (await http.ask("GET", "/admin/v1/models/tiny")).read(ModelInfo).n_replicas == 1


async def test_a_model_that_is_not_in_the_store_is_refused(http: Http) -> None:
    request = AddModelRequest(name=ModelName("tiny"), revision=Revision("0" * 64))
    answer = await http.ask("POST", "/admin/v1/models", request)
    assert answer.status == 404
    assert "pack" in answer.read(ErrorAnswer).error.message


async def test_a_taken_name_is_a_conflict(coordinator: RunningCoordinator, http: Http) -> None:
    await add_model(coordinator)
    other = await add_model(coordinator, "other")
    request = AddModelRequest(name=ModelName("tiny"), revision=other.revision)
    assert (await http.ask("POST", "/admin/v1/models", request)).status == 409


async def test_a_new_key_works_until_it_is_revoked(coordinator: RunningCoordinator, http: Http) -> None:
    answer = await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name=" laptop "))
    created = answer.read(CreatedKey)
    assert answer.status == 201
    assert api_key_from_text(created.key).kind == "client"
    async with http_session(coordinator, created.key) as client:
        assert (await client.ask("GET", "/v1/models")).status == 200
        revoked = (await http.ask("DELETE", f"/admin/v1/keys/{created.key_id}")).read(KeyInfo)
        assert revoked.revoked_at is not None
        assert (await client.ask("GET", "/v1/models")).status == 401


async def test_keys_are_listed_without_their_secrets(http: Http) -> None:
    created = (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="ops", kind="admin"))).read(
        CreatedKey
    )
    answer = await http.ask("GET", "/admin/v1/keys")
    keys = {key.key_id: key for key in answer.read(KeyList).keys}
    assert (keys[created.key_id].name, keys[created.key_id].kind) == ("ops", "admin")
    assert keys[created.key_id].created_at.endswith("+00:00")
    assert api_key_from_text(created.key).secret.encode() not in answer.body
    assert len(keys) == 3


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "x" * 101, "\x1b[31m"])
async def test_a_key_needs_a_name_that_can_be_shown(http: Http, name: str) -> None:
    assert (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name=name))).status == 400


async def test_an_unknown_key_or_worker_is_not_found(http: Http) -> None:
    assert (await http.ask("DELETE", "/admin/v1/keys/nosuchid")).status == 404
    assert (await http.ask("POST", "/admin/v1/workers/w-nobody/drain")).status == 404


async def test_a_worker_is_named_by_the_beginning_of_its_id(coordinator: RunningCoordinator, http: Http) -> None:
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        assert (await http.ask("POST", f"/admin/v1/workers/{worker.worker_id[:5]}/drain")).status == 400
        assert (await http.ask("POST", "/admin/v1/workers/w-000/drain")).status == 404
        answer = await http.ask("POST", f"/admin/v1/workers/{worker.worker_id[:12]}/drain")
        assert answer.read(WorkerInfo).worker_id == worker.worker_id


def test_a_beginning_that_several_workers_have_names_none() -> None:
    with pytest.raises(InvalidRequestError, match="2 workers"):
        named_worker("w-aaaaaa", [WorkerId("w-aaaaaab"), WorkerId("w-aaaaaac")])


async def test_a_worker_is_told_to_drain(coordinator: RunningCoordinator, http: Http) -> None:
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        answer = await http.ask("POST", f"/admin/v1/workers/{worker.worker_id}/drain")
        assert answer.read(WorkerInfo).state == "draining"
        assert (await worker.receive(Drain)).reason
