from __future__ import annotations

from pathlib import Path

import pytest

from coordinator import dashboard_start
from coordinator.dashboard_files import dashboard_files
from tests.support.coordinators import http_session, running_coordinator
from tests.support.dashboard import signed_in

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a build leaves, and what doesn't belong there."""
    folder = tmp_path / "assets"
    folder.mkdir()
    for name, data in {
        "index.html": b"<!doctype html>",
        "index.html.br": b"brotli",
        "app-0123456789ab.js": b"script",
        "app-0123456789ab.js.gz": b"gzip",
        "unhashed.js": b"script",
        "notes.txt": b"text",
    }.items():
        (folder / name).write_bytes(data)
    return folder


async def test_files_are_kept_for_good_and_the_page_is_asked_for_each_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dashboard_start, "dashboard_files", lambda: dashboard_files(folder))
    async with running_coordinator(tmp_path) as coordinator, http_session(coordinator) as http:
        plain = {"Accept-Encoding": "identity"}
        page = await http.ask("GET", "/dashboard/", headers=plain)
        assert (page.status, page.body) == (200, b"<!doctype html>")
        assert page.headers["Content-Security-Policy"] == POLICY
        assert page.headers["Cache-Control"] == "no-cache"
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert "camera=()" in page.headers["Permissions-Policy"]
        known = {"If-None-Match": page.headers["ETag"]}
        assert (await http.ask("GET", "/dashboard/", headers=known)).status == 304

        script = await http.ask("GET", "/dashboard/assets/app-0123456789ab.js", headers=plain)
        assert (script.body, script.headers["Content-Type"]) == (b"script", "text/javascript; charset=utf-8")
        assert "immutable" in script.headers["Cache-Control"]
        for asked, sent in (("br, gzip", "br"), ("gzip;q=0.5, br;q=0", None), ("deflate", None)):
            headers = {"Accept-Encoding": asked}
            answer = await http.ask("GET", "/dashboard/", headers=headers, auto_decompress=False)
            assert answer.headers.get("Content-Encoding") == sent
            assert answer.body == (b"brotli" if sent else b"<!doctype html>")
        for name in (
            "unhashed.js",
            "notes.txt",
            "index.html",
            "index.html.br",
            "..%2F..%2Fapp.py",
            "%2Fetc%2Fpasswd",
        ):
            assert (await http.ask("GET", f"/dashboard/assets/{name}")).status == 404, name
        moved = await http.ask("GET", "/", allow_redirects=False)
        assert (moved.status, moved.headers["Location"]) == (308, "/dashboard/")


async def test_the_page_may_talk_to_the_gateway_that_is_set_and_to_nothing_that_isnt_one(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:

        async def settled(url: str) -> int:
            body = b'{"settings": {"gateway_url": "%s"}}' % url.encode()
            return (await page.ask("PATCH", "/admin/v1/settings", body)).status

        for wrong in (
            "http://gateway.example:8000",
            "https://gateway.example/path",
            "https://gateway.example; script-src *",
            "https://a.example https://b.example",
            "https://user@gateway.example",
            "https://*",
            "javascript:alert(1)",
        ):
            assert await settled(wrong) == 400, wrong
        assert await settled("https://gateway.example:8000") == 200
        answer = await page.ask("GET", "/dashboard/")
        if answer.status == 200:  # built
            policy = answer.headers["Content-Security-Policy"]
            assert "connect-src 'self' https://gateway.example:8000; " in policy
        session = await page.ask("GET", "/dashboard/session")
        assert b'"gateway_url":"https://gateway.example:8000"' in session.body
        assert await settled("") == 200
