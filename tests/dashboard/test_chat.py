from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from protocol.generation_rest import GenerationPage
from protocol.settings_rest import ChangeSettingsRequest
from tests.support.browsers import dashboard, go_to, keep_picture
from tests.support.coordinators import key_of
from tests.support.gateways import gateway_cluster, served_gateway
from tests.support.waiting import eventually
from tests.support.whole_cluster import WholeCluster

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

COUNT_PIECES = """
window.pieces = 0;
new MutationObserver(() => { window.pieces += 1; }).observe(
  document.querySelector('[role=log]'), {subtree: true, childList: true, characterData: true});
"""


STOP_AT_ONCE = """
new MutationObserver(() => {
  const said = [...document.querySelectorAll('.said-assistant')].at(-1);
  const stop = document.querySelector('.composer button.danger');
  if (said?.textContent && stop) stop.click();
}).observe(document.querySelector('main'), {subtree: true, childList: true, characterData: true});
"""


async def outcomes(cluster: WholeCluster) -> set[str | None]:
    page = (await cluster.admin("GET", "/admin/v1/generations?state=finished")).read(GenerationPage)
    return {one.outcome for one in page.generations}


async def test_an_answer_streams_in_and_can_be_stopped(browser: Browser, tmp_path: Path) -> None:
    async with gateway_cluster(tmp_path) as behind:
        cluster, coordinator = behind.cluster, behind.cluster.coordinator
        origin = f"https://127.0.0.1:{coordinator.port}"
        async with served_gateway(cluster, allow_origins=(origin,)) as served:
            setting = ChangeSettingsRequest(settings={"gateway_url": served.gateway.url})
            await cluster.admin("PATCH", "/admin/v1/settings", setting)
            async with dashboard(browser, coordinator) as page:
                await go_to(page, "Chat")
                await page.get_by_label("API key").fill(key_of(coordinator, "client"))
                await page.evaluate(COUNT_PIECES)
                message = page.get_by_label("Message")
                await message.fill("Tell me <b>something</b> long.")
                await message.press("Enter")
                await expect(page.get_by_text("tokens/s")).to_be_visible()
                await expect(page.locator(".said-user")).to_contain_text("<b>something</b>")
                await expect(page.get_by_role("button", name="Send")).to_be_visible()
                assert await page.evaluate("window.pieces") > 5  # it came in pieces, not at once
                await keep_picture(page, "chat")
                await go_to(page, "Generations")
                await page.get_by_role("button", name="Refresh").click()
                rows = page.get_by_role("table", name="Finished generations").get_by_role("row")
                await expect(rows.filter(has_text="tiny").first).to_be_visible()
                await go_to(page, "Chat")
                await page.evaluate(STOP_AT_ONCE)
                for _ in range(10):  # a random model may have ended before
                    await page.get_by_role("button", name="New conversation").click()
                    await message.fill("And again.")
                    await message.press("Enter")
                    await expect(page.get_by_role("button", name="Send")).to_be_visible()
                    await eventually(lambda: served.sessions_on_workers() == 0)
                    if "cancelled" in await outcomes(cluster):
                        break
                assert "cancelled" in await outcomes(cluster)
                await go_to(page, "Cluster")
                await expect(page.get_by_role("group", name="Ring of tiny")).to_contain_text("s")
                tile = page.locator(".tile").filter(has_text="Tokens per second").locator(".tile-value")
                await expect(tile).to_have_text(re.compile("[1-9]"))
                await keep_picture(page, "cluster-real")
                await go_to(page, "Plots")
                plot = page.get_by_role("img", name="Tokens per second over time").locator("canvas")
                await expect(plot).to_be_visible()
                await keep_picture(page, "plots")
