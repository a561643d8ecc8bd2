"""Who is calling: a worker by its session token, a client or an operator by an API key. Kinds never mix.

A stranger gets one answer, whatever was wrong. Only a credential that verifies is told that it is of another kind.
"""

from __future__ import annotations

import asyncio
import hmac
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Literal

from coordinator.authority import Authority
from coordinator.dashboard_sessions import secret_mark
from coordinator.repository import Repository
from coordinator.stored_rows import StoredKey
from coordinator.transactions import PATIENCE_S
from protocol.api_key import ApiKey, api_key_from_text, secret_hash
from protocol.errors import BrigadeError, ForbiddenError, OverloadedError, StorageError, UnauthenticatedError
from protocol.ids import KeyId, WorkerId
from protocol.key_limits import UNLIMITED, KeyLimits
from protocol.key_rest import KeyKind
from protocol.tickets import SessionToken, ticket_key, verified_claims

KEY_CACHE_S = 2.0
"""How long a key is believed without asking the database; a revocation is in force after that everywhere."""
REFRESH_S = KEY_CACHE_S / 2
"""So often keys that were shown meanwhile are read again, many by one look, before anybody has to wait for it."""
KEY_CACHE_AWAY_S = 600.0
"""And how long while the database can't be asked, so that an operator can see that it can't."""
REFRESHED_TOGETHER = 64
"""Of one look: what many are made into would hold the event loop for a tenth of a second."""
MAX_CACHED_KEYS = 1024
MAX_LOOKUPS = 256
"""Keys that the database is asked for at once."""
RETRY_LOOKUP_S = 2.0

Access = Literal["open", "worker", "client", "reader", "admin"]
"""Who may use a route. client: API keys of both kinds; reader: those and workers."""

_ALLOWED: dict[Access, frozenset[str]] = {
    "worker": frozenset({"worker"}),
    "client": frozenset({"client", "admin"}),
    "reader": frozenset({"worker", "client", "admin"}),
    "admin": frozenset({"admin"}),
}
_WHAT: dict[Access, str] = {
    "worker": "a worker's session token",
    "client": "an API key",
    "reader": "an API key or a worker's session token",
    "admin": "an API key of kind admin",
}
_NO_STORED_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCaller:
    """A worker that enrolled."""

    worker_id: WorkerId
    ticket_key: bytes = field(repr=False)
    """The ticket key that it was granted together with the token that it showed."""
    token_until_s: float
    """When that token ends, seconds since 1970: each enrolment has another."""
    kind: Literal["worker"] = "worker"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyCaller:
    """A client or an operator."""

    key_id: KeyId
    kind: KeyKind
    limits: KeyLimits = UNLIMITED


Caller = WorkerCaller | KeyCaller


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cached:
    """A key as the database had it."""

    stored: StoredKey
    read_s: float
    believed_from_s: float
    """When the database was asked last, whether or not it answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What a lookup came to."""

    stored: StoredKey | None = None
    error: BrigadeError | None = None

    def get(self) -> StoredKey | None:
        """The key; None if there is none.

        Raises:
            StorageError: the database couldn't be asked, and the key isn't remembered.
        """
        if self.error is not None:
            raise self.error
        return self.stored


