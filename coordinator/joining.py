"""Letting workers in: challenges that are good once, the proof, and the grant. Knows no HTTP.

The proof comes first: nothing else of a request is looked at before the MAC verifies, and a stranger learns one
thing only, that it did not.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from coordinator.authority import Authority
from coordinator.policy.ratelimit import Bucket, RateLimit, full_bucket, taken
from coordinator.recent_joins import Join, RecentJoins
from protocol.codec import check_version, decode_json, encode_json
from protocol.errors import ClockSkewError, ForbiddenError, InvalidRequestError, OverloadedError, WrongSecretError
from protocol.handshake import (
    JOIN_PURPOSE,
    MAX_CLOCK_SKEW_S,
    NONCE_BYTES,
    Transcript,
    is_proof_valid,
    join_proof,
    key_challenge,
)
from protocol.ids import InviteId, WorkerId
from protocol.messages import PROTOCOL_VERSION
from protocol.tickets import SessionToken, sign_claims, ticket_key
from protocol.tls import is_worker_id
from protocol.worker_rest import Challenge, ChallengeRequest, JoinGrant, JoinRequest

CHALLENGE_LIFE_S = 30.0
MAX_CHALLENGES = 1024
SESSION_TOKEN_LIFE_S = 24 * 3600.0

JOIN_LIMIT = RateLimit(capacity=128.0, refill_per_s=4.0)
"""Requests of joining (two each) by address: a rack of 60 machines behind one address starts at once."""
MAX_LIMITED_ADDRESSES = 4096

_NONCE = re.compile(rf"[0-9a-f]{{{2 * NONCE_BYTES}}}")
_REFUSED = (
    "the join proof doesn't verify: the worker's join secret or invite is not the coordinator's (or not any more), "
    f"the challenge was used or is older than {CHALLENGE_LIFE_S:.0f} s, or somebody is in between"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenChallenge:
    """What was said when a challenge was given out."""

    version: str
    worker_id: WorkerId
    client_nonce: str
    expires_at_s: float


class ChallengeStore:
    """The open challenges by server nonce: at most 1,024, the oldest goes first; each can be taken once."""

    def __init__(self, max_challenges: int = MAX_CHALLENGES) -> None:
        self._max_challenges = max_challenges
        self._open: OrderedDict[str, OpenChallenge] = OrderedDict()

    def __len__(self) -> int:
        return len(self._open)

    def add(self, request: ChallengeRequest, now_s: float) -> str:
        """Open a challenge; returns its server nonce."""
        nonce = secrets.token_hex(NONCE_BYTES)
        self._open[nonce] = OpenChallenge(
            version=request.protocol_version,
            worker_id=request.worker_id,
            client_nonce=request.client_nonce,
            expires_at_s=now_s + CHALLENGE_LIFE_S,
        )
        while len(self._open) > self._max_challenges:
            self._open.popitem(last=False)
        return nonce

    def take(self, server_nonce: str, now_s: float) -> OpenChallenge | None:
        """Remove the challenge and return it; None if there is none or it is too old."""
        challenge = self._open.pop(server_nonce, None)
        return challenge if challenge is not None and now_s < challenge.expires_at_s else None


class AttemptLimiter:
    """Token buckets of the addresses seen last; a caller that fell out of the memory starts with a full one."""

    def __init__(
        self,
        limit: RateLimit = JOIN_LIMIT,
        max_addresses: int = MAX_LIMITED_ADDRESSES,
        *,
        what: str = "join",
        error: type[OverloadedError] = OverloadedError,
    ) -> None:
        self._limit = limit
        self._what = what
        self._error = error
        self._max_addresses = max_addresses
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    def check(self, address: str, now_s: float) -> None:
        """Count one attempt.

        Raises:
            OverloadedError: too many from this address (of the kind given); says when the next one is allowed.
        """
        bucket = self._buckets.get(address) or full_bucket(self._limit, now_s)
        result = taken(bucket, self._limit, now_s)
        self._buckets[address] = result.bucket
        self._buckets.move_to_end(address)
        while len(self._buckets) > self._max_addresses:
            self._buckets.popitem(last=False)
        if not result.is_granted:
            raise self._error(
                f"too many attempts to {self._what} from {address}: at most {self._limit.capacity:.0f} at once and "
                f"{self._limit.refill_per_s:g} a second; try again in {result.wait_s:.1f} s",
                retry_after_s=result.wait_s,
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Granted:
    """The answer to a join: its body as it must be sent, and the coordinator's proof over it."""

    worker_id: WorkerId
    invite_id: InviteId | None
    token_until_s: float
    """When the session token in it ends, seconds since 1970."""
    body: bytes
    proof: str


async def refuse_invites(invite_id: InviteId, worker_id: WorkerId, now_s: float) -> None:  # noqa: ARG001
    """What a coordinator that keeps no invites says to any."""
    raise ForbiddenError(f"the invite {invite_id} isn't known here")


