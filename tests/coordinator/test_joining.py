"""Joining: who is let in, who isn't, and what a stranger learns."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from coordinator.authority import Authority
from coordinator.joining import AttemptLimiter, ChallengeStore, Joining
from coordinator.policy.ratelimit import RateLimit
from coordinator.state_folder import StateFolder
from protocol.codec import decode_json, encode_json
from protocol.errors import (
    BrigadeError,
    ClockSkewError,
    InvalidRequestError,
    OverloadedError,
    ProtocolVersionError,
    WrongSecretError,
)
from protocol.handshake import JOIN_PURPOSE, Transcript, is_proof_valid, join_key, join_proof
from protocol.ids import CoordinatorId, WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.tickets import SessionToken, ticket_key, verified_claims
from protocol.worker_rest import ChallengeRequest, JoinGrant, JoinRequest
from tests.support.joining import WorkerKey

NOW = datetime(2026, 6, 1, tzinfo=UTC)


class Door:
    """A `Joining`, a clock to turn, and a worker that does its part."""

    def __init__(self, folder: Path) -> None:
        self.now_s = NOW.timestamp()
        self.authority = Authority(StateFolder(folder), now=NOW)
        self.joining = Joining(self.authority, lambda: self.now_s)
        self.secret = (folder / "join-secret").read_text().strip()
        self.key = WorkerKey()
        self.nonce = secrets.token_hex(32)

    def challenge(self, version: str = PROTOCOL_VERSION) -> str:
        request = ChallengeRequest(protocol_version=version, worker_id=self.key.worker_id, client_nonce=self.nonce)
        return self.joining.challenge(request).server_nonce

    def request(self, server_nonce: str, **changes: object) -> JoinRequest:
        fields = {
            "worker_id": self.key.worker_id,
            "client_nonce": self.nonce,
            "server_nonce": server_nonce,
            "certificate_request_pem": self.key.certificate_request_pem(),
            "time_s": self.now_s,
        }
        return JoinRequest(**(fields | changes))  # type: ignore[arg-type]

    def transcript(self, request: JoinRequest, **changes: object) -> Transcript:
        fields = {
            "version": PROTOCOL_VERSION,
            "purpose": JOIN_PURPOSE,
            "coordinator_id": self.authority.coordinator_id,
            "worker_id": request.worker_id,
            "client_nonce": request.client_nonce,
            "server_nonce": request.server_nonce,
            "tls_fingerprint": self.authority.server_fingerprint,
            "body": encode_json(request),
        }
        return Transcript(**(fields | changes))  # type: ignore[arg-type]

    def proof(self, request: JoinRequest, **changes: object) -> str:
        return join_proof(join_key(self.secret), self.transcript(request, **changes), "worker")


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path / "state")


async def refusal(door: Door, request: JoinRequest, proof: str) -> BrigadeError:
    with pytest.raises(BrigadeError) as caught:
        await door.joining.grant(encode_json(request), proof)
    return caught.value


async def test_the_right_proof_is_granted_credentials_that_verify(door: Door) -> None:
    request = door.request(door.challenge())
    granted = await door.joining.grant(encode_json(request), door.proof(request))
    grant = decode_json(granted.body, JoinGrant)
    token = verified_claims(grant.session_token, SessionToken, door.authority.signing_keys, door.now_s)
    assert token.worker_id == granted.worker_id == door.key.worker_id
    assert token.expires_at_s == door.now_s + 24 * 3600
    assert bytes.fromhex(grant.ticket_key) == ticket_key(door.authority.signing_keys[-1], door.key.worker_id)
    ours = door.transcript(request, body=granted.body)
    assert is_proof_valid(join_key(door.secret), ours, "coordinator", granted.proof)


async def test_a_challenge_is_good_once(door: Door) -> None:
    request = door.request(door.challenge())
    await door.joining.grant(encode_json(request), door.proof(request))
    assert isinstance(await refusal(door, request, door.proof(request)), WrongSecretError)


async def test_a_failed_attempt_uses_the_challenge_up(door: Door) -> None:
    request = door.request(door.challenge())
    await refusal(door, request, "0" * 64)
    assert isinstance(await refusal(door, request, door.proof(request)), WrongSecretError)


async def test_a_challenge_ends_after_30_s(door: Door) -> None:
    request = door.request(door.challenge())
    door.now_s += 30.0
    assert isinstance(await refusal(door, request, door.proof(request)), WrongSecretError)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "1.1"},
        {"purpose": "POST /v1/other"},
        {"coordinator_id": CoordinatorId("c-other")},
        {"tls_fingerprint": b"\0" * 32},
        {"body": b"{}"},
        {"client_nonce": "0" * 64},
        {"server_nonce": "0" * 64},
        {"worker_id": WorkerId("w-" + "a" * 26)},
    ],
    ids=lambda changes: next(iter(changes)),
)
async def test_a_proof_over_anything_else_is_refused(door: Door, changes: dict[str, object]) -> None:
    request = door.request(door.challenge())
    assert isinstance(await refusal(door, request, door.proof(request, **changes)), WrongSecretError)


async def test_strangers_get_one_answer_whatever_was_wrong(door: Door) -> None:
    unknown_challenge = door.request("0" * 64)
    wrong_clock = door.request(door.challenge(), time_s=0.0)
    bad_csr = door.request(door.challenge(), certificate_request_pem="no request")
    wrong = "0" * 64
    messages = {(await refusal(door, r, wrong)).message for r in (unknown_challenge, wrong_clock, bad_csr)}
    assert len(messages) == 1


async def test_the_role_of_the_coordinator_does_not_let_in(door: Door) -> None:
    request = door.request(door.challenge())
    reflected = join_proof(join_key(door.secret), door.transcript(request), "coordinator")
    assert isinstance(await refusal(door, request, reflected), WrongSecretError)


async def test_another_worker_cannot_use_the_challenge(door: Door) -> None:
    other = WorkerKey()
    request = door.request(
        door.challenge(), worker_id=other.worker_id, certificate_request_pem=other.certificate_request_pem()
    )
    assert isinstance(await refusal(door, request, door.proof(request)), WrongSecretError)


async def test_the_id_must_be_that_of_the_requests_key(door: Door) -> None:
    request = door.request(door.challenge(), certificate_request_pem=WorkerKey().certificate_request_pem())
    assert isinstance(await refusal(door, request, door.proof(request)), WrongSecretError)


@pytest.mark.parametrize("off", [timedelta(hours=1), timedelta(hours=-1), timedelta(seconds=301)])
async def test_a_clock_that_is_off_is_told_both_times(door: Door, off: timedelta) -> None:
    request = door.request(door.challenge(), time_s=door.now_s + off.total_seconds())
    error = await refusal(door, request, door.proof(request))
    assert isinstance(error, ClockSkewError)
    assert (NOW + off).isoformat() in error.message
    assert NOW.isoformat() in error.message
    assert f"{abs(off.total_seconds()):.0f} s" in error.message


async def test_an_absurd_clock_is_refused(door: Door) -> None:
    request = door.request(door.challenge(), time_s=1e300)
    assert isinstance(await refusal(door, request, door.proof(request)), ClockSkewError)


async def test_another_major_version_is_refused_before_anything_else(door: Door) -> None:
    with pytest.raises(ProtocolVersionError):
        door.challenge("2.0")


async def test_another_minor_version_joins(door: Door) -> None:
    request = door.request(door.challenge("1.7"))
    granted = await door.joining.grant(encode_json(request), door.proof(request, version="1.7"))
    assert granted.worker_id == door.key.worker_id


@pytest.mark.parametrize("nonce", ["", "ab" * 31, "AB" * 32, "xy" * 32])
async def test_a_nonce_that_is_none_is_refused(door: Door, nonce: str) -> None:
    door.nonce = nonce
    with pytest.raises(InvalidRequestError):
        door.challenge()


async def test_the_previous_secret_admits_after_a_rotation(door: Door) -> None:
    door.authority.secrets.rotate_join_secret(NOW)
    request = door.request(door.challenge())
    granted = await door.joining.grant(encode_json(request), door.proof(request))
    ours = door.transcript(request, body=granted.body)
    assert is_proof_valid(join_key(door.secret), ours, "coordinator", granted.proof)


def test_open_challenges_are_bounded_and_the_oldest_goes_first() -> None:
    store = ChallengeStore()
    request = ChallengeRequest(protocol_version="1.0", worker_id=WorkerId("w-" + "a" * 26), client_nonce="0" * 64)
    nonces = [store.add(request, 0.0) for _ in range(1025)]
    assert len(store) == 1024
    assert store.take(nonces[0], 1.0) is None
    assert store.take(nonces[1], 1.0) is not None
    assert store.take(nonces[1], 1.0) is None


def test_attempts_are_limited_by_address() -> None:
    limiter = AttemptLimiter(RateLimit(capacity=2.0, refill_per_s=0.5))
    limiter.check("10.0.0.1", 0.0)
    limiter.check("10.0.0.1", 0.0)
    with pytest.raises(OverloadedError) as caught:
        limiter.check("10.0.0.1", 0.0)
    assert caught.value.retry_after_s == pytest.approx(2.0)
    limiter.check("10.0.0.2", 0.0)
    limiter.check("10.0.0.1", 2.0)


def test_the_limiter_remembers_a_bounded_number_of_addresses() -> None:
    limiter = AttemptLimiter(RateLimit(capacity=1.0, refill_per_s=0.001), max_addresses=2)
    for i in range(5):
        limiter.check(f"10.0.0.{i}", 0.0)
    assert len(limiter._buckets) == 2
