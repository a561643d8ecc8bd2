"""Who is signed in to the dashboard: sessions in signed cookies, over after 12 hours, or one without a request.

A cookie is a token as all of ours (`protocol.tickets`), of a kind of its own: no key can be read out of it, and no
other token passes for it. It names the key that it was made with, and which of that key's secrets: both are looked
up with every request, so that a session never outlives them. What isn't in the cookie is kept here, by session:
that it was signed out of, and until when it is good, for streams that were opened with an older cookie.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from coordinator.authority import Authority
from protocol.errors import UnauthenticatedError
from protocol.ids import KeyId
from protocol.tickets import Claims, sign_claims, verified_claims

LONGEST_S = 12 * 3600.0
IDLE_S = 3600.0
RENEW_S = 60.0
"""A cookie is renewed once it is this old: not with every request."""
MAX_SESSIONS = 10_000
"""That are remembered as used since their cookie was made; older ones go by their cookie."""


class SessionCookie(Claims, frozen=True, kw_only=True, tag="dashboard-session"):
    """What the cookie says."""

    session_id: str
    key_id: KeyId
    secret_mark: str
    """Which secret of the key was shown."""
    ends_at_s: float
    """When the session is over even if it is used."""


class CsrfToken(Claims, frozen=True, kw_only=True, tag="dashboard-csrf"):
    """What a page of ours knows, and a page of others can't: it is in no cookie."""

    session_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """A new or renewed session: its claims, and the cookie's text."""

    claims: SessionCookie
    cookie: str = field(repr=False)


def secret_mark(secret_hash: str) -> str:
    """What tells one secret of a key from another, of the hash that is stored of it."""
    return hashlib.sha256(b"dashboard session " + secret_hash.encode()).hexdigest()[:16]


class DashboardSessions:
    """Makes cookies and reads them. `signed_out`: sessions that were signed out of, and until when that matters."""

    def __init__(self, authority: Authority, clock: Callable[[], float]) -> None:
        self._authority = authority
        self._clock = clock
        self._signed_out: dict[str, float] = {}
        self._good_until_s: OrderedDict[str, float] = OrderedDict()

    def remember(self, signed_out: Mapping[str, float]) -> None:
        """Know these sessions, which were signed out of before a restart."""
        self._signed_out.update(signed_out)

    def begin(self, key_id: KeyId, mark: str) -> SignedIn:
        """A session of whoever has shown this key."""
        ends_at_s = self._clock() + LONGEST_S
        return self._signed(secrets.token_hex(16), key_id, mark, ends_at_s)

    def read(self, cookie: str) -> SessionCookie:
        """What a cookie says.

        Raises:
            UnauthenticatedError: it isn't ours, is too old, or was signed out of.
        """
        try:
            claims = verified_claims(cookie, SessionCookie, self._authority.signing_keys, self._clock())
        except UnauthenticatedError as exc:
            raise UnauthenticatedError("you aren't signed in any more: sign in again") from exc
        if claims.session_id in self._signed_out:
            raise UnauthenticatedError("you have signed out: sign in again")
        return claims

    def used(self, claims: SessionCookie) -> SignedIn | None:
        """Have the session be good for longer; the new cookie, if it is time for one."""
        good_until_s = min(self._clock() + IDLE_S, claims.ends_at_s)
        self._good_until_s[claims.session_id] = good_until_s
        self._good_until_s.move_to_end(claims.session_id)
        if len(self._good_until_s) > MAX_SESSIONS:
            self._good_until_s.popitem(last=False)
        if good_until_s - claims.expires_at_s < RENEW_S:
            return None
        return self._signed(claims.session_id, claims.key_id, claims.secret_mark, claims.ends_at_s)

    def is_good(self, claims: SessionCookie) -> bool:
        """Whether a session that was good when a stream was opened is so still."""
        until_s = max(claims.expires_at_s, self._good_until_s.get(claims.session_id, 0.0))
        return self._clock() < until_s and claims.session_id not in self._signed_out

    def end(self, claims: SessionCookie) -> None:
        """Sign out: no cookie of the session is good from now on."""
        now_s = self._clock()
        self._signed_out = {name: until for name, until in self._signed_out.items() if until > now_s}
        self._signed_out[claims.session_id] = claims.ends_at_s

    def csrf_token(self, claims: SessionCookie) -> str:
        """What requests that change something must show beside the cookie."""
        token = CsrfToken(session_id=claims.session_id, expires_at_s=claims.ends_at_s)
        return sign_claims(token, self._authority.signing_keys)

    def is_csrf_token(self, text: str, claims: SessionCookie) -> bool:
        """Whether `text` is this session's."""
        try:
            token = verified_claims(text, CsrfToken, self._authority.signing_keys, self._clock())
        except UnauthenticatedError:
            return False
        return token.session_id == claims.session_id

    def _signed(self, session_id: str, key_id: KeyId, mark: str, ends_at_s: float) -> SignedIn:
        claims = SessionCookie(
            session_id=session_id,
            key_id=key_id,
            secret_mark=mark,
            ends_at_s=ends_at_s,
            expires_at_s=min(self._clock() + IDLE_S, ends_at_s),
        )
        return SignedIn(claims=claims, cookie=sign_claims(claims, self._authority.signing_keys))
