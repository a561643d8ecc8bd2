from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.tensors import bytes_from_tensor, tensor_from_bytes

DTYPES = ["float32", "bfloat16", "float16", "int32"]


@given(
    dtype=st.sampled_from(DTYPES),
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    seed=st.integers(0, 100),
)
def test_a_tensor_comes_back_as_it_was(dtype: str, shape: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensor = (torch.randn(shape, generator=generator) * 100).to(getattr(torch, dtype))
    name, data = bytes_from_tensor(tensor)
    assert name == dtype
    assert torch.equal(tensor_from_bytes(data, name, shape), tensor)


def test_strides_do_not_show() -> None:
    tensor = torch.arange(12, dtype=torch.int32).reshape(3, 4).T
    _, data = bytes_from_tensor(tensor)
    assert torch.equal(tensor_from_bytes(memoryview(data), "int32", (4, 3)), tensor)


def test_the_tensor_does_not_share_the_buffer() -> None:
    data = bytearray(8)
    tensor = tensor_from_bytes(data, "int32", (2,))
    data[0] = 1
    assert tensor.tolist() == [0, 0]


@pytest.mark.parametrize("dtype", ["float64", "int64", "object", "uint8", "", "torch.float32"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ProtocolError, match="dtype"):
        tensor_from_bytes(b"\0" * 8, dtype, (1,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.bool])
def test_other_dtypes_do_not_leave(dtype: torch.dtype) -> None:
    with pytest.raises(ProtocolError, match="travel"):
        bytes_from_tensor(torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize(
    "shape", [(), (0,), (-1,), (2, -2), (-2, -2), (2**62, 4), (2**31, 2**31), (1,) * 5, (2**64, 1)]
)
def test_impossible_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError):
        tensor_from_bytes(b"\0" * 16, "float32", shape)


@given(n_bytes=st.integers(0, 64), size=st.integers(1, 16))
def test_length_and_shape_must_agree(n_bytes: int, size: int) -> None:
    if n_bytes == size * 4:
        assert tensor_from_bytes(b"\0" * n_bytes, "float32", (size,)).shape == (size,)
    else:
        with pytest.raises(ProtocolError, match=f"{n_bytes} bytes"):
            tensor_from_bytes(b"\0" * n_bytes, "float32", (size,))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_that_are_not_finite_are_refused_when_that_is_checked(value: float, dtype: str) -> None:
    _, data = bytes_from_tensor(torch.tensor([1.0, value], dtype=getattr(torch, dtype)))
    assert tensor_from_bytes(data, dtype, (2,)).shape == (2,)
    with pytest.raises(ProtocolError, match="NaN or infinite"):
        tensor_from_bytes(data, dtype, (2,), are_states=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_nothing_but_zeros_is_refused_when_that_is_checked(dtype: str) -> None:
    rows = torch.zeros(3, 4, dtype=getattr(torch, dtype))
    _, data = bytes_from_tensor(rows)
    assert tensor_from_bytes(data, dtype, (3, 4)).shape == (3, 4)
    with pytest.raises(ProtocolError, match="nothing but zeros"):
        tensor_from_bytes(data, dtype, (3, 4), are_states=True)
    rows[1, 2] = 1.0
    assert tensor_from_bytes(bytes_from_tensor(rows)[1], dtype, (3, 4), are_states=True).shape == (3, 4)


@pytest.mark.parametrize("values", [(3e38, 3e38, 1.0), (1.0, -1.0, 0.0), (0.0, 0.0, 1e-40)])
def test_states_whose_sum_overflows_or_vanishes_pass(values: tuple[float, ...]) -> None:
    rows = torch.tensor([values])
    _, data = bytes_from_tensor(rows)
    assert torch.equal(tensor_from_bytes(data, "float32", (1, 3), are_states=True), rows)


def test_whole_numbers_are_finite_and_may_be_zero() -> None:
    assert tensor_from_bytes(bytes(4), "int32", (1,), are_states=True).tolist() == [0]
    assert tensor_from_bytes(b"\xff" * 4, "int32", (1,), are_states=True).tolist() == [-1]
