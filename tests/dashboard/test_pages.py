"""The dashboard in a real browser, on a real coordinator with workers that do as the tests say."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from coordinator.app import RunningCoordinator
from coordinator.policy.views import model_info
from protocol.admin_rest import AuditPage
from protocol.codec import decode_message
from protocol.control_messages import Assign, CoordinatorToWorker, Heartbeat
from protocol.ids import BlockRange, ModelName, WorkerId
from protocol.key_rest import KeyList
from tests.support.browsers import dashboard, go_to, keep_figures, keep_picture, opened_page, sign_in
from tests.support.coordinators import (
    ScriptedWorker,
    add_model,
    announcement,
    eventually,
    http_session,
    joined_worker,
    key_of,
    running_coordinator,
)

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]
TINY = ModelName("tiny")
N_BLOCKS = 12
HOSTS = {"attic": "0:5", "cellar": "5:9", "garage": "9:12"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A coordinator with one model and three workers, one of which can be killed."""

    coordinator: RunningCoordinator
    workers: dict[str, ScriptedWorker]
    last: AsyncExitStack
    """Closing it is the end of `garage`."""


@asynccontextmanager
async def small_cluster(folder: Path) -> AsyncIterator[Small]:
    patient = {"suspect_after_s": 600.0, "failover_after_s": 600.0, "lost_after_s": 1200.0}
    async with running_coordinator(folder, **patient) as coordinator:
        await add_model(coordinator, n_blocks=N_BLOCKS)
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
            workers: dict[str, ScriptedWorker] = {}
            last = await stack.enter_async_context(AsyncExitStack())
            for hostname, blocks in HOSTS.items():
                start, end = map(int, blocks.split(":"))
                said = announcement(hostname=hostname, pinned_blocks=BlockRange(start, end))
                where = last if hostname == "garage" else stack
                workers[hostname] = await where.enter_async_context(joined_worker(coordinator, announce=said))
            serving = [tasks.create_task(serve(worker)) for worker in workers.values()]
            await eventually(lambda: model_info(coordinator.cluster.state, TINY, 0.0).state == "ready")
            await workers["attic"].send(beat({workers["cellar"].worker_id: 0.0123}))
            yield Small(coordinator=coordinator, workers=workers, last=last)
            for task in serving:
                task.cancel()


async def serve(worker: ScriptedWorker) -> None:
    """Hold whatever is assigned, until the socket ends; who doesn't read is taken for dead."""
    async for message in worker.socket:
        said = decode_message(message.data, CoordinatorToWorker)
        if isinstance(said, Assign):
            await worker.hold(said)


def beat(round_trips_s: dict[WorkerId, float]) -> Heartbeat:
    return Heartbeat(
        n_sessions=2,
        n_queued=0,
        free_kv_bytes=10**8,
        decode_s_per_block=0.001,
        prefill_s_per_token_block=0.0001,
        round_trips_s=round_trips_s,
    )


def band(page: Page, hostname: str) -> Locator:
    return page.get_by_role("list", name="Workers that hold tiny").get_by_role(
        "link", name=re.compile(f"^{hostname}")
    )


async def test_signing_in_and_out(browser: Browser, tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, opened_page(browser, coordinator) as page:
        await sign_in(page, key_of(coordinator, "client"))
        await expect(page.get_by_role("alert")).to_contain_text("admin")
        await sign_in(page, key_of(coordinator, "admin"))
        await expect(page.get_by_text("No worker has joined yet.")).to_be_visible()
        await expect(page.get_by_text("coord model add NAME SOURCE")).to_be_visible()
        await keep_picture(page, "empty")
        kept = await page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])")
        assert kept == '[{},{},""]'  # neither the key nor the session is where a script could read it
        await page.get_by_role("button", name="Sign out").click()
        await expect(page.get_by_label("Operator's key")).to_be_visible()
        await page.reload()
        await expect(page.get_by_label("Operator's key")).to_be_visible()


async def test_the_picture_shows_who_holds_what_and_changes_when_a_worker_dies(
    browser: Browser, tmp_path: Path
) -> None:
    async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator) as page:
        coverage = page.get_by_role("img", name="tiny: all 12 blocks are served")
        await expect(coverage).to_be_visible()
        width = (await coverage.bounding_box() or {})["width"]
        for hostname, blocks in HOSTS.items():
            start, end = map(int, blocks.split(":"))
            bar = band(page, hostname).locator(".bar.state-ready")
            box = await bar.bounding_box() or {}
            assert box["width"] == pytest.approx(width * (end - start) / N_BLOCKS, rel=0.02)
        ring = page.get_by_role("group", name="Ring of tiny")
        await expect(ring.locator("path")).to_have_count(3)
        await expect(ring).to_contain_text("12.3 ms")
        await keep_picture(page, "cluster")
        await small.last.aclose()
        await expect(page.get_by_role("img", name=re.compile("^tiny: nobody serves blocks 9.11$"))).to_be_visible()
        await expect(page.locator(".cover-bad")).to_be_visible()
        await expect(ring).to_have_count(0)
        await keep_picture(page, "cluster-gap")


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


async def test_every_page_shows_something_in_the_dark_and_on_a_phone(browser: Browser, tmp_path: Path) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark", "has_touch": True}
    async with small_cluster(tmp_path) as small, dashboard(browser, small.coordinator, **phone) as page:
        assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
        for name in (
            "Workers",
            "Models",
            "Generations",
            "Plots",
            "Placement",
            "Keys",
            "Chat",
            "Audit log",
            "Settings",
        ):
            await page.get_by_role("button", name="Pages").click()
            await page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
            await expect(page.locator("main .card").first).to_be_visible()
            await expect(page.locator("main .notice-bad")).to_have_count(0)
            await keep_picture(page, f"phone-{name.lower().replace(' ', '-')}")
            wide = await page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, f"{name} is {wide} pixels wide"
        await page.get_by_role("button", name="Pages").click()
        await page.get_by_role("link", name="Cluster", exact=True).click()
        await keep_picture(page, "phone-cluster")
        await page.get_by_role("button", name="Pages").click()
        await page.get_by_role("button", name=re.compile("^Colours")).click()
        assert await page.evaluate("document.documentElement.dataset.theme") == "light"


async def test_a_lost_coordinator_is_said_and_found_again(browser: Browser, tmp_path: Path) -> None:
    async with AsyncExitStack() as first:
        coordinator = await first.enter_async_context(running_coordinator(tmp_path))
        async with dashboard(browser, coordinator) as page:
            port = coordinator.port
            await first.aclose()
            await expect(page.get_by_role("alert")).to_contain_text("connection to the coordinator is lost")
            async with running_coordinator(tmp_path, listen_port=port):
                await expect(page.get_by_role("alert")).to_have_count(0)
                await expect(page.get_by_role("status").filter(has_text="live").first).to_be_attached()


async def test_the_page_is_small_and_painted_soon(browser: Browser, tmp_path: Path) -> None:
    async with running_coordinator(tmp_path) as coordinator, dashboard(browser, coordinator) as page:
        await asyncio.wait_for(page.wait_for_function("performance.getEntriesByType('paint').length > 1"), 20)
        loaded = await page.evaluate(
            """performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))
               .filter(one => ['script', 'link', 'img', 'navigation', 'other'].includes(one.initiatorType))
               .map(one => [one.name, one.transferSize, one.decodedBodySize])"""
        )
        paint_ms = await page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        keep_figures("first-paint", {"ms": paint_ms})
        assert 10_000 < sum(size for _, size, _ in loaded) < 300_000, loaded
        assert sum(size for _, _, size in loaded) < 300_000, loaded
