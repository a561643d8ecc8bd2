from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker.batching_trial import settle_batching
from worker.compiled_recording import Recording, UncompilableError, record
from worker.compiled_sizes import between, size_ranges
from worker.row_norm import RowNorm
from worker.stage import Stage

Checkpoints = Callable[[str], TinyCheckpoint]
Operations = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
WIDTH = 6


def settled(whole: TinyCheckpoint, dtype: torch.dtype) -> Stage:
    stage = whole.load(WHOLE, dtype)
    settle_batching(stage)
    return stage


def traced(operations: Operations, n_sessions: int) -> Recording:
    """Of x (n_sessions, WIDTH) and y (n_sessions,)."""
    make = torch.fx.experimental.proxy_tensor.make_fx
    graph = make(operations, tracing_mode="fake")(torch.ones(n_sessions, WIDTH), torch.ones(n_sessions))
    return Recording(
        graph=graph, sizes=range(n_sessions, n_sessions + 1), gaps=(), mask_rules=(), implementation="sdpa"
    )


@pytest.mark.usefixtures("torch_kernels")
def test_numbers_are_cut_where_modules_change(checkpoint: Checkpoints) -> None:
    assert size_ranges(settled(checkpoint("llama"), torch.bfloat16)) == [range(2, 33)]
    assert size_ranges(settled(checkpoint("llama"), torch.float32)) == [range(2, 3), range(3, 33)]
    stage = settled(checkpoint("qwen3"), torch.bfloat16)
    norms = [module for module in stage.modules() if isinstance(module, RowNorm)]
    for norm in norms:
        norm.most_elements = 5 * stage.hidden_size + 1
    assert size_ranges(stage) == [range(2, 6), range(6, 11), range(11, 33)]  # keys have half as many values
    assert not any(norm._forward_pre_hooks for norm in norms)


@pytest.mark.usefixtures("torch_kernels")
def test_what_changes_in_between_is_refused(checkpoint: Checkpoints) -> None:
    stage = settled(checkpoint("llama"), torch.bfloat16)
    for module in stage.modules():
        if isinstance(module, RowNorm):
            module.most_elements = 5 * stage.hidden_size
    assert between(record(stage, 2), record(stage, 5)).sizes == range(2, 6)
    with pytest.raises(UncompilableError):
        between(record(stage, 2), record(stage, 6))


@pytest.mark.parametrize(
    "operations",
    [
        pytest.param(lambda x, y: x.view(1, len(x), 2, 3).transpose(1, 2) * y.view(1, 1, -1, 1), id="a view"),
        pytest.param(lambda x, _: x.reshape(3 * len(x), 2)[len(x) : 2 * len(x)] + 1, id="multiples"),
        pytest.param(lambda x, _: x[-len(x) :] + torch.arange(len(x))[:, None], id="as a value, and from the end"),
        pytest.param(lambda x, y: torch.cat([x.new_zeros(len(x), 2), x], 1).split([4, 4], 1)[1] * y[0], id="lists"),
        pytest.param(lambda x, _: x * 2.0, id="none"),
    ],
)
@pytest.mark.parametrize("few", [2, 3])
def test_one_graph_serves_all_numbers_in_between(operations: Operations, few: int) -> None:
    joined = between(traced(operations, few), traced(operations, 13))
    assert joined.sizes == range(few, 14)
    for n_sessions in joined.sizes:
        x, y = torch.randn(n_sessions, WIDTH), torch.randn(n_sessions)
        assert torch.equal(joined.graph(x, y, n_sessions), operations(x, y))


@pytest.mark.parametrize(
    ("operations", "because"),
    [
        pytest.param(lambda x, _: x.expand(len(x) ** 2, *x.shape), "isn't known in between", id="a square of it"),
        pytest.param(lambda x, _: x.new_zeros(3 * len(x) - 1), "isn't known in between", id="less than a multiple"),
        pytest.param(lambda x, _: x * (1.0 / len(x)), "isn't known in between", id="a share of it"),
        pytest.param(lambda x, y: x + y[:, None] if len(x) > 4 else x - y[:, None], "it calls", id="another call"),
        pytest.param(lambda x, y: (x if len(x) > 4 else x + 1) + y[0], "it does more, or less", id="one call more"),
        pytest.param(
            lambda x, _: (lambda more: more * ((more if len(x) > 4 else x) * 2))(x + 1),
            "something else",
            id="another value",
        ),
        pytest.param(lambda x, _: x + torch.tensor([len(x)] * WIDTH), "a value that it keeps", id="a kept value"),
    ],
)
def test_what_is_no_multiple_is_refused(operations: Operations, because: str) -> None:
    with pytest.raises(UncompilableError, match=because):
        between(traced(operations, 2), traced(operations, 13))


def test_a_range_of_one_number_needs_one_recording() -> None:
    one = traced(lambda x, y: x.view(-1) + y[0], 2)
    joined = between(one, one)
    x, y = torch.randn(2, WIDTH), torch.randn(2)
    assert joined.sizes == range(2, 3)
    assert torch.equal(joined.graph(x, y, 2), x.view(-1) + y[0])
