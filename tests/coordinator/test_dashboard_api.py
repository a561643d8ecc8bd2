from __future__ import annotations

from http.cookies import SimpleCookie
from pathlib import Path

from sqlalchemy import text

from coordinator.app import RunningCoordinator
from coordinator.dashboard_door import COOKIE
from coordinator.dashboard_sessions import IDLE_S, LONGEST_S
from coordinator.log_tables import DashboardSignOutRow
from protocol.admin_rest import AuditPage
from protocol.api_key import api_key_from_text
from protocol.dashboard_rest import DashboardSession
from protocol.errors import StorageError
from protocol.key_rest import CreatedKey, CreateKeyRequest
from tests.support.clocks import Clock
from tests.support.coordinators import key_of, running_coordinator
from tests.support.dashboard import browser, signed_in


async def test_an_operator_signs_in_sees_who_they_are_acts_and_signs_out(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, browser(coordinator) as page:
        key = key_of(coordinator, "admin")
        answer = await page.sign_in(key)
        (header,) = answer.headers.getall("Set-Cookie")
        cookie = SimpleCookie(header)[COOKIE]
        assert (cookie["secure"], cookie["httponly"], cookie["path"]) == (True, True, "/")
        assert cookie["samesite"] == "Strict"
        assert cookie["max-age"] == f"{IDLE_S:.0f}"
        assert not cookie["domain"]
        assert api_key_from_text(key).secret not in answer.body.decode() + header
        shown = (await page.ask("GET", "/dashboard/session")).read(DashboardSession)
        assert shown.key_id == api_key_from_text(key).key_id
        assert shown.expires_at_s - shown.now_s > LONGEST_S - 60

        created = await page.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="by the page"))
        assert created.status == 201, created.body
        lines = (await page.ask("GET", "/admin/v1/audit")).read(AuditPage).entries
        acts = [(line.who, line.action) for line in lines if line.action in ("key_created", "dashboard_signed_in")]
        assert acts[:2] == [(f"key:{shown.key_id}", "key_created"), (f"key:{shown.key_id}", "dashboard_signed_in")]

        old = page.cookie
        out = await page.ask("DELETE", "/dashboard/session")
        assert (out.status, page.cookie) == (204, "")
        assert (await page.ask("GET", "/admin/v1/status", Cookie=f"{COOKIE}={old}")).status == 401


async def test_who_is_no_operator_doesnt_get_in_and_guessing_is_slow(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, browser(coordinator) as page:
        assert (await page.sign_in(key_of(coordinator, "client"))).status == 403
        statuses = [(await page.sign_in("brigade-admin-nonsense")).status for _ in range(12)]
        assert statuses[:9] == [401] * 9
        assert statuses[-1] == 429
        refused = await page.sign_in(key_of(coordinator, "admin"))
        assert (refused.status, page.cookie) == (429, "")
        assert int(refused.headers["Retry-After"]) >= 1


async def test_a_session_ends_after_an_hour_without_a_request_and_after_twelve_hours(tmp_path: Path) -> None:
    clock = Clock()
    async with running_coordinator(tmp_path, clock=clock) as coordinator, signed_in(coordinator) as page:
        for _ in range(3):  # used: it goes on, with new cookies
            clock.now_s += IDLE_S - 1
            before = page.cookie
            assert (await page.ask("GET", "/admin/v1/keys")).status == 200
            assert page.cookie != before
        clock.now_s += IDLE_S - 1
        kept = page.cookie
        assert (await page.ask("GET", "/dashboard/history")).status == 200  # asked with nobody there
        assert (await page.ask("GET", "/admin/v1/keys", Brigade_Unattended="1")).status == 200
        assert page.cookie == kept
        clock.now_s += 1.0
        assert (await page.ask("GET", "/admin/v1/keys")).status == 401

        await page.sign_in(key_of(coordinator, "admin"))
        for _ in range(int(LONGEST_S / 3000) + 1):
            clock.now_s += 3000
            last = await page.ask("GET", "/admin/v1/keys")
        assert last.status == 401


async def test_a_session_doesnt_outlive_its_key_nor_a_sign_out_a_restart(tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        signed_in(coordinator) as page,
        browser(coordinator) as other,
    ):
        made = await page.ask("POST", "/admin/v1/keys", CreateKeyRequest(name="second", kind="admin"))
        second = made.read(CreatedKey)
        await other.sign_in(second.key)
        rotated = await page.ask("POST", f"/admin/v1/keys/{second.key_id}/rotate", b'{"grace_s": 0}')
        assert rotated.status == 200, rotated.body
        assert (await other.ask("GET", "/dashboard/session")).status == 401, "signed in with the old secret"
        signed_out = page.cookie
        assert (await page.ask("DELETE", "/dashboard/session")).status == 204
        await page.sign_in(key_of(coordinator, "admin"))
        kept = page.cookie
        lines = (await page.ask("GET", "/admin/v1/audit?action=dashboard_signed_out")).read(AuditPage).entries
        assert [line.who for line in lines] == [f"key:{api_key_from_text(key_of(coordinator, 'admin')).key_id}"]
    async with running_coordinator(tmp_path) as coordinator, browser(coordinator) as page:
        assert (await page.ask("GET", "/dashboard/session", Cookie=f"{COOKIE}={signed_out}")).status == 401
        assert (await page.ask("GET", "/dashboard/session", Cookie=f"{COOKIE}={kept}")).status == 200


async def test_a_sign_out_that_cant_be_kept_is_said_to_have_failed_and_can_be_tried_again(tmp_path: Path) -> None:
    async def renamed(coordinator: RunningCoordinator, before: str, after: str) -> None:
        async with coordinator.repository.transactions.writing() as session:
            await session.execute(text(f"ALTER TABLE {before} RENAME TO {after}"))

    table = DashboardSignOutRow.__tablename__
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        cookie = page.cookie
        await renamed(coordinator, table, "away")
        assert (await page.ask("DELETE", "/dashboard/session")).status == StorageError.status
        await renamed(coordinator, "away", table)
        assert (await page.ask("DELETE", "/dashboard/session")).status == 204
    async with running_coordinator(tmp_path) as coordinator, browser(coordinator) as page:
        assert (await page.ask("GET", "/dashboard/session", Cookie=f"{COOKIE}={cookie}")).status == 401


async def test_without_a_dashboard_there_is_nothing_and_no_cookie_counts(tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, signed_in(coordinator) as page:
        cookie = page.cookie
    async with running_coordinator(tmp_path, has_dashboard=False) as coordinator, browser(coordinator) as page:
        for path in ("/", "/dashboard/", "/dashboard/session", "/dashboard/events"):
            assert (await page.ask("GET", path)).status == 404, path
        assert (await page.ask("GET", "/admin/v1/status", Cookie=f"{COOKIE}={cookie}")).status == 401
