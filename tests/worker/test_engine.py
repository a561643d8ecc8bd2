from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from protocol.errors import (
    CancelledByClientError,
    ConflictError,
    ContextExceededError,
    DrainingError,
    InternalError,
    InvalidRequestError,
    ModelFaultError,
    NotFoundError,
    OverloadedError,
    ProtocolError,
    StaleEpochError,
    UntrustedFileError,
)
from protocol.ids import BlockRange, SessionId
from protocol.messages import SamplingParams
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.engine_core import EngineCore
from worker.history import History
from worker.kv_store import new_store
from worker.parking import PARK_S
from worker.stage import Stage
from worker.steps import LoadedSpan, SessionSpec, StepInput, StepOutput

GREEDY = SamplingParams(max_tokens=100)
KV_PER_POSITION = 4 * 2 * (8 + 8) * 4
Checkpoints = Callable[[str], TinyCheckpoint]


@pytest.fixture
def llama(checkpoint: Checkpoints) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1) as running:
        yield running


def spec(loaded: LoadedSpan, name: str = "s", **changes: Any) -> SessionSpec:
    base = SessionSpec(
        session_id=SessionId(name), span=loaded.key, blocks=loaded.key.blocks, n_positions=40, sampling=GREEDY
    )
    return replace(base, **changes)


def tokens(position: int, *ids: int, name: str = "s", wants_sample: bool = False) -> StepInput:
    payload = torch.tensor(ids, dtype=torch.int32)
    return StepInput(
        session_id=SessionId(name), position=position, n_tokens=len(ids), payload=payload, wants_sample=wants_sample
    )


async def opened(engine: Engine, llama: TinyCheckpoint, **changes: Any) -> LoadedSpan:
    loaded = await engine.load(llama.request(WHOLE))
    await engine.open_session(spec(loaded, **changes), deadline_s=5)
    return loaded


async def generated(engine: Engine, name: str, prompt: list[int], n_tokens: int) -> list[int]:
    """Prompt in chunks of up to 4, then decode."""
    output: StepOutput | None = None
    for start in range(0, len(prompt), 4):
        chunk = prompt[start : start + 4]
        output = await engine.run(tokens(start, *chunk, name=name, wants_sample=start + len(chunk) == len(prompt)))
    assert output is not None
    assert output.tokens
    found = [output.tokens[0].token_id]
    while len(found) < n_tokens:
        output = await engine.run(tokens(len(prompt) + len(found) - 1, found[-1], name=name, wants_sample=True))
        assert output.tokens
        found.append(output.tokens[0].token_id)
    return found


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


async def test_a_span_in_use_is_not_unloaded_unless_forced(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama)
    with pytest.raises(ConflictError, match="1 sessions still run"):
        await engine.unload(loaded.key)
    await engine.unload(loaded.key, force=True)
    assert engine.loaded() == ()
    with pytest.raises(NotFoundError):
        await engine.run(tokens(0, 5))
    with pytest.raises(NotFoundError):
        await engine.open_session(spec(loaded), deadline_s=5)


async def test_loading_twice_loads_once_and_a_broken_span_leaves_the_engine_alive(
    engine: Engine, llama: TinyCheckpoint
) -> None:
    request = llama.request(BlockRange(1, 2))
    assert await engine.load(request) == await engine.load(request)
    with pytest.raises(UntrustedFileError):
        await engine.load(replace(llama.request(BlockRange(2, 3)), files=(llama.block_files[1],)))
    assert len(engine.loaded()) == 1


async def test_a_failing_step_fails_alone(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama)
    await engine.open_session(spec(loaded, "broken"), deadline_s=5)
    await engine.run(tokens(0, 5, name="broken"))

    def spoil(core: EngineCore) -> None:
        wrong = torch.zeros(1, 1, 1, 1)
        core.sessions[SessionId("broken")].cache.blocks[2].store = new_store(wrong, wrong, 1, None)

    await engine._link.post(spoil)
    results = await asyncio.gather(
        engine.run(tokens(1, 5, name="broken")), engine.run(tokens(0, 5, 6)), return_exceptions=True
    )
    assert isinstance(results[0], InternalError)
    assert isinstance(results[1], StepOutput)


