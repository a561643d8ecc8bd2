from __future__ import annotations

import math

import pytest
import torch

from protocol.errors import ModelFaultError
from protocol.ids import BlockRange
from worker.model_fault import check_handed_on

BLOCKS = BlockRange(2, 4)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_said_with_its_blocks_and_counts(value: float, dtype: torch.dtype) -> None:
    states = torch.ones(3, 8, dtype=dtype)
    check_handed_on(states, BLOCKS, 5)
    states[1, 2:4] = value
    with pytest.raises(ModelFaultError, match=r"^2 of the 24 values that blocks 2:4 gave from position 5"):
        check_handed_on(states, BLOCKS, 5)


def test_values_whose_sum_overflows_and_zeros_are_finite() -> None:
    check_handed_on(torch.full((2, 8), 3e38), BLOCKS, 0)
    check_handed_on(torch.zeros(2, 8), BLOCKS, 0)
