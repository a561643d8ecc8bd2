from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker.batching_trial import settle_batching, trial_payload
from worker.compiled_pieces import as_short_as_can_be, as_they_are
from worker.compiled_recording import Recording, record
from worker.compiled_shortening import shortened
from worker.compiled_step import RecordedStep
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
ARCHITECTURES = (
    "llama",
    "llama_tied",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "gpt2",
    "gpt_neox",
    "opt",
    "cohere",
    "granite",
    "smollm3",
    "olmo2",
)
PROMPT = torch.tensor([5, 9, 4, 31, 7])


def recorded(whole: TinyCheckpoint, dtype: torch.dtype) -> tuple[Stage, Recording]:
    stage = whole.load(WHOLE, dtype)
    settle_batching(stage)
    return stage, record(stage)


def n_operations(graph: fx.GraphModule) -> int:
    return sum(node.op == "call_function" for node in graph.graph.nodes)


def traced(operations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> fx.GraphModule:
    """Of x (1, 2, 1, 8) and y (1, 1, 1, 8)."""
    make = torch.fx.experimental.proxy_tensor.make_fx
    made: fx.GraphModule = make(operations, tracing_mode="fake")(torch.ones(1, 2, 1, 8), torch.ones(1, 1, 1, 8))
    return made


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fewer_operations_give_the_same_bits(
    checkpoint: Checkpoints, architecture: str, dtype: torch.dtype
) -> None:
    stage, recording = recorded(checkpoint(architecture), dtype)
    assert n_operations(shortened(recording.graph)) < n_operations(recording.graph)
    steps = [RecordedStep(stage, recording, cut(recording)) for cut in (as_they_are, as_short_as_can_be)]
    caches = [stage.new_cache(9) for _ in steps]
    for cache in caches:
        stage.run([StageInput(payload=PROMPT, position=0, cache=cache)])
    generator = torch.Generator().manual_seed(2)
    for position in range(len(PROMPT), 9):
        payload = trial_payload(stage, 1, generator)
        with torch.inference_mode():
            given = [
                step([StageInput(payload=payload, position=position, cache=cache, n_logits=1)])[0]
                for step, cache in zip(steps, caches, strict=True)
            ]
        assert torch.equal(*given)


def test_what_was_recorded_stays_as_it_is_and_weights_are_held_once(checkpoint: Checkpoints) -> None:
    _, recording = recorded(checkpoint("llama"), torch.float32)
    before = recording.graph.code
    short = shortened(recording.graph)
    assert recording.graph.code == before
    held = {
        getattr(recording.graph, str(n.target)).data_ptr() for n in recording.graph.graph.find_nodes(op="get_attr")
    }
    assert {getattr(short, str(n.target)).data_ptr() for n in short.graph.find_nodes(op="get_attr")} <= held


def turned_halves(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.cat((-x[..., 4:], x[..., :4]), -1) * y


@pytest.mark.parametrize(
    ("operations", "is_shorter"),
    [
        pytest.param(turned_halves, False, id="once, so nothing is gained"),
        pytest.param(lambda x, y: turned_halves(x, y) + turned_halves(x + y, y), True, id="twice by one factor"),
        pytest.param(
            lambda x, y: torch.cat((-x[..., 3:], x[..., :3]), -1) * y, False, id="parts that are no halves"
        ),
        pytest.param(lambda x, y: torch.cat((-x[..., :4], x[..., 4:]), -1) * y, False, id="in their order"),
        pytest.param(lambda x, y: torch.cat((-x[:, 1:], x[:, :1]), 1) * y, False, id="of another dimension"),
        pytest.param(lambda x, y: torch.cat((-x[..., 4:], x[..., :4]), -1) * y[..., :1], False, id="by one number"),
        pytest.param(
            lambda x, y: torch.cat((-x[..., 4:], (x + y)[..., :4]), -1) * y, False, id="halves of two tensors"
        ),
    ],
)
def test_only_halves_that_are_turned_are_rolled(
    operations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], is_shorter: bool
) -> None:
    x, y = torch.randn(1, 2, 1, 8), torch.randn(1, 1, 1, 8)
    recording = traced(operations)
    short = shortened(recording)
    assert torch.equal(short(x, y), operations(x, y))
    assert (torch.roll in {node.target for node in short.graph.nodes}) == is_shorter


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(lambda x, y: (x + 1) * (x + 1.0) + y, id="numbers of two types"),
        pytest.param(lambda x, y: x.transpose(1, 3).reshape(1, 2, 1, 8) + y, id="a copy in another order"),
        pytest.param(lambda x, y: x.view(8, 2).t().reshape(1, 2, 1, 8) + y, id="likewise"),
        pytest.param(lambda x, y: x.view(16)[8:].view(1, 1, 1, 8) + y, id="a part"),
        pytest.param(lambda x, y: x.clone().mul_(2) + x + y, id="something written to"),
        pytest.param(lambda x, y: x.unsqueeze(0).squeeze(0).view(1, 2, 8).view(1, 2, 1, 8) + y, id="to and fro"),
        pytest.param(lambda x, y: torch.nn.functional.layer_norm(x, (8,)) + y.double().float(), id="a norm"),
        pytest.param(lambda x, y: x.view(2, 8) @ y.view(1, 8).t(), id="a product that turns its matrix"),
        pytest.param(
            lambda x, y: torch.addmm(x.view(2, 8)[:, :1], x.view(2, 8), y.view(1, 8).t()),
            id="a bias of its own a row",
        ),
    ],
)
def test_whatever_is_shortened_gives_the_same(
    operations: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> None:
    x, y = torch.randn(1, 2, 1, 8), torch.randn(1, 1, 1, 8)
    assert torch.equal(shortened(traced(operations))(x, y), operations(x, y))
