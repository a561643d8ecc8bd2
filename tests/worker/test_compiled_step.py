"""Steps of several sessions from one recording: the bits of the model's own code, whatever their number is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType

from protocol.ids import BlockRange
from protocol.messages import Quantization
from tests.coordinator.gguf_support import write_gguf
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from tests.support.tiny_models import TINY_CONFIGS, WINDOW
from worker.batching_trial import settle_batching, trial_payload
from worker.column_linear import ColumnLinear
from worker.compiled import replay_batches, replay_stage
from worker.compiled_sizes import size_ranges
from worker.gguf_file import GgufFile
from worker.kv_cache import KVCache
from worker.loaded_stage import load_stage
from worker.screened_head import ScreenedHead
from worker.screening_trial import screen
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
MIDDLE = BlockRange(1, 3)
EXPERTS = {"qwen3_moe", "mixtral", "gpt_oss"}
"""Torch's product for experts can't be recorded in float32."""
NOT_TOGETHER = {"bloom", "falcon", "falcon_alibi", "deepseek_v3"}
SIZES = (2, 3, 8)
N_STEPS = 3


def recorded(stage: Stage) -> Stage:
    settle_batching(stage)
    assert replay_stage(stage) == ""
    assert [replay_batches(stage, sizes) for sizes in size_ranges(stage)] == [""] * len(size_ranges(stage))
    return stage


def decode_steps(stage: Stage, payloads: Sequence[torch.Tensor], caches: Sequence[KVCache]) -> list[StageInput]:
    return [
        StageInput(payload=payload, position=cache.length, cache=cache, n_logits=int(stage.is_last))
        for payload, cache in zip(payloads, caches, strict=True)
    ]


def begun(stage: Stage, n_sessions: int) -> list[KVCache]:
    """Caches of sessions of different lengths; some cross a sliding window's edge within the steps of a test."""
    caches = [stage.new_cache(WINDOW + n_sessions + N_STEPS) for _ in range(n_sessions)]
    for number, cache in enumerate(caches):
        prompt = trial_payload(stage, WINDOW - 2 + number, torch.Generator().manual_seed(number))
        stage.run([StageInput(payload=prompt, position=0, cache=cache)])
    return caches


def assert_same_bits(stage: Stage, n_sessions: int) -> None:
    generator = torch.Generator().manual_seed(7)
    ours, theirs = (begun(stage, n_sessions) for _ in range(2))
    for _ in range(N_STEPS):
        payloads = [trial_payload(stage, 1, generator) for _ in ours]
        with torch.inference_mode():
            right = stage.run_together(decode_steps(stage, payloads, theirs))
        given = stage.run(decode_steps(stage, payloads, ours))
        assert [one.shape for one in given] == [one.shape for one in right]
        assert all(map(torch.equal, given, right))
    for one, other in zip(ours, theirs, strict=True):
        assert all(
            torch.equal(*pair) for pair in zip(one.blocks[-1].filled(), other.blocks[-1].filled(), strict=True)
        )


def cases() -> list[tuple[str, torch.dtype]]:
    names = [name for name in TINY_CONFIGS if name not in NOT_TOGETHER]
    return [
        *((name, torch.bfloat16) for name in names),
        *((name, torch.float32) for name in names if name not in EXPERTS),
    ]


@pytest.mark.parametrize(("name", "dtype"), cases(), ids=str)
def test_batches_give_the_same_bits_in_every_architecture(
    checkpoint: Checkpoints, name: str, dtype: torch.dtype
) -> None:
    stage = recorded(checkpoint(name).load(WHOLE, dtype))
    for n_sessions in SIZES:
        assert n_sessions in stage._decodes
        assert_same_bits(stage, n_sessions)


@pytest.mark.parametrize("blocks", [BlockRange(0, 2), MIDDLE, BlockRange(2, 4)], ids=str)
def test_wherever_a_stage_is_cut(checkpoint: Checkpoints, blocks: BlockRange) -> None:
    assert_same_bits(recorded(checkpoint("gemma3").load(blocks, torch.bfloat16)), 3)


@pytest.mark.parametrize(("encoding", "quantization"), [("Q4_1", "int4"), ("Q8_0", "int8")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_with_codes_for_weights(
    tmp_path: Path, encoding: str, quantization: Quantization, dtype: torch.dtype
) -> None:
    source = GgufFile(write_gguf(tmp_path / "m.gguf", encoding=GGMLQuantizationType[encoding]))
    blocks = BlockRange(0, 2)
    stage = recorded(load_stage(source, [source], blocks, dtype=dtype, device=CPU, quantization=quantization))
    for n_sessions in SIZES:
        assert_same_bits(stage, n_sessions)


@pytest.mark.usefixtures("torch_kernels")
def test_a_head_that_looks_closely_at_few_tokens_does_so_in_recordings(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(BlockRange(2, 4))
    settle_batching(stage)
    assert isinstance(stage.head, ColumnLinear)
    screened = screen(stage, stage.head)
    assert isinstance(screened, ScreenedHead)
    screened.max_rows = 4
    recorded(stage)
    decodes = dict(stage._decodes)
    for n_sessions in (1, 2, 3):
        ours, theirs = (begun(stage, n_sessions) for _ in range(2))
        payloads = [trial_payload(stage, 1, torch.Generator().manual_seed(5)) for _ in ours]
        for wants in (True, False):
            steps = [replace(one, wants_likeliest=wants) for one in decode_steps(stage, payloads, ours)]
            given = stage.run(steps)
            stage._decodes.clear()
            right = stage.run([replace(one, cache=cache) for one, cache in zip(steps, theirs, strict=True)])
            stage._decodes.update(decodes)
            assert all(map(torch.equal, given, right))


def refuse(_inputs: Sequence[StageInput]) -> list[torch.Tensor]:
    raise AssertionError("this is no step of single tokens that all want what the recording gives")


def test_other_steps_run_by_the_models_own_code(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(WHOLE)
    settle_batching(stage)
    stage.decode_by(refuse, range(1, 9))
    caches = begun(stage, 2)
    one, other = decode_steps(stage, [torch.tensor([5]), torch.tensor([6])], caches)
    chunk = StageInput(payload=torch.tensor([7, 8]), position=caches[1].length, cache=caches[1], n_logits=1)
    beside_a_prompt = stage.run([one, chunk])
    assert [tuple(given.shape) for given in beside_a_prompt] == [(1, stage.vocab_size)] * 2
    for cache in caches:
        cache.truncate(WINDOW - 2)
    states = stage.run([replace(each, position=WINDOW - 2, n_logits=0) for each in (one, other)])
    assert [tuple(given.shape) for given in states] == [(1, stage.hidden_size)] * 2
    with pytest.raises(AssertionError, match="no step of single tokens"):
        stage.run([one])


def test_views_run_without(checkpoint: Checkpoints) -> None:
    stage = checkpoint("llama").load(WHOLE)
    settle_batching(stage)
    stage.decode_by(refuse, range(1, 9))
    view = stage.view(MIDDLE)
    payloads = [torch.ones(1, stage.hidden_size)] * 2
    assert len(view.run(decode_steps(view, payloads, [view.new_cache(1) for _ in range(2)]))) == 2
