"""Whoever holds the event loop is named, once a while, and a loop that comes round is left alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any

from structlog.testing import capture_logs

from coordinator.loop_watch import LOOK_S, LoopWatch
from protocol.running_beside import running_beside

HELD_S = 1.0
Lines = list[MutableMapping[str, Any]]


def busy_for_long() -> None:
    """As a function that computes; asleep, the test's own watch over blocking calls would find it."""
    until_s = time.perf_counter() + HELD_S
    while time.perf_counter() < until_s:
        pass


async def held(n_times: int) -> Lines:
    with capture_logs() as lines:
        async with running_beside(watch=LoopWatch(held_s=HELD_S / 2).watch_forever()):
            for _ in range(n_times):
                await asyncio.sleep(LOOK_S / 5)
                busy_for_long()
            await asyncio.sleep(2 * LOOK_S)
    return [line for line in lines if line["event"] == "event_loop_held"]


async def test_who_holds_the_loop_is_named() -> None:
    (line,) = await held(1)
    assert line["by"].startswith(f"{__name__}.busy_for_long < {__name__}.held")
    assert line["seconds"] > HELD_S / 2
    assert line["n_untold"] == 0


async def test_a_loop_that_is_held_again_and_again_fills_no_log() -> None:
    assert len(await held(3)) == 1


async def test_a_loop_that_comes_round_is_left_alone() -> None:
    with capture_logs() as lines:
        async with running_beside(watch=LoopWatch(held_s=60.0).watch_forever()):
            await asyncio.sleep(3 * LOOK_S)
    assert not [line for line in lines if line["event"] == "event_loop_held"]
