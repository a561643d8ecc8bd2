from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from worker.column_linear import ColumnLinear
from worker.screened_head import ScreenedHead


def head_of(weight: torch.Tensor, bias: torch.Tensor | None = None) -> ScreenedHead:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).requires_grad_(False)
    layer.weight.data = weight.t().contiguous().t()
    if bias is not None:
        layer.bias.data = bias
    return ScreenedHead(ColumnLinear(layer))


def screened(head: ScreenedHead, x: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(), head.screening():
        return head(x)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from((16, 65, 192)),
    st.sampled_from((1e-30, 1e-3, 1.0, 1e4)),
    st.integers(0, 12),
    st.booleans(),
)
def test_the_largest_logit_is_that_of_the_exact_product_and_all_others_are_less(
    seed: int, width: int, size: float, n_outliers: int, has_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3000, width, generator=generator) * torch.rand(3000, 1, generator=generator) ** 4
    weight[100:110] = 0.0
    weight[200:203] = weight[1500]  # equal ones: the first is the likeliest
    bias = torch.randn(3000, generator=generator) if has_bias else None
    head = head_of(weight, bias)
    row = torch.randn(width, generator=generator) * size
    row[torch.randint(width, (n_outliers,), generator=generator)] *= 100.0
    got = screened(head, row[None])[0]
    exact = weight.double() @ row.double() + (0.0 if bias is None else bias.double())
    likeliest = int(got.argmax())
    off_by = 1e-5 * float(weight[likeliest].norm() * row.norm()) + 1e-6 * float(exact.abs().max())
    assert float(exact[likeliest]) >= float(exact.max()) - off_by
    assert float(got[likeliest]) == pytest.approx(float(exact[likeliest]), abs=off_by)
    if not 200 <= likeliest < 203:
        assert int((got >= got[likeliest]).sum()) == 1


def test_it_looks_closely_at_a_few_only() -> None:
    """Without which it would be right and of no use."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(20_000, 256, generator=generator)
    head = head_of(weight)
    row = 2.0 * weight[77] + torch.randn(256, generator=generator)
    rows = []
    head.head.register_forward_pre_hook(lambda _module, inputs: rows.append(inputs[0]))
    got = screened(head, row[None])[0]
    assert int(got.argmax()) == 77
    assert not rows
    assert int((got == head(row[None])[0]).sum()) < 512


def test_equal_logits_give_the_first() -> None:
    weight = torch.randn(1000, 64, generator=torch.Generator().manual_seed(2))
    weight[900] = weight[400]
    assert int(screened(head_of(weight), weight[400][None] * 9).argmax()) == 400


def test_rows_beyond_the_most_and_all_outside_of_screening_are_exact() -> None:
    weight = torch.randn(500, 64, generator=torch.Generator().manual_seed(3))
    head = head_of(weight)
    head.max_rows = 2
    x = torch.randn(1, 3, 64, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        exact = head.head(x)
        assert torch.equal(head(x), exact)
        assert torch.equal(screened(head, x), exact)
        few = screened(head, x[:, :2])
        assert few.shape == (1, 2, 500)
        assert torch.equal(few.argmax(-1), exact[:, :2].argmax(-1))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_states_give_logits_that_are_seen_to_be_broken(broken: float) -> None:
    head = head_of(torch.randn(500, 64, generator=torch.Generator().manual_seed(5)))
    row = torch.randn(1, 64)
    row[0, 7] = broken
    assert not bool(torch.isfinite(screened(head, row).sum()))


def test_where_too_many_are_left_all_logits_are_exact() -> None:
    weight = torch.ones(2000, 64) + 1e-6 * torch.randn(2000, 64, generator=torch.Generator().manual_seed(6))
    head = head_of(weight)
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        assert torch.equal(screened(head, row), head.head(row))


def test_weights_stay_as_they_were() -> None:
    weight = torch.randn(5000, 48, generator=torch.Generator().manual_seed(8))
    assert torch.equal(head_of(weight.clone()).weight, weight)


@pytest.mark.parametrize("size", [1e-25, 1e15])
def test_weights_whose_squares_float32_does_not_hold_are_bounded_too(size: float) -> None:
    generator = torch.Generator().manual_seed(9)
    weight = torch.randn(3000, 64, generator=generator) * size
    weight[0] = -1e25 * torch.rand(64, generator=generator)
    head = head_of(weight)
    for _ in range(20):
        row = torch.rand(64, generator=generator) + 0.5
        assert int(screened(head, row[None]).argmax()) == int((weight.double() @ row.double()).argmax())


_WITHOUT_VNNI = """
import torch
from torch import nn
from worker.column_linear import ColumnLinear
from worker.screened_head import ScreenedHead
layer = nn.Linear(256, 1000, bias=False).requires_grad_(False)
layer.weight.data = torch.randn(1000, 256, generator=torch.Generator().manual_seed(11))
head = ScreenedHead(ColumnLinear(layer))
row = torch.full((1, 256), 127, dtype=torch.int8)
is_right = bool((torch._int_mm(row, head.codes.t())[0] == 127 * head.codes.int().sum(1)).all())
print(is_right, head.sums_exactly())
"""


@pytest.mark.parametrize("instructions", ["DEFAULT", "AVX512_CORE", "AVX2"])
def test_a_processor_that_adds_products_in_16_bits_is_found_out(instructions: str) -> None:
    """oneDNN's sums saturate where there is no VNNI: no bound holds of them."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
    command = [sys.executable, "-c", _WITHOUT_VNNI]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    is_right, is_said_to_be = done.stdout.split()
    assert is_said_to_be == is_right
