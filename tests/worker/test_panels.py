"""Products by kernels of our own, against float64; and that they are never called with what they can't take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from structlog.testing import capture_logs

from tests.worker.test_quantised import coded_rows
from worker import kernels
from worker.coded_panels import CodedPanels
from worker.codes import CodedRows
from worker.kernels import say_if_missing, why_no_products
from worker.panels import PanelWeights

needs_kernels = pytest.mark.skipif(
    bool(why_no_products("AVX2")), reason=f"no kernels here: {why_no_products('AVX2')}"
)
SHAPES = [(1, 1), (7, 5), (16, 16), (33, 17), (96, 48), (200, 600)]
N_INPUTS = (1, 2, 3, 4, 5, 6, 7, 8, 13, 50)
"""Every number that tiles are made for, several tiles, and more than stay in a core's cache."""


@pytest.fixture(params=[1, 2])
def n_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@needs_kernels
@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_the_numbers_rounded_once(
    shape: tuple[int, int], dtype: torch.dtype, has_bias: bool
) -> None:
    n_rows, n_columns = shape
    weight, bias = random(*shape, dtype=dtype), random(n_rows, dtype=dtype) if has_bias else None
    made = PanelWeights(weight)
    for n_inputs in N_INPUTS:
        x = random(1, n_inputs, n_columns, dtype=dtype)
        exact, size = x.double() @ weight.double().t(), x.double().abs() @ weight.double().abs().t()
        if bias is not None:
            exact, size = exact + bias.double(), size + bias.double().abs()
        found = made.product(x, bias)
        assert found.shape == (1, n_inputs, n_rows)
        assert found.dtype == dtype
        # sums of n_columns numbers in float32 (Higham 2002, 3.1), and the result's own rounding
        allowed = (n_columns + 1) * 2.0**-24 * size + torch.finfo(dtype).eps / 2 * exact.abs()
        assert ((found.double() - exact).abs() <= allowed).all()


@needs_kernels
@pytest.mark.parametrize("n_bits", [4, 8, None])
def test_a_row_has_the_same_bits_alone_as_among_others_and_with_more_threads(n_bits: int | None) -> None:
    x = random(50, 96, dtype=torch.bfloat16)
    made = PanelWeights(random(200, 96, dtype=torch.bfloat16)) if n_bits is None else coded(200, 96, n_bits)[0]

    def product(rows: torch.Tensor) -> torch.Tensor:
        return made.product(rows, None) if isinstance(made, PanelWeights) else made.product(rows)

    together = product(x)
    for n_rows in N_INPUTS:
        assert torch.equal(product(x[:n_rows]), together[:n_rows])
    torch.set_num_threads(2)
    try:
        assert torch.equal(product(x), together)
        assert torch.equal(product(x[:1]), together[:1])
    finally:
        torch.set_num_threads(1)


def coded(
    n_rows: int, n_columns: int, n_bits: int, dtype: torch.dtype = torch.float16
) -> tuple[CodedPanels, torch.Tensor]:
    """A matrix of codes with scales of this type, and its values."""
    rows, values = coded_rows(n_rows, n_columns, n_bits, dtype)
    return CodedPanels(n_rows, n_columns, n_bits, rows.rows, dtype=torch.bfloat16), values


@needs_kernels
@pytest.mark.usefixtures("n_threads")
@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (72, 96), (600, 128)], ids=str)
def test_products_of_codes_are_those_of_their_values(
    shape: tuple[int, int], n_bits: int, dtype: torch.dtype
) -> None:
    matrix, values = coded(*shape, n_bits, dtype)
    for n_inputs in N_INPUTS:
        x = random(1, n_inputs, shape[1], dtype=torch.bfloat16)
        exact, size = x.double() @ values.t(), x.double().abs() @ values.abs().t()
        found = matrix.product(x)
        assert found.shape == (1, n_inputs, shape[0])
        # the result's own rounding, and of each group of the input 2**-16 of its largest
        largest = x.double().abs().view(n_inputs, -1, 32).amax(-1).repeat_interleave(32, 1)
        allowed = 2.0**-8 * exact.abs() + 2.0**-15.5 * largest @ values.abs().t() + 2.0**-20 * size
        assert ((found.double() - exact).abs() <= allowed).all()


