"""What fails fails alone, unless it is the device: then all who wait are told, and all who come."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from protocol.errors import DrainingError, InternalError, ModelFaultError, OverloadedError, UntrustedFileError
from protocol.ids import BlockRange, SessionId
from tests.support.changed_weights import change_weights_of
from tests.support.running_engine import KV_PER_POSITION, engine, llama, opened, spec, tokens
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine import Engine
from worker.engine_core import EngineCore
from worker.kv_store import new_store
from worker.stage import Stage
from worker.steps import StepOutput

__all__ = ["engine", "llama"]


async def test_loading_twice_loads_once_and_a_broken_span_leaves_the_engine_alive(
    engine: Engine, llama: TinyCheckpoint
) -> None:
    request = llama.request(BlockRange(1, 2))
    assert await engine.load(request) == await engine.load(request)
    with pytest.raises(UntrustedFileError):
        await engine.load(replace(llama.request(BlockRange(2, 3)), files=(llama.block_files[1],)))
    assert len(engine.loaded()) == 1


@pytest.mark.parametrize("place", ["worker.loading._made", "worker.engine_core.settle_batching"])
async def test_loading_without_memory_says_that_and_not_that_the_files_are_wrong(
    engine: Engine, llama: TinyCheckpoint, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU torch says so by a plain RuntimeError."""

    def no_memory(*_args: Any) -> None:
        torch.empty(2**60, dtype=torch.uint8)

    request = llama.request(BlockRange(1, 2))
    request = replace(request, files=tuple(Path(shutil.copy(file, tmp_path)) for file in request.files))
    monkeypatch.setattr(place, no_memory)
    with pytest.raises(OverloadedError, match="1:2 don't fit into the memory of cpu"):
        await engine.load(request)


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
        head = core.spans[loaded.key][0]._model.get_output_embeddings()
        change_weights_of(head, lambda weight: weight.index_fill(0, torch.tensor([3]), float("nan")))

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
