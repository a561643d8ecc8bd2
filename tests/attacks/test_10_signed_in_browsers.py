"""Class 10, signed-in browsers. Defences: a cookie no script reads, a token beside it, our origin, kinds apart."""

from __future__ import annotations

from pathlib import Path

import pytest

from coordinator.dashboard_door import COOKIE, CSRF_HEADER
from coordinator.dashboard_sessions import CsrfToken, SessionCookie
from protocol.ids import KeyId, WorkerId
from protocol.key_rest import CreateKeyRequest
from protocol.tickets import SessionToken, sign_claims
from tests.support.coordinators import bearer, http_session, key_of, running_coordinator
from tests.support.dashboard import browser, signed_in
from tests.support.raw_http import door_of, status_of

FOREIGN = ("https://evil.example", "https://127.0.0.1:1", "http://127.0.0.1", "null", "", None)
READS = ("/admin/v1/status", "/admin/v1/keys", "/dashboard/session", "/dashboard/events", "/dashboard/history")


async def test_another_sites_page_changes_nothing_with_the_operators_cookie(tmp_path: Path) -> None:
    """Fails if the Origin, the token or where it is sent from isn't looked at."""
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        wanted = CreateKeyRequest(name="evil", kind="admin")
        for origin in FOREIGN:
            assert (await page.ask("POST", "/admin/v1/keys", wanted, Origin=origin)).status == 403, origin
            assert (await page.ask("DELETE", "/dashboard/session", Origin=origin)).status == 403, origin
        for site in ("cross-site", "same-site"):  # another port of this host is same-site, and gets the cookie
            for path in READS:
                assert (await page.ask("GET", path, Sec_Fetch_Site=site)).status == 403, path
        async with browser(coordinator) as stranger:  # signing somebody in as somebody else
            for origin in FOREIGN:
                answer = await stranger.ask("POST", "/dashboard/session", b'{"key": "brigade-x"}', Origin=origin)
                assert (answer.status, stranger.cookie) == (403, "")
        assert b"evil" not in (await page.ask("GET", "/admin/v1/keys")).body


async def test_the_token_must_be_this_sessions_own(tmp_path: Path) -> None:
    """Fails if any signed token passes, or none is needed."""
    async with (
        running_coordinator(tmp_path) as coordinator,
        signed_in(coordinator) as page,
        signed_in(coordinator) as other,
    ):
        assert page.session is not None
        assert other.session is not None
        wanted = CreateKeyRequest(name="evil", kind="admin")
        for token in (None, "", "x", page.cookie, other.session.csrf_token, page.session.csrf_token + "x"):
            answer = await page.ask("POST", "/admin/v1/keys", wanted, **{CSRF_HEADER: token})
            assert answer.status == 403, token
        assert (await page.ask("POST", "/admin/v1/keys", wanted)).status == 201


async def test_no_token_of_another_kind_is_a_session_and_no_session_is_another_token(tmp_path: Path) -> None:
    """Fails if kinds pass for one another, or the cookie is believed unsigned."""
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        assert page.session is not None
        keys, until_s = coordinator.authority.signing_keys, page.session.expires_at_s
        worker = sign_claims(SessionToken(worker_id=WorkerId("w-x"), expires_at_s=until_s), keys)
        csrf = sign_claims(CsrfToken(session_id="x", expires_at_s=until_s), keys)
        forged = SessionCookie(
            session_id="x",
            key_id=KeyId(page.session.key_id),
            secret_mark="0" * 16,
            ends_at_s=until_s,
            expires_at_s=until_s,
        )
        cookies = (
            worker,
            csrf,
            page.session.csrf_token,
            key_of(coordinator, "admin"),
            page.cookie[:-2],
            sign_claims(forged, [b"another key" * 4]),
            sign_claims(forged, keys),  # of a secret that the key never had
        )
        for cookie in cookies:
            answer = await page.ask("GET", "/admin/v1/status", Cookie=f"{COOKIE}={cookie}")
            assert answer.status == 401, cookie
        async with http_session(coordinator) as http:
            for path in ("/admin/v1/status", "/v1/models", "/v1/worker/control"):
                assert (await http.ask("GET", path, headers=bearer(page.cookie))).status == 401, path
        for path in ("/v1/models", "/v1/worker/control"):  # the cookie is for operators' routes alone
            assert (await page.ask("GET", path)).status == 401, path


@pytest.mark.parametrize("path", ["/dashboard/", "/dashboard/session", "/admin/v1/status"])
async def test_no_answer_lets_another_site_read_or_frame_it(tmp_path: Path, path: str) -> None:
    """Fails if a CORS header is sent, or a page may be framed or sniffed."""
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        answer = await page.ask("GET", path, Origin="https://evil.example")
        assert not [name for name in answer.headers if name.lower().startswith("access-control")]
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


async def test_an_origin_that_is_no_text_is_refused_like_any_other(tmp_path: Path) -> None:
    """Fails if whoever hasn't signed in can fill the log with tracebacks."""
    async with running_coordinator(tmp_path) as coordinator:
        said = await door_of(coordinator).say(
            "POST /dashboard/session HTTP/1.1",
            f"Host: 127.0.0.1:{coordinator.port}",
            "Origin: https://\xff",
            "Content-Length: 0",
        )
        assert status_of(said) == 403, said[:200]
