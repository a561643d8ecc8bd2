"""Memory that sessions wait for, hold, and leave behind for others to go on with."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from protocol.errors import CancelledByClientError, ConflictError, OverloadedError
from protocol.ids import BlockRange, SessionId
from tests.support.running_engine import GREEDY, KV_PER_POSITION, engine, llama, opened, spec, tokens
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.history import History
from worker.parking import PARK_S
from worker.steps import LoadedSpan, StepOutput

__all__ = ["engine", "llama"]


async def test_a_session_waits_for_memory_until_another_closes(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama, n_positions=9_000)
    waiting = asyncio.ensure_future(  # noqa: TID251
        engine.open_session(spec(loaded, "second", n_positions=2_000), deadline_s=30)
    )
    await asyncio.sleep(0)
    assert engine.stats().n_waiting_sessions == 1
    await engine.close_session(SessionId("s"))
    await waiting
    assert engine.stats().n_sessions == 1


async def test_a_wait_for_memory_ends_at_its_deadline(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama, n_positions=9_000)
    with pytest.raises(OverloadedError, match=f"{2_000 * KV_PER_POSITION} bytes"):
        await engine.open_session(spec(loaded, "second", n_positions=2_000), deadline_s=0.01)
    with pytest.raises(OverloadedError, match="20000 positions need"):
        await engine.open_session(spec(loaded, "third", n_positions=20_000), deadline_s=5)
    assert engine.stats().n_waiting_sessions == 0


async def test_closing_ends_a_wait_for_memory(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama, n_positions=9_000)
    waiting = asyncio.ensure_future(  # noqa: TID251
        engine.open_session(spec(loaded, "second", n_positions=2_000), deadline_s=30)
    )
    await asyncio.sleep(0)
    await engine.close_session(SessionId("second"))
    with pytest.raises(CancelledByClientError):
        await waiting


async def test_a_cancelled_opening_leaves_nothing(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await engine.load(llama.request(WHOLE))
    opening = asyncio.ensure_future(engine.open_session(spec(loaded), deadline_s=30))  # noqa: TID251
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await engine.close_session(SessionId("s"))
    assert engine.stats().n_sessions == 0
    await engine.unload(loaded.key)


async def test_memory_is_reserved_for_what_is_handed_on_too(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await engine.load(llama.request(BlockRange(0, 2)))
    await engine.open_session(spec(loaded, sampling=None), deadline_s=5)
    used = engine.stats().kv_budget_bytes - engine.stats().kv_free_bytes
    assert used == 40 * (KV_PER_POSITION // 2 + 32 * 4)


async def parked(engine: Engine, llama: TinyCheckpoint, **changes: Any) -> LoadedSpan:
    """A session of 4 positions, broken off."""
    loaded = await opened(engine, llama, sampling=None, **changes)
    await engine.run(tokens(0, 5, 9, 30, 4))
    assert engine.park_session(SessionId("s"), ran(4))
    return loaded


def ran(n_positions: int) -> History:
    """The history of a session on all blocks."""
    history = History()
    history.n_settled = n_positions
    return history


async def test_a_session_goes_on_with_what_another_left(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await parked(engine, llama)
    stats = engine.stats()
    assert (stats.n_sessions, stats.kv_free_bytes, stats.n_positions_run) == (0, 10_000 * KV_PER_POSITION, 4)
    new = spec(loaded, "new", n_positions=30, continues=SessionId("s"), sampling=None)
    taken = await engine.open_session(new, deadline_s=5)
    assert taken is not None
    assert taken.n_cached == 4
    assert engine.stats().kv_free_bytes == (10_000 - 30) * KV_PER_POSITION
    await engine.attach_sampler(new.session_id, GREEDY, (5, 9, 30, 4, 77))
    output = await engine.run(tokens(4, 77, name="new", wants_sample=True))
    assert output.tokens
    assert [output.tokens[0].token_id] == llama.greedy([5, 9, 30, 4, 77], 1)
    assert await engine.open_session(replace(new, session_id=SessionId("late")), deadline_s=5) is None
    await engine.close_session(new.session_id)
    await engine.close_session(SessionId("late"))
    assert engine.stats().kv_free_bytes == 10_000 * KV_PER_POSITION
    assert await engine._link.post(lambda core: list(core.sessions)) == []


async def test_what_is_parked_gives_way_to_sessions_that_would_wait(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await parked(engine, llama, n_positions=9_000)
    assert await engine.open_session(spec(loaded, "first", n_positions=9_997), deadline_s=0.01) is None
    assert await engine._link.post(lambda core: list(core.sessions)) == ["first"], "four positions were parked"
    for name, n_positions, left in (("second", 9_996, ["first", "second"]), ("third", 10_000, ["third"])):
        async with asyncio.TaskGroup() as tasks:
            waiting = engine.open_session(spec(loaded, name, n_positions=n_positions), deadline_s=30)
            tasks.create_task(waiting, name=name)
            await asyncio.sleep(0)
            for open_one in [s for s in ("first", "second") if s in engine._specs and s != name]:
                assert engine.park_session(SessionId(open_one), ran(4))
        assert await engine._link.post(lambda core: list(core.sessions)) == left
    assert not engine.park_session(SessionId("third"), ran(0)), "there is nothing to keep"
    assert engine.park_session(SessionId("third"), ran(4))
    engine.resize_kv_budget(3 * KV_PER_POSITION)
    assert await engine._link.post(lambda core: list(core.sessions)) == []


async def test_what_is_parked_goes_with_its_time_and_with_its_span(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await parked(engine, llama)
    now_s = asyncio.get_running_loop().time()
    engine.forget_parked(now_s)
    assert await engine._link.post(lambda core: list(core.sessions)) == ["s"]
    engine.forget_parked(now_s + PARK_S + 1)
    assert await engine._link.post(lambda core: list(core.sessions)) == []
    await parked(engine, llama)
    await engine.unload(loaded.key)
    assert engine.loaded() == ()
    assert not engine.park_session(SessionId("never there"), ran(4))


async def test_parking_fails_what_is_pending(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama, sampling=None)
    steps = [asyncio.ensure_future(engine.run(tokens(p, 5))) for p in range(30)]  # noqa: TID251
    await asyncio.sleep(0)
    assert engine.park_session(SessionId("s"), ran(30))
    taken = await engine.open_session(spec(loaded, "new", continues=SessionId("s"), sampling=None), deadline_s=5)
    results = await asyncio.gather(*steps, return_exceptions=True)
    n_run = sum(isinstance(result, StepOutput) for result in results)
    assert all(isinstance(result, CancelledByClientError) for result in results[n_run:])
    assert taken is not None
    assert taken.n_cached == n_run


async def test_a_session_that_is_open_takes_nothing_over(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await parked(engine, llama)
    new = spec(loaded, "new")
    await engine.open_session(new, deadline_s=5)
    with pytest.raises(ConflictError):
        await engine.open_session(replace(new, continues=SessionId("s")), deadline_s=5)


async def test_what_is_parked_is_nobodys_to_open_close_or_park_by_its_own_name(
    engine: Engine, llama: TinyCheckpoint
) -> None:
    loaded = await parked(engine, llama)
    stats = engine.stats()
    with pytest.raises(ConflictError):
        await engine.open_session(spec(loaded), deadline_s=5)
    assert not engine.park_session(SessionId("s"), ran(4))
    await engine.close_session(SessionId("s"))
    assert engine.stats() == stats
    taken = await engine.open_session(spec(loaded, "new", continues=SessionId("s"), sampling=None), deadline_s=5)
    assert taken is not None
    assert taken.n_cached == 4
    await engine.close_session(SessionId("new"))
    assert engine.stats() == stats
