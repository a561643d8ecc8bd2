"""Class 7. Defences: one salt and one tag per kind, expiry in every token, revocation, keys that rotate."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from itsdangerous import Signer

from coordinator.app import RunningCoordinator, utc_now_s
from coordinator.credentials import KEY_CACHE_S
from coordinator.joining import SESSION_TOKEN_LIFE_S
from coordinator.secret_files import GRACE
from protocol.api_key import api_key_from_text
from protocol.key_rest import CreatedKey, CreateKeyRequest
from protocol.messages import SessionEnded
from protocol.tickets import Claims, SessionToken, Ticket, sign_claims
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.joining import WorkerKey, enrolled
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation
from tests.support.tiny_checkpoint import TinyCheckpoint

Checkpoints = Callable[[str], TinyCheckpoint]


def signed_as(kind: type[Claims], claims: Claims, key: bytes) -> str:
    """The claims with a good signature, of another kind of token."""
    salt = f"brigade.{kind.__struct_config__.tag}.v1".encode()
    signer = Signer([key], salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
    return signer.sign(base64.urlsafe_b64encode(msgspec.msgpack.encode(claims))).decode()


async def status_with(coordinator: RunningCoordinator, credential: str) -> int:
    """What a worker's route answers; 400 is for who got in: the request is not a WebSocket."""
    async with http_session(coordinator, credential) as http:
        return (await http.ask("GET", "/v1/worker/control")).status


async def test_another_kinds_salt_signs_no_session_token(tmp_path: Path) -> None:
    """Fails if all kinds have one salt: key and contents are right here."""
    async with running_coordinator(tmp_path) as coordinator:
        token = SessionToken(worker_id=WorkerKey().worker_id, expires_at_s=utc_now_s() + 60)
        key = coordinator.authority.signing_keys[-1]
        assert await status_with(coordinator, signed_as(SessionToken, token, key)) == 400
        assert await status_with(coordinator, signed_as(Ticket, token, key)) == 401


async def test_another_kinds_salt_signs_no_ticket(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if all kinds have one salt, at the worker; and a session token is no ticket in any case."""
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        worker = ring.workers[0]
        generation = await Generation.prepared(ring, [1, 2])
        ticket = ring.ticket(generation.session_id, 0)
        token = SessionToken(worker_id=worker.worker_id, expires_at_s=utc_now_s() + 60)
        for text in (
            signed_as(SessionToken, ticket, worker.ticket_key),
            sign_claims(token, [worker.ticket_key]),
            signed_as(Ticket, token, worker.ticket_key),
        ):
            generation.tickets = [text]
            await generation.open()
            assert (await generation.head.receive(SessionEnded)).error.code == "unauthenticated"


async def test_one_workers_ticket_key_opens_no_other_worker(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Fails if tickets are signed with one key for all."""
    async with running_ring(checkpoint("llama"), tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, [1, 2])
        head = sign_claims(ring.ticket(generation.session_id, 0), [ring.workers[1].ticket_key])
        generation.tickets = [head, *generation.tickets[1:]]
        await generation.open()
        assert (await generation.head.receive(SessionEnded)).error.code == "unauthenticated"


async def test_a_session_token_expires(tmp_path: Path) -> None:
    """Fails if the expiry isn't looked at."""
    late_s = 0.0
    async with running_coordinator(tmp_path, clock=lambda: utc_now_s() + late_s) as coordinator:
        token = (await enrolled(coordinator, WorkerKey())).session_token
        assert await status_with(coordinator, token) == 400
        late_s = SESSION_TOKEN_LIFE_S + 1
        assert await status_with(coordinator, token) == 401


@pytest.mark.parametrize(
    ("expires_at_s", "code"),
    [
        (math.inf, "unauthenticated"),
        (math.nan, "unauthenticated"),
        (-math.inf, "unauthenticated"),
        (0.0, "clock_skew"),
    ],
)
async def test_a_ticket_without_an_end_opens_nothing(
    checkpoint: Checkpoints, tmp_path: Path, expires_at_s: float, code: str
) -> None:
    """Fails if an expiry that never comes is taken; 0 is one that is past, and no word for none."""
    async with running_ring(checkpoint("llama"), tmp_path) as ring:
        generation = await Generation.prepared(ring, [1, 2], expires_at_s=expires_at_s)
        await generation.open()
        assert (await generation.head.receive(SessionEnded)).error.code == code


async def test_a_revoked_key_is_refused_everywhere(tmp_path: Path) -> None:
    """Fails if a key can't be revoked, or is believed out of a cache for longer than `KEY_CACHE_S`."""
    late_s = 0.0
    async with (
        running_coordinator(tmp_path, clock=lambda: utc_now_s() + late_s) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as operator,
    ):
        made = (await operator.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="x"))).read(CreatedKey)
        async with http_session(coordinator, made.key) as http:
            assert (await http.ask("GET", "/v1/models")).status == 200
            # as another coordinator on the same database would do it: this one isn't told
            key_id = api_key_from_text(made.key).key_id
            await coordinator.repository.revoke_api_key(key_id, datetime.now(UTC))
            late_s = KEY_CACHE_S
            assert (await http.ask("GET", "/v1/models")).status == 401


async def test_signing_keys_rotate_and_old_ones_end(tmp_path: Path) -> None:
    """Fails if keys can't be replaced, or if replaced ones verify for ever."""
    async with running_coordinator(tmp_path) as coordinator:
        old_key = coordinator.authority.signing_keys[-1]
        forged = sign_claims(SessionToken(worker_id=WorkerKey().worker_id, expires_at_s=1e12), [old_key])
        coordinator.authority.secrets.rotate_signing_key(datetime.now(UTC))
        assert await status_with(coordinator, forged) == 400
        assert (await enrolled(coordinator, WorkerKey())).session_token
        coordinator.authority.secrets.rotate_signing_key(datetime.now(UTC) + GRACE + timedelta(seconds=1))
        assert old_key not in coordinator.authority.signing_keys
        assert await status_with(coordinator, forged) == 401
