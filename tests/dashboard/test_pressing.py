"""What operators do with the dashboard's buttons, and what comes of it on a real coordinator."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from protocol.admin_rest import AuditPage
from protocol.control_messages import Leaving
from protocol.key_rest import CreateKeyRequest, KeyList
from protocol.rest import RouteGrant, RouteRequest
from tests.support.browsers import dashboard, go_to, keep_picture
from tests.support.coordinators import http_session, key_of, running_coordinator
from tests.support.waiting import eventually
from tests.support.watched_cluster import HOSTS, TINY, small_cluster, spare_worker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def test_a_key_is_made_shown_once_limited_and_revoked(browser: Browser, tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
        dashboard(browser, coordinator) as page,
    ):
        await go_to(page, "Keys")
        await page.get_by_role("button", name="New key").click()
        dialog = page.get_by_role("dialog")
        await dialog.get_by_label("Name", exact=False).first.fill("Ada's laptop")
        await dialog.get_by_label("Requests a minute").fill("30")
        await dialog.get_by_role("button", name="Create key").click()
        secret = await page.get_by_label("The new key").text_content() or ""
        async with http_session(coordinator, secret) as made:
            assert (await made.ask("GET", "/v1/models")).status == 200
        await page.get_by_role("button", name="I have it").click()
        await expect(page.get_by_text(secret)).to_have_count(0)
        row = page.get_by_role("row").filter(has_text="Ada's laptop")
        await expect(row).to_contain_text("30 requests a minute")
        await keep_picture(page, "keys")
        await page.get_by_role("button", name="Revoke Ada's laptop").click()
        await page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
        await expect(row).to_have_count(0)
        found = (await http.ask("GET", "/admin/v1/keys?is_revoked=true")).read(KeyList)
        assert [key.name for key in found.keys] == ["Ada's laptop"]
        await go_to(page, "Audit log")
        await expect(page.get_by_role("row").filter(has_text="key_revoked")).to_have_count(1)
        lines = (await http.ask("GET", "/admin/v1/audit?action=key_revoked")).read(AuditPage)
        assert [line.who.partition(":")[0] for line in lines.entries] == ["key"]


async def test_a_worker_is_banned_and_pardoned(browser: Browser, tmp_path: Path) -> None:
    async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator) as page:
        cellar = small.workers["cellar"].worker_id
        await go_to(page, "Workers")
        await page.get_by_label("Search workers").fill("cell")
        await page.get_by_role("list", name="Workers").get_by_role("link").click()
        await page.get_by_role("button", name="Ban").click()
        await page.get_by_label("Why").fill("answers nonsense")
        await page.get_by_role("dialog").get_by_role("button", name="Ban").click()
        await expect(page.get_by_role("button", name="Pardon")).to_be_visible()
        record = small.coordinator.cluster.state.trust[cellar]
        assert record.banned_reason == "answers nonsense"
        plot = page.get_by_role("img", name="Trust over time").locator("canvas")
        await expect(plot).to_be_visible()
        assert await plot.evaluate(
            "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(one => one > 0)"
        )
        await keep_picture(page, "worker")
        await page.get_by_role("button", name="Pardon").click()
        await eventually(lambda: small.coordinator.cluster.state.trust[cellar].banned_reason is None)


async def test_what_else_operators_do(browser: Browser, tmp_path: Path) -> None:
    async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator) as page:
        cluster, attic = small.coordinator.cluster, small.workers["attic"].worker_id
        dialog = page.get_by_role("dialog")
        await go_to(page, "Placement")
        await page.get_by_label("Blocks").fill("0:3")
        await page.get_by_role("button", name="Preview").click()
        await expect(page.get_by_text("nobody would hold blocks 3:5")).to_be_visible()
        await keep_picture(page, "placement")
        await go_to(page, "Models")
        await page.get_by_role("button", name="Replicas").click()
        await dialog.get_by_label("Workers that are to hold each block").fill("2")
        await dialog.get_by_role("button", name="Save").click()
        await eventually(lambda: cluster.state.models[TINY].n_replicas == 2)
        await go_to(page, "Settings")
        await page.get_by_role("button", name="Change replan_margin").click()
        await dialog.get_by_role("spinbutton").fill("1.5")
        await dialog.get_by_role("button", name="Save").click()
        await expect(page.get_by_role("button", name="Reset replan_margin")).to_be_visible()
        assert cluster.state.settings.replan_margin == 1.5
        await go_to(page, "Keys")
        await page.get_by_role("button", name="Limits of first client key").click()
        await dialog.get_by_label("Tokens a day").fill("5000")
        await dialog.get_by_role("button", name="Save limits").click()
        await expect(page.get_by_role("table", name="API keys")).to_contain_text("5,000 tokens a day")
        await page.get_by_role("button", name="Rotate first client key").click()
        await dialog.get_by_role("button", name="Rotate").click()
        await expect(page.get_by_label("The new key")).to_contain_text("brigade")
        await page.get_by_role("button", name="I have it").click()
        await go_to(page, "Workers")
        await page.get_by_role("link", name=re.compile("^attic")).click()
        await page.get_by_role("button", name="Pin trust").click()
        await dialog.get_by_role("spinbutton").fill("0.8")
        await dialog.get_by_role("button", name="Pin trust").click()
        await expect(page.get_by_role("button", name="Unpin trust")).to_be_visible()
        assert cluster.state.trust[attic].pinned == 0.8
        await page.get_by_role("button", name="Drain").click()
        await dialog.get_by_role("button", name="Drain").click()
        await eventually(lambda: cluster.state.workers[attic].departure or cluster.state.workers[attic].is_draining)


async def test_what_is_ended_taken_back_and_removed(browser: Browser, tmp_path: Path) -> None:
    async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator) as page:
        cluster, garage = small.coordinator.cluster, small.workers["garage"].worker_id
        dialog = page.get_by_role("dialog")
        async with http_session(small.coordinator, key_of(small.coordinator, "client")) as client:
            wanted = RouteRequest(model=TINY, n_prompt_tokens=5, max_tokens=7, wait_s=20.0)
            grant = (await client.ask("POST", "/v1/routes", wanted)).read(RouteGrant)
        await go_to(page, "Generations")
        running = page.get_by_role("table", name="Running generations")
        await expect(running).to_contain_text("garage")
        await running.get_by_role("button", name=f"Cancel {grant.session_id}").click()
        await dialog.get_by_role("button", name="Cancel it").click()
        await expect(page.get_by_text("Nothing runs now.")).to_be_visible()
        await eventually(lambda: small.ended.count(grant.session_id) == len(HOSTS))
        await go_to(page, "Placement")
        await page.get_by_role("button", name="Move to this").click()
        await dialog.get_by_role("button", name="Move", exact=True).click()
        await expect(dialog.get_by_role("alert")).to_contain_text("nothing is moved")
        await dialog.get_by_role("button", name="Cancel").click()
        await go_to(page, "Workers")
        await page.get_by_role("link", name=re.compile("^garage")).click()
        await page.get_by_role("button", name="Pin trust").click()
        await dialog.get_by_role("button", name="Pin trust").click()
        await page.get_by_role("button", name="Unpin trust").click()
        await expect(page.get_by_role("button", name="Unpin trust")).to_have_count(0)
        record = cluster.state.trust.get(garage)
        assert record is None or record.pinned is None
        async with spare_worker(small):  # for whose blocks it waits, and comes to be kept after all
            await page.get_by_role("button", name="Drain").click()
            await dialog.get_by_role("button", name="Drain").click()
            await page.get_by_role("button", name="Keep it after all").click()
            await expect(page.get_by_role("button", name="Drain")).to_be_visible()
            assert cluster.state.workers[garage].departure is None
        await page.get_by_role("button", name="Remove").click()
        await dialog.get_by_role("button", name="Remove").click()
        await expect(dialog.get_by_role("alert")).to_contain_text("was told to leave")
        await small.workers["garage"].send(Leaving(reason="told to"))
        await small.last.aclose()
        await eventually(lambda: cluster.state.workers[garage].presence == "gone")
        await dialog.get_by_role("button", name="Remove").click()
        await expect(page.get_by_role("heading", name="Workers", level=1)).to_be_visible()
        listed = page.get_by_role("list", name="Workers").get_by_role("link")
        await expect(listed.filter(has_text="garage")).to_have_count(0)
        await expect(listed).to_have_count(3)
        assert garage not in cluster.state.workers
        await go_to(page, "Models")
        await page.get_by_role("button", name="Remove").click()
        await dialog.get_by_role("button", name="Remove").click()
        await expect(page.get_by_text("There is no model yet.")).to_be_visible()
        assert TINY not in cluster.state.models


async def test_the_audit_log_is_searched_and_paged_and_names_stay_text(browser: Browser, tmp_path: Path) -> None:
    async with (
        running_coordinator(tmp_path) as coordinator,
        http_session(coordinator, key_of(coordinator, "admin")) as http,
        dashboard(browser, coordinator) as page,
    ):
        for index in range(51):
            name = f"<img src=x onerror=alert({index})>"
            assert (await http.ask("POST", "/admin/v1/keys", CreateKeyRequest(name=name))).status == 201
        await go_to(page, "Audit log")
        rows = page.get_by_role("table", name="Audit log").locator("tbody tr")
        await expect(rows).to_have_count(50)
        await page.get_by_role("button", name="Older").click()
        await expect(page.get_by_text("page 2")).to_be_visible()
        await expect(rows.filter(has_text="onerror=alert(0)")).to_have_count(1)
        await expect(rows.filter(has_text="dashboard_signed_in")).to_have_count(1)
        await page.get_by_label("Action").fill("dashboard_signed_in")
        await page.get_by_role("button", name="Show").click()
        await expect(rows).to_have_count(1)
        await expect(page.get_by_text("page 1")).to_be_visible()
        await page.get_by_label("Since").fill("2999-01-01T00:00")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_text("Nothing like that was done.")).to_be_visible()
        await page.get_by_label("Who").fill("somebody")
        await page.get_by_role("button", name="Show").click()
        await expect(page.get_by_role("alert")).to_contain_text("who")
        await page.route(
            re.compile("/admin/v1/keys"), lambda route: route.continue_(url=f"{route.request.url}&limit=20")
        )
        await go_to(page, "Keys")  # all of them, though that takes several pages
        await expect(page.get_by_text("<img src=x onerror=alert(50)>")).to_be_visible()
        assert await page.locator("main img").count() == 0