@needs_kernels
@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("n_rows", [1, 20, 300])
def test_what_is_looked_up_are_the_values_rounded_once(n_bits: int, n_rows: int) -> None:
    matrix, values = coded(n_rows, 96, n_bits)
    rounded = values.float().bfloat16()
    assert torch.equal(matrix.dense(), rounded)
    ids = torch.tensor([[n_rows - 1, 0], [n_rows // 2, n_rows // 3]])
    assert torch.equal(matrix.rows(ids), rounded[ids])


@needs_kernels
@pytest.mark.parametrize("zero_code", [0, 3, 8])
def test_codes_of_4_bits_may_have_their_zero_anywhere(zero_code: int) -> None:
    rows, _ = coded_rows(40, 64, 4)
    moved = CodedRows(n_bits=4, codes=rows.codes, scales=rows.scales, zeros=None, zero_code=zero_code)
    matrix = CodedPanels(40, 64, 4, moved.rows, dtype=torch.bfloat16)
    assert torch.equal(matrix.dense(), moved.values(torch.bfloat16))
    x = random(3, 64, dtype=torch.bfloat16)
    torch.testing.assert_close(matrix.product(x), (x.float() @ moved.values(torch.float32).t()).bfloat16())


@needs_kernels
@pytest.mark.parametrize("n_bits", [4, 8, None])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_none(bad: float, n_bits: int | None) -> None:
    x = random(3, 96, dtype=torch.bfloat16)
    x[1, 40] = bad
    if n_bits is None:
        found = PanelWeights(random(20, 96, dtype=torch.bfloat16)).product(x, None)
    else:
        found = coded(20, 96, n_bits)[0].product(x)
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@needs_kernels
@pytest.mark.parametrize("n_bits", [4, 8])
def test_very_small_and_very_large_inputs_give_numbers(n_bits: int) -> None:
    matrix, values = coded(20, 64, n_bits)
    for factor in (0.0, 1e-38, 1e-30, 1e-20, 1e20, 1e34):
        x = (random(2, 64) * factor).bfloat16()
        exact = x.double() @ values.t()
        assert ((matrix.product(x).double() - exact).abs() <= 0.01 * exact.abs().max() + 1e-27).all()


@needs_kernels
def test_a_weight_of_4_bits_takes_no_more_than_with_torchs_kernel_and_one_of_8_less() -> None:
    for n_bits, bytes_per_weight in ((4, 0.625), (8, 1.0625)):
        matrix = coded(128, 64, n_bits)[0]
        stored = [*matrix.parameters(), *matrix.buffers()]
        assert sum(tensor.nbytes for tensor in stored) == 128 * 64 * bytes_per_weight


@needs_kernels
@pytest.mark.parametrize(
    "x",
    [random(1, 47), random(1, 96), random(1, 48, dtype=torch.bfloat16), random(1, 48).to("meta")],
    ids=["too narrow", "too wide", "of another type", "elsewhere"],
)
def test_no_address_is_read_that_isnt_there(x: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="for a matrix of 48 columns"):
        PanelWeights(random(16, 48)).product(x, None)


@needs_kernels
@pytest.mark.parametrize(
    "bias",
    [random(1), random(16, dtype=torch.bfloat16), random(32)[::2], random(16).to("meta")],
    ids=["too short", "of another type", "with gaps", "elsewhere"],
)
def test_no_bias_is_read_that_isnt_there(bias: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="for 16 rows"):
        PanelWeights(random(16, 48)).product(random(1, 48), bias)


@needs_kernels
def test_a_tensor_without_memory_is_refused() -> None:
    nowhere = torch._efficientzerotensor(1, 48)
    with pytest.raises(ValueError, match="without memory"):
        PanelWeights(random(16, 48)).product(nowhere, None)


@pytest.mark.usefixtures("n_threads")
@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_weight_can_still_be_looked_at(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        weight = random(*shape, dtype=dtype)
        assert torch.equal(PanelWeights(weight).dense(), weight)


@needs_kernels
def test_rows_that_dont_lie_together_are_brought_together() -> None:
    weight, x = random(20, 48), random(48, 5)
    torch.testing.assert_close(PanelWeights(weight).product(x.t(), None), x.t() @ weight.t())
    torch.testing.assert_close(PanelWeights(random(48, 20).t()).product(x.t(), None), x.t() @ random(48, 20))


def test_that_they_arent_built_is_said_once_where_they_would_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_kernels", None)
    assert why_no_products("AVX2") == "they weren't built"
    assert "AVX512" in why_no_products("AVX512")
    for instructions, n_said in (("AVX512", 0), ("AVX2", 1)):
        say_if_missing.cache_clear()
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda found=instructions: found)
        with capture_logs() as logs:
            say_if_missing()
            say_if_missing()
        assert [line["event"] for line in logs] == n_said * ["cpu_kernels_missing"]
    say_if_missing.cache_clear()
