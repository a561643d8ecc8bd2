from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import TinyCheckpoint
from tests.support.tiny_models import TINY_CONFIGS
from worker.batching_trial import settle_batching
from worker.stage_batching import Batching

MIDDLE = BlockRange(1, 3)
ONE_AT_A_TIME = {"bloom", "falcon", "falcon_alibi"}
"""They attend by code of their own."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_finds_out_which_architectures_can_be_batched(
    checkpoint: Callable[[str], TinyCheckpoint], dtype: torch.dtype
) -> None:
    found = {}
    for name in TINY_CONFIGS:
        stage = checkpoint(name).load(MIDDLE, dtype)
        settle_batching(stage)
        found[name] = stage.batching
    assert {name for name, batching in found.items() if batching.because} == ONE_AT_A_TIME
    assert {name for name, batching in found.items() if batching.joins_keys} == {"deepseek_v3"}
    assert found["bloom"].because == "its code can't run several sessions at once (TypeError)"


def test_frequencies_that_follow_the_longest_session_are_not_shared(
    checkpoint: Callable[[str], TinyCheckpoint],
) -> None:
    stage = checkpoint("llama_longrope").load(MIDDLE)
    settle_batching(stage)
    assert stage.batching == Batching(because="its rotary embedding depends on the longest session that runs")
