from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from protocol.errors import BrigadeError, CancelledByClientError, DrainingError, InternalError, NotFoundError
from protocol.ids import SessionId
from tests.support.tiny_checkpoint import CPU
from worker.engine_core import EngineCore
from worker.engine_link import EngineLink
from worker.steps import StepInput

WITHIN_S = 30.0
STEP = StepInput(session_id=SessionId("s"), position=0, n_tokens=1, payload=torch.tensor([5]))


def link(failed: list[BrigadeError]) -> EngineLink:
    return EngineLink(EngineCore(CPU), n_threads=1, max_batch_tokens=8, on_failed=failed.append)


async def held(it: EngineLink) -> tuple[asyncio.Future[None], threading.Event]:
    """The thread does nothing until the event is set; what it does until then is over when the future is."""
    is_held, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold(_core: EngineCore) -> None:
        loop.call_soon_threadsafe(is_held.set)
        go_on.wait(WITHIN_S)

    holding = it.post(hold)
    await is_held.wait()
    return holding, go_on


async def test_what_is_posted_is_done_in_order_though_nobody_waits() -> None:
    failed: list[BrigadeError] = []
    done: list[int] = []
    it = link(failed)
    with pytest.raises(DrainingError, match="not been started"):
        it.check()
    it.start()
    for index in range(3):
        it.post(lambda _core, index=index: done.append(index)).cancel()  # type: ignore[misc]
    assert await it.post(lambda _core: "last") == "last"
    assert done == [0, 1, 2]
    await it.stop()
    await it.watch()
    assert [type(error) for error in failed] == [DrainingError]
    with pytest.raises(DrainingError, match="stopping"):
        it.run(STEP)


async def test_a_sessions_pending_steps_are_dropped_with_the_error_given() -> None:
    it = link([])
    it.start()
    stuck = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(_core: EngineCore) -> None:
        asyncio.run_coroutine_threadsafe(stuck.wait(), loop).result()

    holding = it.post(hold)
    step = it.run(STEP)
    assert it.n_pending_steps == 1
    dropping = it.post(
        lambda _core: None, drops_session=SessionId("s"), drop_error=CancelledByClientError("dropped")
    )
    stuck.set()
    await asyncio.gather(holding, dropping)
    with pytest.raises(CancelledByClientError, match="dropped"):
        await step
    assert it.n_pending_steps == 0
    with pytest.raises(NotFoundError):
        await it.run(STEP)
    await it.stop()


async def test_steps_that_come_at_once_wake_the_thread_once_and_before_what_is_posted_after_them() -> None:
    it = link([])
    it.start()
    holding, go_on = await held(it)
    steps = [it.run(STEP) for _ in range(3)]
    await asyncio.sleep(0)
    assert it._thread.inbox.qsize() == 1
    steps.append(it.run(STEP))
    dropping = it.post(
        lambda _core: None, drops_session=SessionId("s"), drop_error=CancelledByClientError("dropped")
    )
    go_on.set()
    await asyncio.gather(holding, dropping)
    found = await asyncio.gather(*steps, return_exceptions=True)
    assert [type(error) for error in found] == [CancelledByClientError] * 4
    await it.stop()


async def test_the_death_of_the_thread_is_told_to_all() -> None:
    failed: list[BrigadeError] = []
    it = link(failed)
    it.start()

    def die(_core: EngineCore) -> None:
        raise ZeroDivisionError

    with pytest.raises(InternalError, match="thread died"):
        await it.post(die)
    with pytest.raises(InternalError):
        await it.watch()
    assert isinstance(failed[0].__cause__, ZeroDivisionError)
    await it.stop()


async def test_steps_that_come_after_something_posted_go_in_together_too() -> None:
    """A group was cut in two where a call was posted between its first step and the loop's next round."""
    it = link([])
    it.start()
    holding, go_on = await held(it)
    steps = [it.run(STEP)]
    # in the round in which the first would be handed in
    asyncio.get_running_loop().call_soon(lambda: steps.append(it.run(STEP)))
    holding_on = it.post(lambda _core: None)  # the first is handed in before it
    assert it._thread.inbox.qsize() == 2
    steps.append(it.run(STEP))
    await asyncio.sleep(0)
    assert it._thread.inbox.qsize() == 3, "the two that came after it, in one"
    dropping = it.post(
        lambda _core: None, drops_session=SessionId("s"), drop_error=CancelledByClientError("dropped")
    )
    go_on.set()
    await asyncio.gather(holding, holding_on, dropping)
    found = await asyncio.gather(*steps, return_exceptions=True)
    assert len(found) == 3, "each is answered once"
    assert it.n_pending_steps == 0
    await it.stop()


async def test_a_stop_that_is_cancelled_returns_when_the_thread_has_ended() -> None:
    """It hands its results to the loop, which may be closed by then."""
    failed: list[BrigadeError] = []
    it = link(failed)
    it.start()
    _, go_on = await held(it)
    waiting = it.run(STEP)
    stopping = asyncio.get_running_loop().create_task(it.stop())
    for _ in range(5):
        await asyncio.sleep(0)
        stopping.cancel()
    assert not stopping.done()
    go_on.set()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    assert not it._thread._thread.is_alive()
    assert isinstance(waiting.exception(), DrainingError)
    assert [type(error) for error in failed] == [DrainingError]
