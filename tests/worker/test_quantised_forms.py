"""Which form matrices of codes take, and that every form gives the same products. No accelerator is needed."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from structlog.testing import capture_logs

from tests.worker.test_quantised import coded_rows
from worker import kernels, quantised
from worker.coded_panels import CodedPanels
from worker.codes import RowsOfCodes, pack_codes
from worker.quantised import QuantisedMatrix
from worker.quantised_forms import matrix_forms, tried_forms
from worker.quantised_matrix import CodedMatrix, MatrixForm, UnpackedMatrix
from worker.quantised_tiles import TiledMatrix, TileKernel

CPU, BFLOAT16 = torch.device("cpu"), torch.bfloat16


def with_cpu_kernel(n_rows: int, n_columns: int, n_bits: int, coded: RowsOfCodes) -> CodedMatrix:
    """The accelerators' form with the CPU's kernel in it, which multiplies by the same rule."""
    kernel = TileKernel(
        pack=lambda codes, _: quantised._pack(torch.nn.functional.pad(codes.int(), (0, 0, 0, -len(codes) % 64)), 1),
        product=lambda x, packed, both: quantised._packed_product(
            x, packed, 32, torch.nn.functional.pad(both, (0, 0, 0, len(packed) - both.shape[1]))
        ),
    )
    return TiledMatrix(n_rows, n_columns, n_bits, coded, device=CPU, dtype=BFLOAT16, kernel=kernel)


class Lying(UnpackedMatrix):
    """A kernel that leaves the last row out."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        result = super().product(x)
        result[..., -1] = 0
        return result


def because(form: MatrixForm) -> str:
    """Of a form that unpacks, why."""
    matrix = form(1, 32, 4, coded_rows(1, 32, 4)[0].rows)
    assert isinstance(matrix, UnpackedMatrix)
    return matrix.because


@pytest.mark.parametrize("n_bits", [4, 8])
@pytest.mark.parametrize("n_rows", [1, 64, 300])
def test_all_forms_give_the_products_of_the_values(n_bits: int, n_rows: int) -> None:
    coded, values = coded_rows(n_rows, 96, n_bits)
    x = torch.randn((1, 5, 96), generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = x.double() @ values.t()
    size = x.double().abs() @ values.abs().t()
    for form in (QuantisedMatrix, partial(UnpackedMatrix, device=CPU, dtype=BFLOAT16), with_cpu_kernel):
        matrix = form(n_rows, 96, n_bits, coded.rows)
        assert torch.equal(matrix.dense(), values.bfloat16())
        assert torch.equal(matrix.rows(torch.tensor([[n_rows - 1, 0]])), values[[n_rows - 1, 0]].bfloat16()[None])
        found = matrix.product(x)
        assert found.shape == (1, 5, n_rows)
        assert ((found.double() - expected).abs() <= size * 2**-7).all()


@pytest.mark.parametrize("n_bits", [4, 8])
def test_unpacked_codes_keep_scales_of_float16_exactly(n_bits: int) -> None:
    coded, values = coded_rows(70, 64, n_bits, torch.float16)
    matrix = UnpackedMatrix(70, 64, n_bits, coded.rows, device=CPU, dtype=torch.float32)
    torch.testing.assert_close(matrix.dense(), values.float(), rtol=2**-23, atol=0)
    stored = [*matrix.parameters(), *matrix.buffers()]
    assert sum(tensor.nbytes for tensor in stored) == 70 * 64 * (n_bits / 8 + (2 if n_bits == 8 else 4) / 32)


def test_a_large_matrix_is_unpacked_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.quantised_matrix._VALUES_AT_ONCE", 96 * 100)
    coded, values = coded_rows(250, 96, 4)
    matrix = UnpackedMatrix(250, 96, 4, pack_codes(250, coded.rows, CPU).rows, device=CPU, dtype=torch.float32)
    x = torch.randn((3, 96), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(matrix.product(x), x @ values.float().t())


def test_a_cpu_with_vector_instructions_takes_the_packed_kernel() -> None:
    forms = matrix_forms(CPU, BFLOAT16, instructions="AVX512")
    assert forms.linear is forms.embedding is QuantisedMatrix


def test_a_cpu_with_fewer_takes_our_kernels_if_they_were_built(monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.why_no_products("AVX2"):
        matrix = matrix_forms(CPU, BFLOAT16, instructions="AVX2").linear(1, 32, 4, coded_rows(1, 32, 4)[0].rows)
        assert isinstance(matrix, CodedPanels)
    monkeypatch.setattr(kernels, "_kernels", None)
    assert matrix_forms(CPU, BFLOAT16, instructions="AVX2").linear is QuantisedMatrix


@pytest.mark.parametrize("instructions", ["DEFAULT", "SVE256"])
def test_a_cpu_without_unpacks_and_says_so(instructions: str) -> None:
    with capture_logs() as logs:
        forms = matrix_forms(CPU, BFLOAT16, instructions=instructions)
    assert [entry["event"] for entry in logs] == ["packed_kernel_unused"]
    assert instructions in because(forms.linear)
    assert instructions in because(forms.embedding)


def test_a_kernel_that_passes_its_trial_serves_linear_layers_and_embeddings_are_looked_up_in_plain_codes() -> None:
    forms = tried_forms(with_cpu_kernel, CPU, BFLOAT16, looks_up=False)
    assert forms.linear is with_cpu_kernel
    assert because(forms.embedding) == ""


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (partial(Lying, device=CPU, dtype=BFLOAT16), "its products were off by"),
        # torch has no such kernel on the CPU
        (partial(TiledMatrix, device=CPU, dtype=BFLOAT16), "_convert_weight_to_int4pack"),
    ],
)
def test_a_kernel_that_fails_its_trial_is_not_used_and_says_so(form: partial[CodedMatrix], reason: str) -> None:
    with capture_logs() as logs:
        forms = tried_forms(form, CPU, BFLOAT16, looks_up=False)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert reason in because(forms.linear)
