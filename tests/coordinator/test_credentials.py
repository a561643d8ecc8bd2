from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.credentials import KEY_CACHE_S, Authenticator, KeyCaller, WorkerCaller
from protocol.api_key import ApiKey, api_key_from_text, new_api_key
from protocol.errors import ForbiddenError, UnauthenticatedError
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.rest import ErrorAnswer
from protocol.tickets import SessionToken, Ticket, sign_claims, ticket_key
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.scripted_worker import joined_worker

WORKER = WorkerId("w-" + "a" * 26)


@pytest.fixture
async def coordinator(tmp_path: Path) -> AsyncIterator[RunningCoordinator]:
    async with running_coordinator(tmp_path) as running:
        yield running


@pytest.fixture
def authenticator(coordinator: RunningCoordinator) -> Authenticator:
    return Authenticator(coordinator.authority, coordinator.repository, utc_now_s)


def bearer(text: str) -> list[str]:
    return [f"Bearer {text}"]


def session_token(coordinator: RunningCoordinator, life_s: float = 60.0) -> str:
    token = SessionToken(worker_id=WORKER, expires_at_s=utc_now_s() + life_s)
    return sign_claims(token, coordinator.authority.signing_keys)


PATHS = {
    "worker": ("POST", "/v1/worker/sources"),
    "client": ("GET", "/v1/models"),
    "reader": ("GET", "/v1/manifests/" + "0" * 64),
    "admin": ("GET", "/admin/v1/status"),
}
MAY = {"worker": {"worker", "reader"}, "client": {"client", "reader"}, "admin": {"client", "reader", "admin"}}


@pytest.mark.parametrize("kind", ["worker", "client", "admin"])
async def test_each_kind_opens_its_own_doors_only(coordinator: RunningCoordinator, kind: str) -> None:
    async with joined_worker(coordinator) as worker:
        token = worker.grant.session_token if kind == "worker" else key_of(coordinator, kind)
        async with http_session(coordinator, token) as http:
            for access, (method, path) in PATHS.items():
                answer = await http.ask(method, path)
                if access in MAY[kind]:
                    assert answer.status not in (401, 403), (kind, access)
                else:
                    assert answer.status == 403, (kind, access)


async def test_without_a_credential_every_door_is_shut(coordinator: RunningCoordinator) -> None:
    async with http_session(coordinator) as http:
        for method, path in PATHS.values():
            answer = await http.ask(method, path)
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            assert answer.read(ErrorAnswer).error.code == "unauthenticated"


async def test_the_callers_are_told_apart(coordinator: RunningCoordinator, authenticator: Authenticator) -> None:
    client_key = api_key_from_text(key_of(coordinator, "client"))
    assert await authenticator.caller("client", bearer(client_key.text())) == KeyCaller(
        key_id=client_key.key_id, kind="client"
    )
    caller = await authenticator.caller("worker", bearer(session_token(coordinator)))
    expected = ticket_key(coordinator.authority.signing_keys[-1], WORKER)
    assert caller == WorkerCaller(worker_id=WORKER, ticket_key=expected, token_until_s=caller.token_until_s)
    assert expected.hex() not in repr(caller)


async def test_unknown_keys_wrong_secrets_and_other_clusters_get_one_answer(
    coordinator: RunningCoordinator, authenticator: Authenticator
) -> None:
    good = api_key_from_text(key_of(coordinator, "client"))
    admin = api_key_from_text(key_of(coordinator, "admin"))
    fresh = new_api_key("client", good.ca_fingerprint)
    wrong: list[ApiKey] = [
        fresh,
        replace(good, secret=fresh.secret),
        replace(good, ca_fingerprint="0" * 64),
        replace(good, kind="admin"),
        replace(admin, kind="client"),
        replace(good, key_id=admin.key_id),
    ]
    messages = set()
    for key in wrong:
        with pytest.raises(UnauthenticatedError) as caught:
            await authenticator.caller("client", bearer(key.text()))
        messages.add(caught.value.message)
    assert len(messages) == 1


async def test_a_revoked_key_is_refused_at_once_here_and_soon_elsewhere(coordinator: RunningCoordinator) -> None:
    now = [1000.0]
    authenticator = Authenticator(coordinator.authority, coordinator.repository, lambda: now[0])
    key = api_key_from_text(key_of(coordinator, "client"))
    shown = bearer(key.text())
    await authenticator.caller("client", shown)
    await coordinator.repository.revoke_api_key(key.key_id, datetime.now(UTC))
    await authenticator.caller("client", shown)  # remembered: at most KEY_CACHE_S
    now[0] += KEY_CACHE_S
    with pytest.raises(UnauthenticatedError):
        await authenticator.caller("client", shown)
    assert KEY_CACHE_S < 5.0


async def test_a_ticket_is_no_session_token(coordinator: RunningCoordinator, authenticator: Authenticator) -> None:
    ticket = Ticket(
        expires_at_s=utc_now_s() + 60,
        worker_id=WORKER,
        session_id=SessionId("s"),
        model=ModelName("m"),
        revision=Revision("r"),
        blocks=BlockRange(0, 1),
        epoch=1,
        previous=None,
        next=None,
        next_url=None,
        head=WORKER,
        head_url="https://10.0.0.1:1",
        tail=WORKER,
        max_positions=1,
    )
    with pytest.raises(UnauthenticatedError):
        await authenticator.caller("worker", bearer(sign_claims(ticket, coordinator.authority.signing_keys)))


async def test_an_expired_token_says_so_and_an_altered_one_does_not(
    coordinator: RunningCoordinator, authenticator: Authenticator
) -> None:
    with pytest.raises(UnauthenticatedError, match="expired"):
        await authenticator.caller("worker", bearer(session_token(coordinator, -5.0)))
    token = session_token(coordinator)
    with pytest.raises(UnauthenticatedError, match="doesn't verify"):
        await authenticator.caller("worker", bearer(token[:-4] + "AAAA"))


async def test_an_older_signing_key_still_verifies_and_gives_its_own_ticket_key(
    coordinator: RunningCoordinator, authenticator: Authenticator
) -> None:
    token = session_token(coordinator)
    old_key = coordinator.authority.signing_keys[-1]
    coordinator.authority.secrets.rotate_signing_key(datetime.now(UTC))
    caller = await authenticator.caller("worker", bearer(token))
    assert isinstance(caller, WorkerCaller)
    assert caller.ticket_key == ticket_key(old_key, WORKER)


@pytest.mark.parametrize("headers", [[], ["Bearer"], ["Bearer "], ["Basic abc"], ["Bearer a", "Bearer b"]])
async def test_anything_but_one_bearer_header_is_refused(authenticator: Authenticator, headers: list[str]) -> None:
    with pytest.raises(UnauthenticatedError, match="Authorization"):
        await authenticator.caller("client", headers)


async def test_a_good_key_of_another_kind_is_told_what_is_needed(
    coordinator: RunningCoordinator, authenticator: Authenticator
) -> None:
    with pytest.raises(ForbiddenError, match="of kind admin"):
        await authenticator.caller("admin", bearer(key_of(coordinator, "client")))
