"""Signing in to the dashboard and out of it, and who is signed in."""

from __future__ import annotations

from datetime import UTC, datetime

from aiohttp import hdrs, web

from coordinator.acting import acting
from coordinator.credentials import KeyCaller
from coordinator.dashboard_door import SESSION_CLAIMS, check_origin, give_cookie, take_cookie
from coordinator.dashboard_sessions import IDLE_S, SessionCookie, secret_mark
from coordinator.keys import (
    AUTHENTICATOR,
    AUTHORITY,
    CLOCK,
    CLUSTER,
    DASHBOARD_FEED,
    DASHBOARD_SESSIONS,
    DASHBOARD_STORE,
    PUBLIC_URL,
    REPOSITORY,
    SIGN_IN_LIMITER,
    VERSION,
)
from coordinator.middleware import add_route, json_answer, read_json
from coordinator.policy.ratelimit import RateLimit
from coordinator.route_docs import RouteDoc
from protocol.api_key import api_key_from_text, secret_hash
from protocol.dashboard_rest import DashboardSession, SignInRequest
from protocol.errors import InvalidRequestError, QuotaExceededError
from protocol.host_names import rate_key

SIGN_IN_LIMIT = RateLimit(capacity=10.0, refill_per_s=0.1)
"""Attempts by address. A key can't be guessed; who tries gets no further than a line of the log each."""

SIGN_IN_DOC = RouteDoc(
    "Sign in to the dashboard.", body=SignInRequest, answer=DashboardSession, errors=(QuotaExceededError,)
)
SESSION_DOC = RouteDoc("Show who is signed in.", answer=DashboardSession)
SIGN_OUT_DOC = RouteDoc("Sign out of the dashboard.", answer=None, status=204)


def add_dashboard_routes(app: web.Application) -> None:
    """Put the routes in."""
    add_route(app, "open", "POST", "/dashboard/session", sign_in, SIGN_IN_DOC)
    add_route(app, "admin", "GET", "/dashboard/session", session, SESSION_DOC)
    add_route(app, "admin", "DELETE", "/dashboard/session", sign_out, SIGN_OUT_DOC)


async def sign_in(request: web.Request) -> web.Response:
    """`SignInRequest` -> `DashboardSession`, and the cookie."""
    check_origin(request)
    now_s = request.app[CLOCK]()
    address = rate_key(request.remote or "")
    request.app[SIGN_IN_LIMITER].check(address, now_s)
    key_text = (await read_json(request, SignInRequest)).key.strip()
    caller = await request.app[AUTHENTICATOR].caller("admin", [f"Bearer {key_text}"])
    assert isinstance(caller, KeyCaller)  # of kind admin
    acting.set(f"key:{caller.key_id}")
    await request.app[DASHBOARD_STORE].record_sign_in(caller.key_id, address, datetime.fromtimestamp(now_s, UTC))
    mark = secret_mark(secret_hash(api_key_from_text(key_text).secret))
    signed_in = request.app[DASHBOARD_SESSIONS].begin(caller.key_id, mark)
    answer = json_answer(await _session(request, signed_in.claims))
    give_cookie(answer, signed_in, now_s)
    return answer


async def session(request: web.Request) -> web.Response:
    """-> `DashboardSession`."""
    return json_answer(await _session(request, _claims(request)))


async def sign_out(request: web.Request) -> web.Response:
    """End the session, whichever of its cookies is shown, and its event streams."""
    claims = _claims(request)
    until, now = (datetime.fromtimestamp(at_s, UTC) for at_s in (claims.ends_at_s, request.app[CLOCK]()))
    # First where it outlives this program: who is told that it failed can try again.
    await request.app[DASHBOARD_STORE].record_sign_out(claims.session_id, claims.key_id, until, now)
    request.app[DASHBOARD_SESSIONS].end(claims)
    request.app[DASHBOARD_FEED].end_session(claims.session_id)
    del request[SESSION_CLAIMS]
    answer = web.Response(status=204)
    take_cookie(answer)
    answer.headers["Clear-Site-Data"] = '"cache", "storage"'
    return answer


def _claims(request: web.Request) -> SessionCookie:
    claims: SessionCookie | None = request.get(SESSION_CLAIMS)
    if claims is None:
        raise InvalidRequestError(
            f"this request shows an API key in {hdrs.AUTHORIZATION}, and no session of the dashboard: there is "
            "none to show or to end"
        )
    return claims


async def _session(request: web.Request, claims: SessionCookie) -> DashboardSession:
    app = request.app
    key = await app[REPOSITORY].api_key(claims.key_id)
    return DashboardSession(
        key_id=claims.key_id,
        key_name=key.name if key is not None else "",
        csrf_token=app[DASHBOARD_SESSIONS].csrf_token(claims),
        expires_at_s=claims.ends_at_s,
        idle_s=IDLE_S,
        now_s=app[CLOCK](),
        coordinator_id=app[AUTHORITY].coordinator_id,
        version=app[VERSION],
        url=app[PUBLIC_URL][0],
        gateway_url=app[CLUSTER].state.settings.gateway_url,
    )
