from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from tests.support.tiny_models import N_BLOCKS, TINY_CONFIGS, VOCAB_SIZE
from worker import screening_trial
from worker.batching_trial import settle_batching
from worker.byte_sizes import size_text
from worker.column_linear import ColumnLinear
from worker.engine_core import EngineCore
from worker.screened_head import ScreenedHead
from worker.screening import NO_SCREENING
from worker.screening_trial import keeps_order, screen, settle_screening
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
pytestmark = pytest.mark.usefixtures("torch_kernels")


def screening(stage: Stage) -> ScreenedHead:
    assert isinstance(stage.head, ColumnLinear)
    screened = screen(stage, stage.head)
    assert isinstance(screened, ScreenedHead)
    screened.max_rows = 4
    return screened


@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_the_likeliest_tokens_stay_the_same_in_every_architecture(checkpoint: Checkpoints, name: str) -> None:
    ids = torch.randint(3, VOCAB_SIZE, (3, 24), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    plain, close = checkpoint(name).load(WHOLE), checkpoint(name).load(WHOLE)
    for stage in (plain, close):
        settle_batching(stage)
    screened = screening(close)
    n_screened = []
    screened.register_forward_hook(lambda _module, inputs, _logits: n_screened.append(inputs[0].shape[-2]))
    caches = [[stage.new_cache(24) for _ in ids] for stage in (plain, close)]
    for position in (0, *range(21, 24)):
        steps = [
            StageInput(payload=row[position : max(21, position + 1)], position=position, cache=cache, n_logits=1)
            for row, cache in zip(ids, caches[0], strict=True)
        ]
        exact = plain.run(steps)
        got = close.run(
            [replace(one, cache=cache, wants_likeliest=True) for one, cache in zip(steps, caches[1], strict=True)]
        )
        for one, other in zip(got, exact, strict=True):
            assert int(one.argmax()) == int(other.argmax())
            torch.testing.assert_close(one.max(), other.max(), rtol=1e-5, atol=1e-5)
    assert n_screened


def test_one_who_wants_all_logits_has_all_of_those_beside_it_exact(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(BlockRange(2, N_BLOCKS))
    settle_batching(stage)
    screening(stage)
    payload = torch.randn(1, stage.hidden_size, generator=torch.Generator().manual_seed(1))
    one = StageInput(payload=payload, position=0, cache=stage.new_cache(4), n_logits=1)
    exact = stage.run([one])[0]
    together = stage.run([replace(one, cache=stage.new_cache(4), wants_likeliest=wants) for wants in (True, False)])
    for got in together:
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-6)


def test_views_screen_too_and_share_the_codes(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(WHOLE)
    screened = screening(stage)
    view = stage.view(BlockRange(1, N_BLOCKS))
    assert isinstance(view.head, ScreenedHead)
    assert view.head.codes.data_ptr() == screened.codes.data_ptr()
    assert view.head.max_rows == 4
    assert stage.view(BlockRange(0, 2)).head is None


@pytest.mark.parametrize(
    "changed",
    [
        lambda logits: logits.index_fill(-1, torch.tensor([5]), -1e9),
        lambda logits: -logits,
        lambda logits: logits * torch.linspace(0.5, 1.5, logits.shape[-1]),
        lambda logits: logits.clamp(max=0.5),
    ],
    ids=["one token is left out", "turned round", "scaled apart", "cut off"],
)
def test_a_model_that_moves_one_logit_past_another_keeps_its_head(
    checkpoint: Checkpoints, changed: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = checkpoint("llama").load(WHOLE)
    model: Any = stage._model
    own = model.forward

    def forward(**arguments: Any) -> Any:
        result = own(**arguments)
        result.logits = changed(result.logits)
        return result

    monkeypatch.setattr(model, "forward", forward)
    head = stage.head
    assert isinstance(head, ColumnLinear)
    assert screen(stage, head) == "the model moves one token's logit past another's"
    assert stage.head is head


def test_caps_and_scales_keep_the_order(checkpoint: Checkpoints) -> None:
    for name in ("gemma2", "cohere", "granite"):
        stage = checkpoint(name).load(WHOLE)
        assert keeps_order(stage, screening(stage))


@pytest.mark.parametrize(("share", "is_screened"), [(None, True), (8, True), (7, False)])
def test_codes_take_little_of_what_caches_have(
    checkpoint: Checkpoints, share: int | None, is_screened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening_trial, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(screening_trial, "_WORTH", 0.0)
    stage = checkpoint("llama").load(WHOLE)
    assert isinstance(stage.head, ColumnLinear)
    head, n_before = stage.head, stage.n_weight_bytes()
    found = settle_screening(stage, None if share is None else share * head.weight.numel())
    assert isinstance(stage.head, ScreenedHead) == is_screened == found.is_on
    codes, caches = size_text(head.weight.numel()), size_text(7 * head.weight.numel())
    assert is_screened or f"its codes take {codes}, and caches have {caches} in all" in found.off_because
    assert (stage.n_weight_bytes() - n_before >= head.weight.numel()) == is_screened


@pytest.mark.parametrize(
    ("worth", "said"), [(0.0, ""), (float("inf"), "it isn't quicker here: .* ms a token with")]
)
def test_it_is_kept_where_it_is_quicker_and_the_span_says_which(
    checkpoint: Checkpoints, worth: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screening_trial, "MIN_WEIGHTS", 1)
    monkeypatch.setattr(screening_trial, "_WORTH", worth)
    core = EngineCore(CPU)
    found = core.load(checkpoint("llama").request(WHOLE)).screening
    ((stage, _),) = core.spans.values()
    assert isinstance(stage.head, ScreenedHead) == found.is_on == (worth == 0.0)
    assert re.match(said, found.off_because)
    assert bool(found.off_because) == bool(said)


def test_broken_weights_and_small_heads_are_left_alone(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(WHOLE)
    head = stage.head
    assert isinstance(head, ColumnLinear)
    assert settle_screening(stage) == NO_SCREENING, "nothing is to be gained"
    assert stage.head is head
    head.weight.data[3, 3] = torch.nan
    assert screen(stage, head) == "its weights aren't all finite"
    assert stage.head is head
