"""A thousand workers in a browser: what a real coordinator says of them, though nobody is behind their sockets."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from coordinator.app import RunningCoordinator
from coordinator.policy.events import SpansReported, WorkerBeat, WorkerConnected
from coordinator.policy.statuses import status_as
from protocol.control_messages import Heartbeat, SpanReport
from protocol.ids import BlockRange, WorkerId
from tests.support.browsers import dashboard, go_to, keep_figures, keep_picture
from tests.support.coordinators import running_coordinator
from tests.support.scripted_worker import announcement
from tests.support.stored_model import add_model
from tests.support.waiting import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(180)]
N_WORKERS = 1000
N_BLOCKS = 100
FRAMES = """
window.frames_ms = [];
(function next(before) {
  requestAnimationFrame(now => { window.frames_ms.push(now - before); next(now); });
})(performance.now());
"""


def worker_id(index: int) -> WorkerId:
    return WorkerId(f"w-{index:026d}")


async def joined(coordinator: RunningCoordinator) -> None:
    """All of them, each pinned to ten blocks, which it says it holds."""
    cluster = coordinator.cluster
    for index in range(N_WORKERS):
        start = 10 * (index % (N_BLOCKS // 10))
        said = announcement(
            f"https://127.0.0.1:{20_000 + index}",
            hostname=f"rack{index // 40:02d}-{index % 40:02d}",
            pinned_blocks=BlockRange(start, start + 10),
        )
        await cluster.handle(WorkerConnected(worker_id=worker_id(index), announce=said))
    await eventually(lambda: all(each.assignment.spans for each in cluster.state.workers.values()), 60.0)
    for each in cluster.state.workers.values():
        spans = tuple(status_as(span, "ready", "") for span in each.assignment.spans)
        report = SpanReport(epoch=each.assignment.epoch, spans=spans)
        await cluster.handle(SpansReported(worker_id=each.worker_id, report=report))


async def beating(coordinator: RunningCoordinator) -> None:
    """A heartbeat of each a second, and each says something new."""
    rng = random.Random(1)
    while True:
        for index in range(N_WORKERS):
            beat = Heartbeat(
                n_sessions=rng.randrange(40),
                n_queued=0,
                free_kv_bytes=10**8,
                decode_s_per_block=0.001 * rng.random(),
                prefill_s_per_token_block=0.0001,
            )
            await coordinator.cluster.handle(WorkerBeat(worker_id=worker_id(index), heartbeat=beat))
            if index % 50 == 0:
                await asyncio.sleep(0.05)


async def test_a_thousand_workers_are_shown_without_long_frames(browser: Browser, tmp_path: Path) -> None:
    patient = {"suspect_after_s": 600.0, "failover_after_s": 600.0, "lost_after_s": 1200.0}
    async with running_coordinator(tmp_path, **patient) as coordinator, asyncio.TaskGroup() as tasks:
        await add_model(coordinator, n_blocks=N_BLOCKS)
        await joined(coordinator)
        beats = tasks.create_task(beating(coordinator))
        async with dashboard(browser, coordinator) as page:
            fleet = page.get_by_role("img", name="1,000 workers", exact=False)
            await expect(fleet).to_be_visible()
            await page.evaluate(FRAMES)
            await page.get_by_role("list", name="Workers that hold tiny").evaluate(SCROLL)
            await go_to(page, "Placement")
            rows = page.get_by_role("table", name="Who would hold tiny").get_by_role("row")
            await expect(rows).to_have_count(101)  # with their head
            await page.get_by_role("button", name="Show 100 more of 900").click()
            await expect(rows).to_have_count(201)
            await go_to(page, "Workers")
            listed = page.get_by_role("list", name="Workers")
            await listed.evaluate(SCROLL)
            assert await listed.get_by_role("listitem").count() < 60  # only what is in sight exists
            await expect(listed.get_by_role("link").filter(has_text="rack24-39")).to_be_visible()
            frames_ms = sorted(await page.evaluate("window.frames_ms"))
            await go_to(page, "Cluster")
            await keep_picture(page, "cluster-1000")  # itself a long frame
        beats.cancel()
    found = {"n": len(frames_ms), "p99": frames_ms[int(0.99 * len(frames_ms))], "longest": frames_ms[-1]}
    keep_figures("frames-ms-1000", found)
    assert frames_ms[int(0.95 * len(frames_ms))] < 100.0, frames_ms[-10:]


SCROLL = """
async list => {
  for (let at = 0; at < list.scrollHeight; at += 400) {
    list.scrollTop = at;
    await new Promise(requestAnimationFrame);
  }
  list.scrollTop = list.scrollHeight;
  await new Promise(done => setTimeout(done, 500));
}
"""
