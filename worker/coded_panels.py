"""Matrices of codes in panels, for kernels of our own.

The input is brought to whole numbers of 16 bits, 32 of which share a scale. That loses a hundredth of what rounding
the largest of them to bfloat16 loses. So products of a group are sums of whole numbers, and exact; with the scales,
which stay in the 16 bits that they came in, sums are float32. A code of 8 bits is one of 8 here, not two of 4.
"""

from __future__ import annotations

import torch
from torch import nn

from worker.codes import GROUP, ROWS_AT_ONCE, CodedRows, RowsOfCodes
from worker.kernels import KINDS, Call, check_input, kernels
from worker.panels import PANEL
from worker.quantised_matrix import CodedMatrix

_PAIRS, _HALF = GROUP // 2, PANEL // 2
_LOOKED_UP_AT_ONCE = 2048


class CodedPanels(CodedMatrix):
    """A matrix of codes in panels; the last is filled up with zeros."""

    def __init__(self, n_rows: int, n_columns: int, n_bits: int, coded: RowsOfCodes, *, dtype: torch.dtype) -> None:
        """`dtype`: of the input, and of what is looked up; float32 or bfloat16."""
        super().__init__(n_rows, n_columns, n_bits)
        self.dtype = dtype
        self._multiply = kernels().multiply_coded
        first = coded(0, min(n_rows, ROWS_AT_ONCE))
        n_panels, n_groups = -(-n_rows // PANEL), n_columns // GROUP
        packed = torch.zeros((n_panels, n_groups, PANEL * GROUP * n_bits // 8), dtype=torch.uint8)
        scales = torch.zeros((n_panels, n_groups, PANEL), dtype=first.scales.dtype)
        zeros = None if first.zeros is None else torch.zeros_like(scales)
        self.zero_code = first.zero_code if n_bits == 4 else 0
        """Of the codes as they lie here; from those of 8 bits theirs is taken off."""
        for start in range(0, n_rows, ROWS_AT_ONCE):
            part = coded(start, min(start + ROWS_AT_ONCE, n_rows)) if start else first
            panels = slice(start // PANEL, start // PANEL - (-len(part.codes) // PANEL))
            packed[panels] = _packed(part)
            scales[panels] = _by_panels(part.scales)
            if zeros is not None and part.zeros is not None:
                zeros[panels] = _by_panels(part.zeros)
        self.packed = nn.Parameter(packed, requires_grad=False)
        # buffers: the type of a model's parameters is taken for what it computes in
        self.register_buffer("scales", scales)
        self.register_buffer("zeros", zeros)
        self._tensors = (self.packed, scales, zeros)
        """The same: a module takes longer to look up one of its own than a small product takes."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """By the kernel, however many rows `x` has."""
        x = x.contiguous()
        result = x.new_empty((*x.shape[:-1], self.n_rows))
        multiply, arguments = self.into(x, result)
        multiply(*arguments)
        return result

    def into(self, x: torch.Tensor, result: torch.Tensor) -> Call:
        """What puts the product of `x`, without gaps, into `result`, (..., n_rows) without gaps.

        Raises:
            ValueError: these aren't for such a matrix.
        """
        check_input(x, self.dtype, self.n_columns)
        packed, scales, zeros = self._tensors
        return self._multiply, (
            x.data_ptr(),
            0,
            result.data_ptr(),
            x.numel() // self.n_columns,
            self.n_rows,
            self.n_columns,
            packed.data_ptr(),
            scales.data_ptr(),
            0 if zeros is None else zeros.data_ptr(),
            KINDS[self.dtype],
            KINDS[scales.dtype],
            self.n_bits,
            self.zero_code,
            torch.get_num_threads(),
        )

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Looked up, then multiplied out."""
        flat = ids.reshape(-1)
        panels, places = flat // PANEL, flat % PANEL
        packed, scales, zeros = self._tensors
        if self.n_bits == 8:
            codes = packed.view(len(packed), -1, _PAIRS, PANEL, 2)[panels, :, :, places]
        else:
            halves = packed.view(len(packed), -1, _PAIRS, _HALF, 2)[panels, :, :, places % _HALF]
            codes = torch.where((places < _HALF)[:, None, None, None], halves & 15, halves >> 4)
        coded = CodedRows(
            n_bits=self.n_bits,
            codes=codes.flatten(2),
            scales=scales[panels, :, places],
            zeros=None if zeros is None else zeros[panels, :, places],
            zero_code=self.zero_code,
        )
        return coded.few_values(self.dtype).view(*ids.shape, self.n_columns)

    def dense(self) -> torch.Tensor:
        """Looked up a part at a time."""
        return torch.cat([self.rows(part) for part in torch.split(torch.arange(self.n_rows), _LOOKED_UP_AT_ONCE)])


def _packed(part: CodedRows) -> torch.Tensor:
    """(n_panels, n_groups, bytes): of each two columns the codes of 16 rows, two of 4 bits in a byte."""
    by_panels = _by_panels(part.codes).view(-1, part.codes.shape[1], PANEL, _PAIRS, 2).transpose(2, 3)
    if part.n_bits == 8:
        return (by_panels - part.zero_code).flatten(2)  # bytes wrap round, as signed ones do
    return (by_panels[..., :_HALF, :] | (by_panels[..., _HALF:, :] << 4)).flatten(2)


def _by_panels(rows: torch.Tensor) -> torch.Tensor:
    """From (n_rows, n_groups, ...) to (n_panels, n_groups, PANEL, ...)."""
    n_missing = -len(rows) % PANEL
    if n_missing:
        rows = torch.cat((rows, rows.new_zeros((n_missing, *rows.shape[1:]))))
    return rows.view(-1, PANEL, *rows.shape[1:]).transpose(1, 2)
