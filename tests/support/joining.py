"""How a worker gets in, step by step, so that tests can do each of them wrong."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from protocol.codec import encode_json
from protocol.handshake import JOIN_PURPOSE, NONCE_BYTES, PROOF_HEADER, Transcript, join_key, join_proof
from protocol.ids import WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.private_keys import key_to_pem, new_key, public_key_der
from protocol.tls import fingerprint, first_contact_context, worker_id_of_key
from protocol.worker_rest import Challenge, ChallengeRequest, JoinGrant, JoinRequest
from tests.support.coordinators import Http, RunningCoordinator, http_session, join_secret_of


class WorkerKey:
    """A worker's key pair."""

    def __init__(self) -> None:
        self.private = new_key()
        self.worker_id = worker_id_of_key(public_key_der(self.private.public_key()))

    def private_pem(self) -> bytes:
        """The private half, to listen or connect with."""
        return key_to_pem(self.private).encode()

    def certificate_request_pem(self) -> str:
        """A PKCS#10 request signed by the key."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.worker_id)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(name)
        return builder.sign(self.private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


async def shown_fingerprint(port: int) -> bytes:
    """SHA-256 of the certificate that whoever listens on the port shows."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=first_contact_context())
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    await writer.wait_closed()
    return fingerprint(der)


async def challenge(http: Http, worker_id: WorkerId, version: str = PROTOCOL_VERSION) -> tuple[str, Challenge]:
    """Ask for a challenge; returns the client's nonce too."""
    nonce = secrets.token_hex(NONCE_BYTES)
    request = ChallengeRequest(protocol_version=version, worker_id=worker_id, client_nonce=nonce)
    answer = await http.ask("POST", "/v1/join/challenge", request)
    assert answer.status == 200, answer.body
    return nonce, answer.read(Challenge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proven:
    """A join request with its proof, ready to be sent (or tampered with)."""

    body: bytes
    proof: str
    transcript: Transcript

    def headers(self) -> dict[str, str]:
        """The header that carries the proof."""
        return {PROOF_HEADER: self.proof}


async def proven_join(
    http: Http, coordinator: RunningCoordinator, key: WorkerKey, *, secret: str | None = None, **changes: Any
) -> Proven:
    """All of the handshake but the last request. `changes`: fields of the `JoinRequest` to send instead."""
    nonce, opened = await challenge(http, key.worker_id)
    fields = {
        "worker_id": key.worker_id,
        "client_nonce": nonce,
        "server_nonce": opened.server_nonce,
        "certificate_request_pem": key.certificate_request_pem(),
        "time_s": datetime.now(UTC).timestamp(),
    }
    body = encode_json(JoinRequest(**(fields | changes)))
    transcript = Transcript(
        version=PROTOCOL_VERSION,
        purpose=JOIN_PURPOSE,
        coordinator_id=opened.coordinator_id,
        worker_id=key.worker_id,
        client_nonce=nonce,
        server_nonce=opened.server_nonce,
        tls_fingerprint=await shown_fingerprint(coordinator.port),
        body=body,
    )
    proof = join_proof(join_key(secret or join_secret_of(coordinator)), transcript, "worker")
    return Proven(body=body, proof=proof, transcript=transcript)


async def enrolled(coordinator: RunningCoordinator, key: WorkerKey, **changes: Any) -> JoinGrant:
    """Join for real; returns the grant."""
    async with http_session(coordinator) as http:
        proven = await proven_join(http, coordinator, key, **changes)
        answer = await http.ask("POST", "/v1/join", proven.body, headers=proven.headers())
        assert answer.status == 200, answer.body
        return answer.read(JoinGrant)
