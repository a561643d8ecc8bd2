from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.engine_core import EngineCore
from worker.prompt_costs import PromptCosts
from worker.steps import SpanKey


@pytest.fixture
def core() -> EngineCore:
    return EngineCore(CPU)


def begun(core: EngineCore, checkpoint: TinyCheckpoint, blocks: BlockRange, context_length: int) -> SpanKey:
    """A span that has run a prompt."""
    request = replace(checkpoint.request(blocks), context_length=context_length)
    core.load(request)
    core.measures.prompt_costs[request.key] = PromptCosts()
    return request.key


@pytest.mark.parametrize(("context_length", "n_lengths"), [(128, 2), (127, 0)])
def test_what_launching_a_step_takes_is_found_out_step_by_step(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint], context_length: int, n_lengths: int
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, context_length)
    n_pieces = 0
    while core.rest():
        n_pieces += 1
    costs = core.measures.prompt_costs[key]
    assert len(costs.steps) == n_lengths
    assert (costs.base_s is not None) == bool(n_lengths)
    assert n_pieces == max(1, 3 * n_lengths)
    assert not core.rest()


def test_nothing_is_tried_before_a_prompt_came_nor_where_none_begins(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    core.load(replace(checkpoint("llama").request(WHOLE), context_length=512))
    begun(core, checkpoint("llama"), BlockRange(1, WHOLE.end), 512)
    assert not core.rest()


def test_a_stage_that_is_dropped_meanwhile_is_not_tried(
    core: EngineCore, checkpoint: Callable[[str], TinyCheckpoint]
) -> None:
    key = begun(core, checkpoint("llama"), WHOLE, 512)
    assert core.rest()
    core.unload(key)
    assert not core.rest()
    assert key not in core.measures.prompt_costs
