"""What a draft model will take is known before it is loaded, closely, and from above."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from gguf.constants import GGMLQuantizationType

from protocol.errors import ConfigError
from protocol.messages import Precision, Quantization
from tests.coordinator.gguf_support import write_gguf
from tests.support.tiny_checkpoint import CPU, TinyCheckpoint
from worker.draft_model import DraftModelRequest, load_draft_model
from worker.draft_size import expected_bytes


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_folder(
    checkpoint: Callable[[str], TinyCheckpoint],
    architecture: str,
    precision: Precision,
) -> None:
    request = DraftModelRequest(path=checkpoint(architecture).folder, precision=precision)
    exact = load_draft_model(request, CPU).info.n_bytes
    assert exact <= expected_bytes(request) <= 1.3 * exact


@pytest.mark.parametrize("encoding", ["F32", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(
    ("precision", "quantization"), [("float32", None), ("bfloat16", "int8"), ("bfloat16", "int4")]
)
def test_a_gguf(tmp_path: Path, precision: Precision, quantization: Quantization | None, encoding: str) -> None:
    path = write_gguf(tmp_path / "small.gguf", encoding=GGMLQuantizationType[encoding], width=256)
    request = DraftModelRequest(path=path, precision=precision, quantization=quantization)
    exact = load_draft_model(request, CPU).info.n_bytes
    assert exact <= expected_bytes(request) <= 1.3 * exact


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("small.gguf", b"nothing of the kind", "doesn't start with GGUF"),
        ("model.safetensors", b"nothing of the kind", "can't be read"),
    ],
)
def test_what_is_no_model_is_refused_by_name(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    path = tmp_path / name if name.endswith(".gguf") else tmp_path
    with pytest.raises(ConfigError, match=says) as caught:
        expected_bytes(DraftModelRequest(path=path, precision="float32"))
    assert f"--draft-model {path}" in caught.value.message
