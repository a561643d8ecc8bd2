"""Stages that hold codes: against the same values multiplied out, cut anywhere; models that can't be held so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf.constants import GGMLQuantizationType

from coordinator.file_store import FileStore
from coordinator.packing import PackedModel, pack_model
from protocol.errors import ConfigError
from protocol.ids import BlockRange
from protocol.messages import Quantization
from protocol.weight_sizes import span_weight_bytes
from tests.coordinator.gguf_support import write_gguf
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from worker.stage import Stage, StageInput, load_stage

IDS = torch.arange(3, 13, dtype=torch.int32)
TINY = BlockRange(0, 2)


class Packed:
    """A tiny llama, packed from a GGUF file whose matrices are encoded."""

    def __init__(self, folder: Path, encoding: str, *, has_head: bool) -> None:
        path = write_gguf(folder / "m.gguf", encoding=GGMLQuantizationType[encoding], has_head=has_head)
        self.store = FileStore(folder / "store")
        self.model: PackedModel = pack_model(str(path), self.store, lambda *_: None)
        self.config = folder / "config"
        self.config.mkdir()
        for file in self.model.manifest.auxiliary:
            (self.config / file.name).write_bytes(self.store.path(file.sha256).read_bytes())

    def load(self, blocks: BlockRange, dtype: torch.dtype, quantization: Quantization | None = None) -> Stage:
        files = [self.store.path(file.sha256) for file in self.model.manifest.weight_files(blocks)]
        return load_stage(self.config, files, blocks, dtype=dtype, device=CPU, quantization=quantization)


def logits(stages: list[Stage]) -> torch.Tensor:
    payload = IDS
    for stage in stages:
        one = StageInput(payload=payload, position=0, cache=stage.new_cache(16), n_logits=10 * stage.is_last)
        payload = stage.run([one])[0]
    return payload.float()


def off_by(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("encoding", "quantization", "has_head"),
    [("Q4_1", "int4", False), ("Q4_0", "int8", True), ("Q8_0", "int8", False)],
)
def test_codes_of_a_gguf_give_what_its_values_give_in_bfloat16(
    encoding: str, quantization: Quantization, has_head: bool, tmp_path: Path
) -> None:
    packed = Packed(tmp_path, encoding, has_head=has_head)
    expected = logits([packed.load(TINY, torch.float32)])
    bfloat16 = off_by(logits([packed.load(TINY, torch.bfloat16)]), expected)
    whole = packed.load(TINY, torch.bfloat16, quantization)
    assert off_by(logits([whole]), expected) < 5 * bfloat16  # scales are bfloat16 as well, and they add up
    parts = [BlockRange(0, 1), BlockRange(1, 2)]
    for cut in ([packed.load(b, torch.bfloat16, quantization) for b in parts], [whole.view(b) for b in parts]):
        torch.testing.assert_close(logits(cut), logits([whole]))


def test_a_quantised_span_takes_no_more_than_was_planned(tmp_path: Path) -> None:
    packed = Packed(tmp_path, "Q8_0", has_head=False)
    whole = packed.load(TINY, torch.bfloat16, "int8")
    # the intermediate size is 96, and rows are padded to whole blocks of 64
    assert whole.n_weight_bytes() < 1.35 * span_weight_bytes(packed.model.manifest, TINY, "int8")


def test_a_model_whose_weights_are_elsewhere_is_refused(checkpoint: Callable[[str], TinyCheckpoint]) -> None:
    whole = checkpoint("gpt2")
    with pytest.raises(ConfigError, match=r"--precision int4: .* gpt2 model .*bfloat16"):
        load_stage(whole.folder, whole.files(WHOLE), WHOLE, dtype=torch.bfloat16, device=CPU, quantization="int4")
