"""A model whose weights aren't finite is refused by name and numbers, however its bytes are cut."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coordinator.file_store import FileStore
from coordinator.packing import pack_model
from coordinator.packing.finite_check import FiniteCheck
from protocol.errors import UntrustedFileError
from protocol.model_files.tensors import DTYPE_BITS, ENCODED_BYTES, TensorInfo
from tests.coordinator.packing_support import llama_tensors, no_progress, write_model, write_safetensors

TORCH = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
NAME = "model.layers.1.mlp.up_proj.weight"


def looked_at(info: TensorInfo, data: bytes, cuts: tuple[int, ...] = ()) -> FiniteCheck:
    check = FiniteCheck(info=info)
    ends = [*sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, end in zip([0, *ends], ends, strict=False):
        check.take(memoryview(data)[start:end])
    return check


def in_bytes(values: torch.Tensor) -> bytes:
    return values.view(torch.uint8).numpy().tobytes()


@given(
    dtype=st.sampled_from(sorted(TORCH)),
    values=st.lists(st.sampled_from([0.5, -3.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 320), max_size=4),
)
def test_what_is_not_finite_is_counted_wherever_the_bytes_are_cut(
    dtype: str, values: list[float], cuts: list[int]
) -> None:
    info = TensorInfo(name="t", dtype=dtype, shape=(len(values),))
    check = looked_at(info, in_bytes(torch.tensor(values, dtype=TORCH[dtype])), tuple(cuts))
    expected = np.array(values)
    assert (check.n_nan, check.n_infinite) == (int(np.isnan(expected).sum()), int(np.isinf(expected).sum()))


@pytest.mark.parametrize(("dtype", "byte"), [("F8_E5M2", 0x7F), ("F8_E4M3", 0xFF), ("F8_E8M0", 0xFF)])
def test_numbers_of_eight_bits_can_be_none(dtype: str, byte: int) -> None:
    info = TensorInfo(name="t", dtype=dtype, shape=(3,))
    assert looked_at(info, bytes((1, byte, 2))).n_nan == 1
    looked_at(info, bytes((1, 2, 3))).check()


def test_parts_of_complex_numbers_count() -> None:
    info = TensorInfo(name="t", dtype="C64", shape=(2,))
    assert looked_at(info, struct.pack("<4f", 1.0, float("nan"), float("inf"), 0.0)).n_nan == 1


def test_large_numbers_whose_sum_overflows_are_finite() -> None:
    info = TensorInfo(name="t", dtype="F32", shape=(8,))
    looked_at(info, in_bytes(torch.full((8,), 3e38))).check()


@pytest.mark.parametrize("dtype", sorted(ENCODED_BYTES))
def test_of_encoded_groups_the_scales_are_looked_at(dtype: str) -> None:
    info = TensorInfo(name="t", dtype=dtype, shape=(2, 64))
    groups = np.full((4, ENCODED_BYTES[dtype]), 0xFF, dtype=np.uint8)  # codes, which can be anything
    groups[:, :4] = 0x01
    looked_at(info, groups.tobytes(), (5, 23)).check()
    groups[2, :2] = np.frombuffer(np.float16("inf").tobytes(), np.uint8)
    with pytest.raises(UntrustedFileError, match="has 0 scales of its groups that are NaN and 1 that"):
        looked_at(info, groups.tobytes(), (5, 23)).check()


@pytest.mark.parametrize("dtype", sorted(name for name in DTYPE_BITS if name[0] in "BIU" and name != "BF16"))
def test_of_whole_numbers_nothing_is_said(dtype: str) -> None:
    data = b"\xff" * DTYPE_BITS[dtype]
    looked_at(TensorInfo(name="t", dtype=dtype, shape=(8,)), data).check()


def test_a_damaged_model_is_not_added_and_leaves_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    source = write_model(tmp_path / "model")
    tensors = llama_tensors()
    damaged = bytearray(tensors[NAME])
    damaged[:6] = struct.pack("<3H", 0x7FC0, 0x7F80, 0x7FC0)
    write_safetensors(source / "model.safetensors", tensors | {NAME: bytes(damaged)})
    with pytest.raises(UntrustedFileError) as caught:
        pack_model(str(source), store, no_progress)
    assert caught.value.message.startswith(
        f"tensor '{NAME}' (BF16, 32 values) has 2 values that are NaN and 1 that are infinite: the file is damaged"
    )
    assert store.total_size() == 0
