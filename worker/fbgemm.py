"""Products of float32 rows with weights of 16 bits by FBGEMM, for processors without instructions for bfloat16.

There torch's own product of bfloat16 is a loop that takes as long for each further row as for the first. FBGEMM,
which torch has for such processors (x86 with AVX2), widens weights of float16 as it reads them; sums are float32.

A number of bfloat16 is one of float16 too if it is neither large nor small: from 2**-17 to 2**15, and below that it
is off by 2**-25 at most. So where a row's largest number is no less than 2**-6, what is lost of the row is far less
than what rounding the result to bfloat16 loses. Other rows are multiplied by a power of two first, and results
divided by it, which loses nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache

import torch

_MOST_PACKED = 2**25
"""Numbers of a matrix that are packed at a time: they are held in float32 meanwhile."""
_LARGEST, _LEAST_LARGEST = 2.0**15, 2.0**-6
"""Of a row, as it is packed: its largest number."""
_LARGEST_EXPONENT = 15
_MOST_SHIFTED = 100
"""Binary places, so that float32 holds the factor."""

_Product = Callable[[torch.Tensor], torch.Tensor]


class FbgemmWeights:
    """A matrix (n_rows, n_columns) of finite bfloat16 numbers in the order of FBGEMM's kernels."""

    memory: tuple[tuple[int, int], ...] = ()
    """Nobody tells where it lies."""

    def __init__(self, weight: torch.Tensor) -> None:
        factors = _factors(weight)
        self._n_columns = weight.shape[1]
        self._products = [
            _product(part.float() if factors is None else part * factors[rows, None])
            for rows, part in _parts(weight)
        ]
        self._scales = None if factors is None else 1 / factors

    def dense(self) -> torch.Tensor:
        """The matrix as it was, or as it is computed with."""
        return self.product(torch.eye(self._n_columns), None).t().to(torch.bfloat16)

    def product(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`rows` (..., n_columns), float32, times the matrix, transposed, and the bias added: (..., n_rows)."""
        if len(self._products) == 1:
            result = self._products[0](rows)
        else:
            result = torch.cat([product(rows) for product in self._products], dim=-1)
        if self._scales is not None:
            result *= self._scales
        if bias is not None:
            result += bias
        return result


def is_there() -> bool:
    """Whether the kernels are in this torch, run on this processor, and give what is right: tried out."""
    return _is_there(min(2, torch.get_num_threads()))  # by one thread or by several: see `_product`


@cache
def _is_there(_n_threads: int) -> bool:
    numbers = torch.linspace(-1, 1, 48 * 16).to(torch.bfloat16).view(48, 16)
    rows = numbers[:3].float()
    try:
        result = FbgemmWeights(numbers).product(rows, None)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError):
        return False
    return torch.allclose(result, rows @ numbers.float().t(), atol=1e-5)


def _product(weight: torch.Tensor) -> _Product:
    """What multiplies rows with a float32 matrix, transposed, that float16 holds; it is packed here.

    Of torch's two ways to the same kernels one runs in one thread only, the other takes ten times as long to call.
    """
    if torch.get_num_threads() == 1:
        by_one = torch.fbgemm_linear_fp16_weight_fp32_activation
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once of each that it may go one day: then it isn't there
            packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            by_one(weight.new_zeros(1, weight.shape[1]), packed, None)
        return lambda rows: by_one(rows, packed, None)
    prepacked = torch.ops.quantized.linear_prepack_fp16(weight, None)
    by_all = torch.ops.quantized.linear_dynamic_fp16
    return lambda rows: by_all(rows, prepacked)


def _factors(weight: torch.Tensor) -> torch.Tensor | None:
    """What to multiply each row by, powers of two (n_rows,) in float32; None if float16 holds all as they are."""
    least, most = torch.aminmax(weight, dim=1)
    largest = torch.maximum(-least, most).float()
    if ((largest == 0) | ((largest >= _LEAST_LARGEST) & (largest < _LARGEST))).all():
        return None
    shifts = (_LARGEST_EXPONENT - largest.frexp().exponent).clamp(max=_MOST_SHIFTED)
    return torch.ldexp(torch.ones_like(largest), torch.where(largest == 0, 0, shifts))


def _parts(weight: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Rows of a matrix, as many at a time as are packed at a time."""
    n_at_once = max(1, _MOST_PACKED // weight.shape[1])
    for start in range(0, len(weight), n_at_once):
        rows = slice(start, start + n_at_once)
        yield rows, weight[rows]
