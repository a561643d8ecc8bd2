"""The dashboard in a real browser, on a real coordinator with workers that do as the tests say."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, Request, expect

from tests.support.browsers import dashboard, keep_figures, keep_picture, opened_page, sign_in
from tests.support.coordinators import key_of, running_coordinator
from tests.support.stored_model import add_model
from tests.support.watched_cluster import HOSTS, N_BLOCKS, small_cluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


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


async def test_a_page_that_nobody_sees_follows_nothing_and_a_damaged_address_is_said(
    browser: Browser, tmp_path: Path
) -> None:
    def is_stream(request: Request) -> bool:
        return request.url.endswith("/dashboard/events")

    async with running_coordinator(tmp_path) as coordinator, dashboard(browser, coordinator) as page:
        async with page.expect_event("requestfailed", predicate=is_stream):
            await page.evaluate(HIDE, True)
        await add_model(coordinator)
        async with page.expect_request(is_stream):
            await page.evaluate(HIDE, False)
        await expect(page.get_by_role("region", name="Model tiny")).to_be_visible()
        await page.evaluate("location.hash = '#/%E0%A4%A'")
        await expect(page.get_by_text("There is no such page.")).to_be_visible()
        await page.get_by_role("link", name="Go to the cluster").click()
        await expect(page.get_by_role("heading", name="Cluster", level=1)).to_be_visible()


HIDE = """
isHidden => {
  Object.defineProperty(document, 'hidden', {value: isHidden, configurable: true});
  document.dispatchEvent(new Event('visibilitychange'));
}
"""


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


async def test_a_lost_coordinator_is_said_and_found_again(browser: Browser, tmp_path: Path, own_port: int) -> None:
    async with AsyncExitStack() as first:
        coordinator = await first.enter_async_context(running_coordinator(tmp_path, listen_port=own_port))
        async with dashboard(browser, coordinator) as page:
            await first.aclose()
            await expect(page.get_by_role("alert")).to_contain_text("connection to the coordinator is lost")
            async with running_coordinator(tmp_path, listen_port=own_port):
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