class Joining:
    """Challenges and grants of one coordinator. `use_invite` lets a worker in by an invite, or raises why not."""

    def __init__(
        self,
        authority: Authority,
        clock: Callable[[], float],
        *,
        check_worker: Callable[[WorkerId], None] = lambda _: None,
        use_invite: Callable[[InviteId, WorkerId, float], Awaitable[None]] = refuse_invites,
    ) -> None:
        self._authority = authority
        self._clock = clock
        self._check_worker = check_worker
        self._use_invite = use_invite
        self._challenges = ChallengeStore()
        self.recent = RecentJoins()

    def challenge(self, request: ChallengeRequest) -> Challenge:
        """Give out a challenge.

        Raises:
            ProtocolVersionError: the worker speaks another major version.
            InvalidRequestError: the nonce or the worker id can't be one.
        """
        check_version(request.protocol_version)
        if _NONCE.fullmatch(request.client_nonce) is None:
            raise InvalidRequestError(f"the client nonce is not {2 * NONCE_BYTES} lower-case hex digits")
        if not is_worker_id(request.worker_id):
            raise InvalidRequestError(f"{request.worker_id[:40]!r} is not a worker's id")
        return Challenge(
            protocol_version=PROTOCOL_VERSION,
            coordinator_id=self._authority.coordinator_id,
            server_nonce=self._challenges.add(request, self._clock()),
            expires_in_s=CHALLENGE_LIFE_S,
        )

    async def grant(self, body: bytes, proof: str) -> Granted:
        """Check the proof over `body` (as it was sent) and grant what it asks for.

        Raises:
            WrongSecretError: for everything that could tell a stranger something.
            ProtocolVersionError, ClockSkewError: only to who knows the secret, or holds the invite.
            ForbiddenError: likewise; `check_worker` or `use_invite` said that this worker isn't let in.
        """
        request = decode_json(body, JoinRequest)
        now_s = self._clock()
        opened = self._challenges.take(request.server_nonce, now_s)
        if opened is None or (opened.worker_id, opened.client_nonce) != (request.worker_id, request.client_nonce):
            raise WrongSecretError(_REFUSED)
        transcript = self._transcript(opened.version, request, body)
        key = self._key_that_verifies(transcript, proof, request.invite_id)
        check_version(opened.version)
        _check_clock(request.time_s, now_s)
        self._check_worker(request.worker_id)
        token = SessionToken(worker_id=request.worker_id, expires_at_s=now_s + SESSION_TOKEN_LIFE_S)
        answer = encode_json(await self._grant(request, token, now_s))
        invite_id = request.invite_id
        if invite_id is not None:  # now that the request was found to be signed by the worker's own key
            await self._use_invite(invite_id, request.worker_id, now_s)
        is_current = invite_id is not None or key == self._authority.join_keys[0]
        self.recent.note(Join(worker_id=request.worker_id, at_s=now_s, is_current=is_current, invite_id=invite_id))
        ours = self._transcript(opened.version, request, answer)
        return Granted(
            worker_id=request.worker_id,
            invite_id=invite_id,
            token_until_s=token.expires_at_s,
            body=answer,
            proof=join_proof(key, ours, "coordinator"),
        )

    def _transcript(self, version: str, request: JoinRequest, body: bytes) -> Transcript:
        return Transcript(
            version=version,
            purpose=JOIN_PURPOSE,
            coordinator_id=self._authority.coordinator_id,
            worker_id=request.worker_id,
            client_nonce=request.client_nonce,
            server_nonce=request.server_nonce,
            tls_fingerprint=self._authority.server_fingerprint,
            body=body,
        )

    def _key_that_verifies(self, transcript: Transcript, proof: str, invite_id: InviteId | None) -> bytes:
        # An invite is looked up only once its proof has verified: who holds none learns of none.
        keys = self._authority.join_keys if invite_id is None else (self._authority.invite_key(invite_id),)
        # Every key is tried, so that the time doesn't tell which one it was.
        valid = [key for key in keys if is_proof_valid(key, transcript, "worker", proof)]
        if not valid:
            raise WrongSecretError(_REFUSED)
        return valid[0]

    async def _grant(self, request: JoinRequest, token: SessionToken, now_s: float) -> JoinGrant:
        worker_id = request.worker_id
        challenge = None
        if request.invite_id is not None:  # older workers sign for no exchange, and have no invites
            challenge = key_challenge(request.server_nonce, self._authority.server_fingerprint)
        certificate_pem = await asyncio.to_thread(
            self._authority.issue_worker_certificate,
            request.certificate_request_pem,
            worker_id,
            datetime.fromtimestamp(now_s, UTC),
            challenge=challenge,
        )
        signing_keys = self._authority.signing_keys
        return JoinGrant(
            certificate_pem=certificate_pem,
            ca_pem=self._authority.ca_pem,
            session_token=sign_claims(token, signing_keys),
            session_token_expires_in_s=SESSION_TOKEN_LIFE_S,
            ticket_key=ticket_key(signing_keys[-1], worker_id).hex(),
            coordinator_id=self._authority.coordinator_id,
        )


def _check_clock(theirs_s: float, ours_s: float) -> None:
    # Written so that NaN is refused too.
    if not abs(theirs_s - ours_s) <= MAX_CLOCK_SKEW_S:
        raise ClockSkewError(
            f"the worker's clock says {_shown(theirs_s)}, the coordinator's {_shown(ours_s)}: "
            f"{abs(theirs_s - ours_s):.0f} s apart, at most {MAX_CLOCK_SKEW_S:.0f} are allowed; set the clock that "
            "is wrong (NTP keeps it right)"
        )


def _shown(time_s: float) -> str:
    try:
        return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return "no time"
