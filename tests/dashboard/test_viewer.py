"""The page that shows /openapi.json, in a browser: it keeps to its policy, and what one sends from it is sent."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import Browser, Locator, Page, expect

from coordinator.app import RunningCoordinator
from protocol.key_rest import KeyList
from tests.support.browsers import opened_page
from tests.support.coordinators import http_session, key_of, running_coordinator

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


async def test_an_operator_makes_two_keys_with_it(browser: Browser, tmp_path: Path) -> None:
    """The second isn't taken for the first come again, as it would be with an Idempotency-Key filled in."""
    async with running_coordinator(tmp_path) as coordinator, opened_page(browser, coordinator) as page:
        complaints: list[str] = []
        await page.goto(f"https://127.0.0.1:{coordinator.port}/docs")
        page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
        await page.reload()
        await show_key(page, key_of(coordinator, "admin"))
        making = page.locator(".opblock-post").filter(has=page.locator('[data-path="/admin/v1/keys"]'))
        await making.locator(".opblock-summary-control").click()
        await making.get_by_role("button", name="Try it out").click()
        for name in ("Ada", "Ben"):
            await send(making, {"name": name})
            await expect(making.locator(".live-responses-table .response-col_status").last).to_contain_text("201")
        assert (await key_names(coordinator))[-2:] == ["Ada", "Ben"]
        assert complaints == []


async def show_key(page: Page, key: str) -> None:
    """Type it where the viewer asks for it."""
    await page.locator("button.authorize").first.click()
    dialog = page.locator(".modal-ux")
    await dialog.locator("input").first.fill(key)
    await dialog.get_by_role("button", name="Apply credentials").first.click()
    await dialog.locator("button.btn-done").first.click()


async def send(operation: Locator, body: dict[str, str]) -> None:
    """Have the viewer ask this, and wait for the answer to be shown."""
    if await (clear := operation.get_by_role("button", name="Clear")).count():
        await clear.click()
    await operation.locator("textarea").first.fill(json.dumps(body))
    await operation.get_by_role("button", name="Execute").click()


async def key_names(coordinator: RunningCoordinator) -> list[str]:
    """Names of the keys that there are, oldest first."""
    async with http_session(coordinator, key_of(coordinator, "admin")) as http:
        return [key.name for key in (await http.ask("GET", "/admin/v1/keys")).read(KeyList).keys]
