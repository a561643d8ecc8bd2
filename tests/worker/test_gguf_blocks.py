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
from worker.gguf_blocks import BYTES_PER_GROUP, EncodedTensor, with_encodings


def stored(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, EncodedTensor]:
    save_file(tensors, path)
    file = safe_open(path, framework="pt")
    return with_encodings({name: file.get_slice(name) for name in file.keys()})  # noqa: SIM118


@pytest.mark.parametrize("encoding", BYTES_PER_GROUP)
def test_values_and_codes_are_the_librarys(encoding: str, tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType[encoding.upper()]
    raw = gguf.quantize(np.random.default_rng(1).normal(size=(70, 96)).astype(np.float32), kind)
    tensor = stored(tmp_path / "x", {f"a.weight.{encoding}": torch.from_numpy(raw)})["a.weight"]
    expected = torch.from_numpy(gguf.dequantize(raw, kind))
    assert torch.equal(tensor[...], expected)
    coded = tensor.coded(tensor.raw()[3:50])
    steps = coded.codes.float() - 2 ** (coded.n_bits - 1)
    values = (steps * coded.scales[..., None] + coded.zeros[..., None]).flatten(1)
    torch.testing.assert_close(values, expected[3:50], rtol=1e-6, atol=1e-6)


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
