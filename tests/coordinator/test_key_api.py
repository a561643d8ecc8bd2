"""What operators do with API keys beyond making and revoking them: show, rename, rotate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator
from protocol.admin_rest import MAX_GRACE_S, AuditPage, ChangeKeyRequest, RotatedKey, RotateKeyRequest
from protocol.api_key import api_key_from_text
from protocol.key_limits import KeyLimits
from protocol.key_rest import CreatedKey, CreateKeyRequest, KeyInfo
from tests.support.clocks import Clock
from tests.support.coordinators import Http, http_session, key_of, running_coordinator


@pytest.fixture
def clock() -> Clock:
    return Clock(1_790_000_000.0)


@pytest.fixture
async def coordinator(tmp_path: Path, clock: Clock) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path, clock=clock) as running:
        yield running


@pytest.fixture
async def http(coordinator: RunningCoordinator) -> AsyncIterator[Http]:
    async with http_session(coordinator, key_of(coordinator, "admin")) as session:
        yield session


async def status_with(coordinator: RunningCoordinator, key: str) -> int:
    async with http_session(coordinator, key) as session:
        return (await session.ask("GET", "/v1/models")).status


async def test_a_rotated_key_has_two_secrets_until_its_grace_is_over(
    coordinator: RunningCoordinator, http: Http, clock: Clock
) -> None:
    request = CreateKeyRequest(name="laptop", limits=KeyLimits(max_concurrent=3))
    old = (await http.ask("POST", "/admin/v1/keys", request)).read(CreatedKey)
    path = f"/admin/v1/keys/{old.key_id}"
    rotated = (await http.ask("POST", f"{path}/rotate", RotateKeyRequest(grace_s=600))).read(RotatedKey)
    assert rotated.key_id == old.key_id
    assert [await status_with(coordinator, key) for key in (old.key, rotated.key)] == [200, 200]
    shown = (await http.ask("GET", path)).read(KeyInfo)
    assert (shown.limits.max_concurrent, shown.old_until) == (3, rotated.old_until)
    clock.now_s += 601
    assert [await status_with(coordinator, key) for key in (old.key, rotated.key)] == [401, 200]
    newest = (await http.ask("POST", f"{path}/rotate", RotateKeyRequest(grace_s=0))).read(RotatedKey)
    keys = (old.key, rotated.key, newest.key)
    assert [await status_with(coordinator, key) for key in keys] == [401, 401, 200]
    log = await http.ask("GET", f"/admin/v1/audit?subject={old.key_id}")
    for key in keys:
        assert api_key_from_text(key).secret.encode() not in log.body


async def test_a_renamed_key_stays_the_same_key(coordinator: RunningCoordinator, http: Http) -> None:
    made = (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="laptop"))).read(CreatedKey)
    path = f"/admin/v1/keys/{made.key_id}"
    assert (await http.ask("PATCH", path, ChangeKeyRequest(name=" phone "))).read(KeyInfo).name == "phone"
    assert await status_with(coordinator, made.key) == 200
    entry = (await http.ask("GET", "/admin/v1/audit?action=key_renamed")).read(AuditPage).entries[0]
    assert entry.who == f"key:{api_key_from_text(key_of(coordinator, 'admin')).key_id}"
    assert entry.before is not None
    assert entry.after is not None
    assert (entry.before["name"], entry.after["name"]) == ("laptop", "phone")


async def test_what_cannot_be_changed_is_refused(http: Http) -> None:
    made = (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="laptop"))).read(CreatedKey)
    path = f"/admin/v1/keys/{made.key_id}"
    for body in (b'{"grace_s": -1}', f'{{"grace_s": {MAX_GRACE_S + 1}}}'.encode()):
        assert (await http.ask("POST", f"{path}/rotate", body)).status == 400
    assert (await http.ask("PATCH", path, ChangeKeyRequest(name="a\nb"))).status == 400
    await http.ask("DELETE", path)
    assert (await http.ask("POST", f"{path}/rotate", RotateKeyRequest())).status == 409
    for method, missing in (("GET", ""), ("PATCH", ""), ("POST", "/rotate")):
        body = None if method == "GET" else b'{"name": "a"}' if method == "PATCH" else b"{}"
        assert (await http.ask(method, f"/admin/v1/keys/nosuchid{missing}", body)).status == 404