async def test_broken_weights_are_told(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await opened(engine, llama)

    def spoil(core: EngineCore) -> None:
        with torch.no_grad():
            core.spans[loaded.key][0]._model.get_output_embeddings().weight[3] = float("nan")

    await engine._link.post(spoil)
    with pytest.raises(ModelFaultError, match="not finite"):
        await engine.run(tokens(0, 5, wants_sample=True))


async def test_running_out_of_memory_fails_the_step_and_the_session_goes_on(
    engine: Engine, llama: TinyCheckpoint
) -> None:
    loaded = await opened(engine, llama)
    hooks: list[Any] = []

    def no_memory(*_args: Any) -> None:
        raise torch.OutOfMemoryError("none left")

    await engine._link.post(
        lambda core: hooks.append(
            core.spans[loaded.key][0]._model.model.layers[2].register_forward_pre_hook(no_memory)
        )
    )
    with pytest.raises(OverloadedError, match="no memory left for 2 tokens"):
        await engine.run(tokens(0, 5, 6))
    hooks[0].remove()
    assert (await engine.run(tokens(0, 5, 6))).position == 0


@pytest.mark.parametrize(
    "error", [torch.AcceleratorError("CUDA error: unspecified"), RuntimeError("CUDA error: device-side assert")]
)
async def test_a_broken_device_ends_the_engine_as_a_whole(llama: TinyCheckpoint, error: Exception) -> None:
    async with Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1) as engine:
        loaded = await opened(engine, llama)
        await engine.open_session(spec(loaded, "other"), deadline_s=5)

        def broken(*_args: Any) -> None:
            raise error

        await engine._link.post(
            lambda core: core.spans[loaded.key][0]._model.model.layers[2].register_forward_pre_hook(broken)
        )
        results = await asyncio.gather(
            engine.run(tokens(0, 5)), engine.run(tokens(0, 5, name="other")), engine.watch(), return_exceptions=True
        )
        assert [type(result) for result in results] == [InternalError] * 3
        with pytest.raises(InternalError, match="has to be restarted"):
            await engine.open_session(spec(loaded, "later"), deadline_s=1)


async def test_a_device_that_breaks_while_loading_or_cutting_ends_the_engine(
    llama: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access")

    async with Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1) as engine:
        loaded = await engine.load(llama.request(WHOLE))
        monkeypatch.setattr(Stage, "_cut_view", broken)
        with pytest.raises(InternalError, match="thread died"):
            await engine.open_session(spec(loaded, blocks=BlockRange(1, 2)), deadline_s=1)
    async with Engine(device=CPU, kv_budget_bytes=1, n_threads=1) as engine:
        monkeypatch.setattr(Stage, "kv_bytes_by_block", broken)
        with pytest.raises(InternalError, match="thread died"):
            await engine.load(llama.request(WHOLE))


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


async def test_memory_is_reserved_for_what_is_handed_on_too(engine: Engine, llama: TinyCheckpoint) -> None:
    loaded = await engine.load(llama.request(BlockRange(0, 2)))
    await engine.open_session(spec(loaded, sampling=None), deadline_s=5)
    used = engine.stats().kv_budget_bytes - engine.stats().kv_free_bytes
    assert used == 40 * (KV_PER_POSITION // 2 + 32 * 4)


async def test_the_death_of_the_thread_is_told_to_everybody(llama: TinyCheckpoint) -> None:
    async with Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1) as engine:
        loaded = await opened(engine, llama, n_positions=9_000)
        waiting = [
            asyncio.ensure_future(engine.watch()),  # noqa: TID251
            asyncio.ensure_future(engine.open_session(spec(loaded, "b", n_positions=2_000), deadline_s=30)),  # noqa: TID251
        ]
        await asyncio.sleep(0)

        def die(_core: EngineCore) -> None:
            raise ZeroDivisionError

        waiting += [engine._link.post(die), asyncio.ensure_future(engine.run(tokens(0, 5)))]  # noqa: TID251
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(result, InternalError)
        with pytest.raises(InternalError, match="thread died"):
            await engine.run(tokens(0, 5))
        await engine.close_session(SessionId("s"))


