from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from protocol.ids import BlockRange
from tests.support.tiny_models import N_BLOCKS, TINY_ENCODERS, save_tiny_model, split_checkpoint
from worker.batching_trial import settle_batching
from worker.encoder_stage import EncoderStage, alike
from worker.loaded_stage import load_stage
from worker.stage import Stage, StageInput

TEXTS = [torch.randint(3, 96, (n,), generator=torch.Generator().manual_seed(n)) for n in (20, 17, 5, 1, 20)]


def inputs_of(stage: Stage, payloads: list[torch.Tensor]) -> list[StageInput]:
    return [StageInput(payload=one, position=0, cache=stage.new_cache(64)) for one in payloads]


def stage_of(folder: Path, config: hf.PreTrainedConfig, **how: Any) -> tuple[Stage, hf.PreTrainedModel]:
    """All blocks as a stage, and the whole model: of files as packing makes them, without heads and poolers."""
    whole = save_tiny_model(config, folder / "model").base_model
    whole.save_pretrained(folder / "bare")
    block_files, rest = split_checkpoint(folder / "bare", folder / "split")
    save_file({name: one for name, one in load_file(rest).items() if "pooler" not in name}, rest)
    blocks = BlockRange(0, N_BLOCKS)
    options = {"dtype": torch.float32, "device": torch.device("cpu")} | how
    return load_stage(folder / "bare", [*block_files, rest], blocks, **options), whole


@torch.inference_mode()
def difference(whole: hf.PreTrainedModel, text: torch.Tensor, states: torch.Tensor) -> float:
    right = whole(text[None])[0][0]
    return float((states.float() - right).norm() / right.norm())


@pytest.mark.parametrize("name", ["roberta", "modernbert"])
def test_texts_run_together_and_by_views_as_each_alone(tmp_path: Path, name: str) -> None:
    stage, whole = stage_of(tmp_path, TINY_ENCODERS[name]())
    assert isinstance(stage, EncoderStage)
    assert stage.kv_bytes_by_block() == (0,) * N_BLOCKS
    settle_batching(stage)
    assert stage.batching.because == ""
    first, last = stage.view(BlockRange(0, 2)), stage.view(BlockRange(2, N_BLOCKS))
    got = last.run(inputs_of(last, first.run(inputs_of(first, TEXTS))))
    assert max(difference(whole, *pair) for pair in zip(TEXTS, got, strict=True)) < 1e-5


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_fewer_bits_give_nearly_the_same(tmp_path: Path, name: str, quantization: Any) -> None:
    config = TINY_ENCODERS[name]()
    config.hidden_size, config.intermediate_size = 64, 96
    stage, whole = stage_of(tmp_path, config, dtype=torch.bfloat16, quantization=quantization)
    got = stage.run(inputs_of(stage, TEXTS[:1]))
    assert 0.0 < difference(whole, TEXTS[0], got[0]) < 0.05


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_a_group_is_three_quarters_filled_at_least(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert all(lengths[index] >= 0.75 * longest for index in group)
