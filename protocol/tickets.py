"""Signed, expiring, audience-bound tokens: route and attach tickets for workers, session tokens for workers.

itsdangerous signs (HMAC-SHA256, one salt per kind, so kinds never pass for one another); the keys are a list,
oldest first, so that an old one verifies until it is retired. Time is an argument.

A claim that this side doesn't know may be a restriction, so it is refused; the coordinator writes a ticket in the
version of the worker that it is for (`protocol.compatibility`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, TypeVar

import msgspec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from itsdangerous import BadSignature, Signer
from itsdangerous.encoding import want_bytes

from protocol.errors import UnauthenticatedError
from protocol.ids import BlockRange, ModelName, Revision, SessionId, WorkerId
from protocol.key_limits import Priority
from protocol.messages import SharedPrefix

MAX_TOKEN_CHARS = 8192
MAX_SIGNERS = 1024
"""That are kept: two kinds of tickets for each worker of a large cluster."""

Returned = Literal["tokens", "states", "inputs"]
"""What a session's client gets: sampled tokens, the hidden states that the route's last block puts out, or those
that go into its only block."""


class Claims(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What every token says: until when it is good (seconds since 1970, UTC)."""

    expires_at_s: float


class SessionToken(Claims, frozen=True, kw_only=True, tag="worker-session"):
    """A worker's credential towards the coordinator, for one enrolment."""

    worker_id: WorkerId


class Ticket(Claims, frozen=True, kw_only=True, tag="route-ticket"):
    """What one hop of one route may do. Signed with the key of the worker that it is for."""

    worker_id: WorkerId
    """The only worker that may accept it."""
    session_id: SessionId
    model: ModelName
    revision: Revision
    blocks: BlockRange
    epoch: int
    """Of the worker's assignment, when the route was made."""
    previous: WorkerId | None
    """Who opens the session here: a worker, or None for the client (head)."""
    next: WorkerId | None
    """Who comes after; None at the tail."""
    next_url: str | None
    head: WorkerId
    head_url: str
    """Where the tail sends the sampled tokens."""
    tail: WorkerId
    """Whose tokens the head accepts."""
    max_positions: int
    """Most positions, prompt and answer together, that may be run."""
    continues: SessionId | None = None
    """A failed session of the same client whose cached positions this one may take over, as far as they match."""
    prefix: SharedPrefix | None = None
    """What of an earlier session of the same key this one may copy. Since 1.2."""
    n_hops: int = 1
    """Hops of the route: workers form so many groups of sessions, so that all of them are busy."""
    speculates: bool = False
    """Whether the head may guess tokens ahead: all hops know how to go back, and the client didn't refuse it."""
    tenant: str = ""
    """A label of the client's API key that tells nothing of it, another one on each worker: sessions with the same
    label share the worker's time and memory as one. Since 1.2."""
    priority: Priority = "normal"
    """The key's class. Since 1.2."""
    is_private: bool = False
    """Whether the client runs the model's ends itself: hidden states come from it, and the tail gives them back to
    it instead of sampling. Since 1.2."""
    returned: Returned = "tokens"
    """What the tail gives the client, if it isn't private: that gets states in any case. Since 1.2."""

    @property
    def gives_states(self) -> bool:
        """Whether the tail gives the client hidden states instead of sampling."""
        return self.is_private or self.returned != "tokens"


class AttachTicket(Claims, frozen=True, kw_only=True, tag="attach-ticket"):
    """Lets its bearer read a session's tokens at the tail. Signed with the tail's key, given to the client alone.

    Not the tail's `Ticket`: that one travels hop by hop, so every worker of the route has seen it.
    """

    worker_id: WorkerId
    """The tail: the only worker that may accept it."""
    session_id: SessionId
    max_positions: int
    """Most positions, prompt and answer together, that may be run."""
    gives_states: bool = False
    """As in `Ticket`: hidden states are to be had, not tokens. Since 1.2."""


C = TypeVar("C", bound=Claims)


class _Signer(Signer):
    """Derives each key once: that takes as long as a signature, and a coordinator signs several a route."""

    def __init__(self, keys: tuple[bytes, ...], salt: bytes) -> None:
        super().__init__(list(keys), salt=salt, key_derivation="hmac", digest_method=hashlib.sha256)
        self._derived = {key: Signer.derive_key(self, key) for key in keys}

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        """The key that this kind of token is signed with."""
        return self._derived[self.secret_keys[-1] if secret_key is None else want_bytes(secret_key)]


@lru_cache(maxsize=MAX_SIGNERS)
def _signer(keys: tuple[bytes, ...], kind: type[Claims]) -> Signer:
    if not keys:
        raise ValueError("no signing keys")
    salt = f"brigade.{kind.__struct_config__.tag}.v1".encode()
    return _Signer(keys, salt)


def sign_claims(claims: Claims, keys: Sequence[bytes]) -> str:
    """The claims as a token, signed with the newest (last) of `keys`."""
    payload = base64.urlsafe_b64encode(msgspec.msgpack.encode(claims))
    return _signer(tuple(keys), type(claims)).sign(payload).decode("ascii")


def verified_claims(token: str, kind: type[C], keys: Sequence[bytes], now_s: float) -> C:
    """What the token says, if one of `keys` signed it as a token of this kind and it hasn't expired.

    Raises:
        UnauthenticatedError: it doesn't verify, is of another kind, or has expired. Only an expired token is
            told apart, since only its rightful holder can have one.
    """
    claims = signed_claims(token, kind, keys)
    if now_s >= claims.expires_at_s:
        raise UnauthenticatedError(f"the token expired {now_s - claims.expires_at_s:.0f} s ago")
    return claims


def signed_claims(token: str, kind: type[C], keys: Sequence[bytes]) -> C:
    """The same, whether it has expired or not: the caller looks.

    Raises:
        UnauthenticatedError: it doesn't verify, or is of another kind.
    """
    if len(token) > MAX_TOKEN_CHARS or not token.isascii():
        raise UnauthenticatedError("the token doesn't verify")
    signer = _signer(tuple(keys), kind)
    try:
        payload = signer.unsign(token)
        claims = msgspec.msgpack.decode(base64.urlsafe_b64decode(payload), type=kind)
    except (BadSignature, binascii.Error, msgspec.DecodeError, ValueError) as exc:
        raise UnauthenticatedError("the token doesn't verify") from exc
    return claims


def ticket_key(signing_key: bytes, worker_id: WorkerId) -> bytes:
    """The ticket key of one worker: derived, so that nothing has to be stored and none tells another."""
    info = b"ticket key for " + worker_id.encode()
    return HKDF(algorithm=SHA256(), length=32, salt=b"brigade", info=info).derive(signing_key)