async def test_stopping_fails_what_comes_later(llama: TinyCheckpoint) -> None:
    engine = Engine(device=CPU, kv_budget_bytes=10_000 * KV_PER_POSITION, n_threads=1)
    with pytest.raises(DrainingError, match="not been started"):
        await engine.run(tokens(0, 5))
    async with engine:
        loaded = await opened(engine, llama)
        watching = asyncio.ensure_future(engine.watch())  # noqa: TID251
    await watching
    with pytest.raises(DrainingError):
        await engine.run(tokens(0, 5))
    with pytest.raises(DrainingError):
        await engine.open_session(spec(loaded, "later"), deadline_s=1)


async def test_the_number_of_pending_steps_is_bounded(llama: TinyCheckpoint) -> None:
    async with Engine(device=CPU, kv_budget_bytes=2**20, n_threads=1, max_pending_steps=2) as engine:
        await opened(engine, llama)
        results = await asyncio.gather(*(engine.run(tokens(p, 5)) for p in range(3)), return_exceptions=True)
        assert [type(result) for result in results] == [StepOutput, StepOutput, OverloadedError]


async def test_times_and_memory_are_reported(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    before = engine.stats()
    assert (before.decode_s_per_block, before.prefill_s_per_token_per_block) == (0.0, 0.0)
    await generated(engine, "s", [5, 6, 7], 3)
    after = engine.stats()
    assert 0 < after.prefill_s_per_token_per_block < 1
    assert 0 < after.decode_s_per_block < 1
    engine.resize_kv_budget(0)
    assert engine.stats().kv_free_bytes == 0


async def test_speed_is_measured_anew_when_what_is_loaded_changes(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    await generated(engine, "s", [5, 6, 7], 3)
    assert engine.measures.decode.ends_per_block == pytest.approx(1 / len(WHOLE)), "all its blocks, then the head"
    part = await engine.load(llama.request(BlockRange(0, 1)))
    assert (engine.stats().decode_s_per_block, engine.measures.decode.ends_per_block) == (0.0, 0.0)
    await engine.run(tokens(5, 9))
    assert engine.stats().decode_s_per_block > 0
    assert engine.measures.decode.ends_per_block == 0.0, "no token was wanted"
    await engine.unload(part.key)
    assert engine.stats().decode_s_per_block == 0.0


async def test_a_cancelled_load_leaves_nothing_loaded(engine: Engine, llama: TinyCheckpoint) -> None:
    loading = asyncio.ensure_future(engine.load(llama.request(WHOLE)))  # noqa: TID251
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert await engine._link.post(lambda core: dict(core.spans)) == {}
    assert engine.loaded() == ()


async def test_an_architecture_that_cannot_run_is_told_at_loading(
    engine: Engine, llama: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: Any, **_kwargs: Any) -> None:
        raise ValueError("recurrent state")

    monkeypatch.setattr(type(llama.model.model), "forward", broken)
    with pytest.raises(UntrustedFileError, match="recurrent state"):
        await engine.load(llama.request(WHOLE))
    monkeypatch.undo()
    assert (await engine.load(llama.request(WHOLE))).n_blocks == 4


async def test_blocks_that_cant_be_cut_out_end_their_session_not_the_engine(
    engine: Engine, llama: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_stage: Stage, _blocks: BlockRange) -> Stage:
        raise RuntimeError("not this model")

    loaded = await opened(engine, llama)
    monkeypatch.setattr(Stage, "_cut_view", fail)
    part = replace(spec(loaded, "part"), blocks=BlockRange(1, 2))
    with pytest.raises(InternalError, match="apart from"):
        await engine.open_session(part, deadline_s=1)
    await engine.run(tokens(0, 5))


async def test_a_prompt_beyond_the_vocabulary_is_refused(engine: Engine, llama: TinyCheckpoint) -> None:
    await opened(engine, llama)
    with pytest.raises(InvalidRequestError, match="vocabulary"):
        await engine.attach_sampler(SessionId("s"), SamplingParams(max_tokens=1), (5, 10**6))
