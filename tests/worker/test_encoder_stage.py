from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from protocol.errors import OverloadedError
from protocol.ids import BlockRange, Revision, SessionId
from tests.support.tiny_models import N_BLOCKS, TINY_ENCODERS, save_tiny_model, split_checkpoint
from worker.batching_trial import settle_batching
from worker.encoder_stage import EncoderStage, alike
from worker.engine import Engine
from worker.loaded_stage import load_stage
from worker.stage import Stage, StageInput
from worker.steps import LoadRequest, SessionSpec, SpanKey

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
    widest = max(one.out_features for one in whole.modules() if isinstance(one, torch.nn.Linear))
    assert stage.working_bytes == 4 * (2 * widest + 8 * stage.hidden_size)
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


async def test_a_text_that_there_is_no_memory_to_run_is_refused_with_numbers(tmp_path: Path) -> None:
    stage, _ = stage_of(tmp_path, TINY_ENCODERS["bert"]())
    key = SpanKey(revision=Revision("0" * 64), blocks=BlockRange(0, N_BLOCKS), precision="float32")
    files = tuple((tmp_path / "split").glob("*.safetensors"))
    spec = SessionSpec(session_id=SessionId("5e55" * 8), span=key, blocks=key.blocks, n_positions=90, hands_on=True)
    async with Engine(device=torch.device("cpu"), kv_budget_bytes=100 * stage.working_bytes) as engine:
        loaded = await engine.load(LoadRequest(key=key, config_folder=tmp_path / "bare", files=files))
        assert loaded.kv_bytes_per_position(key.blocks) == stage.working_bytes
        with pytest.raises(OverloadedError, match=r"101 positions need [0-9,]+ bytes"):
            await engine.open_session(replace(spec, n_positions=101), deadline_s=1.0)
        await engine.open_session(spec, deadline_s=60.0)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=20))
def test_a_group_is_three_quarters_filled_at_least(lengths: list[int]) -> None:
    groups = alike(lengths)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        longest = max(lengths[index] for index in group)
        assert all(lengths[index] >= 0.75 * longest for index in group)
