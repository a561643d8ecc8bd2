"""GGUF's encodings: the library's values to the bit, and a refusal of what isn't a matrix of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from protocol.errors import UntrustedFileError
from worker.file_tensors import FileTensor, file_tensors
from worker.gguf_blocks import BYTES_PER_GROUP, EncodedTensor, with_encodings


def stored(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, FileTensor | EncodedTensor]:
    save_file(tensors, path)
    file = safe_open(path, framework="pt")
    return with_encodings(file_tensors(file, "x"))


@pytest.mark.parametrize("encoding", BYTES_PER_GROUP)
def test_values_and_codes_are_the_librarys(encoding: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[encoding.upper()]
    raw = gguf.quantize(np.random.default_rng(1).normal(size=(70, 96)).astype(np.float32), kind)
    tensor = stored(tmp_path / "x", {f"a.weight.{encoding}": torch.from_numpy(raw)})["a.weight"]
    assert isinstance(tensor, EncodedTensor)
    expected = torch.from_numpy(gguf.dequantize(raw, kind))
    assert torch.equal(tensor[...], expected)
    coded = tensor.coded(tensor.raw()[3:50])
    assert torch.equal(coded.values(torch.float32), expected[3:50])
    assert coded.scales.dtype == torch.float16  # the file's own


@pytest.mark.parametrize(
    "tensors",
    [
        {"a.q4_0": torch.zeros(4, 20, dtype=torch.uint8)},
        {"a.q4_1": torch.zeros(4, 20)},
        {"a.q8_0": torch.zeros(34, dtype=torch.uint8)},
        {"a.q8_0": torch.zeros(4, 34, dtype=torch.uint8), "a": torch.zeros(4, 32)},
    ],
)
def test_what_is_no_matrix_of_groups_or_there_twice_is_refused(
    tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    with pytest.raises(UntrustedFileError):
        stored(tmp_path / "x", tensors)
