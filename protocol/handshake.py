"""The join proof as a pure transcript: what both sides put under the MAC, and how it is computed.

HMAC-SHA256 under a key that HKDF-SHA256 (RFC 5869) derives from the join secret, over length-prefixed fields:
protocol label and version, the prover's role, what is asked (method and path), coordinator id, worker id, both
nonces, the TLS certificate's fingerprint, SHA-256 of the body. Each side proves itself under its own role, so a
proof can't be reflected; the nonces and ids tie it to one session, so it can't be relayed from a parallel one;
the fingerprint ties it to the TLS channel, so a man in the middle fails on both sides; the version can't be
talked down. The secret signs nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import zlib
from dataclasses import dataclass
from typing import Literal

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.errors import ConfigError
from protocol.ids import CoordinatorId, WorkerId

Role = Literal["worker", "coordinator"]

LABEL = b"brigade join"
JOIN_PURPOSE = "POST /v1/join"
PROOF_HEADER = "Brigade-Proof"
NONCE_BYTES = 32
MIN_SECRET_ENTROPY_BITS = 256.0
MAX_CLOCK_SKEW_S = 300.0
"""Certificates and tickets are dated by the coordinator; a worker further off would refuse or outlive them."""
_DEFLATE_OVERHEAD_BYTES = 8
"""zlib's header and checksum (6 bytes) and deflate's own block header, rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcript:
    """Everything that a join proof speaks for."""

    version: str
    purpose: str
    coordinator_id: CoordinatorId
    worker_id: WorkerId
    client_nonce: str
    server_nonce: str
    tls_fingerprint: bytes
    """SHA-256 of the coordinator's certificate: as shown to the worker, as owned by the coordinator."""
    body: bytes

    def fields(self, role: Role) -> bytes:
        """The bytes under the MAC for the side that plays `role`."""
        parts = (
            LABEL,
            self.version.encode(),
            role.encode(),
            self.purpose.encode(),
            self.coordinator_id.encode(),
            self.worker_id.encode(),
            self.client_nonce.encode(),
            self.server_nonce.encode(),
            self.tls_fingerprint,
            hashlib.sha256(self.body).digest(),
        )
        return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def join_key(secret: str) -> bytes:
    """The MAC key that stands for the join secret."""
    return HKDF(algorithm=SHA256(), length=32, salt=b"brigade", info=b"join proof v1").derive(secret.encode())


def join_proof(key: bytes, transcript: Transcript, role: Role) -> str:
    """Proof, as hex, that the side playing `role` knows the secret."""
    return hmac.new(key, transcript.fields(role), hashlib.sha256).hexdigest()


def is_proof_valid(key: bytes, transcript: Transcript, role: Role, proof: str) -> bool:
    """Whether `proof` is what `role` must have sent; compared in constant time."""
    return hmac.compare_digest(join_proof(key, transcript, role).encode(), proof.encode("utf-8", "replace"))


def key_challenge(server_nonce: str, tls_fingerprint: bytes) -> str:
    """What a worker's certificate request has for its challenge password: it was signed for this exchange alone.

    A request travels before anybody has proven anything: without it, who was sent one could join in that worker's
    name, and be granted the worker's ticket key.
    """
    return f"{server_nonce}.{tls_fingerprint.hex()}"


def entropy_bits(secret: str) -> float:
    """An upper bound on a secret's entropy, in bits: by its alphabet, and by what deflate makes of it.

    32 random bytes pass as hex (64 letters) and as base64 (43); repetitions and short words don't.
    """
    n_compressed = len(zlib.compress(secret.encode(), 9)) - _DEFLATE_OVERHEAD_BYTES
    return max(0.0, min(len(secret) * math.log2(_alphabet_size(secret)), 8.0 * n_compressed))


def _alphabet_size(secret: str) -> int:
    if set(secret) <= set("0123456789"):
        return 10
    if set(secret) <= set("0123456789abcdef") or set(secret) <= set("0123456789ABCDEF"):
        return 16
    return 64 if secret.isascii() else 128


def checked_secret(secret: str) -> str:
    """The secret without surrounding white space, if it is strong enough to stand at the door.

    Raises:
        ConfigError: empty, or under 32 bytes of entropy's worth; the message says how to make one, never what
            it was.
    """
    secret = secret.strip()
    if entropy_bits(secret) < MIN_SECRET_ENTROPY_BITS:
        raise ConfigError(
            f"the join secret has {len(secret)} characters, worth at most {entropy_bits(secret):.0f} bits; "
            f"{MIN_SECRET_ENTROPY_BITS:.0f} are needed. `coord serve` makes one at its first start; by hand: "
            "python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return secret
