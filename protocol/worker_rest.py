"""Bodies of the HTTP requests by which workers join and find files, and of their answers. JSON on the wire."""

from __future__ import annotations

from protocol.ids import CoordinatorId, FileHash, InviteId, WorkerId
from protocol.rest import Body

# ------------------------------------------------------------------ a worker joins


class ChallengeRequest(Body, frozen=True, kw_only=True):
    """`POST /v1/join/challenge`."""

    protocol_version: str
    worker_id: WorkerId
    client_nonce: str
    """32 random bytes, hex."""


class Challenge(Body, frozen=True, kw_only=True):
    """Answer to `ChallengeRequest`; good once, for `expires_in_s`."""

    protocol_version: str
    coordinator_id: CoordinatorId
    server_nonce: str
    expires_in_s: float


class JoinRequest(Body, frozen=True, kw_only=True, omit_defaults=True):
    """`POST /v1/join` with the proof in the header `Brigade-Proof` (hex)."""

    worker_id: WorkerId
    client_nonce: str
    server_nonce: str
    certificate_request_pem: str
    """PKCS#10, signed by the key that the worker id is the hash of."""
    time_s: float
    """The worker's clock, seconds since 1970, UTC."""
    invite_id: InviteId | None = None
    """The invite whose key the proof is made with; None: the join secret's. Since 1.2."""


class JoinGrant(Body, frozen=True, kw_only=True):
    """Answer to `JoinRequest`, with the coordinator's own proof in `Brigade-Proof`."""

    certificate_pem: str
    ca_pem: str
    session_token: str
    session_token_expires_in_s: float
    ticket_key: str
    """Hex. Verifies the tickets that are meant for this worker, and no other's."""
    coordinator_id: CoordinatorId


class NotComing(Body, frozen=True, kw_only=True):
    """`POST /v1/worker/not-coming` (1.2): the worker was let in and ends before it has connected. Answer: 204."""

    reason: str


MAX_REASON_CHARS = 1000
"""Of why a worker doesn't come."""

# ------------------------------------------------------------------ a worker wants files


class SourcesRequest(Body, frozen=True, kw_only=True):
    """`POST /v1/worker/sources`: who else has these files?"""

    files: tuple[FileHash, ...]


class Source(Body, frozen=True, kw_only=True):
    """A worker that serves a file at `{url}/v1/files/{hash}`."""

    worker_id: WorkerId
    url: str


class SourcesAnswer(Body, frozen=True, kw_only=True):
    """Sources by file; a file that only the coordinator has is left out."""

    sources: dict[FileHash, tuple[Source, ...]]


class BadSource(Body, frozen=True, kw_only=True):
    """`POST /v1/worker/sources/bad`: this worker sent other bytes for the file than its hash says. Answer: 204."""

    worker_id: WorkerId
    file: FileHash


BAD_SOURCE_S = 600.0
"""For so long a bad source is named to nobody for that file."""
