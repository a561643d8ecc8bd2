from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import structlog
import torch
from torch._inductor import config as inductor

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker import compiled_shortening
from worker.batching_trial import TOLERANCES, settle_batching
from worker.compiled import Recordings, compile_stage, replay_batches, replay_stage
from worker.compiled_sizes import size_ranges
from worker.engine_core import EngineCore
from worker.stage import Stage, StageInput
from worker.steps import Compiling

Checkpoints = Callable[[str], TinyCheckpoint]
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")  # torch's compiler uses what torch gives up
PROMPT = [5, 9, 4, 31, 7]
N_TOKENS = 12
MIDDLE = BlockRange(1, 3)
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by all: what one has compiled the others find."""
    made: Path = tmp_path_factory.mktemp("compiled")
    return made


def settled(whole: TinyCheckpoint, blocks: BlockRange, dtype: torch.dtype = torch.float32) -> Stage:
    stage = whole.load(blocks, dtype)
    settle_batching(stage)
    return stage


def greedy(stage: Stage) -> list[int]:
    cache = stage.new_cache(len(PROMPT) + N_TOKENS)
    said, payload = [], torch.tensor(PROMPT)
    for _ in range(N_TOKENS):
        one = StageInput(payload=payload, position=cache.length, cache=cache, n_logits=1)
        said.append(int(stage.run([one])[0].argmax()))
        payload = torch.tensor(said[-1:])
    return said


@pytest.mark.slow
@pytest.mark.timeout(600)  # a dozen runs of the C++ compiler
@needs_compiler
def test_compiled_steps_say_what_the_whole_model_says(checkpoint: Checkpoints, folder: Path) -> None:
    whole = checkpoint("mistral")
    stage = settled(whole, WHOLE)
    assert compile_stage(stage, folder) == ""
    assert greedy(stage) == whole.greedy(PROMPT, N_TOKENS)
    assert list(folder.rglob("*.so"))


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
def test_a_result_that_differs_is_not_used(
    checkpoint: Checkpoints, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint("mistral")
    stage = settled(whole, WHOLE)
    monkeypatch.setitem(TOLERANCES, torch.float32, 0.0)
    assert compile_stage(stage, folder).startswith("the compiled result differs by ")
    assert greedy(stage) == whole.greedy(PROMPT, N_TOKENS)


def test_without_a_compiler_a_stage_runs_as_it_did(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    stage = settled(whole, WHOLE)
    with inductor.patch({"cpp.cxx": ("/there/is/no/compiler",)}):
        because = compile_stage(stage, tmp_path)
    assert because == "it needs a C++ compiler and there is none: install g++ or clang, and start the worker again"
    assert greedy(stage) == whole.greedy(PROMPT, N_TOKENS)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_replayed_steps_are_the_same_to_the_bit(architecture: str, checkpoint: Checkpoints) -> None:
    stage, replayed = (settled(checkpoint(architecture), WHOLE) for _ in range(2))
    assert replay_stage(replayed) == ""
    caches = [one.new_cache(len(PROMPT) + 1) for one in (stage, replayed)]
    for payload in (torch.tensor(PROMPT), torch.tensor([11])):
        given = [
            one.run([StageInput(payload=payload, position=cache.length, cache=cache, n_logits=1)])[0]
            for one, cache in zip((stage, replayed), caches, strict=True)
        ]
        assert torch.equal(*given)


def test_if_the_shortened_recording_gives_other_bits_the_whole_one_is_replayed(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint("llama")
    stage = settled(whole, WHOLE)
    monkeypatch.setitem(compiled_shortening._DIRECT, torch.ops.aten.mul.Tensor, torch.add)
    with structlog.testing.capture_logs() as logs:
        assert replay_stage(stage) == ""
    assert [line["event"] for line in logs] == ["stage_recorded"]
    assert greedy(stage) == whole.greedy(PROMPT, N_TOKENS)


@pytest.mark.usefixtures("torch_kernels")
@pytest.mark.parametrize(("dtype", "n_recordings"), [(torch.float32, 3), (torch.bfloat16, 2)], ids=str)
def test_a_recorded_stage_that_is_dropped_frees_its_weights_at_once(
    checkpoint: Checkpoints, dtype: torch.dtype, n_recordings: int
) -> None:
    stage = settled(checkpoint("llama"), WHOLE, dtype)
    for due in (replay_stage(stage), *(replay_batches(stage, sizes) for sizes in size_ranges(stage))):
        assert due == ""
    steps = set(stage._decodes.values())
    assert len(steps) == n_recordings
    taken = [weight for step in steps for piece in step._pieces.pieces for weight in piece.weights]
    held = [
        weakref.ref(weight) for weight in (*stage._model.parameters(), *taken) if isinstance(weight, torch.Tensor)
    ]
    held += [weakref.ref(linear) for linear in stage.packed_linears()]
    gc.disable()  # what is frozen, as by the next load, isn't collected ever
    try:
        del stage, taken, steps
        assert not any(weight() is not None for weight in held)
    finally:
        gc.enable()


def test_what_cant_be_recorded_is_tried_once(checkpoint: Checkpoints) -> None:
    stage = settled(checkpoint("gpt_oss"), WHOLE)
    with structlog.testing.capture_logs() as logs:
        assert replay_stage(stage).startswith("torch can't compile it (RuntimeError: ")
    assert [line["event"] for line in logs] == ["recording_failed"]


@pytest.mark.usefixtures("torch_kernels")
def test_batches_are_recorded_when_such_came_and_once(checkpoint: Checkpoints) -> None:
    stage = settled(checkpoint("llama"), WHOLE)
    recordings = Recordings(stage, is_one_due=True)
    assert recordings.make_one(())
    assert set(stage._decodes) == {1}
    assert not recordings.make_one(())
    assert recordings.make_one({4, 7})
    assert set(stage._decodes) == {1, *range(3, 33)}  # two rows go through other products
    assert not recordings.make_one({4, 7, 200})
    assert recordings.make_one({2, 4})
    assert set(stage._decodes) == set(range(1, 33))


def test_batches_are_recorded_beside_compiled_steps(checkpoint: Checkpoints) -> None:
    stage = settled(checkpoint("llama"), MIDDLE, torch.bfloat16)
    recordings = Recordings(stage, is_one_due=False)
    assert not recordings.make_one(())
    assert recordings.make_one({2})
    assert set(stage._decodes) == set(range(2, 33))


def test_where_one_session_cant_be_recorded_several_arent_tried(checkpoint: Checkpoints) -> None:
    stage = settled(checkpoint("mixtral"), WHOLE)
    recordings = Recordings(stage, is_one_due=True)
    with structlog.testing.capture_logs() as logs:
        assert recordings.make_one({2})
        assert not recordings.make_one({2})
    assert [line["event"] for line in logs] == ["recording_failed"]
    assert not stage._decodes


def test_a_stage_whose_steps_are_slow_isnt_recorded(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.compiled._SLOW_S", 0.0)
    stage = settled(checkpoint("llama"), WHOLE)
    assert not Recordings(stage, is_one_due=True).make_one({2})
    assert not stage._decodes


@pytest.mark.parametrize("n_steps", [0, 3], ids=["how-long-a-step-takes", "sizes"])
def test_a_stage_that_cant_be_tried_for_want_of_memory_serves_on(checkpoint: Checkpoints, n_steps: int) -> None:
    stage = settled(checkpoint("llama"), WHOLE)

    def fail(*_args: object) -> None:
        nonlocal n_steps
        n_steps -= 1
        if n_steps < 0:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    hook = stage._model.register_forward_pre_hook(fail)
    assert not Recordings(stage, is_one_due=False).make_one({2})
    hook.remove()
    assert not stage._decodes
    assert stage.run([StageInput(payload=torch.tensor([7]), position=0, cache=stage.new_cache(1), n_logits=1)])


def test_a_batch_that_gives_other_bits_is_not_replayed(
    checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = settled(checkpoint("llama"), MIDDLE, torch.bfloat16)
    monkeypatch.setitem(compiled_shortening._DIRECT, torch.ops.aten.mul.Tensor, torch.add)
    assert replay_batches(stage, range(2, 9)).startswith("the compiled result differs by ")
    assert not stage._decodes


def test_a_span_that_cant_be_compiled_is_loaded_and_says_why(checkpoint: Checkpoints, tmp_path: Path) -> None:
    request = checkpoint("deepseek_v3").request(MIDDLE)
    loaded = EngineCore(CPU).load(replace(request, compiling=Compiling(folder=tmp_path, n_sessions=0)))
    assert not loaded.is_compiled
    assert loaded.uncompiled_because == "its blocks work on all keys of a session at every step"


def test_sessions_that_run_are_not_stopped_for_compiling(checkpoint: Checkpoints, tmp_path: Path) -> None:
    request = checkpoint("llama").request(MIDDLE)
    loaded = EngineCore(CPU).load(replace(request, compiling=Compiling(folder=tmp_path, n_sessions=2)))
    assert not loaded.is_compiled
    assert loaded.uncompiled_because.startswith("2 sessions were running here when it was loaded")
    assert not list(tmp_path.iterdir())
