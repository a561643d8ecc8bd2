"""What sessions leave to others, on an engine with a tiny model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import torch

from protocol.ids import SessionId
from protocol.messages import KvPrecision, SamplingParams, SharedPrefix
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.engine_core import EngineCore
from worker.history import History
from worker.kv_cache import KVCache
from worker.parking import TakenOver
from worker.steps import LoadedSpan, SessionSpec, StepInput

TEXT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20, 11, 3]
N_POSITIONS = 20
Checkpoints = Callable[[str], TinyCheckpoint]


class Served:
    """An engine with room for three sessions of twenty positions."""

    def __init__(self, engine: Engine, loaded: LoadedSpan) -> None:
        self.engine = engine
        self.loaded = loaded

    async def opened(
        self, name: str, earlier: str | None = None, n_shared: int = 0, *, deadline_s: float = 0.01
    ) -> TakenOver | None:
        prefix = SharedPrefix(session_id=SessionId(earlier), n_positions=n_shared) if earlier is not None else None
        spec = SessionSpec(
            session_id=SessionId(name),
            span=self.loaded.key,
            blocks=WHOLE,
            n_positions=N_POSITIONS,
            prefix=prefix,
        )
        return await self.engine.open_session(spec, deadline_s=deadline_s)

    async def parked(self, name: str) -> None:
        """A session that has run the text, and is over."""
        await self.opened(name)
        step = StepInput(
            session_id=SessionId(name), position=0, n_tokens=len(TEXT), payload=torch.tensor(TEXT, dtype=torch.long)
        )
        await self.engine.run(step)
        assert self.engine.park_session(SessionId(name), history_of(TEXT))

    async def next_token(self, name: str, position: int) -> int:
        """The one that follows the text, of which `position` is to be run next."""
        session_id, left = SessionId(name), TEXT[position:]
        await self.engine.attach_sampler(session_id, SamplingParams(max_tokens=1), tuple(TEXT))
        await self.engine.truncate(session_id, position)
        step = StepInput(
            session_id=session_id,
            position=position,
            n_tokens=len(left),
            payload=torch.tensor(left, dtype=torch.long),
            wants_sample=True,
        )
        return (await self.engine.run(step)).tokens[0].token_id

    def n_positions_reserved(self) -> int:
        """By who is open, and who is parked."""
        return self.engine._memory.plan.reserved_bytes // self.loaded.kv_bytes_per_position(WHOLE)

    async def names(self) -> list[str]:
        """All that the device holds."""
        return await self.engine._link.post(lambda core: sorted(core.sessions))


def history_of(token_ids: list[int]) -> History:
    """Of a session on all blocks that has run them."""
    history = History()
    history.put_ids(0, token_ids)
    history.n_settled = len(token_ids)
    return history


def allocated_bytes(core: EngineCore) -> int:
    """What the caches of all sessions really take."""
    return sum(block.n_bytes() for session in core.sessions.values() for block in session.cache.blocks)


@pytest.fixture(params=[None, "bfloat16", "int8"])
def kv_precision(request: pytest.FixtureRequest) -> KvPrecision | None:
    precision: KvPrecision | None = request.param
    return precision


@pytest.fixture
async def served(checkpoint: Checkpoints, kv_precision: KvPrecision | None) -> AsyncIterator[Served]:
    async with Engine(device=CPU, kv_budget_bytes=10**6, n_threads=1, kv_precision=kv_precision) as engine:
        loaded = await engine.load(checkpoint("llama").request(WHOLE))
        engine.resize_kv_budget(3 * N_POSITIONS * loaded.kv_bytes_per_position(WHOLE))
        yield Served(engine, loaded)


async def test_a_copy_leaves_what_it_was_made_of(served: Served, checkpoint: Checkpoints) -> None:
    await served.parked("a")
    for name in ("b", "c"):
        taken = await served.opened(name, "a", 3)
        assert taken is not None
        assert (taken.n_cached, taken.history.token_ids) == (3, TEXT[:3])
        assert [await served.next_token(name, 3)] == checkpoint("llama").greedy(TEXT, 1)
    assert await served.names() == ["a", "b", "c"]
    assert served.n_positions_reserved() == len(TEXT) + 2 * N_POSITIONS


async def test_what_a_longer_text_contains_is_handed_over(served: Served, checkpoint: Checkpoints) -> None:
    await served.parked("a")
    taken = await served.opened("b", "a", len(TEXT) - 1)
    assert taken is not None
    assert taken.n_cached == len(TEXT) - 1
    assert await served.names() == ["b"]
    assert [await served.next_token("b", 11)] == checkpoint("llama").greedy(TEXT, 1)


async def test_what_was_used_longest_ago_makes_room_and_what_is_wanted_goes_last(served: Served) -> None:
    for name in ("a", "b", "c", "d"):
        await served.parked(name)
    taken = await served.opened("e", "a", 3)
    assert taken is not None, "the oldest, but it is what the new one begins with"
    assert await served.names() == ["a", "c", "d", "e"]
    assert await served.opened("f") is None
    assert await served.names() == ["a", "e", "f"]
    assert await served.opened("g", "a", 3) is None, "there is room for one of the two"
    assert await served.names() == ["e", "f", "g"]


async def test_who_goes_on_has_what_it_asks_for_in_place_of_what_was_kept(
    served: Served, checkpoint: Checkpoints
) -> None:
    for name in ("a", "b", "c", "d"):
        await served.parked(name)
    assert served.n_positions_reserved() == 4 * len(TEXT)
    for earlier, name, left in (("a", "e", ["b", "c", "d", "e"]), ("c", "f", ["d", "e", "f"])):
        taken = await served.opened(name, earlier, len(TEXT) - 1)
        assert taken is not None
        assert taken.n_cached == len(TEXT) - 1
        assert await served.names() == left, "the second needed more than was free"
        assert [await served.next_token(name, 11)] == checkpoint("llama").greedy(TEXT, 1)
        assert await served.engine._link.post(allocated_bytes) <= served.engine._memory.plan.reserved_bytes
    assert served.n_positions_reserved() == len(TEXT) + 2 * N_POSITIONS


async def test_a_cache_that_cannot_be_made_smaller_is_not_kept(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    await served.parked("a")
    await served.opened("b", "a", len(TEXT) - 1)

    def no_memory(_cache: KVCache, _capacity: int) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(KVCache, "resize", no_memory)
    assert served.engine.park_session(SessionId("b"), history_of(TEXT))
    assert await served.engine._link.post(allocated_bytes) == 0
    monkeypatch.undo()
    taken = await served.opened("c", "b", len(TEXT) - 1)
    assert taken is not None
    assert taken.n_cached == 0


async def test_fifty_sessions_never_take_more_than_the_budget(served: Served, checkpoint: Checkpoints) -> None:
    await served.parked("first")
    (expected,) = checkpoint("llama").greedy(TEXT, 1)
    budget = served.engine.stats().kv_budget_bytes
    seen = []

    async def one(name: str) -> None:
        taken = await served.opened(name, "first", 8, deadline_s=60)
        assert await served.next_token(name, 0 if taken is None else 8) == expected
        seen.append(await served.engine._link.post(allocated_bytes))
        assert served.engine._memory.plan.reserved_bytes <= budget
        if len(seen) % 2 or not served.engine.park_session(SessionId(name), history_of(TEXT)):
            await served.engine.close_session(SessionId(name))

    async with asyncio.TaskGroup() as tasks:
        for index in range(50):
            tasks.create_task(one(f"s{index}"), name=f"session {index}")
    assert len(seen) == 50
    assert 0 < max(seen) <= budget
    stats = served.engine.stats()
    assert (stats.n_sessions, stats.n_waiting_sessions, stats.kv_free_bytes) == (0, 0, budget)
