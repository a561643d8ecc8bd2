"""Products of float32 rows with weights of 16 bits by FBGEMM, for processors without instructions for bfloat16.

There torch's own product of bfloat16 is a loop that takes as long for each further row as for the first. FBGEMM,
which torch has for such processors (x86 with AVX2), widens weights of float16 as it reads them; sums are float32. A
number of bfloat16 is one of float16 too, unless it is so small or so large that float16 has fewer bits for it, or
none: see `_shift`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from functools import cache

import torch

_MOST_PACKED = 2**25
"""Numbers of a matrix that are packed at a time: they are held in float32 meanwhile."""
_LARGEST_EXPONENT = 15
"""Of float16: 2**15 is in it, 2**16 isn't."""
_MOST_SHIFTED = 100
"""So that float32 holds the factor."""
_UNIT_ROUNDOFF = 2.0**-24
"""Of float32, in which sums are rounded anyway."""

_Product = Callable[[torch.Tensor], torch.Tensor]


class FbgemmWeights:
    """A matrix (n_rows, n_columns) of finite bfloat16 numbers in the order of FBGEMM's kernels."""

    memory: tuple[tuple[int, int], ...] = ()
    """Nobody tells where it lies."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._shift = _shift(weight)
        self._products = [_product(part.float() * 2.0**self._shift) for part in _parts(weight, _MOST_PACKED)]

    def product(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`rows` (..., n_columns), float32, times the matrix, transposed, and the bias added: (..., n_rows)."""
        if len(self._products) == 1:
            result = self._products[0](rows)
        else:
            result = torch.cat([product(rows) for product in self._products], dim=-1)
        if self._shift:
            result *= 2.0**-self._shift
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the first may go one day: `is_there` would see that
        if torch.get_num_threads() == 1:
            packed = torch.fbgemm_pack_gemm_matrix_fp16(weight)
            by_one = torch.fbgemm_linear_fp16_weight_fp32_activation
            by_one(weight.new_zeros((1, weight.shape[1])), packed, None)  # to hear its warning here
            return lambda rows: by_one(rows, packed, None)
        prepacked = torch.ops.quantized.linear_prepack_fp16(weight, None)
        by_all = torch.ops.quantized.linear_dynamic_fp16
        return lambda rows: by_all(rows, prepacked)


def _shift(weight: torch.Tensor) -> int:
    """By what power of two to multiply, so that float16 holds the matrix; 0 if it does as it is.

    It does if all that it loses is less than what a float32 product of the matrix rounds off. Multiplied so that
    the largest number is near the largest of float16, only numbers less than 2**-32 of it lose anything.
    """
    largest = float(weight.abs().max())
    if largest == 0.0 or (largest < 2.0**_LARGEST_EXPONENT and _lost(weight) <= _UNIT_ROUNDOFF):
        return 0
    return min(_LARGEST_EXPONENT - math.frexp(largest)[1], _MOST_SHIFTED)


def _lost(weight: torch.Tensor) -> float:
    """What float16 loses of a matrix: the length of the difference, as a share of its own."""
    lost = total = 0.0
    for part in _parts(weight, _MOST_PACKED // 8):
        wide = part.float()
        total += float(wide.square().sum())
        lost += float(wide.sub_(part.half()).square().sum())
    return math.sqrt(lost / total) if total else 1.0


def _parts(weight: torch.Tensor, n_numbers: int) -> Iterator[torch.Tensor]:
    """Rows of a matrix, as many at a time as have so many numbers."""
    n_at_once = max(1, n_numbers // weight.shape[1])
    for start in range(0, len(weight), n_at_once):
        yield weight[start : start + n_at_once]
