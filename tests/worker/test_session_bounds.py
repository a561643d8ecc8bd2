"""What a session may send, hold and wait for, over real connections: what is beyond that ends it alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.messages import (
    Credit,
    SessionEnded,
    Token,
)
from tests.support.ring import running_ring
from tests.support.ring_generation import Generation, generated, ids_payload, prompt_step
from tests.support.sessions import PROMPT, opened, refusal
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.waiting import eventually
from worker.engine_core import EngineCore
from worker.limits import Limits

Checkpoints = Callable[[str], TinyCheckpoint]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.mark.parametrize(
    ("position", "code"), [(0, "stale_epoch"), (3, "stale_epoch"), (7, "stale_epoch"), (6, "protocol_error")]
)
async def test_replayed_early_and_surplus_steps_end_the_session(
    llama: TinyCheckpoint, tmp_path: Path, position: int, code: str
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await opened(ring)
        await generation.step()
        await generation.head.send(prompt_step(generation.session_id, [5], position), ids_payload([5]))
        await refusal(generation.head, code)
        await ring.until_clean()


async def test_a_sender_beyond_its_credit_is_ended(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT)
        await generation.open()
        for position in range(5):  # in one go: the session is still opening
            step = prompt_step(generation.session_id, [5], position, is_last=False)
            await generation.head.send(step, ids_payload([5]))
        ended = await generation.head.receive((SessionEnded, Credit))
        if isinstance(ended, SessionEnded):  # else it was fast enough
            assert ended.error.code == "protocol_error"
            await ring.until_clean()


async def test_more_positions_than_granted_are_refused(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await opened(ring, max_positions=5)
        await generation.step()
        await refusal(generation.head, "context_exceeded")
        await ring.until_clean()


@pytest.mark.parametrize("payload", [b"", b"123", ids_payload([1, 2]), ids_payload([10**6] * 6)])
async def test_payloads_that_are_wrong_end_the_session_alone(
    llama: TinyCheckpoint, tmp_path: Path, payload: bytes
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await opened(ring)
        await generation.head.send(prompt_step(generation.session_id, PROMPT), payload)
        await refusal(generation.head, "protocol_error")
        again = await Generation.prepared(ring, PROMPT, 3, head_wire=generation.head, tail_wire=generation.head)
        await again.begin()
        assert await again.ids() == llama.greedy(PROMPT, 3)


@pytest.mark.parametrize("sampling", [{}, {"repetition_penalty": 1.2}])
async def test_a_prompt_beyond_the_vocabulary_at_the_tail_ends_that_session_alone(
    llama: TinyCheckpoint, tmp_path: Path, sampling: dict[str, Any]
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        generation = await Generation.prepared(ring, PROMPT, 5, sampling=sampling)
        await generation.open()
        await generation.attach([10**6, *PROMPT[1:]])
        await generation.step()
        ended = await refusal(generation.tail, "invalid_request")
        assert "vocabulary" in ended.error.message
        await ring.until_clean()
        assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)


async def test_a_client_that_waited_is_told_that_it_cant_be_taken(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await Generation.prepared(ring, PROMPT, max_positions=len(PROMPT))
        generation.attach_ticket = ring.attach_ticket(generation.session_id)
        await generation.attach()
        await generation.open()
        await refusal(generation.tail, "context_exceeded")


async def test_a_session_whose_blocks_are_dropped_by_force_is_sent_elsewhere(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path) as ring:
        generation = await opened(ring)
        engine = ring.workers[0].engine
        await engine.unload(engine.loaded()[0].key, force=True)
        await generation.attach()
        await generation.step()
        await refusal(generation.head, "draining")
        await ring.until_clean()


async def test_a_defect_in_ending_a_session_ends_no_other(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path) as ring:
        sessions = ring.workers[0].plane._sessions
        assert sessions is not None
        report, sessions._on_generation = sessions._on_generation, lambda _report: 1 // 0
        assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)
        await ring.until_clean()
        sessions._on_generation = report
        assert await generated(ring, PROMPT, 3) == llama.greedy(PROMPT, 3)


async def test_idle_sessions_and_clients_without_a_session_are_ended(llama: TinyCheckpoint, tmp_path: Path) -> None:
    limits = Limits(idle_session_s=1.0, waiting_client_s=1.0, sweep_s=0.02)
    async with running_ring(llama, tmp_path, (2,), limits=limits) as ring:
        idle = await opened(ring)
        waiting = await Generation.prepared(ring, PROMPT)
        await waiting.attach()
        await refusal(waiting.tail, "deadline_exceeded")
        await idle.head.receive(SessionEnded)
        await ring.until_clean()


async def test_sessions_are_limited_by_connection(llama: TinyCheckpoint, tmp_path: Path) -> None:
    async with running_ring(llama, tmp_path, limits=Limits(sessions_per_connection=2)) as ring:
        first = await opened(ring)
        await opened(ring, head_wire=first.head, tail_wire=first.head)
        third = await Generation.prepared(ring, PROMPT, head_wire=first.head, tail_wire=first.head)
        await third.open()
        await refusal(first.head, "overloaded")
        await opened(ring)


async def test_a_session_that_waits_for_memory_is_freed_when_it_is_cancelled(
    llama: TinyCheckpoint, tmp_path: Path
) -> None:
    async with running_ring(llama, tmp_path, kv_budget_bytes=60 * 4 * 2 * 16 * 4) as ring:
        engine = ring.workers[0].engine
        first = await opened(ring)
        second = await Generation.prepared(ring, PROMPT)
        await second.open()
        await eventually(lambda: engine.stats().n_waiting_sessions == 1)
        await second.cancel(second.head)
        await eventually(lambda: engine.stats().n_waiting_sessions == 0)
        await first.cancel(first.head)
        await ring.until_clean()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), MemoryError()])
async def test_out_of_memory_ends_the_session_of_that_step_alone(
    llama: TinyCheckpoint, tmp_path: Path, error: Exception
) -> None:
    async with running_ring(llama, tmp_path, (2,)) as ring:
        tail = ring.workers[1]
        other = await Generation.prepared(ring, PROMPT, 40)
        await other.begin()
        await other.tail.receive(Token)
        fails = [True]

        def fail(_module: object, args: Any, kwargs: Any) -> None:
            hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            if fails[0] and hidden.shape[1] > 1:  # a prompt's chunk: the other session is past that
                raise error

        def spoil(core: EngineCore) -> None:
            for stage, _ in core.spans.values():
                stage._model.model.layers[1].register_forward_pre_hook(fail, with_kwargs=True)

        await tail.engine._link.post(spoil)
        generation = await Generation.prepared(ring, PROMPT, 5)
        await generation.begin()
        ended = await refusal(generation.tail, "overloaded")
        assert ended.worker_id == tail.worker_id
        assert (await refusal(generation.head, "overloaded")).worker_id == tail.worker_id
        fails[0] = False
        while (await other.tail.receive(Token)).finish_reason is None:
            pass
        await ring.until_clean()
        assert generation.session_id not in {one.spec.session_id for one in tail.engine._kept.lot.parked}
        assert await generated(ring, PROMPT, 5) == llama.greedy(PROMPT, 5)
