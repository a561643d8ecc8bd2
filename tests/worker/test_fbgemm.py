from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from worker import fbgemm
from worker.fbgemm import FbgemmWeights


@pytest.fixture(autouse=True, params=[1, 2])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """There are two ways to the kernels."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(n_threads)


pytestmark = pytest.mark.skipif(
    not fbgemm.is_there(), reason="FBGEMM isn't in this torch, or not for this processor"
)

_ROUNDED = 1e-6
"""What a float32 product is off by, as a share of both lengths: some sums' worth of 2**-24."""


def _matrix(n_rows: int = 96, n_columns: int = 48) -> torch.Tensor:
    return torch.randn(n_rows, n_columns, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def _check(weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
    x = torch.randn(5, weight.shape[1], generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    exact = x.double() @ weight.double().t() + (0 if bias is None else bias.double())
    product = FbgemmWeights(weight).product(x.float(), bias)
    lengths = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1)
    if bias is not None:
        lengths += bias.double().abs()
    assert ((product.double() - exact).abs() <= _ROUNDED * lengths).all()


@pytest.mark.parametrize("shape", [(96, 48), (7, 5), (1, 1), (33, 17), (200, 600)])
def test_products_are_those_of_float32(shape: tuple[int, int]) -> None:
    _check(_matrix(*shape))
    _check(_matrix(*shape), torch.linspace(-3, 3, shape[0]).to(torch.bfloat16))


@pytest.mark.parametrize("exponent", [-100, -60, -20, -10, 10, 20, 100])
def test_numbers_that_float16_has_not_are_in_it_multiplied(exponent: int) -> None:
    _check((_matrix().double() * 2.0**exponent).to(torch.bfloat16))


@pytest.mark.parametrize("exponent", [-40, -27, -20, -10, 30, 60])
def test_a_row_far_smaller_or_larger_than_the_others_is_as_exact(exponent: int) -> None:
    weight = 0.02 * _matrix(1024, 576)
    weight[5] *= 2.0**exponent
    _check(weight)


def test_one_large_number_takes_nothing_from_the_others() -> None:
    weight = _matrix()
    weight[5, 7] = 2.0**17
    _check(weight)


def test_a_matrix_of_zeros_gives_zeros() -> None:
    assert not FbgemmWeights(torch.zeros(4, 4, dtype=torch.bfloat16)).product(_matrix(2, 4).float(), None).any()


def test_a_matrix_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, x = _matrix(), _matrix(3, 48).float()
    whole = FbgemmWeights(weight).product(x, None)
    monkeypatch.setattr(fbgemm, "_MOST_PACKED", 10 * 48)
    assert torch.equal(FbgemmWeights(weight).product(x, None), whole)


def test_rows_are_kept_in_their_dimensions() -> None:
    weights = FbgemmWeights(_matrix())
    assert weights.product(_matrix(6, 48).float().view(2, 3, 48), None).shape == (2, 3, 96)
    assert weights.product(_matrix(0, 48).float(), None).shape == (0, 96)
