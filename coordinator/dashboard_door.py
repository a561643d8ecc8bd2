"""How a signed-in browser is let in: by its cookie, and only for what our own page asks.

A browser sends the cookie along whoever had it ask. So a request that changes something must show where it comes
from (`Origin`) and a token that only a page of ours has; one that doesn't must not come from another site or port,
as far as the browser says (`Sec-Fetch-Site`). Who sends an Authorization header goes by that alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import hdrs, web

from coordinator.credentials import KeyCaller
from coordinator.dashboard_sessions import SessionCookie, SignedIn
from coordinator.keys import AUTHENTICATOR, CONFIG, DASHBOARD_SESSIONS
from protocol.errors import ForbiddenError

COOKIE = "__Host-brigade-dashboard"
"""Browsers take a cookie of this prefix only from this very host, for all of it, over TLS."""
CSRF_HEADER = "Brigade-CSRF"
CHANGES_NOTHING = frozenset({hdrs.METH_GET, hdrs.METH_HEAD})
GOES_ON_BY_ITSELF = "/dashboard/events", "/dashboard/history"
"""What the page follows with nobody there: it keeps no session alive."""
UNATTENDED_HEADER = "Brigade-Unattended"
"""The page says by it that nobody has touched it lately: whatever it asks then keeps no session alive either."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Whoever is signed in."""

    caller: KeyCaller
    claims: SessionCookie
    renewed: SignedIn | None
    """Set where the browser is to be given a new cookie."""


SESSION_CLAIMS: web.RequestKey[SessionCookie] = web.RequestKey("dashboard_session", SessionCookie)
"""Of a request that came with the cookie; taken out by who signs out."""


async def visitor_of(request: web.Request) -> Visitor | None:
    """Who is signed in; None where the request goes by an Authorization header, or shows neither.

    Raises:
        UnauthenticatedError: the session is over, or the key isn't good any more.
        ForbiddenError: the request isn't one of our page.
    """
    cookie = request.cookies.get(COOKIE)
    if cookie is None or not request.app[CONFIG].has_dashboard or hdrs.AUTHORIZATION in request.headers:
        return None
    sessions = request.app[DASHBOARD_SESSIONS]
    claims = sessions.read(cookie)
    _check_from_here(request)
    if request.method not in CHANGES_NOTHING:
        check_origin(request)
        tokens = request.headers.getall(CSRF_HEADER, [])
        if len(tokens) != 1 or not sessions.is_csrf_token(tokens[0], claims):
            raise ForbiddenError(
                f"a request that changes something needs the session's token in one {CSRF_HEADER} header "
                "(GET /dashboard/session gives it)"
            )
    caller = await session_caller(request.app, claims)
    is_unattended = request.path.startswith(GOES_ON_BY_ITSELF) or UNATTENDED_HEADER in request.headers
    renewed = None if is_unattended else sessions.used(claims)
    request[SESSION_CLAIMS] = claims
    return Visitor(caller=caller, claims=claims, renewed=renewed)


async def session_caller(app: web.Application, claims: SessionCookie) -> KeyCaller:
    """The operator whose session this is.

    Raises:
        UnauthenticatedError: the key, or the secret of it that was shown, is good no longer.
        StorageError: nobody can say.
    """
    return await app[AUTHENTICATOR].signed_in_caller(claims.key_id, claims.secret_mark)


def check_origin(request: web.Request) -> None:
    """See that a page of this very site asks.

    Raises:
        ForbiddenError: another one does, or nobody says who.
    """
    origins = request.headers.getall(hdrs.ORIGIN, [])
    if origins != [f"https://{request.host}"]:
        raise ForbiddenError(
            "this is for the dashboard's own page alone: the request's Origin header must be this coordinator's "
            "address; programs show an API key instead (Authorization: Bearer ...)"
        )


def give_cookie(answer: web.StreamResponse, signed_in: SignedIn, now_s: float) -> None:
    """Have the browser keep the session's cookie: for our host alone, never for scripts, never from elsewhere."""
    answer.set_cookie(
        COOKIE,
        signed_in.cookie,
        max_age=max(1, int(signed_in.claims.expires_at_s - now_s)),
        path="/",
        secure=True,
        httponly=True,
        samesite="Strict",
    )


def take_cookie(answer: web.StreamResponse) -> None:
    """Have the browser forget it."""
    answer.del_cookie(COOKIE, path="/", secure=True, httponly=True, samesite="Strict")


def _check_from_here(request: web.Request) -> None:
    """`SameSite` lets other ports of this host through: these are other sites to us."""
    if any(site not in ("same-origin", "none") for site in request.headers.getall("Sec-Fetch-Site", [])):
        raise ForbiddenError("this is for the dashboard's own page alone, and another site asks")