class Authenticator:
    """Verifies credentials. Keys are looked up in the database, and remembered for `KEY_CACHE_S`."""

    def __init__(self, authority: Authority, repository: Repository, clock: Callable[[], float]) -> None:
        self._authority = authority
        self._repository = repository
        self._clock = clock
        self._cache: OrderedDict[KeyId, _Cached] = OrderedDict()
        self._shown: set[KeyId] = set()
        """Those that were believed since the last `refresh`."""
        self._looking: dict[KeyId, asyncio.Future[_Found | None]] = {}
        """Many who come with one key at once ask the database once: these wait for the first of them. None: it
        was cancelled, and another one is to ask."""

    async def caller(self, access: Access, authorization: Sequence[str]) -> Caller:
        """Who shows these `Authorization` headers, if they may use a route of this access.

        Raises:
            UnauthenticatedError: none, several, or one that doesn't verify.
            ForbiddenError: it verifies, and is of a kind that has no business here.
        """
        text = _bearer(access, authorization)
        caller: Caller = await self._key_caller(text) if text.startswith("brigade-") else self._worker(text)
        if caller.kind not in _ALLOWED[access]:
            raise ForbiddenError(f"this needs {_WHAT[access]}; the credential shown is of kind {caller.kind}")
        return caller

    def forget(self, key_id: KeyId) -> None:
        """Ask the database next time: the key was changed."""
        self._cache.pop(key_id, None)
        self._looking.pop(key_id, None)  # it may have been read before the change

    async def refresh_forever(self) -> None:
        """`refresh` until cancelled; while the database can't be asked, those who come ask it themselves."""
        while True:
            await asyncio.sleep(REFRESH_S)
            with suppress(StorageError):
                await self.refresh()

    async def refresh(self) -> None:
        """Read again what was shown since the last time; one that is changed meanwhile is left to who comes next.

        Raises:
            StorageError: the database can't be asked; what is remembered is as old as it was.
        """
        shown, self._shown = list(self._shown), set()
        for start in range(0, len(shown), REFRESHED_TOGETHER):
            await self._read_again(shown[start : start + REFRESHED_TOGETHER])

    async def _read_again(self, shown: Sequence[KeyId]) -> None:
        before = {key_id: cached for key_id in shown if (cached := self._cache.get(key_id)) is not None}
        if not before:
            return
        now_s = self._clock()
        found = {stored.key_id: stored for stored in await self._repository.api_keys_of(before)}
        for key_id, cached in before.items():
            if self._cache.get(key_id) is cached:
                self._remember(key_id, found.get(key_id), now_s)

    def _worker(self, token: str) -> WorkerCaller:
        """The keys are tried one by one: the one that signed the token is the one that the ticket key came from."""
        now_s = self._clock()
        error = UnauthenticatedError("the token doesn't verify")
        for signing_key in reversed(self._authority.signing_keys):
            try:
                claims = verified_claims(token, SessionToken, (signing_key,), now_s)
            except UnauthenticatedError as exc:
                error = exc if "expired" in exc.message else error
                continue
            return WorkerCaller(
                worker_id=claims.worker_id,
                ticket_key=ticket_key(signing_key, claims.worker_id),
                token_until_s=claims.expires_at_s,
            )
        raise error

    def is_in_force(self, caller: WorkerCaller) -> bool:
        """Whether the signing key that the worker's token was made with counts still."""
        keys = (ticket_key(key, caller.worker_id) for key in reversed(self._authority.signing_keys))
        return any(hmac.compare_digest(key, caller.ticket_key) for key in keys)

    async def _key_caller(self, text: str) -> KeyCaller:
        shown = api_key_from_text(text)
        stored = await self._stored(shown.key_id)
        if not self._matches(shown, stored) or stored is None or stored.revoked_at is not None:
            raise UnauthenticatedError("the API key is unknown, wrong or revoked")
        return KeyCaller(key_id=shown.key_id, kind=shown.kind, limits=stored.limits)

    async def signed_in_caller(self, key_id: KeyId, mark: str) -> KeyCaller:
        """The operator who signed in with a key, while both it and the secret that was shown (`mark`) are good.

        Raises:
            UnauthenticatedError: one of them isn't any more.
            StorageError: the database can't be asked, and the key isn't remembered.
        """
        stored = await self._stored(key_id)
        if stored is not None and stored.revoked_at is None and stored.kind == "admin":
            good = (stored.secret_hash, self._old_hash(stored))
            if any(hmac.compare_digest(mark, secret_mark(each)) for each in good):
                return KeyCaller(key_id=key_id, kind=stored.kind, limits=stored.limits)
        raise UnauthenticatedError("the API key that you signed in with was revoked or replaced: sign in again")

    def _matches(self, shown: ApiKey, stored: StoredKey | None) -> bool:
        """All parts are compared, for unknown keys as well, so that the time tells nothing."""
        kept = stored.secret_hash if stored is not None else _NO_STORED_HASH
        is_secret = hmac.compare_digest(secret_hash(shown.secret), kept)
        is_old_secret = hmac.compare_digest(secret_hash(shown.secret), self._old_hash(stored))
        is_cluster = hmac.compare_digest(shown.ca_fingerprint, self._authority.ca_fingerprint)
        return (is_secret or is_old_secret) and is_cluster and stored is not None and stored.kind == shown.kind

    def _old_hash(self, stored: StoredKey | None) -> str:
        """Of the secret before the last rotation, while that is good; else one that no secret has."""
        if stored is None or stored.old_secret_hash is None or stored.old_until is None:
            return _NO_STORED_HASH
        return stored.old_secret_hash if self._clock() < stored.old_until.timestamp() else _NO_STORED_HASH

    async def _stored(self, key_id: KeyId) -> StoredKey | None:
        while True:
            cached = self._cache.get(key_id)
            if cached is not None and 0.0 <= self._clock() - cached.believed_from_s < KEY_CACHE_S:
                self._shown.add(key_id)
                return cached.stored
            looking = self._looking.get(key_id)
            if looking is None:
                return (await self._looked_up(key_id)).get()
            found = await asyncio.shield(looking)
            if found is not None:
                return found.get()

    async def _looked_up(self, key_id: KeyId) -> _Found:
        """Ask the database, for all who come with this key meanwhile."""
        if len(self._looking) >= MAX_LOOKUPS:
            message = f"{MAX_LOOKUPS} API keys are being looked up already; ask again"
            return self._remembered(key_id, OverloadedError(message, retry_after_s=RETRY_LOOKUP_S))
        found, now_s = None, self._clock()
        looking = self._looking[key_id] = asyncio.get_running_loop().create_future()
        try:
            within_s = PATIENCE_S if key_id in self._cache else None
            found = _Found(stored=await self._repository.api_key(key_id, within_s=within_s))
            if self._looking.get(key_id) is looking:
                self._remember(key_id, found.stored, now_s)
        except StorageError as error:
            found = self._remembered(key_id, error)
        finally:
            if self._looking.get(key_id) is looking:
                del self._looking[key_id]
            looking.set_result(found)
        return found

    def _remember(self, key_id: KeyId, stored: StoredKey | None, now_s: float) -> None:
        self._cache.pop(key_id, None)
        if stored is not None:  # unknown ids aren't remembered: they would push the known ones out
            self._cache[key_id] = _Cached(stored=stored, read_s=now_s, believed_from_s=now_s)
            if len(self._cache) > MAX_CACHED_KEYS:
                self._cache.popitem(last=False)

    def _remembered(self, key_id: KeyId, error: BrigadeError) -> _Found:
        """The key as it was, as the database can't be asked; it isn't asked again for `KEY_CACHE_S`.

        Keys are changed by this program alone, which forgets those; nobody changes one while it can't.
        """
        cached, now_s = self._cache.get(key_id), self._clock()
        if cached is None or not 0.0 <= now_s - cached.read_s < KEY_CACHE_AWAY_S:
            return _Found(error=error)
        self._cache[key_id] = replace(cached, believed_from_s=now_s)
        return _Found(stored=cached.stored)


def _bearer(access: Access, authorization: Sequence[str]) -> str:
    if len(authorization) != 1:
        raise UnauthenticatedError(
            f"this needs {_WHAT[access]} in one Authorization header; {len(authorization)} were sent"
        )
    scheme, _, text = authorization[0].partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise UnauthenticatedError(f"this needs {_WHAT[access]}: Authorization: Bearer ...")
    return text.strip()
