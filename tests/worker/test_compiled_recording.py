from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from protocol.ids import BlockRange
from tests.support.tiny_checkpoint import WHOLE, TinyCheckpoint
from tests.support.tiny_models import TINY_CONFIGS, WINDOW
from worker.batching_trial import settle_batching, trial_payload
from worker.compiled_recording import GAP, Recording, UncompilableError, masks_at, record
from worker.kv_cache import KVCache
from worker.stage import Stage, StageInput

MIDDLE = BlockRange(1, 3)
Checkpoints = Callable[[str], TinyCheckpoint]
NOT_RECORDED = {
    "bloom": "its code can't run several sessions at once",
    "falcon": "its code can't run several sessions at once",
    "falcon_alibi": "its code can't run several sessions at once",
    "deepseek_v3": "its blocks work on all keys of a session at every step",
}
EXPERTS = {"qwen3_moe", "mixtral", "gpt_oss"}
"""Torch's product for experts knows float32, but not how to write it down."""


class Replay(fx.Interpreter):
    """Runs what was written down, one operation after the other, and fills the gaps."""

    def __init__(self, recording: Recording, cache: KVCache, position: int) -> None:
        super().__init__(recording.graph)
        self.recording, self.cache = recording, cache
        self.masks = masks_at(recording.implementation, recording.mask_rules, position)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target is not GAP:
            return super().call_function(target, args, kwargs)
        *states, computed, gap = args
        return self.recording.filler(self.recording.gaps[gap])(self.cache, self.masks, tuple(states), computed)


def loaded(whole: TinyCheckpoint, blocks: BlockRange, dtype: torch.dtype) -> Stage:
    stage = whole.load(blocks, dtype)
    settle_batching(stage)
    return stage


def cases() -> list[tuple[str, BlockRange, torch.dtype]]:
    names = [name for name in TINY_CONFIGS if name not in NOT_RECORDED]
    in_whole = [(name, WHOLE, torch.bfloat16 if name in EXPERTS else torch.float32) for name in names]
    return [*in_whole, ("llama", MIDDLE, torch.bfloat16), ("opt", MIDDLE, torch.float32)]


@pytest.mark.parametrize(("name", "blocks", "dtype"), cases(), ids=str)
def test_what_is_written_down_gives_what_the_model_gives_at_every_position(
    checkpoint: Checkpoints, name: str, dtype: torch.dtype, blocks: BlockRange
) -> None:
    stage = loaded(checkpoint(name), blocks, dtype)
    recording = record(stage)
    generator = torch.Generator().manual_seed(1)
    caches = [stage.new_cache(2 * WINDOW) for _ in range(2)]
    prompt = trial_payload(stage, WINDOW - 2, generator)
    for cache in caches:
        stage.run([StageInput(payload=prompt, position=0, cache=cache)])
    for position in range(WINDOW - 2, WINDOW + 2):
        payload = trial_payload(stage, 1, generator)
        with torch.inference_mode():
            given = Replay(recording, caches[0], position).run(
                payload.long() if stage.is_first else payload, torch.tensor([position])
            )
        n_logits = int(stage.is_last)
        (expected,) = stage.run(
            [StageInput(payload=payload, position=position, cache=caches[1], n_logits=n_logits)]
        )
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_hangs_on_more_than_the_token_is_refused(checkpoint: Checkpoints, name: str) -> None:
    stage = loaded(checkpoint(name), MIDDLE, torch.float32)
    with pytest.raises(UncompilableError, match=NOT_RECORDED[name]):
        record(stage)


def test_a_stage_is_itself_after_it_was_written_down(checkpoint: Checkpoints) -> None:
    stage = loaded(checkpoint("llama"), MIDDLE, torch.bfloat16)
    one = StageInput(payload=torch.ones(3, 32), position=0, cache=stage.new_cache(3))
    (before,) = stage.run([one])
    record(stage)
    one.cache.truncate(0)
    assert torch.equal(stage.run([one])[0], before)
