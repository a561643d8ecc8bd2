"""A real Chromium on the dashboard of a coordinator: signed in as an operator, watched for what it mustn't do.

async with chromium() as browser, dashboard(browser, coordinator) as page:
    await page.get_by_role("link", name="Workers").click()
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from coordinator.app import RunningCoordinator
from tests.support.coordinators import key_of

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCREENSHOTS = Path(__file__).parents[2] / ".screenshots"
WITHIN_MS = 20_000
WATCH = """
window.violations = [];
document.addEventListener('securitypolicyviolation', event =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """The browser; the test is skipped where there is none."""
    if PROGRAM is None:
        pytest.skip("there is no Chromium on the PATH: install the package `chromium`")
    expect.set_options(timeout=WITHIN_MS)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=PROGRAM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def opened_page(browser: Browser, coordinator: RunningCoordinator, **options: Any) -> AsyncIterator[Page]:
    """The page before anybody has signed in; at the end it must have kept to its policy and thrown nothing."""
    settings = {"viewport": {"width": 1280, "height": 900}, "locale": "en-GB"} | options
    context = await browser.new_context(ignore_https_errors=True, **settings)
    context.set_default_timeout(WITHIN_MS)
    thrown: list[str] = []
    try:
        page = await context.new_page()
        page.on("pageerror", lambda error: thrown.append(str(error)))
        await page.add_init_script(WATCH)
        await page.goto(f"https://127.0.0.1:{coordinator.port}/dashboard/")
        yield page
        assert await page.evaluate("window.violations") == []
        assert thrown == []
    finally:
        await context.close()


async def sign_in(page: Page, key: str) -> None:
    """Type the key and send it."""
    await page.get_by_label("Operator's key").fill(key)
    await page.get_by_role("button", name="Sign in").click()


@asynccontextmanager
async def dashboard(browser: Browser, coordinator: RunningCoordinator, **options: Any) -> AsyncIterator[Page]:
    """The page, signed in and live."""
    async with opened_page(browser, coordinator, **options) as page:
        await sign_in(page, key_of(coordinator, "admin"))
        await expect(page.get_by_role("heading", name="Cluster", level=1)).to_be_visible()
        yield page


async def go_to(page: Page, name: str) -> None:
    """By the link of this name on the side."""
    await page.get_by_role("navigation").get_by_role("link", name=name, exact=True).click()
    await expect(page.get_by_role("heading", level=1)).to_be_visible()


def keep_figures(name: str, figures: dict[str, float]) -> None:
    """What was measured, beside the pictures."""
    SCREENSHOTS.mkdir(exist_ok=True)
    (SCREENSHOTS / f"{name}.json").write_text(json.dumps(figures))


async def keep_picture(page: Page, name: str) -> None:
    """For people to look at."""
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
