from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from protocol.errors import StorageError, UntrustedFileError
from protocol.ids import BlockRange
from tests.support.open_files import is_open
from tests.support.tiny_checkpoint import CPU, WHOLE, TinyCheckpoint
from tests.support.tiny_models import save_tiny_model, split_checkpoint
from worker.loaded_stage import load_stage
from worker.loading import load_config
from worker.stage import Stage, StageInput

Checkpoints = Callable[[str], TinyCheckpoint]
BLOCKS = BlockRange(1, 2)


def altered(source: Path, target: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    tensors = load_file(source)
    change(tensors)
    save_file(tensors, target)
    return target


def load(checkpoint: TinyCheckpoint, *files: Path, blocks: BlockRange = BLOCKS) -> Stage:
    return load_stage(checkpoint.folder, files, blocks, dtype=torch.float32, device=CPU)


def test_a_missing_tensor_is_named(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    file = altered(whole.block_files[1], tmp_path / "x", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UntrustedFileError, match=r"missing: model\.layers\.0\.mlp\.up_proj\.weight"):
        load(whole, file)


def test_a_missing_embedding_or_head_is_an_error(checkpoint: Checkpoints) -> None:
    whole = checkpoint("llama")
    with pytest.raises(UntrustedFileError, match="embed_tokens"):
        load(whole, whole.block_files[0], blocks=BlockRange(0, 1))
    with pytest.raises(UntrustedFileError, match="lm_head"):
        load(whole, whole.block_files[3], blocks=BlockRange(3, 4))
    tied = checkpoint("llama_tied")
    with pytest.raises(UntrustedFileError, match="embed_tokens"):
        load(tied, tied.block_files[3], blocks=BlockRange(3, 4))


def test_a_missing_expert_is_an_error(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("mixtral")
    name = next(n for n in load_file(whole.block_files[1]) if "experts.3" in n)
    file = altered(whole.block_files[1], tmp_path / "x", lambda t: t.pop(name))
    with pytest.raises(UntrustedFileError):
        load(whole, file)


def test_an_unknown_tensor_is_an_error(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    file = altered(
        whole.block_files[1], tmp_path / "x", lambda t: t.update({"model.layers.1.extra": torch.zeros(1)})
    )
    with pytest.raises(UntrustedFileError, match=r"unexpected: model\.layers\.0\.extra"):
        load(whole, file)


def test_another_blocks_tensors_are_an_error(checkpoint: Checkpoints) -> None:
    whole = checkpoint("llama")
    with pytest.raises(UntrustedFileError, match=r"also hold model\.layers\.2\."):
        load(whole, whole.block_files[1], whole.block_files[2])


def test_a_wrong_shape_is_an_error(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    wrong = {"model.layers.1.mlp.up_proj.weight": torch.zeros(3, 5)}
    file = altered(whole.block_files[1], tmp_path / "x", lambda t: t.update(wrong))
    with pytest.raises(UntrustedFileError, match=r"up_proj"):
        load(whole, file)


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, b"PK\x03\x04"])
def test_what_is_no_safetensors_file_is_an_error(checkpoint: Checkpoints, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x"
    file.write_bytes(content)
    with pytest.raises(UntrustedFileError):
        load(checkpoint("llama"), file)


def test_a_cut_file_is_an_error(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    file = tmp_path / "x"
    file.write_bytes(whole.block_files[1].read_bytes()[:-10])
    with pytest.raises(UntrustedFileError):
        load(whole, file)


def test_a_file_that_is_not_there_is_an_error(checkpoint: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone"):
        load(checkpoint("llama"), tmp_path / "gone")


def test_more_blocks_than_the_model_has_is_an_error(checkpoint: Checkpoints) -> None:
    whole = checkpoint("llama")
    with pytest.raises(UntrustedFileError, match="3:6"):
        load(whole, *whole.block_files[3:], blocks=BlockRange(3, 6))


def test_the_files_can_go_once_the_stage_is_loaded(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    files = [Path(shutil.copy(file, tmp_path)) for file in whole.files(WHOLE)]
    stage = load(whole, *files, blocks=WHOLE)
    ids = torch.arange(3, 9, dtype=torch.int32)
    for file in files:
        file.write_bytes(b"\0" * file.stat().st_size)
    got = stage.run([StageInput(payload=ids, position=0, cache=stage.new_cache(6))])[0]
    torch.testing.assert_close(got, whole.expected(ids)[0])


def test_the_files_are_closed_once_the_stage_is_loaded(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """Of its own: what is left of loads that failed in other tests may have shared ones open."""
    whole = checkpoint("llama")
    files = [Path(shutil.copy(file, tmp_path)) for file in whole.files(WHOLE)]
    stage = load(whole, *files, blocks=WHOLE)
    assert [file for file in files if is_open(file)] == []
    assert stage.blocks == WHOLE


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "no such"},
        {
            "model_type": "bert",
            "num_hidden_layers": 2,
            "architectures": ["BertModel"],
            "auto_map": {"AutoConfig": "x.Y"},
        },
        {"model_type": "llama", "num_hidden_layers": "many"},
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
    ],
)
def test_a_config_that_cannot_be_used_is_an_error(
    checkpoint: Checkpoints, tmp_path: Path, config: dict[str, object]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UntrustedFileError):
        load_stage(tmp_path, [checkpoint("llama").block_files[1]], BLOCKS, dtype=torch.float32, device=CPU)


def test_a_missing_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UntrustedFileError, match="config"):
        load_config(tmp_path)


def test_an_attention_kernel_named_in_the_config_is_not_fetched(checkpoint: Checkpoints, tmp_path: Path) -> None:
    whole = checkpoint("llama")
    config = json.loads((whole.folder / "config.json").read_text())
    config["attn_implementation"] = config["_attn_implementation"] = "somebody/their-kernel"
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = load_stage(tmp_path, whole.files(BLOCKS), BLOCKS, dtype=torch.float32, device=CPU)
    assert stage._model.config._attn_implementation == "sdpa"


def test_a_stage_knows_what_it_computes_in_when_packing_leaves_no_parameters(tmp_path: Path) -> None:
    config = hf.OlmoConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=64
    )  # its norms have no weights
    save_tiny_model(config, tmp_path)
    files, _ = split_checkpoint(tmp_path, tmp_path / "split")
    stage = load_stage(tmp_path, files[1:2], BLOCKS, dtype=torch.bfloat16, device=CPU)
    assert (stage.dtype, stage.device) == (torch.bfloat16, CPU)
    assert stage.kv_bytes_by_block() == (2 * 32 * 2,)
