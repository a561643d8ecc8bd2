from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from protocol.errors import BrigadeError
from protocol.ids import BlockRange, SessionId
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine_core import EngineCore
from worker.prompt_costs import PromptCosts, RunStep
from worker.steps import SessionSpec, SpanKey, StepInput


@pytest.fixture
def core() -> EngineCore:
    return EngineCore(CPU)


def begun(
    core: EngineCore,
    checkpoint: TinyCheckpoint,
    blocks: BlockRange,
    context_length: int,
    seconds_per_block: float = 1e-3,
) -> SpanKey:
    """A span that has run a prompt of 32 tokens after its own steps were recorded."""
    request = replace(checkpoint.request(blocks), context_length=context_length)
    core.load(request)
    while core.rest():
        pass
    core.measures.prompt_costs[request.key] = PromptCosts().with_step(RunStep(32, 0, seconds_per_block))
    return request.key


@pytest.mark.parametrize(("context_length", "n_lengths"), [(128, 2), (127, 1)])
def test_what_launching_a_step_takes_is_found_out_step_by_step(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint], context_length: int, n_lengths: int
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, context_length)
    n_pieces = 0
    while core.rest():
        n_pieces += 1
    costs = core.measures.prompt_costs[key]
    assert len(costs.steps) == n_lengths
    assert (costs.base_s is not None) == (n_lengths == 2)
    assert n_pieces == (6 if n_lengths == 2 else 0)
    assert not core.rest()


def test_nothing_is_tried_before_a_prompt_came_nor_where_none_begins(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    core.load(replace(checkpoint("llama").request(WHOLE), context_length=512))
    begun(core, checkpoint("llama"), BlockRange(1, WHOLE.end), 512)
    assert not core.rest()


def test_steps_of_single_tokens_are_no_prompt(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, 512)
    core.measures.prompt_costs[key] = PromptCosts().with_step(RunStep(1, 0, 1e-3))
    assert not core.rest()


def test_nobody_is_made_to_wait_for_a_step_that_is_known_to_be_slow(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, 512, seconds_per_block=0.1)
    assert not core.rest()
    for _ in range(3):  # it was something else that took the time
        core.measures.prompt_costs[key] = core.measures.prompt_costs[key].with_step(RunStep(32, 0, 1e-3))
    assert core.rest()


def test_a_model_that_cannot_run_what_is_tried_goes_on_without(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = begun(core, checkpoint("gpt2"), WHOLE, 512)  # it has 64 positions, whatever the manifest says
    while core.rest():
        pass
    assert core.measures.prompt_costs[key].base_s is None
    assert key in core.spans


def test_a_stage_that_is_dropped_meanwhile_is_not_tried(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, 512)
    assert core.rest()
    core.unload(key)
    assert not core.rest()
    assert key not in core.measures.prompt_costs


def run_tokens(core: EngineCore, key: SpanKey, names: str, position: int) -> None:
    """A token of each of these sessions, together; opened where they begin."""
    steps = []
    for name in names:
        session_id = SessionId(name)
        if position == 0:
            core.open(SessionSpec(session_id=session_id, span=key, blocks=WHOLE, n_positions=8, hands_on=True))
        payload = torch.tensor([7], dtype=torch.int32)
        steps.append(StepInput(session_id=session_id, position=position, n_tokens=1, payload=payload))
    results = [result for _, result in core.run_batch(steps)]
    assert not any(isinstance(result, BrigadeError) for result in results)


@pytest.mark.usefixtures("torch_kernels")
def test_steps_of_one_session_are_recorded_at_once_those_of_several_when_such_came(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = core.load(checkpoint("llama").request(WHOLE)).key
    stage, _ = core.spans[key]
    assert core.rest()
    assert not core.rest()
    assert set(stage._decodes) == {1}
    run_tokens(core, key, "abc", 0)
    assert core.rest()
    assert not core.rest()
    assert set(stage._decodes) == {1, *range(3, 33)}  # two rows go through other products
    run_tokens(core, key, "abc", 1)


def test_what_was_run_in_a_span_is_forgotten_with_it(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = core.load(checkpoint("llama").request(WHOLE)).key
    run_tokens(core, key, "ab", 0)
    for name in "ab":
        core.close(SessionId(name))
    core.unload(key)
    assert not core.rest()
    assert not core.measures.decoded_together
