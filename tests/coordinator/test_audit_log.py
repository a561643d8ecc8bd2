"""The audit log: who did what to what, before and after; it grows and is never changed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from coordinator.app import RunningCoordinator
from coordinator.file_store import FileStore
from coordinator.openapi_api import described_routes
from protocol.admin_rest import AuditEntry, AuditPage, ChangeKeyRequest, RotateKeyRequest
from protocol.api_key import api_key_from_text
from protocol.assignment_rest import MoveRequest, PinRequest
from protocol.author_keys import author_key_of
from protocol.author_rest import AddAuthorRequest
from protocol.cluster_rest import AddModelRequest, ChangeModelRequest, WorkerInfo
from protocol.control_messages import Assign
from protocol.errors import StorageError
from protocol.ids import ModelName
from protocol.invite_rest import CreatedInvite, CreateInviteRequest
from protocol.key_limits import LimitsChange
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.quota_rest import OwnerRequest
from protocol.rest import ErrorAnswer, RouteGrant, RouteRequest
from protocol.secret_rest import RotateSecretRequest
from protocol.settings_rest import ChangeSettingsRequest
from protocol.trust_rest import TrustRequest
from tests.support.coordinators import Answer, Http, http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker
from tests.support.stored_model import add_model, stored_model
from tests.support.waiting import eventually, eventually_answered


async def entries(http: Http, query: str = "") -> tuple[AuditEntry, ...]:
    return (await http.ask("GET", f"/admin/v1/audit?{query}")).read(AuditPage).entries


async def every_act(coordinator: RunningCoordinator, http: Http) -> None:
    """One of each that an operator can do."""
    await add_model(coordinator)
    created = (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="laptop"))).read(CreatedKey)
    key = f"/admin/v1/keys/{created.key_id}"
    await http.ask("PATCH", f"{key}/limits", LimitsChange(max_concurrent=3))
    await http.ask("DELETE", key)
    await http.ask("PATCH", "/admin/v1/models/tiny", ChangeModelRequest(n_replicas=2))
    async with joined_worker(coordinator) as worker:
        await worker.receive(Assign)
        path = f"/admin/v1/workers/{worker.worker_id}"
        await http.ask("PATCH", f"{path}/owner", OwnerRequest(owner="anna"))
        await http.ask("POST", f"{path}/trust", TrustRequest(action="pin", score=0.9))
        await http.ask("POST", f"{path}/trust", TrustRequest(action="unpin"))
        await http.ask("POST", f"{path}/drain")
        await http.ask("POST", f"{path}/trust", TrustRequest(action="ban", reason="it lies"))
        await http.ask("POST", f"{path}/trust", TrustRequest(action="pardon"))
        await http.ask("DELETE", path)
    await http.ask("DELETE", "/admin/v1/models/tiny")


async def test_each_act_of_an_operator_says_who_and_what_was_before_and_after(
    tmp_path: Path, database_url: str
) -> None:
    async with (
        running_coordinator(tmp_path, database_url=database_url) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
    ):
        await every_act(coordinator, http)
        admin = f"key:{api_key_from_text(key_of(coordinator, 'admin')).key_id}"
        found = {entry.action: entry for entry in await entries(http, f"who={admin}")}

        def change(action: str, name: str) -> tuple[object, object]:
            entry = found[action]
            return (entry.before or {}).get(name), (entry.after or {}).get(name)

        assert change("key_created", "name") == (None, "laptop")
        assert change("key_limits_changed", "limits") == ({}, {"max_concurrent": 3})
        assert change("key_revoked", "revoked_at")[0] is None
        assert change("key_revoked", "revoked_at")[1] is not None
        assert change("model_added", "n_replicas") == (None, 1)
        assert change("replicas_asked", "n_replicas") == (1, 2)
        assert change("model_removed", "n_replicas") == (2, None)
        assert change("worker_owner_set", "owner") == ("", "anna")
        assert change("trust_pinned", "pinned") == (None, 0.9)
        assert change("trust_unpinned", "pinned") == (0.9, None)
        assert change("worker_banned", "banned_reason") == (None, "it lies")
        assert change("worker_pardoned", "banned_reason") == ("it lies", None)
        assert {"drain_asked", "worker_removed"} <= found.keys()
        assert [entry.who for entry in await entries(http, "action=worker_joined")] == ["coordinator"]
        at = found["key_revoked"].at.replace("+00:00", "Z")
        assert found["key_created"] not in await entries(http, f"since={at}")
        assert found["key_created"] in await entries(http, f"until={at}")
        refused = (await http.ask("GET", "/admin/v1/audit?since=2026-11-23")).read(ErrorAnswer).error.message
        assert refused.endswith("; a time is written as 2026-11-01T00:00:00Z")
        for statement in ("UPDATE audit_log SET who = 'nobody'", "DELETE FROM audit_log"):
            with pytest.raises(StorageError):
                async with coordinator.repository.transactions.writing() as session:
                    await session.execute(text(statement))
        assert found["key_created"] in await entries(http)


CHANGES_NOTHING = {"POST /admin/v1/assignments/preview"}
MOVES_IF_WORTH_IT = {"POST /admin/v1/plan"}
"""Its line, `replanned`, is tested where there is something to move."""
ITS_OWN_COOKIE = {"DELETE /dashboard/session"}
"""Signs a browser out; its line is tested in test_dashboard_api.py."""
MAKES = {"key_created", "invite_created", "model_added", "author_added", "assignment_pinned", "assignment_moved"}
ENDS = {"author_removed", "model_removed", "worker_removed", "assignment_unpinned"}
FOUND = {"audit_asked"}


class Acting:
    """An operator each of whose acts is to be found in the log."""

    def __init__(self, http: Http, admin: str) -> None:
        self.http = http
        self.admin = admin
        self.done: set[str] = set()

    async def __call__(self, method: str, route: str, body: Any = None, **names: str) -> Answer:
        """One act, by a route as it is described; it succeeds, and the log says who, what, before and after."""
        seen = {entry.entry_id for entry in await entries(self.http)}
        answer = await self.http.ask(method, f"/admin/v1{route}".format(**names), body)
        assert answer.status < 300, (route, answer.body)
        fresh = [entry for entry in await entries(self.http, f"who={self.admin}") if entry.entry_id not in seen]
        assert fresh, route
        act = fresh[-1]
        assert act.before is not None or act.action in MAKES | FOUND, act
        assert act.after is not None or act.action in ENDS | FOUND, act
        self.done.add(f"{method} /admin/v1{route}")
        return answer


async def test_every_route_that_changes_something_writes_who_and_before_and_after(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
    ):
        act = Acting(http, f"key:{api_key_from_text(key_of(coordinator, 'admin')).key_id}")
        await _change_cluster(act)
        await _change_keys(act)
        model = await asyncio.to_thread(lambda: stored_model(FileStore(coordinator.state_folder.files)))
        await act("POST", "/models", AddModelRequest(name=ModelName("tiny"), revision=model.revision))
        await act("PATCH", "/models/{name}", ChangeModelRequest(n_replicas=2), name="tiny")
        await _change_workers(act, coordinator)
        await act("DELETE", "/models/{name}", name="tiny")
        described = {
            f"{route.method} {route.path}"
            for route in described_routes(coordinator.application)
            if route.access == "admin" and route.method != "GET"
        }
        assert described - act.done == CHANGES_NOTHING | MOVES_IF_WORTH_IT | ITS_OWN_COOKIE


async def _change_cluster(act: Acting) -> None:
    await act("PATCH", "/settings", ChangeSettingsRequest(settings={"placement": "one-stream"}))
    await act("POST", "/secrets/join/rotate", RotateSecretRequest())
    await act("POST", "/secrets/signing-key/rotate", RotateSecretRequest())
    request = CreateInviteRequest(urls=("https://coordinator:7400",))
    invite = (await act("POST", "/invites", request)).read(CreatedInvite)
    await act("DELETE", "/invites/{invite_id}", invite_id=invite.info.invite_id)
    author = author_key_of(Ed25519PrivateKey.generate())
    await act("POST", "/authors", AddAuthorRequest(name="Ada", key=author))
    await act("DELETE", "/authors/{key}", key=author)


async def _change_keys(act: Acting) -> None:
    key_id = (await act("POST", "/keys", CreateKeyRequest(name="laptop"))).read(CreatedKey).key_id
    await act("PATCH", "/keys/{key_id}", ChangeKeyRequest(name="phone"), key_id=key_id)
    await act("PATCH", "/keys/{key_id}/owner", OwnerRequest(owner="anna"), key_id=key_id)
    await act("PATCH", "/keys/{key_id}/limits", LimitsChange(max_concurrent=3), key_id=key_id)
    await act("POST", "/keys/{key_id}/rotate", RotateKeyRequest(), key_id=key_id)
    await act("DELETE", "/keys/{key_id}", key_id=key_id)


async def _change_workers(act: Acting, coordinator: RunningCoordinator) -> None:
    async with joined_worker(coordinator) as one, joined_worker(coordinator) as other:
        for worker in (one, other):
            await worker.receive(Assign)
        names = {"worker_id": one.worker_id}
        await act("PATCH", "/workers/{worker_id}/owner", OwnerRequest(owner="anna"), **names)
        await act("POST", "/workers/{worker_id}/trust", TrustRequest(action="pin", score=0.9), **names)
        pin = PinRequest(model="tiny", blocks="0:4", force=True)
        await act("PUT", "/workers/{worker_id}/assignment", pin, **names)
        epoch = coordinator.cluster.state.workers[one.worker_id].assignment.epoch
        while (assign := await one.receive(Assign)).epoch < epoch:  # of what was placed before the pin
            pass
        await one.hold(assign)
        await eventually(lambda: len(coordinator.cluster.state.workers[one.worker_id].ready) == 1)
        async with http_session(coordinator, key_of(coordinator, "client")) as client:
            wanted = RouteRequest(model=ModelName("tiny"), n_prompt_tokens=5, max_tokens=7)
            session_id = (await client.ask("POST", "/v1/routes", wanted)).read(RouteGrant).session_id
        await act("DELETE", "/generations/{session_id}", session_id=session_id)
        await act("POST", "/workers/{worker_id}/audits", **names)
        await act("POST", "/workers/{worker_id}/drain", **names)
        await act("POST", "/workers/{worker_id}/undrain", **names)
        move = MoveRequest(model="tiny", blocks="2:4", takes_from=one.worker_id, worker=other.worker_id, force=True)
        await act("POST", "/assignments/move", move)
        await act("DELETE", "/workers/{worker_id}/assignment", **names)
        await act("POST", "/workers/{worker_id}/trust", TrustRequest(action="ban"), **names)
        path = f"/admin/v1/workers/{one.worker_id}"

        async def is_gone() -> bool:
            return (await act.http.ask("GET", path)).read(WorkerInfo).state == "gone"

        await eventually_answered(is_gone)
        await act("DELETE", "/workers/{worker_id}", **names)
