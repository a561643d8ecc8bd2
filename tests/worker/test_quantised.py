"""Products with packed codes against the same values multiplied out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.codes import CodedRows
from worker.quantised import QuantisedMatrix


def coded_rows(
    n_rows: int, n_columns: int, n_bits: int, dtype: torch.dtype = torch.bfloat16
) -> tuple[CodedRows, torch.Tensor]:
    """Codes whose scales and zeros are of `dtype`, and the values that they are."""
    shape, middle = (n_rows, n_columns // 32), 2 ** (n_bits - 1)
    generator = torch.Generator().manual_seed(n_rows * n_columns)
    codes = torch.randint(0, 2 * middle, (*shape, 32), generator=generator, dtype=torch.uint8)
    scales = torch.rand(shape, generator=generator).to(dtype)
    zeros = None if n_bits == 8 else torch.rand(shape, generator=generator).to(dtype)
    values = (codes.double() - middle) * scales[..., None].double()
    if zeros is not None:
        values += zeros[..., None].double()
    coded = CodedRows(n_bits=n_bits, codes=codes, scales=scales, zeros=zeros, zero_code=middle)
    return coded, values.flatten(1)


def matrix_of(coded: CodedRows) -> QuantisedMatrix:
    n_rows, n_groups, _ = coded.codes.shape
    return QuantisedMatrix(n_rows, n_groups * 32, coded.n_bits, coded.rows)


@settings(max_examples=20)
@given(
    n_bits=st.sampled_from([4, 8]),
    n_rows=st.integers(1, 600),
    n_groups=st.integers(1, 3),
    n_inputs=st.integers(1, 90),
)
def test_products_and_rows_are_those_of_the_values(n_bits: int, n_rows: int, n_groups: int, n_inputs: int) -> None:
    coded, values = coded_rows(n_rows, n_groups * 32, n_bits)
    matrix = matrix_of(coded)
    assert torch.equal(
        matrix.dense(), values.bfloat16()
    )  # no second rounding: the values, in what is computed with
    x = torch.randn((1, n_inputs, n_groups * 32), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.double() @ values.t()
    found = matrix.product(x)
    assert found.shape == (1, n_inputs, n_rows)
    # bfloat16 rounds the result, and, where there are many inputs, the unpacked values: each by 2 ** -8 at most
    size = x.double().abs() @ values.abs().t()
    assert ((found.double() - expected).abs() <= size * 2**-7).all()


@pytest.mark.parametrize(("n_bits", "bytes_per_weight"), [(4, 0.625), (8, 1.25)])
def test_a_weight_takes_the_bytes_that_are_planned_for(n_bits: int, bytes_per_weight: float) -> None:
    matrix = matrix_of(coded_rows(128, 64, n_bits)[0])
    assert sum(tensor.nbytes for tensor in matrix.parameters()) == 128 * 64 * bytes_per_weight
