"""A generation that goes on by another route: the same tokens, and those who are still there don't begin anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import InternalError
from protocol.ids import SessionId
from protocol.messages import CloseSession, SessionEnded, Token
from tests.support.ring import Ring, RingWorker, running_ring
from tests.support.ring_generation import Generation, generated
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker.engine_core import EngineCore

Checkpoints = Callable[[str], TinyCheckpoint]
PROMPT = [5, 9, 30, 4, 77, 12, 8, 61, 33, 20]
N_BEFORE_LAST_CHUNK = 6
"""Three chunks: of 3, 3 and 4 positions."""
N_TOKENS = 16
BROKEN = RuntimeError("broken on purpose")
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 7}


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


async def break_at(worker: RingWorker, n_steps: int, error: Exception = BROKEN) -> None:
    """Have the worker fail the session whose step is its `n_steps`-th from now."""
    left = [n_steps]

    def fail(*_args: Any) -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise error.with_traceback(None)  # else it grows with every test

    def prepare(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            stage._model.model.layers[0].register_forward_pre_hook(fail)

    await worker.engine._link.post(prepare)


@dataclass
class Attempt:
    """What came of one attempt."""

    session_id: str
    token_ids: list[int]
    ended: SessionEnded | None


async def attempt(
    ring: Ring, so_far: list[int], *, continues: str | None = None, sampling: dict[str, Any] | None = None
) -> Attempt:
    """Generate what is left, to the end or until it breaks off."""
    generation = await Generation.prepared(
        ring,
        PROMPT + so_far,
        N_TOKENS - len(so_far),
        sampling=sampling or {},
        **({"continues": SessionId(continues)} if continues is not None else {}),
    )
    await generation.open()
    await generation.attach()
    # a client hears of a step that breaks before the tail has the session from the head alone; here, from the tail
    await eventually(lambda: all(worker.plane.n_sessions for worker in ring.workers))
    await generation.step()
    found: list[int] = []
    while True:
        message = await generation.tail.receive((Token, SessionEnded))
        if isinstance(message, SessionEnded):
            return Attempt(generation.session_id, found, message)
        assert message.index == len(found)
        found.append(message.token_id)
        if message.finish_reason is not None:
            return Attempt(generation.session_id, found, None)


def n_run(ring: Ring) -> list[int]:
    return [worker.engine.stats().n_positions_run for worker in ring.workers]


@pytest.mark.parametrize("sampling", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("victim", [0, 1, 2], ids=["head", "middle", "tail"])
async def test_survivors_run_no_position_twice(
    llama: TinyCheckpoint, tmp_path: Path, victim: int, sampling: dict[str, Any]
) -> None:
    async with running_ring(llama, tmp_path, (1, 3), has_spares=True) as ring:
        unbroken = await generated(ring, PROMPT, N_TOKENS, sampling=dict(sampling))
        await break_at(ring.workers[victim], 3 + 5, InternalError("broken on purpose"))
        first = await attempt(ring, [], sampling=sampling)
        assert first.ended is not None
        assert first.ended.worker_id == ring.workers[victim].worker_id
        await ring.until_clean()
        second_ring = ring.with_spare(victim)
        before = n_run(second_ring)
        second = await attempt(second_ring, first.token_ids, continues=first.session_id, sampling=sampling)
        assert first.token_ids + second.token_ids == unbroken
        await second_ring.until_clean()
        n_new = len(second.token_ids)
        n_all = len(PROMPT) + N_TOKENS - 1
        expected = [n_all if index == victim else n_new for index in range(3)]
        assert [after - old for after, old in zip(n_run(second_ring), before, strict=True)] == expected
        if not sampling:
            assert unbroken == llama.greedy(PROMPT, N_TOKENS)


@pytest.mark.parametrize("victim", [0, 1, 2], ids=["head", "middle", "tail"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4], ids=["chunk 1", "chunk 2", "chunk 3", "first token"])
async def test_whenever_it_breaks_the_tokens_are_the_same(
    llama: TinyCheckpoint, tmp_path: Path, victim: int, n_steps: int
) -> None:
    async with running_ring(llama, tmp_path, (1, 3), has_spares=True) as ring:
        await break_at(ring.workers[victim], n_steps)
        first = await attempt(ring, [])
        second = await attempt(ring.with_spare(victim), first.token_ids, continues=first.session_id)
        assert second.ended is None
        assert first.token_ids + second.token_ids == llama.greedy(PROMPT, N_TOKENS)


async def test_two_hops_lost_at_once_and_then_a_third(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3), has_spares=True) as ring:
        await break_at(ring.workers[2], 6)
        first = await attempt(ring, [])
        second_ring = ring.with_spare(1).with_spare(2)
        await break_at(second_ring.workers[2], 8)
        second = await attempt(second_ring, first.token_ids, continues=first.session_id)
        so_far = first.token_ids + second.token_ids
        third_ring = ring.with_spare(1)
        third_ring.workers[2] = await fresh_tail(ring)
        before = n_run(third_ring)
        third = await attempt(third_ring, so_far, continues=second.session_id)
        assert so_far + third.token_ids == llama.greedy(PROMPT, N_TOKENS)
        await third_ring.until_clean()
        after = n_run(third_ring)
        assert [after[index] - before[index] for index in (0, 1)] == [len(third.token_ids)] * 2


async def fresh_tail(ring: Ring) -> RingWorker:
    """The first tail, repaired."""

    def repair(core: EngineCore) -> None:
        for stage, _ in core.spans.values():
            stage._model.model.layers[0]._forward_pre_hooks.popitem()

    await ring.workers[2].engine._link.post(repair)
    return ring.workers[2]


async def test_a_session_that_its_client_gave_up_is_taken_over_too(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (2,), has_spares=True) as ring:
        stuck = await Generation.prepared(ring, PROMPT, N_TOKENS)
        await stuck.open()
        await stuck.step()  # nobody attaches: the tail waits before the last chunk
        await eventually(lambda: n_run(ring) == [len(PROMPT), N_BEFORE_LAST_CHUNK])
        await stuck.head.send(CloseSession(session_id=SessionId(stuck.session_id), reason="failed"))
        await ring.until_clean()
        second = await attempt(ring, [], continues=stuck.session_id)
        assert second.token_ids == llama.greedy(PROMPT, N_TOKENS)
        assert n_run(ring) == [len(PROMPT) + N_TOKENS, len(PROMPT) + N_TOKENS - 1]


async def test_a_session_that_still_runs_ends_when_its_client_goes_on(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        stuck = await Generation.prepared(ring, PROMPT, N_TOKENS)
        await stuck.open()
        await stuck.step()
        await eventually(lambda: n_run(ring) == [len(PROMPT), N_BEFORE_LAST_CHUNK])
        second = await attempt(ring, [], continues=stuck.session_id)
        assert second.token_ids == llama.greedy(PROMPT, N_TOKENS)
        assert (await stuck.head.receive(SessionEnded)).error.code == "hop_lost"
        await ring.until_clean()


async def test_a_head_keeps_only_what_the_new_prompt_shares(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        first = await Generation.prepared(ring, PROMPT, N_TOKENS)
        await first.open()
        await first.step()
        await eventually(lambda: n_run(ring)[0] == N_BEFORE_LAST_CHUNK)
        other = [*PROMPT[:5], 70, 71, 72, 73]
        found = await generated(ring, other, 6, continues=SessionId(first.session_id))
        assert found == llama.greedy(other, 6)
        assert n_run(ring)[0] == N_BEFORE_LAST_CHUNK + len(other) - 5 + 5


async def test_a_lost_connection_parks_on_both_sides(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, (1, 3), has_spares=True) as ring:
        stuck = await Generation.prepared(ring, PROMPT, N_TOKENS)
        await stuck.open()
        await stuck.step()
        await eventually(lambda: n_run(ring) == [len(PROMPT), len(PROMPT), N_BEFORE_LAST_CHUNK])
        for connection in tuple(ring.workers[1].plane._incoming):
            connection.abort()
        ended = await stuck.head.receive(SessionEnded)
        assert (ended.worker_id, ended.error.code) == (ring.workers[1].worker_id, "hop_lost")
        await ring.until_clean()
        second_ring = ring.with_spare(1)
        second = await attempt(second_ring, [], continues=stuck.session_id)
        assert second.token_ids == llama.greedy(PROMPT, N_TOKENS)
        assert n_run(second_ring)[0] == len(PROMPT) + N_TOKENS
        assert n_run(second_ring)[2] == len(PROMPT) + N_TOKENS - 1


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["opened", "cancelled at once"])
async def test_the_ticket_of_a_session_that_broke_off_is_of_no_more_use(
    llama: TinyCheckpoint, tmp_path: Path, is_cancelled: bool
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        first = await Generation.prepared(ring, PROMPT, N_TOKENS)
        await first.open()
        await first.step()
        await eventually(lambda: n_run(ring)[0] == N_BEFORE_LAST_CHUNK)
        await first.head.send(CloseSession(session_id=SessionId(first.session_id), reason="failed"))
        await ring.until_clean()
        await first.open()
        if is_cancelled:
            await first.cancel(first.head)
        else:
            assert (await first.head.receive(SessionEnded)).error.code == "conflict"
        await ring.until_clean()
        second = await attempt(ring, [], continues=first.session_id)
        assert second.token_ids == llama.greedy(PROMPT, N_TOKENS)
        assert n_run(ring) == [len(PROMPT) + N_TOKENS - 1]
        await ring.until_clean()
