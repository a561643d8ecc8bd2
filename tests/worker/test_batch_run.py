from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from protocol.errors import BrigadeError, InternalError, ProtocolError
from protocol.ids import SessionId
from protocol.messages import SamplingParams
from tests.support.counted_copies import OnAccelerator
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine_core import EngineCore
from worker.measures import Measures
from worker.steps import SessionSpec, SpanKey, StepInput, StepOutput

PROMPTS = {"a": [5, 9, 30, 4], "b": [77, 12], "c": [8, 40, 41]}


@pytest.fixture
def llama(checkpoint: Callable[[str], TinyCheckpoint]) -> TinyCheckpoint:
    return checkpoint("llama")


@pytest.fixture
def core(llama: TinyCheckpoint) -> EngineCore:
    core = EngineCore(CPU)
    loaded = core.load(llama.request(WHOLE))
    for name, prompt in PROMPTS.items():
        core.open(spec(name, prompt, loaded.key, SamplingParams(max_tokens=9)))
    return core


def spec(name: str, prompt: list[int], span: SpanKey, sampling: SamplingParams) -> SessionSpec:
    return SessionSpec(
        session_id=SessionId(name),
        span=span,
        blocks=WHOLE,
        n_positions=40,
        sampling=sampling,
        prompt_token_ids=tuple(prompt),
    )


def step(name: str, position: int, ids: list[int]) -> StepInput:
    payload = torch.tensor(ids, dtype=torch.int32)
    return StepInput(
        session_id=SessionId(name), position=position, n_tokens=len(ids), payload=payload, wants_sample=True
    )


def run(core: EngineCore, steps: list[StepInput]) -> list[StepOutput | BrigadeError]:
    return [result for _, result in sorted(core.run_batch(steps), key=lambda found: found[0])]


def first_tokens(results: list[StepOutput | BrigadeError]) -> list[int]:
    assert all(isinstance(result, StepOutput) for result in results), results
    return [result.tokens[0].token_id for result in results if isinstance(result, StepOutput)]


def test_the_steps_of_a_batch_run_in_one_forward(core: EngineCore, llama: TinyCheckpoint) -> None:
    ((stage, _),) = core.spans.values()
    n_rows = []
    stage._model.register_forward_pre_hook(
        lambda _model, _args, kwargs: n_rows.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    found = first_tokens(run(core, [step(name, 0, prompt) for name, prompt in PROMPTS.items()]))
    following = [step(name, len(PROMPTS[name]), [token]) for name, token in zip(PROMPTS, found, strict=True)]
    then = first_tokens(run(core, following))
    assert n_rows == [9, 3]
    assert [list(pair) for pair in zip(found, then, strict=True)] == [
        llama.greedy(prompt, 2) for prompt in PROMPTS.values()
    ]


def test_a_step_that_cannot_be_taken_fails_alone(core: EngineCore, llama: TinyCheckpoint) -> None:
    results = run(core, [step("a", 0, PROMPTS["a"]), step("b", 7, [5]), step("c", 0, [999])])
    assert first_tokens(results[:1]) == llama.greedy(PROMPTS["a"], 1)
    assert [type(result) for result in results[1:]] == [ProtocolError, ProtocolError]


def test_a_forward_that_fails_is_run_again_step_by_step(core: EngineCore, llama: TinyCheckpoint) -> None:
    core.sessions[SessionId("b")].cache.blocks[2].capacity = 0  # as memory that can't be written to
    results = run(core, [step(name, 0, prompt) for name, prompt in PROMPTS.items()])
    assert isinstance(results[1], InternalError)
    assert first_tokens([results[0], results[2]]) == [llama.greedy(PROMPTS[n], 1)[0] for n in "ac"]
    assert core.sessions[SessionId("b")].cache.length == 0


def test_a_batch_of_decode_steps_counts_as_what_each_stream_waits_for() -> None:
    measures = Measures()
    measures.note([step("a", 4, [5]), step("b", 2, [5])], 0.08, n_blocks=4, runs_end=False)
    measures.note([step("a", 0, [1] * 9), step("b", 2, [5])], 0.4, n_blocks=4, runs_end=False)
    measures.note([step("a", 0, [1] * 9), step("b", 2, [5])], 0.4, n_blocks=4, runs_end=False)
    assert measures.decode.s_per_block == pytest.approx(0.02)
    assert measures.prefill_s_per_token_per_block.value == pytest.approx(0.01)
    assert measures.n_positions_run == 22


def test_what_a_block_takes_can_be_told_from_what_the_end_takes() -> None:
    measures, block_s, end_s = Measures(), 0.002, 0.009
    for n_blocks, runs_end in ((4, True), (2, True), (3, False), (4, True)) * 10:
        compute_s = n_blocks * block_s + (end_s if runs_end else 0.0)
        measures.note([step("a", 4, [5])], compute_s, n_blocks=n_blocks, runs_end=runs_end)
    decode = measures.decode
    assert 0 < decode.ends_per_block < 1 / 2
    assert decode.s_per_block == pytest.approx(block_s + decode.ends_per_block * end_s)


def test_the_first_steps_count_alike() -> None:
    measures = Measures()
    for seconds in (0.09, 0.01, 0.02):
        measures.note([step("a", 4, [5])], seconds, n_blocks=1, runs_end=False)
    assert measures.decode.s_per_block == pytest.approx(0.04)


@pytest.mark.parametrize(("temperature", "is_copied"), [(0.0, False), (1.0, True)])
def test_only_what_is_drawn_at_random_brings_logits_from_the_accelerator(
    llama: TinyCheckpoint, monkeypatch: pytest.MonkeyPatch, temperature: float, is_copied: bool
) -> None:
    core = EngineCore(CPU)
    loaded = core.load(llama.request(WHOLE))
    sampling = SamplingParams(max_tokens=9, temperature=temperature)
    core.open(spec("a", PROMPTS["a"], loaded.key, sampling))
    ((stage, _),) = core.spans.values()
    run_stage = stage.run
    monkeypatch.setattr(
        stage, "run", lambda inputs: [each.as_subclass(OnAccelerator) for each in run_stage(inputs)]
    )
    monkeypatch.setattr(OnAccelerator, "copied", [])
    (token,) = first_tokens(run(core, [step("a", 0, PROMPTS["a"])]))
    assert type(token) is int
    assert (max(OnAccelerator.copied) >= stage.vocab_size) is is_copied
    assert OnAccelerator.copied


def test_the_time_of_a_batch_is_not_that_of_choosing_the_others_tokens(core: EngineCore) -> None:
    results = run(core, [step(name, 0, prompt) for name, prompt in PROMPTS.items()])
    found = [(result.compute_s, result.sampling_s) for result in results if isinstance(result, StepOutput)]
    assert len({compute_s for compute_s, _ in found}) == 1
    assert all(min(times) > 0 for times in found)
