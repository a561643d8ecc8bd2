from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from worker import fbgemm, kernels, packed_linear, widened_linear
from worker.batching_trial import settle_batching
from worker.compiled import replay_batches, replay_stage
from worker.compiled_sizes import size_ranges
from worker.fbgemm import FbgemmWeights
from worker.packed_linear import InFloat32, OnednnWeights, PackedLinear, can_pack, pack_linear_layers, packed
from worker.panels import PanelWeights
from worker.stage import StageInput

pytestmark = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="no kernels pack bfloat16 on this processor")


@pytest.fixture(params=["as it is", "AVX2", "AVX2, nothing built"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "as it is":
        return
    for module in (packed_linear, widened_linear):
        monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    because = kernels.why_no_products("AVX2") if request.param == "AVX2" else "a test has it so"
    if request.param == "AVX2" and because:
        pytest.skip(because)
    if because and not fbgemm.is_there():
        pytest.skip("FBGEMM isn't in this torch, or not for this processor")
    monkeypatch.setattr(packed_linear, "why_no_products", lambda: because)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("n_rows", [1, 7, 64])
@pytest.mark.parametrize("bias", [True, False])
def test_products_are_those_of_the_layer_that_it_replaces(n_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 96, bias=bias, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(1, n_rows, 48, dtype=torch.bfloat16)
    with torch.inference_mode():
        torch.testing.assert_close(packed(linear)(x), linear(x))


@pytest.mark.usefixtures("processor")
def test_a_stage_gives_what_the_model_gives_and_is_recorded(checkpoint: Callable[[str], TinyCheckpoint]) -> None:
    whole = checkpoint("llama")
    exact, stage = whole.load(WHOLE, torch.float32), whole.load(WHOLE, torch.bfloat16)
    settle_batching(stage)
    payloads = [torch.arange(n_tokens) + 3 for n_tokens in (1, 2, 5, 40)]
    found, expected = (
        one.run([StageInput(payload=p, position=0, cache=one.new_cache(len(p)), n_logits=len(p)) for p in payloads])
        for one in (stage, exact)
    )
    for ours, right in zip(found, expected, strict=True):
        assert (ours.float() - right).norm() < 0.03 * right.norm()
    assert not replay_stage(stage)
    assert [replay_batches(stage, sizes) for sizes in size_ranges(stage)] == [""] * len(size_ranges(stage))


@pytest.mark.usefixtures("processor")
def test_kernels_for_bfloat16_come_first() -> None:
    layer = packed(nn.Linear(16, 16, dtype=torch.bfloat16))
    if packed_linear.has_bfloat16() or not packed_linear.why_no_products():
        assert isinstance(layer, PackedLinear)
        assert isinstance(layer.weights, OnednnWeights if packed_linear.has_bfloat16() else PanelWeights)
    else:
        assert isinstance(layer, InFloat32)
        assert isinstance(layer.layer.weights, FbgemmWeights)


@pytest.mark.usefixtures("torch_kernels")
def test_what_is_shared_or_of_another_type_stays() -> None:
    model = nn.ModuleDict(
        {"embedding": nn.Embedding(8, 16), "head": nn.Linear(16, 8, bias=False), "own": nn.Linear(16, 16)}
    ).to(torch.bfloat16)
    model["head"].weight = model["embedding"].weight
    model["exact"] = nn.Linear(16, 16)
    model["infinite"] = nn.Linear(16, 16, dtype=torch.bfloat16)
    model["infinite"].weight.data[3, 3] = torch.inf
    assert pack_linear_layers(model) == 1
    assert {name for name, layer in model.items() if isinstance(layer, (PackedLinear, InFloat32))} == {"own"}


def test_copies_share_the_weights() -> None:
    model = nn.Sequential(nn.Linear(16, 16, dtype=torch.bfloat16))
    pack_linear_layers(model)
    (layer,), (copied,) = (
        [module for module in one.modules() if isinstance(module, PackedLinear)]
        for one in (model, copy.deepcopy(model))
    )
    assert copied is layer


@pytest.mark.usefixtures("processor")
def test_views_own_no_packed_layer_that_runs_elsewhere(checkpoint: Callable[[str], TinyCheckpoint]) -> None:
    stage = checkpoint("opt_projected").load(WHOLE, torch.bfloat16)
    middle = stage.view(BlockRange(1, 3))
    n_in_blocks = len(middle.packed_linears())
    assert len(stage.packed_linears()) == n_in_blocks * len(WHOLE) // 2 + 2  # with a projection in and one out
    payload = torch.zeros(2, middle.hidden_size, dtype=torch.bfloat16)
    assert (
        middle.run([StageInput(payload=payload, position=0, cache=middle.new_cache(2))])[0].shape == payload.shape
    )
