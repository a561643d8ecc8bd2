"""Steps of sessions: what they say, in which order, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

from protocol.errors import (
    CancelledByClientError,
    ConflictError,
    ContextExceededError,
    InvalidRequestError,
    NotFoundError,
    ProtocolError,
    StaleEpochError,
)
from protocol.ids import BlockRange, SessionId
from protocol.messages import SamplingParams
from tests.support.running_engine import GREEDY, KV_PER_POSITION, engine, generated, llama, opened, spec, tokens
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.steps import StepInput, StepOutput

__all__ = ["engine", "llama"]


async def test_greedy_tokens_are_those_of_the_whole_model(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    prompt = [5, 9, 30, 4, 77, 12]
    assert await generated(engine, "s", prompt, 12) == llama.greedy(prompt, 12)


async def test_two_spans_hand_hidden_states_on(engine: Engine, llama: TinyCheckpoint) -> None:
    head, tail = [await engine.load(llama.request(BlockRange(*blocks))) for blocks in ((0, 3), (1, 4))]
    await engine.open_session(spec(head, "head", blocks=BlockRange(0, 2), sampling=None), deadline_s=5)
    await engine.open_session(spec(tail, "tail", blocks=BlockRange(2, 4), sampling=None), deadline_s=5)
    await engine.attach_sampler(SessionId("tail"), GREEDY, (5, 9, 30))
    between = await engine.run(tokens(0, 5, 9, 30, name="head"))
    assert not between.tokens
    assert between.hidden is not None
    step = replace(tokens(0, 5, 9, 30, name="tail", wants_sample=True), payload=between.hidden)
    output = await engine.run(step)
    assert output.hidden is None
    assert output.tokens
    assert [output.tokens[0].token_id] == llama.greedy([5, 9, 30], 1)
    assert (output.tokens[0].position, output.tokens[0].is_stop) == (3, False)


async def test_twenty_sessions_at_once_say_what_each_says_alone(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await engine.load(llama.request(WHOLE))
    prompts = {f"s{i}": [(7 * i + k) % 90 + 3 for k in range(1 + i % 9)] for i in range(20)}
    for name in prompts:
        await engine.open_session(spec(loaded, name), deadline_s=5)
    async with asyncio.TaskGroup() as group:
        tasks = {
            name: group.create_task(generated(engine, name, prompt, 6), name=name)
            for name, prompt in prompts.items()
        }
    for name, prompt in prompts.items():
        assert tasks[name].result() == llama.greedy(prompt, 6), name


async def test_steps_of_a_session_run_in_order_without_waiting_for_each(
    engine: Engine, llama: TinyCheckpoint
) -> None:
    await opened(engine, llama)
    outputs = await asyncio.gather(*(engine.run(tokens(p, *range(p + 3, p + 5))) for p in range(0, 20, 2)))
    assert [output.position for output in outputs] == list(range(0, 20, 2))


async def test_a_wrong_position_fails_that_step_alone(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    await engine.run(tokens(0, 5, 6))
    with pytest.raises(StaleEpochError, match="position 1 was taken already; the session is at 2"):
        await engine.run(tokens(1, 5))
    with pytest.raises(ProtocolError, match="position 3 leaves a gap"):
        await engine.run(tokens(3, 5))
    assert (await engine.run(tokens(2, 7))).position == 2


@pytest.mark.parametrize(
    "step",
    [
        replace(tokens(0, 5, 6), n_tokens=3),
        replace(tokens(0, 5, 6), n_tokens=0, payload=torch.zeros(0, dtype=torch.int32)),
        replace(tokens(0, 5, 6), payload=torch.zeros(2, 32)),
        replace(tokens(0, 5, 6), payload=torch.zeros(2)),
        tokens(0, 5, 96),
        tokens(0, -1, 5),
    ],
)
async def test_a_payload_that_does_not_fit_is_refused(
    engine: Engine, llama: TinyCheckpoint, step: StepInput
) -> None:
    await opened(engine, llama)
    with pytest.raises(ProtocolError):
        await engine.run(step)
    assert (await engine.run(tokens(0, 5, 6))).position == 0


async def test_more_positions_than_reserved_are_refused(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama, n_positions=3)
    await engine.run(tokens(0, 5, 6))
    with pytest.raises(ContextExceededError, match="position 4 of a session that reserved 3"):
        await engine.run(tokens(2, 5, 6))


async def test_a_sample_without_a_sampler_is_refused(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama, sampling=None)
    with pytest.raises(ProtocolError, match="no sampler"):
        await engine.run(tokens(0, 5, wants_sample=True))


async def test_rolling_back_takes_the_position_again(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    prompt = [5, 9, 30, 4]
    first = await generated(engine, "s", prompt, 5)
    await engine.truncate(SessionId("s"), 2)
    output = await engine.run(tokens(2, 30, 4, wants_sample=True))
    assert output.tokens
    assert output.tokens[0].token_id == first[0]
    with pytest.raises(ProtocolError, match="can't go back to position 9"):
        await engine.truncate(SessionId("s"), 9)


async def test_closing_is_idempotent_and_frees_the_memory(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    assert engine.stats().kv_free_bytes == (10_000 - 40) * KV_PER_POSITION
    await asyncio.gather(*(engine.close_session(SessionId("s")) for _ in range(3)))
    await engine.close_session(SessionId("never there"))
    assert (engine.stats().kv_free_bytes, engine.stats().n_sessions) == (10_000 * KV_PER_POSITION, 0)
    with pytest.raises(NotFoundError):
        await engine.run(tokens(0, 5))


async def test_closing_fails_what_is_pending(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    steps = [asyncio.ensure_future(engine.run(tokens(p, 5))) for p in range(30)]  # noqa: TID251
    await asyncio.sleep(0)
    await engine.close_session(SessionId("s"))
    results = await asyncio.gather(*steps, return_exceptions=True)
    n_run = sum(isinstance(result, StepOutput) for result in results)
    assert all(isinstance(result, CancelledByClientError) for result in results[n_run:])
    assert engine.stats().n_pending_steps == 0


async def test_a_session_opens_once(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama)
    with pytest.raises(ConflictError):
        await engine.open_session(spec(loaded), deadline_s=5)
    await engine.close_session(SessionId("s"))
    await engine.open_session(spec(loaded), deadline_s=5)


async def test_what_is_not_loaded_cannot_be_opened(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await engine.load(llama.request(BlockRange(1, 3)))
    other = replace(loaded.key, blocks=BlockRange(0, 1))
    with pytest.raises(NotFoundError, match="0:1"):
        await engine.open_session(spec(loaded, span=other, blocks=other.blocks), deadline_s=5)
    with pytest.raises(InvalidRequestError, match="blocks 0:2"):
        await engine.open_session(spec(loaded, blocks=BlockRange(0, 2)), deadline_s=5)
    assert engine.stats().n_sessions == 0


async def test_a_span_in_use_is_not_unloaded_unless_forced(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama)
    with pytest.raises(ConflictError, match=r"sessions that still run on blocks .*: 1; close them first"):
        await engine.unload(loaded.key)
    await engine.unload(loaded.key, force=True)
    assert engine.loaded() == ()
    with pytest.raises(NotFoundError):
        await engine.run(tokens(0, 5))
    with pytest.raises(NotFoundError):
        await engine.open_session(spec(loaded), deadline_s=5)


async def test_times_and_memory_are_reported(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    measures = engine.measures
    assert (measures.decode.s_per_block, measures.prefill_s_per_token_per_block.value) == (0.0, 0.0)
    await generated(engine, "s", [5, 6, 7], 3)
    assert 0 < measures.prefill_s_per_token_per_block.value < 1
    assert 0 < measures.decode.s_per_block < 1
    engine.resize_kv_budget(0)
    assert engine.stats().kv_free_bytes == 0


async def test_speed_is_measured_anew_when_what_is_loaded_changes(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    await generated(engine, "s", [5, 6, 7], 3)
    assert engine.measures.decode.ends_per_block == pytest.approx(1 / len(WHOLE)), "all its blocks, then the head"
    part = await engine.load(llama.request(BlockRange(0, 1)))
    assert (engine.measures.decode.s_per_block, engine.measures.decode.ends_per_block) == (0.0, 0.0)
    await engine.run(tokens(5, 9))
    assert engine.measures.decode.s_per_block > 0
    assert engine.measures.decode.ends_per_block == 0.0, "no token was wanted"
    await engine.unload(part.key)
    assert engine.measures.decode.s_per_block == 0.0


async def test_a_prompt_beyond_the_vocabulary_is_refused(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        await engine.attach_sampler(SessionId("s"), SamplingParams(max_tokens=1), (5, 10**6))
