"""Weights as codes of 4 or 8 bits, 32 of which share a scale and a zero; and rounding weights to such codes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

GROUP = 32
"""Weights that share a scale."""
ROWS_AT_ONCE = 256
"""When codes are made, or brought into another form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CodedRows:
    """Rows of a matrix as codes: weight = (code - zero_code) * scale + zero."""

    n_bits: int
    codes: torch.Tensor
    """(n_rows, n_groups, GROUP) uint8."""
    scales: torch.Tensor
    """(n_rows, n_groups), of the 16-bit type that holds them exactly, as does that of the zeros."""
    zeros: torch.Tensor | None
    """None: all are 0."""
    zero_code: int

    def rows(self, start: int, end: int) -> CodedRows:
        """Some of the rows."""
        zeros = None if self.zeros is None else self.zeros[start:end]
        return replace(self, codes=self.codes[start:end], scales=self.scales[start:end], zeros=zeros)

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """The weights, (n_rows, n_columns): worked out in float32 and rounded once."""
        values = torch.empty(self.codes.shape, dtype=dtype, device=self.codes.device)
        return self._worked_out(values).flatten(1)

    def few_values(self, dtype: torch.dtype) -> torch.Tensor:
        """The same, by way of float32 in memory: steps whose operations write nowhere are recorded in short."""
        return self._worked_out(None).to(dtype).flatten(1)

    def _worked_out(self, out: torch.Tensor | None) -> torch.Tensor:
        steps = (self.codes - self.zero_code).view(torch.int8)  # bytes wrap round, as signed ones do
        scales = self.scales.float()[..., None]
        if self.zeros is None:
            return torch.mul(steps, scales, out=out)
        return torch.addcmul(self.zeros.float()[..., None], steps, scales, out=out)

    def by_four_bits(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """As torch's int4 kernels take codes, which multiply with (code - 8) * scale + zero and compute in `dtype`.

        Codes (n_rows, inputs) uint8, scales and zeros (n_rows, inputs / GROUP). A code of 8 bits is two of 4 end to
        end, 16 * (high - 8) + low: the high ones of a row first, so that its inputs are the row's twice.
        """
        codes, scales = self.codes.flatten(1), self.scales.float()
        if self.n_bits == 4:
            zeros = (8 - self.zero_code) * scales
            return codes, scales.to(dtype), (zeros if self.zeros is None else zeros + self.zeros.float()).to(dtype)
        scales = scales.to(dtype)  # rounded first: both halves have the very same
        return (
            torch.cat((codes >> 4, codes & 15), dim=1),
            torch.cat((16 * scales, scales), dim=1),
            torch.cat((torch.zeros_like(scales), 8 * scales), dim=1),
        )


RowsOfCodes = Callable[[int, int], CodedRows]
"""Gives the codes of rows [start, end)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedCodes:
    """A matrix of codes that takes no more room than it must, on any device."""

    packed: torch.Tensor
    """(n_rows, n_groups, GROUP) uint8; of 4 bits half as many, the first 16 codes of a group in the low halves."""
    scales: torch.Tensor
    """(n_rows, n_groups), as in `CodedRows`."""
    zeros: torch.Tensor | None
    zero_code: int

    @property
    def n_bits(self) -> int:
        """Bits of a code."""
        return 8 * self.packed.shape[-1] // GROUP

    def rows(self, start: int, end: int) -> CodedRows:
        """The codes of rows [start, end)."""
        return self.pick(slice(start, end))

    def pick(self, rows: slice | torch.Tensor) -> CodedRows:
        """The codes of these rows."""
        packed = self.packed[rows]
        return CodedRows(
            n_bits=self.n_bits,
            codes=packed if self.n_bits == 8 else halves(packed),
            scales=self.scales[rows],
            zeros=None if self.zeros is None else self.zeros[rows],
            zero_code=self.zero_code,
        )


def pack_codes(n_rows: int, coded: RowsOfCodes, device: torch.device) -> PackedCodes:
    """The codes of all rows of a matrix, asked for a few hundred at a time."""
    first = coded(0, min(n_rows, ROWS_AT_ONCE))
    n_groups, has_zeros = first.codes.shape[1], first.zeros is not None
    packed = torch.empty((n_rows, n_groups, GROUP * first.n_bits // 8), dtype=torch.uint8, device=device)
    scales = torch.empty((n_rows, n_groups), dtype=first.scales.dtype, device=device)
    zeros = torch.empty_like(scales) if has_zeros else None
    for start in range(0, n_rows, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, n_rows)
        part = coded(start, end) if start else first
        low, high = part.codes.chunk(2, dim=-1)
        packed[start:end] = part.codes if part.n_bits == 8 else low | (high << 4)
        scales[start:end] = part.scales
        if zeros is not None and part.zeros is not None:
            zeros[start:end] = part.zeros
    return PackedCodes(packed=packed, scales=scales, zeros=zeros, zero_code=first.zero_code)


def halves(packed: torch.Tensor) -> torch.Tensor:
    """The low halves of the bytes, then the high ones."""
    return torch.cat((packed & 15, packed >> 4), dim=-1)


def full_precision_coded(values: torch.Tensor, n_bits: int) -> CodedRows:
    """Round rows (n_rows, n_columns) to codes; the scales and zeros are ones that bfloat16 holds.

    8 bits: symmetric, by the largest of each group. 4 bits: from the smallest to the largest of each group. (Trying
    whether cutting off the largest makes the others finer took the error down by a sixtieth, in twice the time.)
    """
    groups = values.float().view(values.shape[0], -1, GROUP)
    if n_bits == 8:
        return _rounded(groups, (groups.abs().amax(-1) / 127).bfloat16(), None, n_bits)
    smallest, largest = groups.aminmax(dim=-1)
    scales = ((largest - smallest) / 15).bfloat16()
    zeros = ((largest + smallest + scales.float()) / 2).bfloat16()  # the middle is between codes 7 and 8
    return _rounded(groups, scales, zeros, n_bits)


def _rounded(groups: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, n_bits: int) -> CodedRows:
    middle = 1 << (n_bits - 1)
    inverse = torch.where(scales == 0, 0.0, 1 / scales.float())
    steps = (groups if zeros is None else groups - zeros.float()[..., None]) * inverse[..., None]
    steps.round_().add_(middle).clamp_(0 if n_bits == 4 else 1, 2 * middle - 1)
    codes = steps.to(torch.uint8)
    return CodedRows(n_bits=n_bits, codes=codes, scales=scales, zeros=zeros, zero_code=middle)
