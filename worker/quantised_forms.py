"""In which form matrices of codes lie on a device: for our kernels or torch's packed int4 kernel, or unpacked.

A kernel serves if a trial on small matrices gives what the codes multiplied out give. On the CPU it must also have
vector instructions: without them it takes 25 times as long. Times aren't measured: workers alike choose alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog
import torch

from protocol.errors import ConfigError
from worker.coded_panels import CodedPanels
from worker.codes import full_precision_coded
from worker.kernels import why_no_products
from worker.quantised import COMPUTE_DTYPE, QuantisedMatrix
from worker.quantised_matrix import MatrixForm, UnpackedMatrix
from worker.quantised_tiles import TiledMatrix

log = structlog.get_logger(__name__)

_TRIAL_SHAPES = ((8, 32), (72, 96), (300, 128))
"""Rows and columns: one and several tiles, whole and partly filled."""
_TRIAL_INPUTS = (1, 5, 70)
_TOLERANCE = 2**-6
"""Of the sizes that are added up: bfloat16 rounds inputs, scales and results by 2 ** -9 each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixForms:
    """The forms for one device and one type to compute in."""

    linear: MatrixForm
    embedding: MatrixForm
    """Also of a head that is tied to it."""


def matrix_forms(device: torch.device, dtype: torch.dtype, *, instructions: str | None = None) -> MatrixForms:
    """The forms for `device`; says so loudly if they are the slow ones.

    `instructions` are the CPU's vector instructions as torch names them, by default what it finds.
    """
    if device.type != "cpu":
        return tried_forms(partial(TiledMatrix, device=device, dtype=dtype), device, dtype, looks_up=False)
    instructions = instructions or torch.backends.cpu.get_cpu_capability()
    if dtype == COMPUTE_DTYPE and not why_no_products(instructions):
        return tried_forms(partial(CodedPanels, dtype=dtype), device, dtype, looks_up=True)
    if not instructions.startswith("AVX"):
        return _unpacked(device, dtype, f"it has no code for this processor's vector instructions ({instructions})")
    if dtype != COMPUTE_DTYPE:
        return _unpacked(device, dtype, f"it has no fast code for {dtype}")
    return tried_forms(QuantisedMatrix, device, dtype, looks_up=True)


def tried_forms(form: MatrixForm, device: torch.device, dtype: torch.dtype, *, looks_up: bool) -> MatrixForms:
    """`form` if it passes a trial, for embeddings too if it `looks_up` rows as well."""
    reason = _failure(form, device, dtype)
    if reason:
        return _unpacked(device, dtype, reason)
    return MatrixForms(linear=form, embedding=form if looks_up else _unpacked_form(device, dtype))


def _unpacked(device: torch.device, dtype: torch.dtype, reason: str) -> MatrixForms:
    log.warning(
        "packed_kernel_unused",
        device=str(device),
        reason=reason,
        next_step="weights are unpacked for each product, which is slower; bfloat16 is faster if it fits",
    )
    form = _unpacked_form(device, dtype, f"torch's packed int4 kernel isn't used, {reason}")
    return MatrixForms(linear=form, embedding=form)


def _unpacked_form(device: torch.device, dtype: torch.dtype, because: str = "") -> MatrixForm:
    return partial(UnpackedMatrix, device=device, dtype=dtype, because=because)


def _failure(form: MatrixForm, device: torch.device, dtype: torch.dtype) -> str:
    """What went wrong in a trial of the form; empty if nothing did."""
    try:
        worst = max(
            _share_of_tolerance(form, *shape, n_bits, device, dtype) for shape in _TRIAL_SHAPES for n_bits in (4, 8)
        )
    except ConfigError as exc:
        return exc.message
    except (RuntimeError, AttributeError, TypeError) as exc:  # not there, not for this device, not for this shape
        return f"{type(exc).__name__}: {str(exc).splitlines()[0][:200] if str(exc) else 'without a reason'}"
    return "" if worst <= 1 else f"in a trial its products were off by {worst:.3g} times what rounding explains"


def _share_of_tolerance(
    form: MatrixForm, n_rows: int, n_columns: int, n_bits: int, device: torch.device, dtype: torch.dtype
) -> float:
    """How far products of random numbers are off, as a share of what is tolerated."""
    generator = torch.Generator().manual_seed(n_rows)
    coded = full_precision_coded(torch.randn((n_rows, n_columns), generator=generator), n_bits)
    values = coded.values(torch.float32)
    matrix = form(n_rows, n_columns, n_bits, coded.rows)
    worst = 0.0
    for n_inputs in _TRIAL_INPUTS:
        x = torch.randn((n_inputs, n_columns), generator=generator).to(dtype)
        found = matrix.product(x.to(device)).float().cpu()
        off = (found - x.float() @ values.t()).abs() / (x.float().abs() @ values.abs().t())
        # what isn't a number is off too
        worst = max(worst, float(off.nan_to_num(nan=torch.inf).max()) / _TOLERANCE)
    return worst
